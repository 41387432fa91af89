"""Float64 stays on the CPU where the device has none (MPS)."""

import pytest
import torch

from sslgh.functional import effective_rank, entropy, gini, purity
from sslgh.harmonize.alignment import align_vertices, match_groups
from sslgh.harmonize.boosted import loss_strengths
from sslgh.harmonize.instance_weights import instance_weights


class OnMps(torch.Tensor):
    """A tensor that names MPS as its device and has no float64."""

    @property
    def device(self):  # noqa: D102
        return torch.device("mps")

    def cpu(self):  # noqa: D102
        return self.as_subclass(torch.Tensor)

    def double(self):  # noqa: D102
        raise TypeError("no float64 on the device")


def float32_calls():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 4, generator=generator)
    labels, seen = torch.tensor([0, 0, 1, 1, 1, 2]), torch.ones(6, dtype=torch.bool)
    prior = torch.tensor([0.2, 0.5, 0.3])
    return {
        "effective_rank": lambda put: effective_rank(put(z)),
        "match_groups": lambda put: match_groups(put(z[:3]), put(torch.eye(4))),
        "align_vertices": lambda put: align_vertices(put(torch.eye(4)), put(z[:3])),
        "loss_strengths": lambda put: loss_strengths(put(z[:, 0]), put(seen)),
        "instance_weights": lambda put: instance_weights(
            put(prior[labels]), put(seen), power=1.0, max_weight=10.0
        ),
    }


@pytest.mark.parametrize("name", float32_calls())
def test_what_needs_float64_is_computed_on_the_cpu_and_comes_back(name, monkeypatch) -> None:
    call, devices = float32_calls()[name], []
    expected = call(lambda tensor: tensor)
    move = torch.Tensor.to

    def to(self, *places, **options):
        if places and places[0] == torch.device("mps"):  # which this build of torch lacks
            devices.append(places[0].type)
            return self
        return move(self, *places, **options)

    monkeypatch.setattr(torch.Tensor, "to", to)
    found = call(lambda tensor: tensor.as_subclass(OnMps))
    assert torch.equal(found, expected)
    assert devices == ["mps"]


def test_float64_results_stay_on_the_cpu() -> None:
    counts = torch.tensor([5, 3, 1])
    for measure in (entropy, gini):
        found = measure(counts.as_subclass(OnMps))
        assert type(found) is torch.Tensor
        assert torch.equal(found, measure(counts))
    one, other = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    found = purity(one.as_subclass(OnMps), other.as_subclass(OnMps))
    assert type(found) is torch.Tensor
    assert torch.equal(found, purity(one, other))
