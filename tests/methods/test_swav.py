import pytest
import torch
import torch.nn.functional as F
from lightly.loss import SwaVLoss
from lightly.models.modules.heads import SwaVProjectionHead
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sslgh.methods import SwAV
from sslgh.models import build_backbone, use_global_batch_norm


def build(**settings: float) -> SwAV:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = SwAV.projector_spec.build(backbone, hidden=32, out=16)
    return SwAV(backbone, projector, **({"prototypes": 10} | settings)).double()


def crops(full: int = 2, local: int = 0, n: int = 6, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [8] * full + [4] * local
    return [torch.randn(n, 3, s, s, dtype=torch.float64, generator=generator) for s in sizes]


def by_hand(method: SwAV, views: list[Tensor]) -> list[Tensor]:
    """Scores view by view; only the passes of equal sizes share batch statistics."""
    features = [method.backbone(torch.cat(views[:2]))]
    if len(views) > 2:
        features.append(method.backbone(torch.cat(views[2:])))
    z = F.normalize(method.projector(torch.cat(features)))
    return list((z @ method.prototypes.weight.T).chunk(len(views)))


@pytest.mark.parametrize("local", [0, 3])
def test_swav_loss_is_lightlys_of_its_scores(local) -> None:
    views = crops(local=local)
    output, scores = build()(views), by_hand(build(), views)
    expected = SwaVLoss()(scores[:2], scores[2:])
    torch.testing.assert_close(output.loss[None], expected)
    torch.testing.assert_close(output.per_sample.mean()[None], expected)


def test_swav_embeddings_are_the_full_views_projections_without_the_crops() -> None:
    views, again = crops(local=3), build()
    z1, z2 = build()(views).embeddings
    features = [again.backbone(torch.cat(part)) for part in (views[:2], views[2:])]
    expected = again.projector(torch.cat(features))[:12]
    torch.testing.assert_close(torch.cat([z1, z2]), expected)


def test_swav_prototypes_are_unit_vectors_without_bias_before_every_step() -> None:
    method = build(freeze_prototypes_epochs=0)
    assert method.prototypes.bias is None
    ones = torch.ones(10, dtype=torch.float64)
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), ones)
    with torch.no_grad():
        method.prototypes.weight.mul_(torch.arange(1, 11)[:, None])
    directions = F.normalize(method.prototypes.weight)
    method.after_step(0.5)
    torch.testing.assert_close(method.prototypes.weight, directions)


def test_swav_prototypes_have_a_gradient_of_zero_while_frozen_and_one_after() -> None:
    method = build(freeze_prototypes_epochs=2)
    for epoch, frozen in ((0, True), (1, True), (2, False)):
        method.begin_epoch(epoch, 5)
        method.zero_grad()
        method(crops()).loss.backward()
        assert (method.prototypes.weight.grad == 0).all() == frozen
        assert (method.projector.layers[0].weight.grad != 0).any()


def test_swav_queue_joins_the_partition_once_it_is_full_and_not_before() -> None:
    method = build(queue=12, queue_start=1)
    method.begin_epoch(0, 5)
    method(crops(seed=1))
    assert method.queued == 0
    method.begin_epoch(1, 5)
    remembered = []
    for seed in (2, 3):
        output, scores = method(crops(seed=seed)), by_hand(build(), crops(seed=seed))
        torch.testing.assert_close(output.loss[None], SwaVLoss()(scores, []))
        remembered.append([F.normalize(z.detach()) for z in output.embeddings])
    for view, queue in enumerate(method.queues):
        torch.testing.assert_close(queue.rows, torch.cat([step[view] for step in remembered]))
    output, scores = method(crops(seed=4)), by_hand(build(), crops(seed=4))
    queued = [
        torch.cat([step[view] for step in remembered]) @ method.prototypes.weight.T
        for view in (0, 1)
    ]
    torch.testing.assert_close(output.loss[None], SwaVLoss()(scores, [], queued))
    assert (output.loss - SwaVLoss()(scores, [])).abs() > 1e-3


def test_swav_queue_is_left_alone_in_eval_mode() -> None:
    method = build(queue=12, queue_start=0).eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(crops())
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())


def test_swav_weights_only_the_anchors() -> None:
    weights = torch.tensor([2.0, 1, 3, 1, 0.5, 2], dtype=torch.float64)
    output = build()(crops(), weights)
    torch.testing.assert_close(output.per_sample, build()(crops()).per_sample)
    torch.testing.assert_close(output.loss, (weights * output.per_sample).sum() / weights.sum())


def test_swav_projector_has_the_layers_of_lightlys() -> None:
    assert str(build().projector.layers) == str(SwaVProjectionHead(64, 32, 16).layers)


def test_swav_under_autocast_takes_scores_and_loss_in_float32() -> None:
    method = build(queue=6, queue_start=0).float()
    views = [view.float() for view in crops(local=2)]
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            output = method(views)
    assert output.per_sample.dtype == torch.float32
    z = output.embeddings[0].float()
    codes = (F.normalize(z) @ method.prototypes.weight.T).detach()
    assert output.loss.isfinite()
    assert not torch.equal(codes, codes.bfloat16().float())


def test_swav_refuses_a_queue_smaller_than_the_batch_from_the_first_step_on() -> None:
    with pytest.raises(ValueError, match=r"method.queue 5 is smaller than the batch of 6 images"):
        build(queue=5, queue_start=3)(crops())


@pytest.mark.parametrize("key", ["temperature", "epsilon", "prototypes"])
def test_swav_names_the_key_that_is_out_of_range(key) -> None:
    with pytest.raises(ValueError, match=f"method.{key} must be .*, got 0"):
        build(**{key: 0})
    with pytest.raises(ValueError, match=r"method.queue must not be negative, got -1"):
        build(queue=-1)


def part(cuts: list[int]) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Three steps with crops and a queue that is full at the third, on this process's images."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    distributed = dist.is_initialized()
    rank = dist.get_rank() if distributed else 0
    own = slice(cuts[rank], cuts[rank + 1])
    method = build(queue=20, queue_start=0, freeze_prototypes_epochs=0)
    model: nn.Module = (
        DistributedDataParallel(use_global_batch_norm(method)) if distributed else method
    )
    weights = torch.linspace(0.5, 2, 12, dtype=torch.float64)[own]
    for number in range(3):
        views = [view[own] for view in crops(local=2, n=12, seed=number)]
        method.zero_grad()
        output = model(views, weights)
        output.loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.sub_(0.01 * parameter.grad)
        method.after_step((number + 1) / 3)
    loss = output.loss.detach()
    if distributed:
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    return loss, [parameter.grad for parameter in method.parameters()], method.state_dict()


def test_swav_with_crops_and_queue_does_not_depend_on_the_number_of_processes(
    two_processes, three_processes
) -> None:
    loss, gradients, state = part([0, 12])
    assert state["queued"] == 36
    for run, cuts in ((two_processes, [0, 7, 12]), (three_processes, [0, 5, 9, 12])):
        for found, parts, states in run(part, cuts):
            assert abs(found - loss) <= 1e-5 * abs(loss)
            for own, whole in zip(parts, gradients, strict=True):
                assert (own - whole).norm() <= 1e-5 * whole.norm() + 1e-12
            for key, value in state.items():
                torch.testing.assert_close(states[key], value, rtol=1e-5, atol=1e-8, msg=key)
