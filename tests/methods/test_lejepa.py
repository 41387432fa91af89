import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import MLP

from sslgh.methods import LeJEPA
from sslgh.models import build_backbone, use_global_batch_norm


def build(**settings: float) -> LeJEPA:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = LeJEPA.projector_spec.build(backbone, hidden=32, out=4)
    return LeJEPA(backbone, projector, **settings).double()


def crops(local: int = 0, n: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [8, 8] + [4] * local
    return [torch.randn(n, 3, s, s, dtype=torch.float64, generator=generator) for s in sizes]


def embedded(method: LeJEPA, views: list[Tensor]) -> Tensor:
    """Embeddings (V, N, D); only the passes of equal sizes share batch statistics."""
    features = [method.backbone(torch.cat(views[:2]))]
    if len(views) > 2:
        features.append(method.backbone(torch.cat(views[2:])))
    return method.projector(torch.cat(features)).view(len(views), len(views[0]), -1)


def by_hand(z: Tensor, directions: Tensor, lambd: float = 0.02) -> Tensor:
    """The authors' minimal example, in loops over views, samples and points of the integral."""
    views, n, width = z.shape
    invariance = regularizer = torch.zeros((), dtype=z.dtype)
    for view in range(views):
        for sample in range(n):
            center = sum(z[other, sample] for other in range(views)) / views
            distance = (z[view, sample] - center).square().sum()
            invariance = invariance + distance / (views * n * width)
        for k in range(17):
            t = 3 * k / 16
            phi = math.exp(-(t**2) / 2)
            gap = torch.exp(1j * t * (z[view] @ directions.to(z.dtype))).mean(0) - phi
            share = (3 / 16) * (1 if k in (0, 16) else 2) * phi
            regularizer = regularizer + n * share * gap.abs().square().mean() / views
    return lambd * regularizer + (1 - lambd) * invariance


@pytest.mark.parametrize(("local", "lambd"), [(0, 0.02), (2, 0.3)])
def test_lejepa_has_the_loss_and_the_gradient_of_the_authors_example(local, lambd) -> None:
    method, again, views = build(lambd=lambd), build(), crops(local)
    ours = method(views).loss
    theirs = by_hand(embedded(again, views), again.directions(), lambd)
    torch.testing.assert_close(ours, theirs)
    own = torch.autograd.grad(ours, list(method.parameters()))
    expected = torch.autograd.grad(theirs, list(again.parameters()))
    assert len(own) > 20
    for one, other in zip(own, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_lejepa_has_the_lambda_of_the_example_by_default_and_it_weighs_sigreg() -> None:
    losses = [build(**settings)(crops()).loss for settings in ({}, {"lambd": 0.02}, {"lambd": 0.9})]
    assert losses[0] == losses[1]
    z = build()(crops()).embeddings
    agreeing = (torch.stack(z) - torch.stack(z).mean(0)).square().mean()
    regularizer = (losses[0] - 0.98 * agreeing) / 0.02
    torch.testing.assert_close(losses[2], 0.9 * regularizer + 0.1 * agreeing)


def test_lejepa_embeddings_are_the_projections_of_the_full_views() -> None:
    views, again = crops(local=2), build()
    expected = embedded(again, views)[:2]
    torch.testing.assert_close(torch.stack(build()(views).embeddings), expected)


def test_lejepa_weights_count_like_repeated_samples() -> None:
    """Once the statistics of the norms are out of the way."""
    views, method = crops(local=2, n=4), build().eval()
    repeated = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    weighted = method(views, torch.tensor([2.0, 1, 3, 1])).loss
    torch.testing.assert_close(weighted, method([view[repeated] for view in views]).loss)


def test_lejepa_directions_are_unit_vectors_that_change_with_every_step_skipped_or_not() -> None:
    method = build()
    first = method.directions()
    assert first.shape == (4, 256)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(256))
    method.after_step(0.1)
    second = method.directions()
    method.discard_step()
    third = method.directions()
    for one, other in ((first, second), (second, third), (first, third)):
        assert (one - other).abs().mean() > 0.1


def test_lejepa_directions_are_those_of_the_step_for_every_part_of_its_batch() -> None:
    """Nothing else moves them: a forward pass, or the generators, which differ between ranks."""
    method, views = build(), crops()
    before = method.directions()
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(method(views).loss)
    assert torch.equal(*losses)
    assert torch.equal(method.directions(), before)


def test_lejepa_directions_are_another_seeds_in_another_run_and_those_of_the_saved_one() -> None:
    method, other = build(), build()
    torch.manual_seed(1)
    other = LeJEPA(other.backbone, other.projector)
    method.after_step(0.1)
    assert not torch.equal(other.directions(), method.directions())
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.directions(), method.directions())
    for each in (method, other):
        each.after_step(0.2)
    assert torch.equal(other.directions(), method.directions())


