"""The temperature is the one that explains labels best."""

import pytest
import torch

from sslgh.functional.temperature import HIGHEST, LOWEST, fitted_temperature

PRIOR = torch.tensor([0.7, 0.2, 0.1])


def drawn(temperature, size=20_000):
    """Scores, and labels drawn from the posterior at a temperature."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(size, 3, generator=generator)
    posterior = (scores / temperature + PRIOR.log()).softmax(1)
    return scores, torch.multinomial(posterior, 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_of_drawn_labels_is_found(temperature) -> None:
    assert fitted_temperature(*drawn(temperature), PRIOR) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_has_a_smaller_loss() -> None:
    scores, labels = drawn(2.0, 300)
    target = torch.full((300, 1), 301 / 302) * torch.eye(3)[labels] + PRIOR / 302

    def loss(temperature):
        return -(target * (scores / temperature + PRIOR.log()).log_softmax(1)).sum(1).mean()

    found = fitted_temperature(scores, labels, PRIOR)
    assert all(loss(found) <= loss(found * factor) + 1e-7 for factor in (0.8, 0.95, 1.05, 1.25))


def test_where_every_prediction_is_right_the_confidence_stays_below_one() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 9)
    found = fitted_temperature(scores, torch.tensor([0, 1] * 9), torch.tensor([0.5, 0.5]))

    # Smoothed targets: (N + 1) / (N + 2) and half of the rest.
    assert torch.sigmoid(torch.tensor(1 / found)) == pytest.approx(19 / 20 + 0.5 / 20, abs=1e-3)


def test_scores_that_say_nothing_get_the_highest_temperature_and_the_opposite_the_same() -> None:
    labels = torch.tensor([0, 1] * 50)
    against = torch.eye(2)[1 - labels]

    assert fitted_temperature(against, labels, torch.tensor([0.5, 0.5])) > 0.95 * HIGHEST
    assert fitted_temperature(100 * torch.eye(2)[labels], labels, torch.tensor([0.5, 0.5])) > LOWEST


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"with C shares, got \(4, 3\) and \(2,\)"):
        fitted_temperature(torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), torch.ones(2) / 2)
