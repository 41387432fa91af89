import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslgh.functional import negative_cosine, nt_xent
from sslgh.harmonize import GeometricHarmonizer
from sslgh.methods import METHODS, Method
from sslgh.models import build_backbone, save_backbone, use_global_batch_norm

SETTINGS = {
    "barlow-twins": {},
    "byol": {},
    "dcl": {},
    "dino": {"prototypes": 10},
    "distil": {"teachers": ("RUN", "RUN")},
    "distill": {"teachers": ("RUN",), "teacher_size": 12},
    "focal": {},
    "lejepa": {},
    "moco-v2": {"queue": 20},
    "moco-v3": {},
    "nnclr": {"predictor_hidden": 32, "queue": 20},
    "sdclr": {"prune": 0.5},
    "simclr": {},
    "simsiam": {"predictor_hidden": 8},
    "swav": {"prototypes": 10, "queue": 20, "queue_start": 0},
    "ts": {"period": 4},
    "vicreg": {},
}


def build(name: str) -> Method:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    settings = dict(SETTINGS[name])
    with tempfile.TemporaryDirectory() as run:
        if "teachers" in settings:  # read by the constructor, so the run may go
            card = {"backbone": "resnet18", "stem": "cifar", "width": 0.125, "image_size": 8}
            # Moments of its own: the views are normalized anew for it.
            card |= {"mean": [0.5] * 3, "std": [0.25] * 3} if name == "distill" else {}
            save_backbone(build_backbone("resnet18", width=0.125), Path(run), card)
            settings["teachers"] = (run,) * len(settings["teachers"])
        projector = METHODS[name].projector_spec.build(backbone, hidden=32, out=16)
        method = METHODS[name](backbone, projector, **settings)
    return method.double()


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
    if METHODS[name].has_sample_losses:
        assert output.per_sample.shape == (12,)
        torch.testing.assert_close(output.loss, (weights * output.per_sample).sum() / weights.sum())
    else:
        assert output.per_sample is None
    unweighted = build(name)([x1, x2], None).loss
    torch.testing.assert_close(unweighted, build(name)([x1, x2], torch.ones(12)).loss)
    assert (output.loss - unweighted).abs() > 1e-9 * unweighted.abs()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_embeddings_are_those_of_the_two_views_with_gradient(name) -> None:
    method, (x1, x2, _) = build(name), views()
    output = method([x1, x2], None)
    z1, z2 = output.embeddings
    assert z1.shape == z2.shape == (12, method.embedding_dim)
    gradients = torch.autograd.grad(
        (z1 + z2).square().sum(), [p for p in method.backbone.parameters() if p.requires_grad]
    )
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert output.features.shape == (12, method.backbone.num_features)
    assert not output.features.requires_grad


@pytest.mark.parametrize("name", ["simclr", "simsiam"])
def test_embeddings_are_the_projections(name) -> None:
    method, (x1, x2, _) = build(name), views()
    both = build(name)
    expected = both.projector(both.backbone(torch.cat([x1, x2])))
    torch.testing.assert_close(torch.cat(method([x1, x2], None).embeddings), expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_method_goes_on_as_the_one_that_was_not_interrupted(name) -> None:
    """Begun again in the middle of an epoch, with weights from a file."""
    method, (x1, x2, weights) = build(name), views()
    trained([x1, x2], weights, method)
    resumed = build(name)
    resumed.load_state_dict({key: value.clone() for key, value in method.state_dict().items()})
    losses = []
    for each in (method, resumed):
        each.begin_epoch(0, 2)
        output = each([x1, x2], weights)
        output.loss.backward()
        each.after_step(0.75)
        losses.append(output.loss)
    assert torch.equal(*losses)
    states = (method.state_dict(), resumed.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


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


def trained(
    pair: list[Tensor], weights: Tensor, method: Method, *, gh: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Two steps of gradient descent in an epoch; loss and gradients of the second."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    distributed = dist.is_initialized()
    model: nn.Module = (
        DistributedDataParallel(use_global_batch_norm(method)) if distributed else method
    )
    harmonizer = GeometricHarmonizer(12, method.embedding_dim, num_vertices=5, ramp_epochs=1)
    harmonizer.started.fill_(0)
    harmonizer.double().begin_epoch(1)
    method.begin_epoch(0, 2)
    for number in range(2):
        output = model(pair, weights)
        loss = output.loss + harmonizer(*output.embeddings) if gh else output.loss
        method.zero_grad()
        loss.backward()
        if number == 0:
            with torch.no_grad():
                for parameter in method.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.01 * parameter.grad)
            method.after_step(0.25)
    method.after_step(0.5)
    loss = loss.detach()
    if distributed:
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    return loss, [p.grad for p in method.parameters() if p.grad is not None]


def part(name: str, cuts: list[int], gh: bool) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """What `trained` gives on this process's part, and the state it leaves."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    rank = dist.get_rank() if dist.is_initialized() else 0
    own = slice(cuts[rank], cuts[rank + 1])
    method, (x1, x2, weights) = build(name), views()
    loss, gradients = trained([x1[own], x2[own]], weights[own], method, gh=gh)
    return loss, gradients, method.state_dict()


@pytest.mark.parametrize("gh", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_several_processes_have_loss_gradient_and_state_of_one(
    two_processes, three_processes, name, gh
) -> None:
    loss, gradients, state = part(name, [0, 12], gh)
    assert len(gradients) > 20
    for run, cuts in ((two_processes, [0, 7, 12]), (three_processes, [0, 5, 9, 12])):
        for found, parts, states in run(part, name, cuts, gh):
            assert abs(found - loss) <= 1e-5 * abs(loss)
            for own, whole in zip(parts, gradients, strict=True):
                assert (own - whole).norm() <= 1e-5 * whole.norm() + 1e-12
            assert states.keys() == state.keys()
            for key, value in state.items():
                # By norm: GH computes in float32, of which a queue's smallest entries keep little.
                difference = (states[key].double() - value.double()).norm()
                assert difference <= 1e-5 * value.double().norm() + 1e-12, key
