import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslgh.functional import negative_cosine, nt_xent
from sslgh.harmonize import GeometricHarmonizer
from sslgh.methods import METHODS, Method
from sslgh.models import build_backbone, globalise

SETTINGS = {
    "simclr": {"hidden": 32, "out": 16},
    "simsiam": {"hidden": 32, "out": 16, "predictor_hidden": 8},
}


def build(name: str) -> Method:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    return METHODS[name](backbone, features=backbone.num_features, **SETTINGS[name]).double()


def views(n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x1, x2 = (torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    return x1, x2, torch.rand(n, dtype=torch.float64, generator=generator) + 0.5


def test_every_method_has_settings_here() -> None:
    assert set(SETTINGS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_the_weighted_mean_of_the_samples_losses(name) -> None:
    x1, x2, weights = views()
    output = build(name)([x1, x2], weights)
    assert output.per_sample.shape == (12,)
    torch.testing.assert_close(output.loss, (weights * output.per_sample).sum() / weights.sum())
    torch.testing.assert_close(
        build(name)([x1, x2], None).loss, build(name)([x1, x2], torch.ones(12)).loss
    )


@pytest.mark.parametrize("name", METHODS)
def test_embeddings_are_the_projections_of_the_two_views_with_gradient(name) -> None:
    method, (x1, x2, _) = build(name), views()
    z1, z2 = method([x1, x2], None).embeddings
    assert z1.shape == z2.shape == (12, method.embedding_dim)
    assert z1.requires_grad
    both = build(name)
    expected = both.projector(both.backbone(torch.cat([x1, x2])))
    torch.testing.assert_close(torch.cat([z1, z2]), expected)


def test_simclr_loss_is_nt_xent_of_its_embeddings() -> None:
    x1, x2, _ = views()
    output = build("simclr")([x1, x2], None)
    torch.testing.assert_close(output.per_sample, nt_xent(*output.embeddings, temperature=0.2))


def test_simsiam_loss_is_the_symmetric_cosine_with_targets_held_still() -> None:
    method, (x1, x2, _) = build("simsiam"), views()
    output = method([x1, x2], None)
    z1, z2 = output.embeddings
    p1, p2 = build("simsiam").predictor(torch.cat([z1, z2])).chunk(2)
    expected = (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2
    torch.testing.assert_close(output.per_sample, expected)


def test_simsiam_weights_count_like_repeated_samples() -> None:
    """A sum over independent samples once batch statistics are out of the way."""
    x1, x2, _ = views(4)
    method = build("simsiam").eval()
    repeated = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    weighted = method([x1, x2], torch.tensor([2.0, 1, 3, 1])).loss
    torch.testing.assert_close(weighted, method([x1[repeated], x2[repeated]], None).loss)


def step(name: str, cuts: list[int], gh: bool) -> tuple[Tensor, list[Tensor], Tensor]:
    """Loss, gradients and running statistics of one step on this process's part."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    distributed = dist.is_initialized()
    rank = dist.get_rank() if distributed else 0
    own = slice(cuts[rank], cuts[rank + 1]) if distributed else slice(None)
    method, (x1, x2, weights) = build(name), views()
    model: nn.Module = DistributedDataParallel(globalise(method)) if distributed else method
    output = model([x1[own], x2[own]], weights[own])
    loss = output.loss
    if gh:
        harmonizer = GeometricHarmonizer(12, 16, num_vertices=5, ramp_epochs=1).double()
        harmonizer.begin_epoch(1)
        loss = loss + harmonizer(*output.embeddings)
    loss.backward()
    if distributed:
        loss = loss.detach()
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    return loss.detach(), gradients, method.backbone.bn1.running_var


@pytest.mark.parametrize("gh", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_several_processes_have_the_loss_and_gradient_of_one(
    two_processes, three_processes, name, gh
) -> None:
    loss, gradients, variance = step(name, [0], gh)
    assert len(gradients) > 20
    for run, cuts in ((two_processes, [0, 7, 12]), (three_processes, [0, 5, 9, 12])):
        for found, parts, running in run(step, name, cuts, gh):
            assert abs(found - loss) <= 1e-5 * abs(loss)
            torch.testing.assert_close(running, variance)
            for part, whole in zip(parts, gradients, strict=True):
                assert (part - whole).norm() <= 1e-5 * whole.norm() + 1e-12
