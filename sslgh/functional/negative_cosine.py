"""SimSiam's loss: one view predicts the other, which does not answer."""

import torch.nn.functional as F
from torch import Tensor

from sslgh.functional.checks import check_views, in_float32


@in_float32
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Negative cosine similarity with the target held still (SimSiam, eq. 1, arXiv:2011.10566).

    The stop-gradient of eq. 3 is inside: no gradient reaches ``target``, without which the
    embeddings collapse to one point.

    Args:
        prediction: Predictor output of one view, shape (N, D).
        target: Projector output of the other view, shape (N, D).

    Returns:
        Shape (N,), each in [-1, 1].

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> import torch
        >>> negative_cosine(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([-0.6000])
    """
    check_views(prediction, target)
    return -F.cosine_similarity(prediction, target.detach(), dim=1)
