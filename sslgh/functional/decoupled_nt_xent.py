"""Decoupled contrastive loss: the positive leaves the denominator.

Shapes: N images here, M over all ranks, D embedding width.
"""

from torch import Tensor

from sslgh.functional.checks import check_positive, in_float32
from sslgh.functional.nt_xent import Gather
from sslgh.functional.nt_xent_parts import contrast_pairs


@in_float32
def decoupled_nt_xent(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float,
    sigma: float | None = None,
    gather: Gather | None = None,
) -> Tensor:
    """NT-Xent without the positive in its denominator (DCL, arXiv:2110.06848, eq. 6 and 7).

    -w s(z1, z2) / temperature + log of the sum over both views of all other images, s the cosine.
    w is 1, or with ``sigma`` (DCLW) 2 - M softmax(s(z1, z2) / sigma), the softmax over the M
    images of the batch: pairs that differ count more. w has mean 1 and no gradient, as in the
    reference code and lightly. lightly takes that softmax over the images of one rank; here
    it is over those of all, so that the loss does not depend on their number.

    Args:
        z1: First view, shape (N, D). Need not be normalized.
        z2: Second view, shape (N, D).
        temperature: Divides the cosine similarities; positive.
        sigma: Divides the cosines in the weights; positive. None: no weights.
        gather: Stacks a tensor over all ranks, with gradient, and returns which row is this
            rank's first. None: this rank alone.

    Returns:
        Shape (N,): for each image the mean over its two anchors; may be negative.

    Raises:
        ValueError: If the views differ in shape, ``temperature`` or ``sigma`` is not positive,
            or there is only one image: nothing would be left in the denominator.

    Examples:
        Two identical images: 1 / temperature cancels, and log of the 2 negatives is left.

        >>> import torch
        >>> same = torch.ones(2, 8)
        >>> decoupled_nt_xent(same, same, temperature=0.5)
        tensor([0.6931, 0.6931])
    """
    pairs = contrast_pairs(z1, z2, temperature=temperature, gather=gather)
    images = len(pairs.cosines)
    if images < 2:
        raise ValueError(f"the decoupled loss needs at least 2 images in a batch, got {images}")
    negatives = pairs.negatives.mean(0)
    if sigma is None:
        return negatives - pairs.positive
    check_positive(sigma=sigma)
    shares = (pairs.cosines / sigma).softmax(0)[pairs.first :][: len(z1)]
    return negatives - (2 - images * shares) * pairs.positive
