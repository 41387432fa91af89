import pytest
import timm
import torch
from torch import Tensor, nn

from sslgh.models import GlobalBatchNorm, use_global_batch_norm

SHAPES = [(12, 3), (12, 3, 4, 4)]


def draw(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5 + 2 * torch.randn(shape, dtype=torch.float64, generator=generator)


def layer(kind: type[nn.Module], shape: tuple[int, ...]) -> nn.Module:
    norm = kind(shape[1]).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    return norm


def part(shape: tuple[int, ...], cuts: list[int]) -> tuple[Tensor, ...]:
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    rank = dist.get_rank()
    own = slice(cuts[rank], cuts[rank + 1])
    norm, x = layer(GlobalBatchNorm, shape), draw(shape)[own].requires_grad_()
    y = norm(x)
    (y * draw(shape, seed=1)[own]).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad, norm.weight.grad, norm.running_mean, norm.running_var


def test_statistics_and_gradients_are_those_of_one_process_on_the_whole_batch(
    two_processes,
) -> None:
    for shape in SHAPES:
        for cuts in ([0, 6, 12], [0, 1, 12], [0, 0, 12]):
            kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
            norm, x = layer(kind, shape), draw(shape).requires_grad_()
            y = norm(x)
            (y * draw(shape, seed=1)).sum().backward()
            parts = two_processes(part, shape, cuts)
            for number, whole in ((0, y.detach()), (1, x.grad)):
                torch.testing.assert_close(torch.cat([p[number] for p in parts]), whole)
            torch.testing.assert_close(parts[0][2] + parts[1][2], norm.weight.grad)
            for _, _, _, mean, variance in parts:
                torch.testing.assert_close(mean, norm.running_mean)
                torch.testing.assert_close(variance, norm.running_var)


def test_on_one_process_it_is_plain_batch_norm_in_training_and_evaluation() -> None:
    for shape in SHAPES:
        kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
        ours, theirs, x = layer(GlobalBatchNorm, shape), layer(kind, shape), draw(shape)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def offset_variance() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    norm = GlobalBatchNorm(1)
    return norm(1e4 + torch.randn(4000, 1, generator=generator)).detach()


def test_a_large_mean_does_not_cancel_the_variance(two_processes) -> None:
    for found in two_processes(offset_variance):
        torch.testing.assert_close(found.std(), torch.tensor(1.0), rtol=1e-2, atol=0)


def test_globalize_replaces_every_norm_and_keeps_names_and_values() -> None:
    model = nn.Sequential(
        nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3, affine=False))
    )
    model[1].running_mean.fill_(7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_global_batch_norm(model.eval())
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 2
    assert all(isinstance(norm, GlobalBatchNorm) and not norm.training for norm in norms)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet10t"])
def test_globalize_leaves_the_function_of_timm_models_with_activations_in_their_norms(name) -> None:
    model, x = timm.create_model(name, num_classes=0).eval(), torch.randn(2, 3, 64, 64)
    expected = model(x)
    torch.testing.assert_close(use_global_batch_norm(model)(x), expected)


def test_a_norm_that_does_something_else_is_refused() -> None:
    class Odd(nn.BatchNorm1d):
        pass

    with pytest.raises(ValueError, match="Odd has no global form here"):
        use_global_batch_norm(nn.Sequential(Odd(3)))
