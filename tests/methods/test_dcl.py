import pytest
import torch
from torch import Tensor

from sslgh.functional import decoupled_nt_xent
from sslgh.methods.dcl import DCL
from sslgh.models import build_backbone


def build(**settings) -> DCL:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = DCL.projector_spec.build(backbone, hidden=32, out=16)
    return DCL(backbone, projector, **settings).double()


def views(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, {"temperature": 0.1}),
        ({"weighted": True}, {"temperature": 0.1, "sigma": 0.5}),
        ({"weighted": True, "sigma": 0.3, "temperature": 0.2}, {"temperature": 0.2, "sigma": 0.3}),
    ],
)
def test_its_loss_is_the_decoupled_one_of_its_embeddings(settings, loss) -> None:
    output = build(**settings)(views())
    expected = decoupled_nt_xent(*output.embeddings, **loss)
    torch.testing.assert_close(output.per_sample, expected)


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"method.temperature must be positive, got 0"):
        build(temperature=0.0)
    with pytest.raises(ValueError, match=r"method.sigma must be positive, got -1"):
        build(sigma=-1.0)
