import math

import pytest
import torch

from sslgh.classify import OBJECTIVES

COUNTS = [500, 120, 40, 7]
N, C = sum(COUNTS), len(COUNTS)
PRIOR = torch.tensor(COUNTS, dtype=torch.float64) / N
LOGIT_ADJUSTED = ["elm", "elm-contrast", "elm-hinge", "elm-pull", "supcon", "bcl", "rcl"]
KNOWN = {name for name, objective in OBJECTIVES.items() if objective.shifts}


def batch(seed=0, rows=12):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, C, generator=generator, dtype=torch.float64)
    return logits, torch.arange(rows) % C


def table(name, y, other, tau):
    """Delta_yy' of the table of the LA paper; see the facts, 2.1."""
    p, q = PRIOR[y].item(), PRIOR[other].item()
    if name in {"la", "la-weighted", *LOGIT_ADJUSTED}:
        return tau * math.log(q / p)
    if name == "balanced-softmax":
        return math.log(q / p)
    if name in {"ldam", "ldam-drw"}:
        return tau * p**-0.25
    return tau * math.log(q) if name == "equalized" else 0.0


def alpha(name, y, tau, deferred):
    share = PRIOR[y].item()
    if name == "balanced":
        return 1 / (C * share)
    if name == "effective" or (name == "ldam-drw" and deferred):
        raw = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS]
        # Mean 1 over the classes; in LDAM-DRW over the samples.
        total = (
            sum(raw) / C
            if name == "effective"
            else sum(map(math.prod, zip(PRIOR.tolist(), raw, strict=True)))
        )
        return raw[y] / total
    if name == "la-weighted":
        return share ** (tau - 1) / sum(p.item() ** tau for p in PRIOR)
    return 1.0


def oracle(name, logits, target, tau, *, deferred=False):
    losses = []
    for f, y in zip(logits.tolist(), target.tolist(), strict=True):
        rivals = sum(
            math.exp(table(name, y, other, tau) + f[other] - f[y])
            for other in range(C)
            if other != y
        )
        loss = alpha(name, y, tau, deferred) * math.log1p(rivals)
        if name == "focal":
            loss *= (rivals / (1 + rivals)) ** 2
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


def test_the_objectives_are_those_of_the_family_in_this_order():
    family = (
        *(
            "ce",
            "balanced",
            "effective",
            "focal",
            "la",
            "la-posthoc",
            "la-weighted",
            "balanced-softmax",
        ),
        *("ldam", "ldam-drw", "equalized", "tau-norm", "crt", "lws", "ncm"),
        *("elm", "elm-contrast", "elm-hinge", "elm-pull", "supcon", "bcl", "rcl"),
    )
    assert tuple(OBJECTIVES) == family


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_loss_equals_the_sum_over_pairs_of_classes(name, tau):
    logits, target = batch()
    loss = OBJECTIVES[name].loss(logits, target, PRIOR, tau=tau, num_samples=N)
    torch.testing.assert_close(loss, oracle(name, logits, target, tau))


def test_only_deferred_reweighting_differs_in_the_last_part_of_training():
    logits, target = batch()
    for name, objective in OBJECTIVES.items():
        late = objective.loss(logits, target, PRIOR, num_samples=N, deferred=True)
        torch.testing.assert_close(late, oracle(name, logits, target, 1.0, deferred=True))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_permuting_the_classes_changes_no_loss(name):
    logits, target = batch()
    order = torch.tensor([2, 0, 3, 1])
    loss, permuted = (
        OBJECTIVES[name].loss(f, y, prior, tau=0.7, num_samples=N)
        for f, y, prior in (
            (logits, target, PRIOR),
            (logits[:, order], order.argsort()[target], PRIOR[order]),
        )
    )
    torch.testing.assert_close(loss, permuted)


@pytest.mark.parametrize("name", ["la", "ldam", "equalized", *LOGIT_ADJUSTED])
def test_with_tau_0_the_margins_are_gone(name):
    logits, target = batch()
    ce = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(OBJECTIVES[name].loss(logits, target, PRIOR, tau=0.0), ce)


def test_balanced_softmax_is_the_logit_adjusted_loss_of_tau_1_whatever_tau_is_given():
    logits, target = batch()
    assert OBJECTIVES["balanced-softmax"].margins is OBJECTIVES["la"].margins
    assert torch.equal(
        OBJECTIVES["balanced-softmax"].loss(logits, target, PRIOR, tau=3.0),
        OBJECTIVES["la"].loss(logits, target, PRIOR),
    )


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_gradients_are_those_of_finite_differences(name):
    logits, target = batch(rows=4)
    assert torch.autograd.gradcheck(
        lambda f: OBJECTIVES[name].loss(f, target, PRIOR, tau=0.7, num_samples=N, deferred=True),
        logits.requires_grad_(),
    )


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_class_without_share_makes_nothing_nan_and_leaves_the_sum(name):
    logits, target = batch()
    prior = torch.tensor([0.7, 0.3, 0.0, 0.0], dtype=torch.float64)
    losses = []
    for absent in (0.0, 5.0):
        f = logits.clone()
        f[:, 2:] += absent
        f.requires_grad_()
        losses.append(OBJECTIVES[name].loss(f, target % 2, prior, num_samples=N))
        assert torch.autograd.grad(losses[-1].sum(), f)[0].isfinite().all()
    assert torch.equal(*losses)


