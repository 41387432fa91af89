import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslgh.functional import (
    Margins,
    adaptive_margins,
    adjusted_margins,
    balanced_margins,
    effective_number_margins,
    equalized_margins,
    logit_adjusted_cross_entropy,
    margin_cross_entropy,
    plain_margins,
    weighted_adjusted_margins,
)

COUNTS = [700, 200, 70, 30]
PRIOR = torch.tensor(COUNTS, dtype=torch.float64) / 1000
ABSENT = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
RULES = {
    "plain": plain_margins,
    "balanced": balanced_margins,
    "effective": effective_number_margins,
    "adjusted": adjusted_margins,
    "weighted": weighted_adjusted_margins,
    "adaptive": adaptive_margins,
    "equalized": equalized_margins,
}


def margins(name: str, prior: Tensor = PRIOR, tau: float = 1.0) -> Margins:
    return RULES[name](prior, tau=tau, num_samples=1000)


def problem(n: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, 4, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), torch.randint(4, (n,), generator=generator)


def loss(found: Margins, logits: Tensor, target: Tensor) -> Tensor:
    return margin_cross_entropy(
        logits, target, margin=(found.row, found.column), weight=found.weight
    )


def table(name: str, y: int, other: int, tau: float) -> tuple[float, float]:
    """Delta_yy' and alpha_y, one cell of LA's table at a time."""
    pi = [count / 1000 for count in COUNTS]
    ratio = tau * math.log(pi[other] / pi[y])
    effective = [(1 - 0.9999**n) / (1 - 0.9999) for n in COUNTS]
    return {
        "plain": (0.0, 1.0),
        "balanced": (0.0, 1 / (4 * pi[y])),
        "effective": (0.0, 4 / effective[y] / sum(1 / e for e in effective)),
        "adjusted": (ratio, 1.0),
        "weighted": (ratio, pi[y] ** (tau - 1) / sum(p**tau for p in pi)),
        "adaptive": (tau * pi[y] ** -0.25, 1.0),
        "equalized": (math.log(pi[other] ** tau), 1.0),
    }[name]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_its_row_of_the_table(name, tau) -> None:
    logits, target = problem()
    expected = []
    for f, y in zip(logits.tolist(), target.tolist(), strict=True):
        total = 1.0
        for other in set(range(4)) - {y}:
            delta, _ = table(name, y, other, tau)
            total += math.exp(delta + f[other] - f[y])
        expected.append(table(name, y, y, tau)[1] * math.log(total))
    found = loss(margins(name, tau=tau), logits, target)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_of_every_rule_agrees_with_finite_differences(name) -> None:
    logits, target = problem(4)
    assert torch.autograd.gradcheck(lambda f: loss(margins(name, ABSENT), f, target), logits)


@pytest.mark.parametrize("name", ["plain", "adjusted", "adaptive", "equalized"])
def test_without_strength_the_unweighted_rules_are_cross_entropy(name) -> None:
    logits, target = problem()
    found = loss(margins(name, tau=0.0), logits, target)
    torch.testing.assert_close(found, cross_entropy(logits, target, reduction="none"))


def test_the_adjusted_rule_is_the_logit_adjusted_loss() -> None:
    logits, target = problem()
    found = loss(margins("adjusted", tau=1.5), logits, target)
    torch.testing.assert_close(found, logit_adjusted_cross_entropy(logits, target, PRIOR, tau=1.5))


def test_the_weighted_rule_runs_from_balanced_weights_to_the_adjusted_loss() -> None:
    for tau, name in ((0.0, "balanced"), (1.0, "adjusted")):
        torch.testing.assert_close(margins("weighted", tau=tau), margins(name, tau=tau))


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = torch.arange(4).repeat_interleave(torch.tensor(COUNTS)).numpy()
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    torch.testing.assert_close(margins("balanced").weight, torch.from_numpy(expected))


@pytest.mark.parametrize("prior", [PRIOR, ABSENT])
def test_weights_average_to_one_over_samples_or_over_classes(prior) -> None:
    one = torch.ones((), dtype=torch.float64)
    for name, tau in (("balanced", 1.0), ("weighted", 0.5), ("weighted", 2.0)):
        torch.testing.assert_close((prior * margins(name, prior, tau).weight).sum(), one)
    torch.testing.assert_close(margins("effective", prior).weight[prior > 0].mean(), one)


def test_effective_numbers_run_from_balanced_weights_to_none() -> None:
    few = effective_number_margins(PRIOR, num_samples=1).weight
    torch.testing.assert_close(few / few.mean(), _relative("balanced"), rtol=1e-3, atol=0)
    many = effective_number_margins(PRIOR, num_samples=10**9).weight
    torch.testing.assert_close(many, torch.ones(4, dtype=torch.float64))


def _relative(name: str) -> Tensor:
    weight = margins(name).weight
    return weight / weight.mean()


