"""Votes of the nearest neighbors by cosine.

Shapes: Q queries, N bank rows, F features, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslgh.functional.checks import check_labels, check_positive, in_float32, shapes

# Similarities held at once: 64 MiB of float32, whatever the size of the bank.
CHUNK = 2**24


@in_float32
def nearest_neighbor_votes(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    neighbors: int,
    temperature: float | None = None,
    leave_one_out: bool = False,
) -> Tensor:
    """Share of the votes that every class gets from the nearest neighbors of a query, shape (Q, C), float32.

    The bank (N, F) votes with its labels (N,), integers in [0, C); neither it nor the queries (Q, F) need be
    normalized. A vote is exp(cosine / temperature) (Wu et al., arXiv:1805.01978, section 3.4, with 0.1 and 200
    neighbors), or 1 without. ``leave_one_out``: the queries are the bank, row by row, and none votes for itself.

    Raises:
        ValueError: If shapes disagree or ``neighbors`` or ``temperature`` is out of range.

    Examples:
        Of the three rows nearest to (1, 0) one has label 0 and two have label 1:

        >>> bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.2], [0.0, 1.0]])
        >>> query, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0, 1, 1, 0])
        >>> nearest_neighbor_votes(query, bank, labels, num_classes=2, neighbors=3)
        tensor([[0.3333, 0.6667]])
    """
    most = len(bank) - 1 if leave_one_out else len(bank)
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(f"queries and bank must be (Q, F) and (N, F), got {shapes(queries, bank)}")
    check_labels(bank, labels)
    if not 1 <= neighbors <= most:
        raise ValueError(f"neighbors must lie in 1..{most}, the rows that vote, got {neighbors}")
    if temperature is not None:
        check_positive(temperature=temperature)
    if leave_one_out and len(queries) != len(bank):
        raise ValueError(f"leave_one_out needs the bank as queries, got {shapes(queries, bank)}")
    bank, queries = normalize(bank), normalize(queries)
    rows = max(1, CHUNK // len(bank))
    votes = queries.new_zeros(len(queries), num_classes)
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ bank.T
        if leave_one_out:
            similarity.diagonal(start).fill_(-torch.inf)
        nearest, index = similarity.topk(neighbors, dim=1)
        weight = (nearest / temperature).softmax(1) if temperature else torch.ones_like(nearest)
        votes[start : start + rows].scatter_add_(1, labels[index], weight)
    return votes / votes.sum(1, keepdim=True)
