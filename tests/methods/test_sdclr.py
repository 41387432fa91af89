import copy

import pytest
import torch
from lightly.loss import NTXentLoss
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sslgh.functional import nt_xent
from sslgh.methods import SDCLR
from sslgh.models import build_backbone, use_global_batch_norm


def build(layers: int = 2, **settings) -> SDCLR:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", width=0.125)
    projector = SDCLR.projector_spec.build(backbone, hidden=32, out=16, layers=layers)
    return SDCLR(backbone, projector, **({"prune": 0.5} | settings)).double()


def views(n: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2)]


def move(method: nn.Module, rate: float = 0.05) -> None:
    """One step of gradient descent."""
    method.zero_grad()
    method(views()).loss.backward()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.sub_(rate * parameter.grad)


def masks(method: SDCLR) -> Tensor:
    return torch.cat([m.flatten() for m in method.pruned_backbone.masks.buffers()]).clone()


def by_hand(method: SDCLR) -> SDCLR:
    """A method whose own backbone and projector are the pruned branch of another."""
    pruned = copy.deepcopy(method)
    with torch.no_grad():
        for branch, network in (
            (pruned.pruned_backbone, pruned.backbone),
            (pruned.pruned_projector, pruned.projector),
        ):
            for name, mask in branch.masks.named_buffers():
                network.get_parameter(name.replace("/", ".")).mul_(mask)
            values = {n.replace("/", "."): v for n, v in branch.norms.state_dict().items()}
            network.load_state_dict(values, strict=False)
    return pruned


def test_the_loss_is_nt_xent_between_the_dense_first_and_the_pruned_second_view() -> None:
    method = build()
    move(method)  # so that the branches' norms differ
    pruned, (x1, x2) = by_hand(method), views()
    expected = method.projector(method.backbone(x1)), pruned.projector(pruned.backbone(x2))
    output = method(views())
    for z, embedding in zip(output.embeddings, expected, strict=True):
        torch.testing.assert_close(z, embedding)
    torch.testing.assert_close(output.per_sample, nt_xent(*expected, temperature=0.2))
    torch.testing.assert_close(output.loss, NTXentLoss(temperature=0.2)(*expected))
    torch.testing.assert_close(output.features, method.backbone(x1).detach())
    assert not output.features.requires_grad


def test_with_nothing_pruned_and_equal_norms_it_embeds_as_simclr_with_a_view_at_a_time() -> None:
    method, (x1, x2) = build(prune=0.0), views()
    z1, z2 = method([x1, x2]).embeddings
    again = build(prune=0.0)
    torch.testing.assert_close(z1, again.projector(again.backbone(x1)))
    torch.testing.assert_close(z2, again.projector(again.backbone(x2)))


def test_the_joint_gradient_is_the_sum_of_the_official_codes_two_backward_passes() -> None:
    def gradients(loss: Tensor, method: SDCLR) -> list[Tensor]:
        found = torch.autograd.grad(loss, list(method.parameters()), allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(found, method.parameters(), strict=True)
        ]

    methods = build(), build(), build()
    joint = gradients(methods[0](views()).loss, methods[0])
    z1, z2 = methods[1](views()).embeddings
    dense = gradients(nt_xent(z1, z2.detach(), temperature=0.2).mean(), methods[1])
    z1, z2 = methods[2](views()).embeddings
    pruned = gradients(nt_xent(z1.detach(), z2, temperature=0.2).mean(), methods[2])
    assert len(joint) == 20 + 2 * 40 + 2 + 2 * 4
    for whole, first, second in zip(joint, dense, pruned, strict=True):
        assert (first != 0).any() or (second != 0).any()
        torch.testing.assert_close(whole, first + second)


def test_every_parameter_has_a_gradient_and_norms_only_that_of_their_branch() -> None:
    method = build()
    z1, z2 = method(views()).embeddings
    for z, own in ((z1, ("backbone", "projector")), (z2, ("pruned_backbone", "pruned_projector"))):
        names = [n for n, p in method.named_parameters() if p.ndim == 1]
        found = torch.autograd.grad(
            z.square().sum(),
            [method.get_parameter(n) for n in names],
            retain_graph=True,
            allow_unused=True,
        )
        assert {n.split(".")[0] for n, g in zip(names, found, strict=True) if g is not None} == set(
            own
        )
    method(views()).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())


