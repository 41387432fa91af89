"""What a long-tailed classifier is trained by, and how it decides.

Shapes: N samples, C classes.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sslgh.classify.embedding_terms import (
    EmbeddingTerm,
    TermSettings,
    balanced_term,
    contrast_term,
    hinge_term,
    margin_term,
    pull_term,
    rebalanced_term,
    supervised_term,
)
from sslgh.functional.checks import check_prior
from sslgh.functional.focal import focal_cross_entropy
from sslgh.functional.margin_rules import (
    Margins,
    Rule,
    adaptive_margins,
    adjusted_margins,
    balanced_margins,
    effective_number_margins,
    equalized_margins,
    log_prior,
    plain_margins,
    weighted_adjusted_margins,
)
from sslgh.functional.margins import margin_cross_entropy

# LDAM-DRW reweights from epoch 160 of 200 on (arXiv:1906.07413).
DEFERRED_FROM = 0.8
# Strength of the embedding term: BCL's ImageNet code has 0.35, the nearest public value (facts 1.7).
EMBEDDING_WEIGHT = 0.35

# Shares that were rounded to three digits still pass.
SUM_TOLERANCE = 1e-3
# Rules whose optimum is the posterior, shifted by what is known: row = -column (LA, Theorem 1).
SHIFTABLE: frozenset[Rule] = frozenset(
    {
        plain_margins,
        balanced_margins,
        effective_number_margins,
        adjusted_margins,
        weighted_adjusted_margins,
    }
)


@dataclass(frozen=True)
class Objective:
    """One way to get a long-tailed classifier: a loss, and a decision.

    Attributes:
        margins: Class shares to the margins and weights of the loss.
        focus: Exponent of the focal loss; 0 is cross-entropy. Of the margins only the weights then count.
        deferred: The rule from `DEFERRED_FROM` of the epochs on; None: ``margins`` to the end.
        embedding: Term on the embeddings that the classifier reads; None: none.
        embedding_weight: Factor of that term.
        term: Temperature and balance of that term; its tau is the objective's.
        contrast_heads: Heads of a network for two contrast views of their own; empty: the term reads the
            features of the classifier's view.
        head: Objective whose trained head is used; None: one of its own is trained.
        sampling: How images are drawn: uniformly over images, or over classes.
        decision: Scores are the ``logits``, logits ``adjusted`` post hoc, those of ``normalized``
            class weights, or cosines to the class ``means``.
        reads: Settings of finetuning that some objectives read and this one does. A tau that is not read is 1
            wherever it enters.
    """

    margins: Rule = plain_margins
    focus: float = 0.0
    deferred: Rule | None = None
    embedding: EmbeddingTerm | None = None
    embedding_weight: float = EMBEDDING_WEIGHT
    term: TermSettings = field(default_factory=TermSettings)
    contrast_heads: tuple[str, ...] = ()
    head: str | None = None
    sampling: Literal["instance", "class-balanced"] = "instance"
    decision: Literal["logits", "adjusted", "normalized", "means"] = "logits"
    reads: frozenset[str] = frozenset()

    @property
    def takes_tau(self) -> bool:
        """Whether a strength is read."""
        return "tau" in self.reads

    @property
    def trains_network(self) -> bool:
        """Whether a whole network can be trained by it; others decide by, or retrain, the head of one trained with ce."""
        return self.head is None and self.sampling == "instance" and self.decision == "logits"

    @property
    def rescales(self) -> bool:
        """Whether one factor per class is learned on top of the head of another objective."""
        return self.head is not None and self.sampling != "instance"

    @property
    def shifts(self) -> bool:
        """Whether the scores can be brought to another test prior: what the logits estimate is known."""
        consistent = self.margins in SHIFTABLE and self.deferred is None and self.focus == 0
        return consistent and self.decision in {"logits", "adjusted"}

    def margins_of(
        self,
        prior: Tensor,
        *,
        tau: float = 1.0,
        num_samples: int | None = None,
        deferred: bool = False,
    ) -> Margins:
        """The margins (C,) of the loss, or of its deferred part; arguments as in :meth:`loss`."""
        rule = self.deferred if deferred and self.deferred is not None else self.margins
        return rule(prior, tau=tau if self.takes_tau else 1.0, num_samples=num_samples)

    def loss(
        self,
        logits: Tensor,
        target: Tensor,
        prior: Tensor,
        *,
        tau: float = 1.0,
        num_samples: int | None = None,
        deferred: bool = False,
    ) -> Tensor:
        """The loss on the logits, for any training loop; the embedding term comes on top.

        Args:
            logits: Shape (N, C).
            target: Classes, shape (N,), each with a positive share.
            prior: Class shares of the training set, shape (C,). On the CPU their sum is checked;
                elsewhere that would wait for the device at every step, and it is the caller's.
            tau: Strength, where the objective takes one.
            num_samples: Size of the training set, for the effective number of samples.
            deferred: Whether `DEFERRED_FROM` of the training is over.

        Returns:
            Shape (N,).

        Raises:
            ValueError: If shapes do not fit, shares do not sum to 1, a label (on the CPU) is no class of
                positive share, or ``num_samples`` is missing.

        Examples:
            A rare class must beat a common one by the log of their ratio to break even:

            >>> logits, target = torch.zeros(1, 2), torch.tensor([1])
            >>> OBJECTIVES["la"].loss(logits, target, torch.tensor([0.75, 0.25])).exp()
            tensor([4.])
        """
        if prior.device.type == "cpu":
            check_shares(prior)
            check_prior(prior, logits.shape[1])
            _check_targets(target, prior)
        # Margins stay in float32 under autocast: log pi to three digits would be another prior.
        exact = prior.to(logits.device, torch.promote_types(logits.dtype, torch.float32))
        margins = self.margins_of(exact, tau=tau, num_samples=num_samples, deferred=deferred)
        if self.focus:
            inside = logits + margins.column  # no margins: 0, or -inf for a class that leaves
            return focal_cross_entropy(inside, target, gamma=self.focus, weight=margins.weight)
        pair = margins.row, margins.column
        return margin_cross_entropy(logits, target, margin=pair, weight=margins.weight)

    def adjustment(
        self,
        prior: Tensor,
        *,
        tau: float = 1.0,
        num_samples: int | None = None,
        test_prior: Tensor | None = None,
    ) -> Tensor:
        """What is added to trained logits before the largest is taken, shape (C,).

        Args:
            prior: Class shares of the training set, shape (C,). A class of share 0 gets -inf.
            tau: As in training.
            num_samples: Size of the training set, for the effective number of samples.
            test_prior: Class shares to decide for, shape (C,): the adjusted logits are then the log
                posterior under them, up to a constant. None: as the objective decides.

        Raises:
            ValueError: If shares do not sum to 1, or what the logits estimate is not known.

        Examples:
            The logit-adjusted loss aims at equal shares already:

            >>> OBJECTIVES["la"].adjustment(torch.tensor([0.75, 0.25]))
            tensor([0., 0.])
        """
        check_shares(prior)
        tau = tau if self.takes_tau else 1.0
        strength = tau if self.decision == "adjusted" else 1.0
        given = log_prior(prior, strength, len(prior))
        present = prior > 0
        if test_prior is None:
            shift = -given if self.decision == "adjusted" else torch.zeros_like(given)
            return shift.where(present, -torch.inf)
        if not self.shifts:
            raise ValueError(
                "what the logits estimate is not known, so that they cannot be brought to a test prior; "
                f"objectives that can: {', '.join(name for name, o in OBJECTIVES.items() if o.shifts)}"
            )
        check_shares(test_prior)
        wanted = log_prior(test_prior.to(prior), strength, len(prior))
        if self.sampling == "class-balanced":
            return wanted.where(present, -torch.inf)  # equal shares were trained on
        margins = self.margins_of(prior, tau=tau, num_samples=num_samples)
        posterior = margins.column - margins.weight.log()
        return (posterior - given + wanted).where(present, -torch.inf)


def check_shares(prior: Tensor) -> None:
    """Raise ``ValueError`` unless ``prior`` is (C,), not negative, and sums to 1; synchronizes with the device.

    Examples:
        >>> check_shares(torch.tensor([2.0, 1.0]))
        Traceback (most recent call last):
        ValueError: class shares must not be negative and sum to 1, got a sum of 3 and a smallest of 1
    """
    if prior.ndim != 1 or len(prior) == 0:
        raise ValueError(f"class shares must have shape (C,), got {tuple(prior.shape)}")
    total, smallest = prior.double().sum().item(), prior.min().item()
    if not (abs(total - 1) < SUM_TOLERANCE and smallest >= 0):
        raise ValueError(
            "class shares must not be negative and sum to 1, "
            f"got a sum of {total:.4g} and a smallest of {smallest:.4g}"
        )


def _check_targets(target: Tensor, prior: Tensor) -> None:
    """Refuse labels that are no class, or a class of share 0 in the prior."""
    if not target.numel() or target.device.type != "cpu" or target.is_floating_point():
        return
    low, high = target.min().item(), target.max().item()
    if low < 0 or high >= len(prior):
        raise ValueError(f"labels must lie in 0..{len(prior) - 1}, got {low}..{high}")
    if (lost := target[prior[target] == 0]).numel():
        raise ValueError(f"class {lost[0].item()} is a label, but its share in the prior is 0")


def _deferred_weights(
    prior: Tensor, *, tau: float = 1.0, num_samples: int | None = None
) -> Margins:
    """LDAM's margins with weights by the effective number, its second stage.

    The weights are 1 in the mean over the samples: LDAM's code divides by the weights of a batch.
    """
    weight = effective_number_margins(prior, num_samples=num_samples).weight
    return adaptive_margins(prior, tau=tau)._replace(weight=weight / (prior * weight).sum())


# Cross-entropy, and weights instead of margins.  la: the logit-adjusted loss (arXiv:2007.07314, eq. 10); la-posthoc:
# the head of ce, adjusted afterwards (eq. 9); la-weighted: consistent for tau != 1 too; balanced-softmax
# (arXiv:2007.10740): la with tau 1.  ldam: margins as LA's table has them, on plain logits.  tau-norm, crt, lws, ncm:
# Kang et al., arXiv:1910.09217.  elm: after Embedding and Logit Margins for Long-Tail Learning (arXiv:2204.13208),
# whose exact form was not at hand: the LA loss plus a term on the embeddings, the four variants of the facts.  supcon,
# bcl (CVPR 2022), rcl (after arXiv:2312.01753, exact form not at hand): the LA loss plus that contrastive term.
TAU = frozenset({"tau"})
TERM = TAU | {"embedding_weight"}
TERM_WITH_TEMPERATURE = TERM | {"temperature"}
# SupCon has no prototypes: a head without gradient would stop DDP.
PROTOTYPES = ("projector", "prototype_head")
OBJECTIVES: dict[str, Objective] = {
    "ce": Objective(),
    "balanced": Objective(balanced_margins),
    "effective": Objective(effective_number_margins),
    "focal": Objective(focus=2.0),
    "la": Objective(adjusted_margins, reads=TAU),
    "la-posthoc": Objective(head="ce", decision="adjusted", reads=TAU),
    "la-weighted": Objective(weighted_adjusted_margins, reads=TAU),
    "balanced-softmax": Objective(adjusted_margins),
    "ldam": Objective(adaptive_margins, reads=TAU),
    "ldam-drw": Objective(
        adaptive_margins, deferred=_deferred_weights, reads=TAU | {"deferred_epoch"}
    ),
    "equalized": Objective(equalized_margins, reads=TAU),
    "tau-norm": Objective(head="ce", decision="normalized", reads=TAU),
    "crt": Objective(sampling="class-balanced"),
    "lws": Objective(head="ce", sampling="class-balanced"),
    "ncm": Objective(decision="means"),
    "elm": Objective(adjusted_margins, embedding=margin_term, reads=TERM_WITH_TEMPERATURE),
    "elm-contrast": Objective(
        adjusted_margins, embedding=contrast_term, reads=TERM_WITH_TEMPERATURE
    ),
    "elm-hinge": Objective(adjusted_margins, embedding=hinge_term, reads=TERM),
    "elm-pull": Objective(adjusted_margins, embedding=pull_term, reads=TERM),
    "supcon": Objective(
        adjusted_margins,
        embedding=supervised_term,
        contrast_heads=("projector",),
        reads=TERM_WITH_TEMPERATURE,
    ),
    "bcl": Objective(
        adjusted_margins,
        embedding=balanced_term,
        contrast_heads=PROTOTYPES,
        reads=TERM_WITH_TEMPERATURE,
    ),
    "rcl": Objective(
        adjusted_margins,
        embedding=rebalanced_term,
        contrast_heads=PROTOTYPES,
        reads=TERM_WITH_TEMPERATURE | {"gamma", "scale"},
    ),
}
