"""What an anchor is compared with: the embeddings of all ranks and one proxy per class.

Shapes: N anchors here, M members, D embedding width, C classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import check_labels
from sslgh.functional.nt_xent import Gather


class ContrastSet(NamedTuple):
    """Unit-length anchors, and the members each of them is compared with, itself among them."""

    anchors: Tensor
    """(N, D)"""
    members: Tensor
    """(M, D)"""
    labels: Tensor
    """(M,), classes of the members."""
    same: Tensor
    """(N, M), bool: of the anchor's class."""
    mates: Tensor
    """(N, M), bool: of the anchor's class, but not the anchor."""

    @property
    def others(self) -> Tensor:
        """(N, M), bool: all but the anchor."""
        return self.mates | ~self.same

    def mean_over_mates(self, values: Tensor) -> Tensor:
        """Means over the mates of (N, M) values, (N,); 0 for an anchor without a mate."""
        return values.masked_fill(~self.mates, 0).sum(1) / self.mates.sum(1).clamp(min=1)

    def class_sizes(self, classes: int) -> Tensor:
        """Members of each class, (C,); unlike bincount, without waiting for the device."""
        sizes = self.members.new_zeros(classes)
        return sizes.index_add(0, self.labels, torch.ones_like(self.members[:, 0]))


def contrast_set(
    embeddings: Tensor,
    target: Tensor,
    *,
    classes: int | None = None,
    proxies: Tensor | None = None,
    gather: Gather | None = None,
) -> ContrastSet:
    """Normalize and stack what the anchors are compared with.

    Args:
        embeddings: The anchors, shape (N, D), of any length.
        target: Their classes, shape (N,).
        classes: C, where there are proxies.
        proxies: One more member for each class, shape (C, D); never anchors. The same on all
            processes, so that they are not gathered.
        gather: Stacks over all ranks, with gradient, and returns the first local row.

    Raises:
        ValueError: If shapes do not fit.
    """
    check_labels(embeddings, target)
    anchors = F.normalize(embeddings)
    members, first = gather(anchors) if gather else (anchors, 0)
    labels = gather(target)[0] if gather else target
    if proxies is not None:
        if proxies.shape != (classes, anchors.shape[1]):
            raise ValueError(
                f"proxies must be ({classes}, {anchors.shape[1]}), got {tuple(proxies.shape)}"
            )
        members = torch.cat([members, F.normalize(proxies)])
        labels = torch.cat([labels, torch.arange(len(proxies), device=labels.device)])
    same = target[:, None] == labels
    itself = torch.arange(first, first + len(target), device=target.device)
    return ContrastSet(anchors, members, labels, same, same.scatter(1, itself[:, None], False))
