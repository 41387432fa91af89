import pytest
import torch
from torch import Tensor

from sslgh.functional import focal_nt_xent
from sslgh.methods.focal import Focal
from sslgh.models import build_backbone


def build(**settings) -> Focal:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = Focal.projector_spec.build(backbone, hidden=32, out=16)
    return Focal(backbone, projector, **settings).double()


def views(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.2, "gamma": 2.0}, {"temperature": 0.5, "gamma": 0.7}]
)
def test_its_loss_is_the_focal_nt_xent_of_its_embeddings(settings) -> None:
    output = build(**settings)(views())
    torch.testing.assert_close(output.per_sample, focal_nt_xent(*output.embeddings, **settings))


def test_its_defaults_are_those_of_the_code_of_gh() -> None:
    output = build()(views())
    expected = focal_nt_xent(*output.embeddings, temperature=0.2, gamma=2.0)
    torch.testing.assert_close(output.per_sample, expected)


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"method.gamma must not be negative, got -1"):
        build(gamma=-1.0)
    with pytest.raises(ValueError, match=r"method.temperature must be positive, got 0"):
        build(temperature=0.0)
