from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from sslgh.distributed import dist_info
from sslgh.models import build_backbone, checkpoint_activations, use_global_batch_norm


def images(n: int = 6, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def step(backbone: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Loss, gradients and buffers after one forward and backward."""
    y = backbone.train()(x)
    target = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    loss = (y - target).square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters()}
    return loss.detach(), gradients, dict(backbone.named_buffers())


def count_calls(backbone: nn.Module) -> list[int]:
    calls = []
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_: calls.append(1))
    return calls


NETWORKS = [
    ("resnet18", {"width": 0.125}),
    ("resnet50", {"width": 0.125, "stem": "imagenet"}),
    ("resnet20", {}),
    ("torchvision:resnet18", {}),
    ("timm:resnet10t", {}),
    ("vit_tiny", {"image_size": 16}),
    ("swin_tiny", {"image_size": 16}),
    ("convnext_tiny", {"image_size": 16}),
]


@pytest.mark.parametrize("name", [name for name, _ in NETWORKS])
def test_checkpointing_changes_neither_loss_nor_gradient_nor_running_statistics(name) -> None:
    torch.manual_seed(0)
    size = 32 if ":" in name else 16
    plain = build_backbone(name, **dict(NETWORKS)[name])
    thrifty = checkpoint_activations(deepcopy(plain))
    calls, more = count_calls(plain), count_calls(thrifty)
    expected, found = step(plain, images(4, size)), step(thrifty, images(4, size))
    assert len(more) > 1.5 * len(calls)  # it did compute twice
    assert found[1].keys() == expected[1].keys()
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=0)
    if "resnet" in name:
        assert all(v == 1 for k, v in found[2].items() if k.endswith("num_batches_tracked"))


def test_the_next_step_goes_on_counting_and_evaluation_is_the_same() -> None:
    plain = build_backbone("resnet20")
    thrifty = checkpoint_activations(deepcopy(plain))
    for backbone in (plain, thrifty):
        step(backbone, images())
        step(backbone, images())
    assert thrifty.bn1.num_batches_tracked == 2
    assert thrifty.layer3[0].bn1.num_batches_tracked == 2
    torch.testing.assert_close(thrifty.state_dict(), plain.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(thrifty.eval()(images()), plain.eval()(images()))


def test_dropped_paths_are_the_same_in_both_forwards() -> None:
    import timm  # noqa: PLC0415

    torch.manual_seed(0)
    options = {"img_size": 32, "num_classes": 0, "drop_path_rate": 0.5}
    plain = timm.create_model("vit_tiny_patch16_224", **options)
    thrifty = checkpoint_activations(deepcopy(plain))
    results = []
    for backbone in (plain, thrifty):
        torch.manual_seed(3)
        results.append(step(backbone, images(size=32))[1])
    torch.testing.assert_close(*results, rtol=0, atol=0)


def part_of_step(sizes: list[int], checkpointing: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients and buffers of one step under DDP on this process's part of a batch; runs in a worker."""
    rank, size = dist_info()
    torch.manual_seed(0)
    backbone = build_backbone("resnet20").double()
    if checkpointing:
        checkpoint_activations(backbone)
    use_global_batch_norm(backbone)
    first = sum(sizes[:rank])
    x = images(sum(sizes))[first : first + sizes[rank]].double()
    model = nn.parallel.DistributedDataParallel(backbone) if size > 1 else backbone
    loss = model.train()(x).square().sum() * size
    loss.backward()
    return [p.grad for p in backbone.parameters()], list(backbone.buffers())


def test_global_statistics_survive_checkpointing_on_two_processes(two_processes) -> None:
    answers = two_processes(part_of_step, [4, 2], True)
    assert len(answers) == 2
    expected = part_of_step([6], False)
    for found in answers:
        for one, two in zip(expected, found, strict=True):
            torch.testing.assert_close(two, one)
    assert len(answers[0][1]) > 30


@pytest.mark.parametrize(("name", "message"), [
    ("timm:mobilenetv3_small_050", "would count batch statistics twice in MobileNetV3; leave it out"),
    ("torchvision:squeezenet1_1", "is not known in SqueezeNet"),
    ("timm:convit_tiny", "gradient checkpointing not supported; leave it out"),
])  # fmt: skip
def test_a_backbone_that_cannot_is_refused(name, message) -> None:
    with torch.device("meta") if name.startswith("timm") else torch.device("cpu"):
        backbone = build_backbone(name)
    with pytest.raises(ValueError, match=message):
        checkpoint_activations(backbone)
