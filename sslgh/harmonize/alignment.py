"""Which cluster is which over refreshes, and the rotation that brings the vertices to the clusters.

Shapes: N samples, K vertices, K' groups (at most K), D embedding width.
"""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sslgh.functional.checks import with_float64

RANK_TOLERANCE = 1e-6  # of the largest singular value; the means are float32
ROUNDS = 100  # the sum of cosines grows every round, so it stands still long before


def keep_identity(labels: Tensor, before: Tensor, num_names: int) -> Tensor:
    """Name clusters as those of an earlier clustering that hold the same samples.

    The linear assignment of the largest number of samples that keep their name. A cluster that shares no
    sample with a free name takes one of those that are left.

    Args:
        labels: New clusters, shape (N,), from 0; -1 for none.
        before: Earlier names, shape (N,), in 0..num_names - 1; -1 for none.
        num_names: Number of names, at least that of the clusters.

    Returns:
        New names, shape (N,), in 0..num_names - 1; -1 for none.

    Raises:
        ValueError: If there are more clusters than names.

    Examples:
        >>> before = torch.tensor([3, 3, 3, 0, 0, -1])
        >>> keep_identity(torch.tensor([1, 1, 0, 0, 0, -1]), before, num_names=5)
        tensor([ 3,  3,  0,  0,  0, -1])
    """
    count = int(labels.max()) + 1 if len(labels) else 0
    if count > num_names:
        raise ValueError(
            f"each cluster needs a name of its own, got {count} clusters for {num_names} names; raise the "
            "number of vertices or lower the number of clusters"
        )
    both = (labels >= 0) & (before >= 0)
    pairs = torch.bincount(labels[both] * num_names + before[both], minlength=count * num_names)
    _, names = linear_sum_assignment(pairs.view(count, num_names).cpu().numpy(), maximize=True)
    return torch.where(labels >= 0, torch.from_numpy(names).to(labels)[labels.clamp(min=0)], -1)


@with_float64
def match_groups(means: Tensor, vertices: Tensor) -> Tensor:
    """Give each group a vertex of its own: the linear assignment of the largest sum of cosines.

    Args:
        means: Directions of the groups, shape (K', D), any length.
        vertices: Shape (K, D), K' <= K.

    Returns:
        Index of the vertex of each group, shape (K',), int64, on the device of ``means``.

    Raises:
        ValueError: If there are more groups than vertices, or the widths differ.

    Examples:
        >>> match_groups(torch.tensor([[0.0, 2.0], [3.0, 1.0]]), torch.eye(2))
        tensor([1, 0])
    """
    _check(means, vertices)
    cosines = (
        F.normalize(means.double(), dim=1)
        @ F.normalize(vertices.double(), dim=1).to(means.device).T
    )
    _, columns = linear_sum_assignment(cosines.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(means.device)


@with_float64
def align_vertices(vertices: Tensor, means: Tensor) -> Tensor:
    """Rotate the vertices onto the group means, keeping all angles between them.

    The mean of the means is subtracted (SSL embeddings share a direction, vertices do not), then
    assignment and orthogonal Procrustes (Schönemann 1966) alternate until the assignment stands
    still. No step lowers the sum of matched cosines, so the result is never worse than no rotation.
    It may be a reflection. A single group rotates nothing.

    Args:
        vertices: Shape (K, D), unit rows.
        means: Shape (K', D), K' <= K.

    Returns:
        Shape (K, D), dtype and device of ``vertices``.

    Raises:
        ValueError: If there are more groups than vertices, or the widths differ.

    Examples:
        Two opposite vertices on the first axis, two groups apart along the second:

        >>> vertices = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> align_vertices(vertices, torch.tensor([[1.0, 3.0], [1.0, -3.0]])).abs().round(decimals=4)
        tensor([[0., 1.],
                [0., 1.]])
    """
    _check(means, vertices)
    if len(means) == 1:  # its own mean is subtracted: no direction is left to rotate to
        return vertices.clone()
    targets = F.normalize((means - means.mean(dim=0)).double().to(vertices.device), dim=1)
    rotated = vertices.double()
    matched = match_groups(targets, rotated)
    for _ in range(ROUNDS):
        rotated = vertices.double() @ _rotation(vertices.double()[matched].T @ targets)
        before, matched = matched, match_groups(targets, rotated)
        if torch.equal(before, matched):
            break
    return rotated.to(vertices.dtype)


def _rotation(cross: Tensor) -> Tensor:
    """The orthogonal map R of the largest trace of R^T ``cross``, (D, D).

    Fewer groups than dimensions leave a part of it free. There it rotates as little as it can: else
    the rounding of the means would decide, and two processes would differ from one.
    """
    left, strength, right = torch.linalg.svd(cross)
    rank = int((strength > RANK_TOLERANCE * strength[0]).sum())
    free_from, free_to = left[:, rank:], right[rank:].T
    inner, _, outer = torch.linalg.svd(free_from.T @ free_to)
    rotation: Tensor = left[:, :rank] @ right[:rank] + free_from @ (inner @ outer) @ free_to.T
    return rotation


def _check(means: Tensor, vertices: Tensor) -> None:
    if means.ndim != 2 or vertices.ndim != 2 or means.shape[1] != vertices.shape[1]:
        raise ValueError(
            f"means (K', D) and vertices (K, D) must share a width, got {tuple(means.shape)} and "
            f"{tuple(vertices.shape)}"
        )
    if len(means) > len(vertices):
        raise ValueError(
            f"each group needs a vertex of its own, got {len(means)} groups for {len(vertices)} vertices; "
            "raise the number of vertices or lower the number of groups"
        )
