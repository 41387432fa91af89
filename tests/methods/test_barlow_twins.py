import pytest
import torch
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules.heads import BarlowTwinsProjectionHead
from torch import Tensor

from sslgh.functional import barlow_twins
from sslgh.methods import BarlowTwins
from sslgh.models import build_backbone


def build(**settings: float) -> BarlowTwins:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = BarlowTwins.projector_spec.build(backbone, hidden=32, out=16)
    return BarlowTwins(backbone, projector, **settings).double()


def pair(n: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


def test_barlow_twins_loss_is_lightlys_of_its_embeddings() -> None:
    output = build(lambd=0.1)(pair())
    torch.testing.assert_close(output.loss, BarlowTwinsLoss(0.1)(*output.embeddings))


def test_barlow_twins_weighs_its_moments() -> None:
    weights = torch.tensor([2.0, 1, 3, 1, 0, 2])
    output = build(lambd=0.1)(pair(), weights)
    expected = barlow_twins(*output.embeddings, lambd=0.1, weights=weights)
    torch.testing.assert_close(output.loss, expected)
    assert (output.loss - build(lambd=0.1)(pair()).loss).abs() > 1e-3


def test_barlow_twins_weights_count_like_repeated_samples() -> None:
    """Moments of the batch once the statistics of the norms are out of the way."""
    x1, x2 = pair(4)
    method = build().eval()
    repeated = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    weighted = method([x1, x2], torch.tensor([2.0, 1, 3, 1])).loss
    torch.testing.assert_close(weighted, method([x1[repeated], x2[repeated]]).loss)


def test_barlow_twins_projector_has_the_layers_of_lightlys() -> None:
    assert str(build().projector.layers) == str(BarlowTwinsProjectionHead(64, 32, 16).layers)


def test_barlow_twins_under_autocast_takes_its_loss_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss = build().float()([view.float() for view in pair()]).loss
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_barlow_twins_refuses_a_factor_that_is_not_positive_and_names_it() -> None:
    with pytest.raises(ValueError, match=r"method.lambd must be positive, got 0"):
        build(lambd=0.0)
