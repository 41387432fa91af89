import pytest
import torch
from scipy.optimize import brentq

from sslgh.harmonize.instance_weights import instance_weights


def population(seed: int, count: int = 400, classes: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shares = torch.logspace(0, -2.5, classes)
    labels = torch.multinomial(shares, count, replacement=True, generator=generator)
    seen = torch.rand(count, generator=generator) < 0.8
    prior = torch.bincount(labels[seen], minlength=classes).float() / seen.sum()
    return torch.where(seen, labels, -1), prior, seen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("max_weight", [1.01, 1.5, 3.0, 1e6])
def test_weights_equal_those_of_a_root_finder(seed, power, max_weight):
    labels, prior, seen = population(seed)
    raw = [float(prior[k]) ** -power for k in labels[seen].tolist()]
    excess = lambda c: sum(min(c * r, max_weight) for r in raw) / len(raw) - 1  # noqa: E731
    c = brentq(excess, 1e-9, 1e3, xtol=1e-15, rtol=1e-14)
    expected = torch.ones(len(labels), dtype=torch.float64)
    expected[seen] = torch.tensor([min(c * r, max_weight) for r in raw], dtype=torch.float64)
    got = instance_weights(prior[labels], seen, power=power, max_weight=max_weight)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("max_weight", [1.01, 2.0, 10.0])
def test_the_mean_is_one_over_the_seen_and_over_all_and_the_unseen_keep_one(max_weight):
    labels, prior, seen = population(7)
    weights = instance_weights(prior[labels], seen, power=1.0, max_weight=max_weight)
    assert weights[seen].double().mean() == pytest.approx(1, abs=1e-6)
    assert weights.double().mean() == pytest.approx(1, abs=1e-6)
    assert (weights[~seen] == 1).all()
    assert weights.max() <= torch.tensor(max_weight)


def test_power_zero_gives_exact_ones():
    labels, prior, seen = population(0)
    weights = instance_weights(prior[labels], seen, power=0.0, max_weight=1.5)
    assert torch.equal(weights, torch.ones(len(labels)))


def test_power_one_gives_every_surrogate_class_the_same_sum():
    labels, prior, seen = population(1)
    weights = instance_weights(prior[labels], seen, power=1.0, max_weight=1e9)
    sums = torch.stack([weights[labels == k].sum() for k in range(6) if (labels == k).any()])
    assert len(sums) >= 5
    torch.testing.assert_close(sums, sums[:1].expand(len(sums)))


def test_rarer_never_weighs_less():
    labels, prior, seen = population(2)
    weights = instance_weights(prior[labels], seen, power=0.5, max_weight=2.0)
    present = labels[seen].unique()
    assert len(present) >= 5
    by_share = sorted((float(prior[k]), float(weights[labels == k][0])) for k in present)
    assert [weight for _, weight in by_share] == sorted((w for _, w in by_share), reverse=True)


def test_the_scale_of_the_shares_does_not_count():
    labels, prior, seen = population(3)
    one, other = (
        instance_weights(scale * prior[labels], seen, power=0.7, max_weight=4.0)
        for scale in (1, 1e-30)
    )
    torch.testing.assert_close(one, other)


def test_one_surrogate_class_and_no_seen_sample_give_ones():
    everyone, nobody = torch.ones(10, dtype=torch.bool), torch.zeros(10, dtype=torch.bool)
    for seen, share in ((everyone, 1.0), (nobody, 0.0)):
        weights = instance_weights(torch.full((10,), share), seen, power=1.0, max_weight=2.0)
        assert torch.equal(weights, torch.ones(10))


def test_impossible_arguments_are_refused():
    labels, prior, seen = population(0)
    with pytest.raises(ValueError, match="share a shape"):
        instance_weights(prior[labels], seen[1:], power=1.0, max_weight=2.0)
    with pytest.raises(ValueError, match="power must be 0 or more, got -1"):
        instance_weights(prior[labels], seen, power=-1.0, max_weight=2.0)
    with pytest.raises(ValueError, match="exceed the mean weight 1, got 1"):
        instance_weights(prior[labels], seen, power=1.0, max_weight=1.0)
    with pytest.raises(ValueError, match="share of a seen sample must be positive"):
        instance_weights(prior[labels] * 0, seen, power=1.0, max_weight=2.0)