def test_half_precision_logits_lose_nothing_and_the_prior_stays_exact():
    logits, target = batch()
    half = logits.bfloat16()
    for objective in OBJECTIVES.values():
        loss = objective.loss(half, target, PRIOR.float(), num_samples=N)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, objective.loss(half.float(), target, PRIOR.float(), num_samples=N))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([500.0, 120.0, 40.0, 7.0], "sum to 1, got a sum of 667 and a smallest of 7"),
        ([0.5, 0.5, 0.5, -0.5], "sum to 1, got a sum of 1 and a smallest of -0.5"),
        ([0.5, 0.5, math.nan, 0.0], "sum to 1, got a sum of nan"),
        ([[1.0]], r"must have shape \(C,\), got \(1, 1\)"),
        ([0.5, 0.5], r"prior must have shape \(4,\)"),
    ],
)
def test_what_are_no_class_shares_is_refused_in_one_sentence(prior, message):
    logits, target = batch()
    with pytest.raises(ValueError, match=message):
        OBJECTIVES["la"].loss(logits, target, torch.tensor(prior))


def test_the_effective_number_asks_for_the_size_of_the_training_set():
    logits, target = batch()
    with pytest.raises(ValueError, match="num_samples"):
        OBJECTIVES["effective"].loss(logits, target, PRIOR)


def optimum(name, eta, tau):
    """Logits that minimize the expected loss where class y has the probability eta_y, in closed form.

    d/df sum_y eta_y alpha_y log sum_y' exp(f_y' + c_y' - f_y - c_y) = 0 at
    softmax(f + c) = eta alpha / sum eta alpha; checked by its gradient.
    """
    objective = OBJECTIVES[name]
    _, column, weight = objective.margins_of(PRIOR, tau=tau, num_samples=N)
    target = torch.arange(C)
    f = ((eta * weight).log() - column).requires_grad_()
    shown = eta / PRIOR / (eta / PRIOR).sum() if objective.sampling == "class-balanced" else eta
    if objective.sampling == "class-balanced":
        f = shown.log().requires_grad_()
    loss = objective.loss(f.expand(C, C), target, PRIOR, tau=tau, num_samples=N)
    assert torch.autograd.grad(shown @ loss, f)[0].abs().max() < 1e-12
    return f.detach()


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", sorted(KNOWN))
def test_at_the_optimum_adjusted_scores_are_the_posterior_under_the_test_prior(name, tau):
    objective = OBJECTIVES[name]
    if name == "la-posthoc":  # there tau is the temperature of the estimate
        tau = 1.0
    wanted = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    eta = torch.tensor([0.7, 0.1, 0.15, 0.05], dtype=torch.float64)
    shift = objective.adjustment(PRIOR, tau=tau, num_samples=N, test_prior=wanted)
    bayes = eta / PRIOR * wanted
    torch.testing.assert_close(
        (optimum(name, eta, tau) + shift).softmax(0), bayes / bayes.sum(), atol=1e-9, rtol=0
    )


def test_the_adjustments_of_cross_entropy_and_logit_adjustment_are_those_one_writes_down():
    q = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    equal = torch.full_like(PRIOR, 1 / C)
    for name, tau, prior, expected in (
        ("ce", 1.0, q, q.log() - PRIOR.log()),
        ("la", 2.0, q, PRIOR.log() + q.log()),
        ("la", 1.0, PRIOR, PRIOR.log()),
        ("la-posthoc", 2.0, q, 2 * (q.log() - PRIOR.log())),
        ("la-posthoc", 2.0, equal, 2 * (equal.log() - PRIOR.log())),
        ("crt", 1.0, q, q.log()),
        ("la-posthoc", 2.0, None, -2 * PRIOR.log()),
        ("la", 2.0, None, 0 * PRIOR),
    ):
        shift = OBJECTIVES[name].adjustment(PRIOR, tau=tau, test_prior=prior)
        torch.testing.assert_close(shift - shift[0], expected - expected[0])


def test_classes_without_share_in_training_or_test_are_out_of_the_decision():
    prior, test = torch.tensor([0.75, 0.25, 0.0]), torch.tensor([0.0, 0.5, 0.5])
    for name in KNOWN:
        objective = OBJECTIVES[name]
        for tau in (0.0, 1.0):
            shift = objective.adjustment(prior, tau=tau, num_samples=100)
            assert (shift == -math.inf).tolist() == [False, False, True]
            shift = objective.adjustment(prior, tau=tau, num_samples=100, test_prior=test)
            assert (shift == -math.inf).tolist() == [True, False, True]
            assert not shift.isnan().any()


def test_objectives_whose_logits_estimate_nothing_known_refuse_a_test_prior():
    assert set(OBJECTIVES) - KNOWN == {"focal", "ldam", "ldam-drw", "equalized", "tau-norm", "ncm"}
    for name in set(OBJECTIVES) - KNOWN:
        with pytest.raises(
            ValueError, match="cannot be brought to a test prior; objectives that can: ce"
        ):
            OBJECTIVES[name].adjustment(PRIOR, test_prior=PRIOR)
    with pytest.raises(ValueError, match="sum to 1, got a sum of 4"):
        OBJECTIVES["ce"].adjustment(PRIOR, test_prior=torch.ones(C))
