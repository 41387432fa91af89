"""The prior at prediction: what the heads estimate, and Bayes' rule as the oracle."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

from sslgh.classify import Head, HeadEnsemble
from sslgh.classify.ensemble import Classifier, FeatureScaler
from sslgh.explore import run_classifier as runs
from sslgh.explore.classifier_folder import Fitted, classifier_of
from sslgh.explore.novelty import Novelty
from sslgh.explore.photo_heads import _affine, decision, trained_heads

MEANS = torch.tensor([[0.0, 0.0], [1.5, 0.5], [-0.5, 1.5]], dtype=torch.float64)
SHARES = torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64)
OTHER = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
EQUAL = torch.full((3,), 1 / 3, dtype=torch.float64)
POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def bayes(points, shares):
    """The posterior of unit Gaussians at `MEANS`, by Bayes' rule on their densities."""
    density = np.stack([multivariate_normal.pdf(points.numpy(), mean.numpy()) for mean in MEANS], 1)
    joint = density * shares.numpy()
    return torch.from_numpy(joint / joint.sum(1, keepdims=True))


def exact_head(objective):
    """A head of which each objective has the optimum: linear discriminants, for CE with the log of the shares."""
    bias = -0.5 * MEANS.square().sum(1)
    if objective == "ce":
        bias = bias + SHARES.log()
    head, scaler = Head(objective), FeatureScaler(torch.zeros(2).double(), torch.ones(2).double())
    trained = HeadEnsemble(
        [head],
        {head: Classifier(MEANS[None], bias[None])},
        prior=SHARES,
        num_samples=100,
        scaler=scaler,
    )
    return _affine(trained, head, 2)


def fitted(head, objective, temperature=1.0):
    novelty = Novelty(torch.zeros(2), torch.eye(2), 1.0, 0.05)
    counts = torch.tensor([80, 15, 5])
    return Fitted(("a", "b", "c"), counts, {objective: head}, objective, temperature, novelty)


@pytest.mark.parametrize("objective", ["ce", "la", "elm"])
@pytest.mark.parametrize("prior", [SHARES, EQUAL, OTHER], ids=["train", "balanced", "file"])
def test_the_posterior_under_any_prior_is_that_of_bayes_rule(objective, prior) -> None:
    classifier = classifier_of(fitted(exact_head(objective), objective), "here")

    found = classifier.posterior(POINTS, prior)

    assert torch.allclose(found, bayes(POINTS, prior), atol=1e-9)


@pytest.mark.parametrize(("objective", "prior"), [("ce", SHARES), ("la", EQUAL), ("elm", EQUAL)])
def test_without_a_prior_each_objective_decides_as_it_was_trained_to(objective, prior) -> None:
    head = exact_head(objective)
    classifier = classifier_of(fitted(head, objective), "here")

    assert torch.allclose(classifier.posterior(POINTS), bayes(POINTS, prior), atol=1e-9)
    chosen = decision(head.scores(POINTS), objective, SHARES)
    assert torch.equal(chosen, bayes(POINTS, prior).argmax(1))


@pytest.mark.parametrize("objective", ["ce", "la"])
def test_trained_heads_come_near_bayes_rule_under_a_prior_that_they_have_not_seen(
    objective,
) -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial(SHARES, 6000, replacement=True, generator=generator)
    features = MEANS[labels] + torch.randn(6000, 2, generator=generator, dtype=torch.float64)
    head = trained_heads(features, labels, 3, [objective])[objective]

    found = classifier_of(fitted(head, objective), "here").posterior(POINTS, OTHER)

    truth = bayes(POINTS, OTHER)
    assert (found - truth).abs().mean() < 0.05
    # The wrong way round, the prior of the labels is counted twice or not at all.
    assert (bayes(POINTS, SHARES) - truth).abs().mean() > 0.15


