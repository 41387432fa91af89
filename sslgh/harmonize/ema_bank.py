"""Per-sample EMA bank, indexed by dataset position."""

import torch
from torch import Tensor, nn

from sslgh.distributed import dist_info, gather


class EmaBank(nn.Module):
    """Exponential moving average of one row per sample, kept on rank 0.

    A sample's first row is taken as it is: nothing is ever read from uninitialized memory. A sample that
    occurs twice in a step counts once, the first finite row in rank order; rows that are not finite are left out.

    Args:
        num_samples: N, size of the training set.
        width: W, numbers per sample.
    """

    rows: Tensor
    seen: Tensor

    def __init__(self, num_samples: int, width: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        kept = num_samples if dist_info().rank == 0 else 0
        self.register_buffer("rows", torch.zeros(kept, width))
        self.register_buffer("seen", torch.zeros(kept, dtype=torch.bool))

    @torch.no_grad()
    def update(self, rows: Tensor, index: Tensor, *, momentum: float) -> None:
        """Keep ``momentum`` of the rows at ``index`` (n,), blend in (n, W). Collective: call it on every rank."""
        rows, _ = gather(rows.detach().float())
        index, _ = gather(index.to(rows.device))
        if dist_info().rank != 0 or len(index) == 0:
            return
        count = len(index)  # nothing below waits for the device
        position = torch.arange(count, device=rows.device)
        position = torch.where(rows.isfinite().all(1), position, count)
        first = torch.full((self.num_samples,), count, device=rows.device)
        source = first.scatter_reduce(0, index, position, "amin")[index]
        valid = source < count
        # Every occurrence of a sample writes the same row, so the order of writing is free.
        fresh = torch.where(valid[:, None], rows[source.clamp(max=count - 1)], 0)
        old, known = self.rows[index], self.seen[index]
        blended = torch.where(known[:, None], old.lerp(fresh, 1 - momentum), fresh)
        self.rows[index] = torch.where(valid[:, None], blended, old)
        self.seen[index] = known | valid

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object
    ) -> None:
        if dist_info().rank != 0:  # checkpoints come from rank 0; the others keep no rows
            state_dict[f"{prefix}rows"], state_dict[f"{prefix}seen"] = self.rows, self.seen
        super()._load_from_state_dict(state_dict, prefix, *args)
