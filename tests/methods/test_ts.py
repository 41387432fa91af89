import math

import pytest
import torch
from torch import Tensor

from sslgh.functional import nt_xent
from sslgh.methods.ts import TS
from sslgh.models import build_backbone


def build(**settings) -> TS:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = TS.projector_spec.build(backbone, hidden=32, out=16)
    return TS(backbone, projector, **settings).double()


def views(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


def test_the_temperature_is_that_of_the_official_code() -> None:
    method = build()
    for epoch in range(2000):
        method.begin_epoch(epoch, 2000)
        expected = 0.1 + 0.5 * (1.0 - 0.1) * (1 + math.cos(math.pi * epoch / 200))
        assert method.temperature == pytest.approx(expected, rel=1e-12)


def test_it_begins_at_its_maximum_and_is_back_after_a_period() -> None:
    method = build(temperature_min=0.2, temperature_max=0.6, period=8)
    assert method.temperature == 0.6
    found = []
    for epoch in (0, 2, 4, 6, 8):
        method.begin_epoch(epoch, 100)
        found.append(method.temperature)
    assert found == pytest.approx([0.6, 0.4, 0.2, 0.4, 0.6])


def test_the_temperature_depends_on_nothing_but_the_epoch() -> None:
    """Nothing to save: a resumed run, or a shorter one, gets the same."""
    fresh, used = build(), build()
    for epoch in range(70):
        used.begin_epoch(epoch, 800)
    used.begin_epoch(37, 800)
    fresh.begin_epoch(37, 2000)
    assert fresh.temperature == used.temperature


def test_its_loss_is_nt_xent_at_the_temperature_of_the_epoch() -> None:
    method = build()
    for epoch, temperature in ((0, 1.0), (200, 0.1)):
        method.begin_epoch(epoch, 400)
        output = method(views())
        expected = nt_xent(*output.embeddings, temperature=temperature)
        torch.testing.assert_close(output.per_sample, expected)


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"method.temperature_min must be positive and at most"):
        build(temperature_min=0.0)
    with pytest.raises(ValueError, match=r"got 0.5 and 0.4"):
        build(temperature_min=0.5, temperature_max=0.4)
    with pytest.raises(ValueError, match=r"method.period must be at least 1 epoch, got 0"):
        build(period=0)