def test_a_kind_of_share_0_is_never_predicted() -> None:
    classifier = classifier_of(fitted(exact_head("la"), "la"), "here")
    found = classifier.posterior(POINTS, torch.tensor([0.5, 0.0, 0.5]))

    assert (found[:, 1] == 0).all()
    assert torch.allclose(found.sum(1), torch.ones(50).double())


def test_the_temperature_flattens_the_likelihood_and_leaves_the_prior() -> None:
    classifier = classifier_of(fitted(exact_head("ce"), "ce", temperature=1e6), "here")

    assert torch.allclose(classifier.posterior(POINTS, OTHER), OTHER.expand(50, 3), atol=1e-4)


class LinearModel(SimpleNamespace):
    """A loaded run whose classifier has the given bias on the discriminants."""

    def __init__(self, bias):
        head = nn.Linear(2, 3).double().requires_grad_(False)
        head.weight.copy_(MEANS)
        head.bias.copy_(-0.5 * MEANS.square().sum(1) + bias)
        super().__init__(classifier=head, class_names=("a", "b", "c"), name="run")


@pytest.mark.parametrize(
    ("objective", "tau", "bias", "default"),
    [
        ("ce", 1.0, SHARES.log(), SHARES),
        ("la", 1.0, torch.zeros(3), EQUAL),
        ("la", 0.5, 0.5 * SHARES.log(), SHARES.sqrt() / SHARES.sqrt().sum()),
    ],
)
def test_logits_of_a_finetuned_run_are_brought_to_any_prior(
    monkeypatch, objective, tau, bias, default
) -> None:
    monkeypatch.setattr(runs, "_training", lambda _: (SHARES, objective, tau, 100))
    classifier = runs.run_classifier(LinearModel(bias), None)

    assert torch.allclose(classifier.default, default, atol=1e-6)
    for prior in (OTHER, EQUAL):
        assert torch.allclose(classifier.posterior(POINTS, prior), bayes(POINTS, prior), atol=1e-6)
    logits = LinearModel(bias).classifier(POINTS)
    assert torch.allclose(classifier.posterior(POINTS), logits.softmax(1), atol=1e-6)


def test_a_run_whose_scores_estimate_something_unknown_keeps_its_logits(monkeypatch) -> None:
    monkeypatch.setattr(runs, "_training", lambda _: (SHARES, "focal", 1.0, 100))
    classifier = runs.run_classifier(LinearModel(torch.zeros(3)), None)

    assert "focal" in classifier.fixed
    logits = LinearModel(torch.zeros(3)).classifier(POINTS)
    assert torch.allclose(classifier.posterior(POINTS), logits.softmax(1))


def test_a_run_of_the_effective_number_of_images_is_undone_by_its_own_size(monkeypatch) -> None:
    monkeypatch.setattr(runs, "_training", lambda _: (SHARES, "effective", 1.0, 100))
    classifier = runs.run_classifier(LinearModel(torch.zeros(3)), None)

    # Class-balanced loss, arXiv:1901.05555, eq. 1: a class counts as 1 / (1 - b ** n), b = .9999.
    weights = 1 / (1 - 0.9999 ** (100 * SHARES))
    expected = SHARES * weights / (SHARES * weights).sum()
    assert torch.allclose(classifier.default, expected, atol=1e-6)


def test_a_class_without_images_has_probability_0_in_a_run(monkeypatch) -> None:
    shares = torch.tensor([0.75, 0.25, 0.0], dtype=torch.float64)
    for objective in ("ce", "la"):
        monkeypatch.setattr(runs, "_training", lambda _, name=objective: (shares, name, 1.0, 8))
        classifier = runs.run_classifier(LinearModel(torch.zeros(3)), None)
        for prior in (None, OTHER, shares):
            found = classifier.posterior(POINTS, prior)
            assert torch.allclose(found.sum(1), torch.ones(50).double())
            assert (found[:, 2] == 0).all()
        logits = LinearModel(torch.zeros(3)).classifier(POINTS)[:, :2]
        assert torch.allclose(classifier.posterior(POINTS)[:, :2], logits.softmax(1), atol=1e-6)
