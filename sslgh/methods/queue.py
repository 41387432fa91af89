"""The newest embeddings of earlier batches, as buffers that a checkpoint holds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.functional.checks import in_float32


class Queue(nn.Module):
    """Unit vectors, first in, first out.

    lightly's memory bank is not used: its buffers are left out of the state, so that a resumed
    run would begin with an empty bank, and of a batch that reaches its end it drops the rest.

    Args:
        size: Rows K.
        dim: Width D.

    Attributes:
        rows: Shape (K, D). At first random directions from torch's generator, as in MoCo: the
            same on every process where the seed is.
        oldest: The row to be replaced next, shape ().
    """

    rows: Tensor
    oldest: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"method.queue must be at least 1, got {size}")
        self.register_buffer("rows", F.normalize(torch.randn(size, dim)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))

    def check(self, rows: int) -> None:
        """Refuse a batch of so many rows that the queue cannot hold.

        Raises:
            ValueError: With the remedy.
        """
        if rows > len(self.rows):
            raise ValueError(
                f"method.queue {len(self.rows)} is smaller than the batch of {rows} images; "
                f"raise method.queue to at least train.batch_size, or lower train.batch_size"
            )

    @torch.no_grad()
    def push(self, batch: Tensor) -> None:
        """Replace the oldest rows by those of the global batch (N, D), of any length; N <= K.

        Raises:
            ValueError: If there are more rows than the queue has.
        """
        self.check(len(batch))
        position = torch.arange(len(batch), device=batch.device) + self.oldest
        fresh = F.normalize(batch.to(self.rows.dtype))
        self.rows.index_copy_(0, position % len(self.rows), fresh)
        self.oldest.add_(len(batch)).remainder_(len(self.rows))

    @torch.no_grad()
    @in_float32
    def nearest(self, z: Tensor) -> Tensor:
        """The row nearest to each of (N, D) by cosine, shape (N, D)."""
        # Equal lengths: the inner product orders as the cosine, and as the distance, does.
        return self.rows[(z.to(self.rows.dtype) @ self.rows.T).argmax(1)]
