import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sslgh.models import PrunedBranch, build_backbone, checkpoint_activations, use_global_batch_norm
from sslgh.models.pruning import magnitude_masks

SHAPES = [(8, 3, 3, 3), (16, 8, 1, 1), (16, 8, 3, 3)]


def weights(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator) * scale
        for shape, scale in zip(SHAPES, (1, 3, 0.2), strict=True)
    ]


def torchs(values: list[Tensor], share: float) -> list[Tensor]:
    """The masks of torch.nn.utils.prune.global_unstructured."""
    layers = [nn.Conv2d(1, 1, 1) for _ in values]
    for layer, value in zip(layers, values, strict=True):
        layer.weight = nn.Parameter(value.clone())
    prune.global_unstructured(
        [(layer, "weight") for layer in layers],
        pruning_method=prune.L1Unstructured,
        amount=float(share),
    )
    return [layer.weight_mask.bool() for layer in layers]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.333, 0.9, 0.9995])
def test_masks_are_those_of_torchs_global_pruning(share) -> None:
    for found, expected in zip(
        magnitude_masks(weights(), share=share), torchs(weights(), share), strict=True
    ):
        assert torch.equal(found, expected)


def test_the_share_is_of_all_weights_together_not_of_each_tensor() -> None:
    masks = magnitude_masks(weights(), share=0.8)
    total = sum(mask.numel() for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) == total - round(0.8 * total)
    assert masks[1].float().mean() > 0.8
    assert masks[2].float().mean() < 0.1


@pytest.mark.parametrize("share", [0.2, 0.85, 0.9])
def test_of_equal_magnitudes_the_first_are_pruned_and_the_count_stays_exact(share) -> None:
    values = [weight.round() for weight in weights()]
    masks = magnitude_masks(values, share=share)
    kept = torch.cat([mask.flatten() for mask in masks])
    size = torch.cat([value.abs().flatten() for value in values])
    assert int((~kept).sum()) == round(share * len(size))
    order = size.argsort(stable=True)
    assert torch.equal(kept[order], torch.arange(len(size)) >= round(share * len(size)))
    pruned = torch.cat([mask.flatten() for mask in torchs(values, share)])
    assert torch.equal(size[kept].sort().values, size[pruned].sort().values)


def test_masks_do_not_depend_on_the_memory_format() -> None:
    last = [weight.contiguous(memory_format=torch.channels_last) for weight in weights()]
    for found, expected in zip(
        magnitude_masks(last, share=0.7), magnitude_masks(weights(), share=0.7), strict=True
    ):
        assert torch.equal(found, expected)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet18", width=0.125).double()


def images(size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, size, size, dtype=torch.float64, generator=generator)


def test_with_nothing_pruned_the_branch_is_a_copy_of_the_network() -> None:
    dense = network()
    branch, twin = PrunedBranch(dense), copy.deepcopy(dense)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    torch.testing.assert_close(branch(dense, images()), twin(images()))
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    norms = {name.replace("/", "."): value for name, value in branch.norms.state_dict().items()}
    assert len(norms) == 20 * 5
    for name, value in norms.items():
        torch.testing.assert_close(value, twin.state_dict()[name])
    assert int(norms["bn1.num_batches_tracked"]) == 1


def test_a_branch_keeps_no_memory_of_the_networks() -> None:
    dense = network()
    theirs = {tensor.data_ptr() for tensor in dense.state_dict().values()}
    own = {tensor.data_ptr() for tensor in PrunedBranch(dense).state_dict().values()}
    assert len(own) == 20 * 5 + 20
    assert not own & theirs


def test_the_branch_is_the_network_with_weights_pruned_by_torch_and_shares_their_gradient() -> None:
    dense, twin = network(), network()
    branch = PrunedBranch(dense)
    branch.redraw(dense, share=0.6)
    layers = [m for m in twin.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 20
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=0.6
    )
    y, expected = branch(dense, images()), twin(images())
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    convolutions = [m for m in dense.modules() if isinstance(m, nn.Conv2d)]
    for layer, pruned in zip(convolutions, layers, strict=True):
        torch.testing.assert_close(layer.weight.grad, pruned.weight_orig.grad)
        assert (layer.weight.grad[~pruned.weight_mask.bool()] == 0).all()
    own = {n.replace("/", "."): p.grad for n, p in branch.norms.named_parameters()}
    assert len(own) == 40
    for name, parameter in twin.named_parameters():
        if name in own:
            torch.testing.assert_close(own[name], parameter.grad)
            assert dense.get_parameter(name).grad is None


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_timms_norms_with_activations_work_and_have_statistics_of_their_own(name) -> None:
    torch.manual_seed(0)
    dense = timm.create_model(name, num_classes=0).double().eval()
    branch, x = PrunedBranch(dense), images(16)
    expected = dense(x)
    torch.testing.assert_close(branch(dense, x), expected)
    branch.redraw(dense, share=0.3)
    assert not torch.allclose(branch(dense, x), expected)
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    branch(dense.train(), x)
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())
    counts = [b for n, b in branch.norms.named_buffers() if n.endswith("num_batches_tracked")]
    assert len(counts) > 10
    assert all(int(count) == 1 for count in counts)


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet10t"])
def test_norms_that_were_replaced_later_are_still_the_branchs_own(name) -> None:
    torch.manual_seed(0)
    width = {"width": 0.125} if name == "resnet18" else {}
    dense = build_backbone(name, **width).double()
    branch = PrunedBranch(dense)
    branch.redraw(dense, share=0.5)
    copies = copy.deepcopy((dense, branch))
    use_global_batch_norm(dense)
    torch.testing.assert_close(branch(dense, images(16)), copies[1](copies[0], images(16)))
    for key, value in branch.state_dict().items():
        torch.testing.assert_close(value, copies[1].state_dict()[key])


def test_autocast_and_channels_last_change_only_the_rounding() -> None:
    dense = network().float()
    branch = PrunedBranch(dense)
    branch.redraw(dense, share=0.5)
    expected = branch(dense, images().float()).detach()
    dense, branch = (m.to(memory_format=torch.channels_last) for m in (dense, branch))
    branch.redraw(dense, share=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        y = branch(dense, images().float().contiguous(memory_format=torch.channels_last))
    assert (y.float() - expected).norm() < 0.05 * expected.norm()
    y.float().sum().backward()
    assert dense.conv1.weight.grad.dtype == torch.float32


def test_a_network_that_recomputes_activations_is_refused() -> None:
    dense = checkpoint_activations(network())
    branch = PrunedBranch(dense)
    with pytest.raises(ValueError, match=r"set model\.checkpointing: false"):
        branch.redraw(dense, share=0.5)
