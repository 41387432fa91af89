"""Supervised contrastive losses: plain, balanced over classes, and rebalanced by class frequency.

Shapes: N images here in V views, D embedding width, C classes.
"""

import torch
from torch import Tensor

from sslgh.functional.checks import check_positive, check_prior, in_float32
from sslgh.functional.contrast_set import ContrastSet, contrast_set
from sslgh.functional.nt_xent import Gather


@in_float32
def supervised_contrastive(
    z: Tensor, labels: Tensor, *, temperature: float, gather: Gather | None = None
) -> Tensor:
    """Supervised contrastive loss (SupCon, L_out of eq. 2, arXiv:2004.11362).

    The mean over positives stands outside the log. Every other view of an image of the same class is a positive; every other view of any
    image, on any rank, stands in the denominator.

    Args:
        z: Shape (N, V, D), V views of each image, of any length. V may be 1.
        labels: Classes, shape (N,).
        temperature: Divides the cosine similarities; positive.
        gather: Stacks a tensor over all ranks and returns which row is this rank's
            first. Gradients must flow through it. None: this rank alone.

    Returns:
        Shape (N,): for each image the mean over its V anchors. 0 where V is 1 and no other
        image is of the class: average over :func:`has_mate` then.

    Raises:
        ValueError: If shapes do not fit or ``temperature`` is not positive.

    Examples:
        Three indistinguishable images: each of the 2 candidates is equally likely. The third
        has no mate.

        >>> supervised_contrastive(torch.ones(3, 1, 8), torch.tensor([4, 4, 1]), temperature=0.1)
        tensor([0.6931, 0.6931, 0.0000])
    """
    gathered = _views(z, labels, None, temperature, gather)
    similarity = gathered.anchors @ gathered.members.T / temperature
    return _out_form(similarity, similarity, gathered).view(z.shape[:2]).mean(1)


@in_float32
def balanced_contrastive(
    z: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    *,
    temperature: float,
    gather: Gather | None = None,
) -> Tensor:
    """Balanced contrastive loss: every class counts once in the denominator (BCL, CVPR 2022).

    After the official code (FlamieZhu/Balanced-Contrastive-Learning), the paper was not at hand:
    SupCon over all views and one prototype per class, where each term of the denominator is
    divided by the number of members of its class, the anchor not counted.

    Args:
        z: Shape (N, V, D), V views of each image, of any length.
        labels: Classes, shape (N,), in [0, C).
        prototypes: Shape (C, D), the same on all ranks. Positives and negatives, so that no
            anchor is without a positive and no class absent; never anchors.
        temperature: Divides the cosine similarities; positive. In the code 0.1 is the default
            and 0.07 what ImageNet-LT is run with.
        gather: As in :func:`supervised_contrastive`.

    Returns:
        Shape (N,): for each image the mean over its V anchors.

    Raises:
        ValueError: If shapes do not fit or ``temperature`` is not positive.

    Examples:
        All rows are equal and each of the 3 classes counts once, however many members:

        >>> z, labels = torch.ones(4, 2, 8), torch.tensor([0, 0, 0, 1])
        >>> balanced_contrastive(z, labels, torch.ones(3, 8), temperature=0.1)
        tensor([1.0986, 1.0986, 1.0986, 1.0986])
    """
    gathered = _views(z, labels, prototypes, temperature, gather)
    share = z.new_zeros(len(prototypes))
    return _class_averaged(gathered, share, temperature).view(z.shape[:2]).mean(1)


@in_float32
def rebalanced_contrastive(
    z: Tensor,
    labels: Tensor,
    prototypes: Tensor,
    class_counts: Tensor,
    *,
    temperature: float,
    gamma: float = 1.0,
    scale: float = 1.0,
    gather: Gather | None = None,
) -> Tensor:
    """Balanced contrastive loss whose denominator follows the class sizes, after RCL (arXiv:2312.01753).

    After *Long-Tail Learning with Rebalanced Contrastive Loss*, which moves the balanced
    softmax into the contrastive loss; its exact form was not at hand. Here class j enters the
    denominator with n_j^gamma times the mean over its members, the anchor left out:

        mean over positives p of -log(exp(s_ip) / sum over j of n_j^gamma * mean over k in j of exp(s_ik))

    with s the scaled cosine over ``temperature``. The paper also multiplies features by a
    scalar. After the L2 normalization, samples and prototypes alike, that is exactly a
    temperature of ``temperature / scale^2``, and before it nothing at all: compare with a
    tuned temperature. A factor on the counts adds a constant.

    Args:
        z: Shape (N, V, D), V views of each image, of any length.
        labels: Classes, shape (N,), in [0, C), each with a positive count.
        prototypes: Shape (C, D), as in :func:`balanced_contrastive`.
        class_counts: n, training images or shares of the classes, shape (C,). A class of count
            0 leaves the denominator, unless ``gamma`` is 0.
        temperature: Divides the scaled similarities; positive.
        gamma: Strength of the balance. 0 with ``scale`` 1 is :func:`balanced_contrastive`.
        scale: Multiplies the normalized embeddings; positive.
        gather: As in :func:`supervised_contrastive`.

    Returns:
        Shape (N,): for each image the mean over its V anchors.

    Raises:
        ValueError: If shapes do not fit, ``temperature`` or ``scale`` is not positive or
            ``gamma`` is negative.

    Examples:
        All rows are equal, and class 0 has three images of four: log(3 + 1).

        >>> z, labels, counts = torch.ones(2, 2, 8), torch.tensor([0, 1]), torch.tensor([3, 1])
        >>> rebalanced_contrastive(z, labels, torch.ones(2, 8), counts, temperature=0.1)
        tensor([1.3863, 1.3863])
    """
    check_positive(scale=scale)
    if not gamma >= 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    gathered = _views(z, labels, prototypes, temperature, gather)
    check_prior(class_counts, len(prototypes))
    share = gamma * class_counts.to(z.dtype).log() if gamma else z.new_zeros(len(prototypes))
    return _class_averaged(gathered, share, temperature / scale**2).view(z.shape[:2]).mean(1)


def _views(
    z: Tensor, labels: Tensor, prototypes: Tensor | None, temperature: float, gather: Gather | None
) -> ContrastSet:
    """Every view an anchor."""
    check_positive(temperature=temperature)
    if z.ndim != 3 or labels.shape != z.shape[:1]:
        raise ValueError(
            f"expected z (N, V, D) with labels (N,), got {tuple(z.shape)} and {tuple(labels.shape)}"
        )
    each = labels.repeat_interleave(z.shape[1])
    classes = None if prototypes is None else len(prototypes)
    return contrast_set(z.flatten(0, 1), each, classes=classes, proxies=prototypes, gather=gather)


def _class_averaged(gathered: ContrastSet, share: Tensor, temperature: float) -> Tensor:
    """The loss whose denominator is the sum over classes of exp(share) times the class's mean."""
    similarity = gathered.anchors @ gathered.members.T / temperature
    # The anchor is no member of its own class's mean; the prototype keeps that from being empty.
    sizes = gathered.class_sizes(len(share))[gathered.labels] - gathered.same.to(similarity)
    return _out_form(similarity, similarity + share[gathered.labels] - sizes.log(), gathered)


def _out_form(similarity: Tensor, weighted: Tensor, gathered: ContrastSet) -> Tensor:
    """Mean over mates of log sum exp ``weighted`` over all others - ``similarity``, (NV,)."""
    others = weighted.masked_fill(~gathered.others, -torch.inf)
    return gathered.mean_over_mates(others.logsumexp(1, keepdim=True) - similarity)
