"""How tightly the embeddings of a class lie together.

Shapes: N samples, D embedding width, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sslgh.functional.precision import in_float32
from sslgh.functional.shapes import check_labels


@in_float32
def class_tightness(z: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean squared distance between two images of a class on the unit sphere; smaller is tighter.

    Over all pairs of different images this is 2 n/(n-1) (1 - |mean|^2). Without the factor n/(n-1) a class of five
    training images would look a fifth tighter than it is. It is at most 2 n/(n-1), and 2 in the mean for directions
    drawn uniformly. Our measure of what *Embedding and Logit Margins* (arXiv:2204.13208) calls diffuse; the paper's
    own was not at hand.

    Args:
        z: Shape (N, D). Need not be normalized.
        labels: Shape (N,), integers in [0, C).
        num_classes: C.

    Returns:
        Shape (C,), float32; nan for a class of fewer than two images.

    Raises:
        ValueError: If the shapes disagree.

    Examples:
        The two images of class 0 point the same way, those of class 1 opposite ways (distance 2):

        >>> z = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
        >>> class_tightness(z, torch.tensor([0, 0, 1, 1, 2]), 3)
        tensor([0., 4., nan])
    """
    check_labels(z, labels)
    z = normalize(z, dim=1)
    counts = torch.bincount(labels, minlength=num_classes)
    means = z.new_zeros(num_classes, z.shape[1]).index_add(0, labels, z) / counts[:, None].clamp(
        min=1
    )
    # Squared deviations instead of 1 - |mean|^2, which cancels for tight classes.
    squares = (z - means[labels]).square().sum(1)
    spread = z.new_zeros(num_classes).index_add(0, labels, squares)
    tightness = 2 * spread / (counts - 1).clamp(min=1)
    return tightness.where(counts > 1, torch.nan)
