import pytest
import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor

from sslgh.functional import vicreg
from sslgh.methods import VICReg
from sslgh.models import build_backbone


def build(**settings: float) -> VICReg:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = VICReg.projector_spec.build(backbone, hidden=32, out=16)
    return VICReg(backbone, projector, **settings).double()


def pair(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("factors", [(25.0, 25.0, 1.0), (3.0, 5.0, 7.0)])
def test_vicreg_loss_is_lightlys_of_its_embeddings(factors) -> None:
    settings = dict(zip(("invariance", "variance", "covariance"), factors, strict=True))
    output = build(**settings)(pair())
    torch.testing.assert_close(output.loss, VICRegLoss(*factors)(*output.embeddings))


def test_vicreg_uses_the_papers_factors_by_default() -> None:
    output = build()(pair())
    torch.testing.assert_close(output.loss, VICRegLoss()(*output.embeddings))


def test_vicreg_weighs_its_moments() -> None:
    weights = torch.tensor([2.0, 1, 3, 1, 0, 2])
    output = build()(pair(), weights)
    torch.testing.assert_close(output.loss, vicreg(*output.embeddings, weights=weights))
    assert (output.loss - build()(pair()).loss).abs() > 1e-3


def test_vicreg_weights_count_like_repeated_samples() -> None:
    """Moments of the batch once the statistics of the norms are out of the way."""
    x1, x2 = pair(4)
    method = build().eval()
    repeated = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    weighted = method([x1, x2], torch.tensor([2.0, 1, 3, 1])).loss
    torch.testing.assert_close(weighted, method([x1[repeated], x2[repeated]]).loss)


def test_vicreg_projector_has_the_layers_of_lightlys() -> None:
    assert str(build().projector.layers) == str(VICRegProjectionHead(64, 32, 16).layers)


def test_vicreg_under_autocast_takes_its_loss_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = build().float()([view.float() for view in pair()]).loss
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_vicreg_refuses_factors_that_collapse_it_or_are_negative() -> None:
    with pytest.raises(
        ValueError, match=r"method.variance must be positive, got 0.* the paper has 25"
    ):
        build(variance=0.0)
    with pytest.raises(ValueError, match=r"method.covariance must not be negative, got -1"):
        build(covariance=-1.0)
