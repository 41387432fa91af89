import itertools
import math

import pytest

from sslgh.engine.schedule import learning_rate
from sslgh.recipe import Optim


def rates(
    optim: Optim, *, steps: int = 4, epochs: int = 10, gh_start: int | None = None
) -> list[float]:
    return [
        learning_rate(s, optim, steps_per_epoch=steps, epochs=epochs, gh_start=gh_start)
        for s in range(steps * epochs)
    ]


def test_warmup_is_linear_from_zero_and_ends_at_the_peak() -> None:
    found = rates(Optim(lr=0.8, warmup_epochs=2))
    assert found[:8] == pytest.approx([0.8 * (s + 1) / 8 for s in range(8)])
    assert found[8] == pytest.approx(0.8)
    assert max(found) == pytest.approx(0.8)


def test_cosine_goes_half_way_in_the_middle_and_ends_near_the_end_rate() -> None:
    found = rates(Optim(lr=1.0, warmup_epochs=0, lr_end=0.2))
    assert found[20] == pytest.approx(0.6)
    assert found[-1] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 39 / 40)))


def test_two_stages_meet_at_the_middle_rate_when_gh_begins() -> None:
    optim = Optim(lr=0.5, warmup_epochs=1, lr_mid=0.3, lr_end=1e-6, schedule="gh-two-stage")
    found = rates(optim, gh_start=5)
    assert found[4] == pytest.approx(0.5)
    assert found[20] == pytest.approx(0.3)
    assert found[19] == pytest.approx(0.3, abs=0.002)
    assert found[12] == pytest.approx(0.4)
    assert all(a >= b for a, b in itertools.pairwise(found[4:]))


def test_a_run_that_is_all_warmup_stays_finite() -> None:
    assert rates(Optim(lr=1.0, warmup_epochs=10))[-1] == pytest.approx(1.0)