def test_lejepa_default_projector_has_the_layers_of_the_example() -> None:
    backbone = build_backbone("resnet18", width=0.125)
    ours = [m for m in LeJEPA.projector_spec.build(backbone).modules() if not list(m.children())]
    theirs = MLP(backbone.num_features, [2048, 2048, 16], norm_layer=nn.BatchNorm1d)
    layers = [m for m in theirs if not isinstance(m, nn.Dropout)]
    assert [type(m) for m in ours] == [type(m) for m in layers]
    widths = [
        [m.weight.shape for m in found if isinstance(m, nn.Linear)] for found in (ours, layers)
    ]
    assert widths[0] == widths[1]


def test_lejepa_under_autocast_takes_its_loss_in_float32() -> None:
    method = build().float()
    with torch.autocast("cpu", torch.bfloat16):
        output = method([view.float() for view in crops()])
    z = torch.stack(output.embeddings).detach()
    assert z.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    expected = by_hand(z.double(), method.directions()).float()
    torch.testing.assert_close(output.loss.detach(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("lambd", [0.0, 1.0, -1.0, math.nan])
def test_lejepa_refuses_a_lambda_that_drops_a_term(lambd) -> None:
    with pytest.raises(ValueError, match=r"method.lambd must lie in \(0, 1\), got .* has 0.02"):
        build(lambd=lambd)


def part(cuts: list[int]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Three steps with crops on this rank's images; torch's generator differs between ranks."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    distributed = dist.is_initialized()
    rank = dist.get_rank() if distributed else 0
    own = slice(cuts[rank], cuts[rank + 1])
    method = build(lambd=0.3)
    model: nn.Module = (
        DistributedDataParallel(use_global_batch_norm(method)) if distributed else method
    )
    weights = torch.linspace(0.5, 2, 12, dtype=torch.float64)[own]
    for number in range(3):
        torch.manual_seed(rank)
        views = [view[own] for view in crops(local=2, n=12, seed=number)]
        method.zero_grad()
        output = model(views, weights)
        output.loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.sub_(0.01 * parameter.grad)
        method.after_step((number + 1) / 4)
    loss = output.loss.detach()
    if distributed:
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    return loss, [p.grad for p in method.parameters()], method.state_dict()


def test_lejepa_with_crops_does_not_depend_on_the_number_of_processes(
    two_processes, three_processes
) -> None:
    loss, gradients, state = part([0, 12])
    assert len(gradients) > 20
    for run, cuts in ((two_processes, [0, 7, 12]), (three_processes, [0, 5, 9, 12])):
        for found, parts, states in run(part, cuts):
            assert abs(found - loss) <= 1e-5 * abs(loss)
            for own, whole in zip(parts, gradients, strict=True):
                assert (own - whole).norm() <= 1e-5 * whole.norm() + 1e-12
            for key, value in state.items():
                torch.testing.assert_close(states[key], value, rtol=1e-5, atol=1e-8, msg=key)
