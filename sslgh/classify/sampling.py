"""The order in which heads see the samples: one for each seed.

Shapes: S seeds, N samples.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sslgh.data.class_sampling import class_sampling


def orders(
    labels: Tensor, kind: Literal["instance", "class-balanced"], *, seeds: int, epochs: int
) -> Iterator[Tensor]:
    """Rows (S, N) of every epoch, on the device of the labels.

    Args:
        labels: Shape (N,).
        kind: ``instance``: every sample once an epoch; ``class-balanced``: every class as often.
        seeds: S; the order of seed s is the same whatever seeds are beside it.
        epochs: How many epochs.

    Examples:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 1])
        >>> [rows.shape for rows in orders(labels, "instance", seeds=2, epochs=1)]
        [torch.Size([2, 6])]
        >>> next(orders(labels, "class-balanced", seeds=1, epochs=1)).eq(5).sum()
        tensor(3)
    """
    if kind == "instance":
        generators = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
        for _ in range(epochs):
            rows = [torch.randperm(len(labels), generator=generator) for generator in generators]
            yield torch.stack(rows).to(labels.device)
        return
    classes = labels.cpu().numpy().astype(np.int64)
    draws = [class_sampling(classes, kind, seed=seed, epochs=epochs) for seed in range(seeds)]
    for epoch in range(epochs):
        rows = [torch.from_numpy(draw(epoch)) for draw in draws]
        yield torch.stack(rows).to(labels.device)