def test_each_branch_updates_its_own_running_statistics_once_a_step() -> None:
    method, (x1, x2) = build(), views()
    method([x1, x2])
    dense, pruned = method.backbone.bn1, method.pruned_backbone.norms.state_dict()
    first, second = (
        nn.functional.conv2d(x, weight, padding=1).mean((0, 2, 3)) / 10
        for x, weight in (
            (x1, method.backbone.conv1.weight),
            (
                x2,
                method.backbone.conv1.weight
                * method.pruned_backbone.masks.get_buffer("conv1/weight"),
            ),
        )
    )
    torch.testing.assert_close(dense.running_mean, first)
    torch.testing.assert_close(pruned["bn1/running_mean"], second)
    assert int(dense.num_batches_tracked) == int(pruned["bn1/num_batches_tracked"]) == 1
    counts = [v for n, v in method.named_buffers() if n.endswith("num_batches_tracked")]
    assert len(counts) == 44
    assert all(int(count) == 1 for count in counts)


def test_only_convolutions_are_pruned_all_of_them_by_one_threshold() -> None:
    method = build(prune=0.9)
    method.begin_epoch(0, 3)
    assert not list(method.pruned_projector.masks.buffers())
    named = dict(method.pruned_backbone.masks.named_buffers())
    expected = {n.replace(".", "/") for n, p in method.backbone.named_parameters() if p.ndim == 4}
    assert set(named) == expected
    assert {"conv1/weight", "layer2/0/downsample/0/weight"} <= expected
    size = torch.cat([method.backbone.get_parameter(n.replace("/", ".")).flatten() for n in named])
    kept = masks(method)
    assert int((~kept).sum()) == round(0.9 * len(kept))
    assert size.abs()[kept].min() > size.abs()[~kept].max()


def test_the_mask_is_redrawn_when_an_epoch_begins_and_not_within_it() -> None:
    method = build()
    method.begin_epoch(0, 3)
    first = masks(method)
    move(method)
    assert torch.equal(masks(method), first)
    method.begin_epoch(0, 3)
    assert torch.equal(masks(method), first)
    method.begin_epoch(1, 3)
    assert not torch.equal(masks(method), first)
    fresh = build()
    fresh.load_state_dict(method.state_dict())
    fresh.pruned_backbone.redraw(fresh.backbone, share=0.5)
    assert torch.equal(masks(method), masks(fresh))


@pytest.mark.parametrize("middle", [False, True])
def test_a_run_resumed_from_a_file_goes_on_bit_for_bit(tmp_path, middle) -> None:
    def go(method: SDCLR, epoch: int, steps: int = 2) -> None:
        method.begin_epoch(epoch, 3)
        for _ in range(steps):
            move(method)

    whole, resumed = build(), build()
    for epoch in range(3):
        go(whole, epoch)
    broken = build()
    go(broken, 0)
    if middle:
        go(broken, 1, steps=1)
    tensors = {k: v.detach().contiguous() for k, v in broken.state_dict().items()}
    save_file(tensors, tmp_path / "module.safetensors")  # refuses tensors that share memory
    resumed.load_state_dict(load_file(tmp_path / "module.safetensors"))
    go(resumed, 1, steps=1 if middle else 2)
    go(resumed, 2)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_backbone_that_is_kept_is_an_ordinary_one() -> None:
    method = build()
    move(method)
    plain = build_backbone("resnet18", width=0.125).double()
    plain.load_state_dict(method.backbone.state_dict())
    x = views()[0]
    assert torch.equal(plain.eval()(x), method.eval().backbone(x))
    assert torch.equal(method(views()).features, plain(x))


def test_a_copy_is_independent() -> None:
    method = build()
    other = copy.deepcopy(method)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    move(other)
    other.begin_epoch(0, 1)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    torch.testing.assert_close(method(views()).loss, build()(views()).loss)


def test_global_norms_change_nothing_on_one_process() -> None:
    plain, method = build(), build()
    use_global_batch_norm(method)
    for each in (plain, method):
        move(each)
        each.begin_epoch(0, 1)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(method.state_dict()[name], value)


def test_training_brings_the_branches_together() -> None:
    method = build(prune=0.9)
    losses = []
    for epoch in range(6):
        method.begin_epoch(epoch, 6)
        move(method)
        losses.append(float(method(views()).loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("prune", [-0.1, 1.0, float("nan")])
def test_a_share_that_is_none_is_refused(prune) -> None:
    with pytest.raises(ValueError, match=r"method\.prune must lie in \[0, 1\), got"):
        build(prune=prune)


def test_a_temperature_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.temperature must be positive, got 0"):
        build(temperature=0.0)


def test_a_backbone_that_is_hardly_convolutions_is_refused() -> None:
    vit = build_backbone("timm:vit_tiny_patch16_224", image_size=32)
    with pytest.raises(ValueError, match="prunes convolutions; this backbone has 1, with 3% of"):
        SDCLR(vit, nn.Linear(192, 16))
    with pytest.raises(ValueError, match="has 0, with 0% of its weights: use a ResNet"):
        SDCLR(nn.Flatten(), nn.Linear(3, 2))


def test_three_layers_are_the_released_head() -> None:
    linear = [m for m in build(layers=3).projector.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(64, 32), (32, 32), (32, 16)]