def test_effective_numbers_of_single_images_keep_their_digits_in_float32() -> None:
    prior = torch.tensor([1, 2, 3, 4]) / 10
    single = effective_number_margins(prior, num_samples=10).weight
    exact = effective_number_margins(prior.double(), num_samples=10).weight
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", RULES)
def test_a_class_without_share_has_no_weight_and_nothing_is_nan(name, tau) -> None:
    found = margins(name, ABSENT, tau)
    assert found.row[1] == 0
    assert found.weight[1] == 0
    assert found.column[1] == -torch.inf
    assert found.row.isfinite().all()
    assert found.weight.isfinite().all()
    assert (found.weight[ABSENT > 0] > 0).all()
    assert found.column[ABSENT > 0].isfinite().all()


@pytest.mark.parametrize("name", RULES)
def test_the_loss_of_a_rule_with_shares_is_that_without_the_absent_class(name) -> None:
    logits, _ = problem()
    kept = torch.tensor([0, 2, 3])
    target = torch.arange(9) % 3
    found = loss(margins(name, ABSENT), logits, kept[target])
    expected = loss(margins(name, ABSENT[kept]), logits[:, kept], target)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient[:, 1] == 0).all()


@pytest.mark.parametrize("name", RULES)
def test_a_sample_of_a_class_without_share_counts_nothing(name) -> None:
    logits, _ = problem()
    found = loss(margins(name, ABSENT), logits, torch.ones(9, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert (found == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", RULES)
def test_rules_move_with_a_renumbering_of_the_classes(name) -> None:
    logits, target = problem()
    order = torch.tensor([2, 0, 3, 1])
    moved = loss(margins(name, PRIOR[order]), logits[:, order], order.argsort()[target])
    torch.testing.assert_close(moved, loss(margins(name), logits, target))


@pytest.mark.parametrize("name", ["adjusted", "weighted"])
def test_a_constant_in_the_log_prior_changes_nothing_in_the_margin(name) -> None:
    logits, target = problem()
    found, scaled = margins(name), margins(name, 1000 * PRIOR)
    torch.testing.assert_close(
        loss(scaled._replace(weight=found.weight), logits, target), loss(found, logits, target)
    )


@pytest.mark.parametrize("name", RULES)
def test_huge_logits_stay_finite(name) -> None:
    logits = torch.tensor([[1e4, 0, 0, -1e4]], requires_grad=True)
    for y in range(4):
        found = loss(margins(name, PRIOR.float()), logits, torch.tensor([y])).sum()
        (gradient,) = torch.autograd.grad(found, logits)
        assert found.isfinite()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", RULES)
def test_rules_keep_float64_and_widen_halves(name) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        half = margins(name, PRIOR.bfloat16())
    torch.testing.assert_close(half, margins(name, PRIOR.bfloat16().float()), rtol=0, atol=0)
    assert {part.dtype for part in half} == {torch.float32}
    assert {part.dtype for part in margins(name)} == {torch.float64}


def minimizer(found: Margins, joint: Tensor) -> Tensor:
    """Scores that minimize the expected loss where P(x, y) is known, found by descent."""
    scores = torch.zeros_like(joint, requires_grad=True)
    target = torch.arange(4).repeat(len(joint))
    optimizer = torch.optim.LBFGS(
        [scores],
        max_iter=200,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        each = loss(found, scores.repeat_interleave(4, 0), target)
        risk = (joint.flatten() * each).sum()
        risk.backward()
        return risk

    optimizer.step(closure)
    return scores.detach()


def discrete_world() -> tuple[Tensor, Tensor, Tensor]:
    """Six values of x: P(x, y), the shares P(y), and log P(x | y) centered over y."""
    generator = torch.Generator().manual_seed(1)
    given = torch.rand(6, 4, dtype=torch.float64, generator=generator) + 0.05
    given = given / given.sum(0)
    log = given.log()
    return given * PRIOR, PRIOR, log - log.mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("name", "tau"),
    [("adjusted", 1.0), ("balanced", 1.0), ("weighted", 0.5), ("weighted", 2.0)],
)
def test_theorem_1_the_consistent_rules_recover_the_balanced_bayes_scores(name, tau) -> None:
    joint, prior, expected = discrete_world()
    scores = minimizer(margins(name, prior, tau), joint)
    # delta_y / pi_y with Delta_yy' = log(delta_y' / delta_y): the scores are log P(x | y).
    torch.testing.assert_close(scores - scores.mean(1, keepdim=True), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "tau"), [("plain", 1.0), ("adjusted", 2.0), ("adaptive", 1.0), ("equalized", 1.0)]
)
def test_the_other_rules_do_not(name, tau) -> None:
    joint, prior, expected = discrete_world()
    scores = minimizer(margins(name, prior, tau), joint)
    assert (scores.argmax(1) != expected.argmax(1)).any()


def test_rules_name_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="need num_samples"):
        effective_number_margins(PRIOR)
    for name in RULES:
        with pytest.raises(ValueError, match="tau must not be negative, got -1"):
            margins(name, tau=-1)
        with pytest.raises(ValueError, match="prior must have shape"):
            margins(name, PRIOR[None])
