import math

import pytest
import torch
from torch import Tensor, nn

from sslgh.distributed import dist_info
from sslgh.models import (
    CosineClassifier,
    GlobalBatchNorm,
    contrast_head,
    linear_classifier,
    use_global_batch_norm,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cosine_logits_are_thirty_times_the_cosines() -> None:
    classify, x = CosineClassifier(5, 3).double(), draw(4, 5)
    found, weight = classify(x).detach(), classify.weight.detach()
    for i in range(4):
        for c in range(3):
            w = weight[c]
            lengths = math.sqrt(float(x[i] @ x[i])) * math.sqrt(float(w @ w))
            assert found[i, c].item() == pytest.approx(30 * float(x[i] @ w) / lengths, rel=1e-12)


def test_cosine_logits_ignore_lengths_and_bound_the_scale() -> None:
    classify, x = CosineClassifier(5, 3, scale=7).double(), draw(4, 5)
    expected = classify(x)
    with torch.no_grad():
        classify.weight.mul_(torch.tensor([[3.0], [0.2], [11.0]]))
    torch.testing.assert_close(classify(5 * x), expected)
    torch.testing.assert_close(
        classify(2 * classify.weight).diagonal(), torch.full((3,), 7.0).double()
    )


def test_gradients_of_the_cosine_classifier_are_those_of_finite_differences() -> None:
    classify, x = CosineClassifier(4, 3).double(), draw(2, 4).requires_grad_()

    def logits(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(classify, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(logits, (x, classify.weight))


def test_weights_of_the_cosine_classifier_start_on_the_unit_sphere() -> None:
    torch.manual_seed(0)
    weight = CosineClassifier(8, 4000).weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(4000))
    assert weight.mean(0).abs().max() < 4.5 / math.sqrt(8 * 4000)
    assert [name for name, _ in CosineClassifier(8, 4).named_parameters()] == ["weight"]


def test_cosine_logits_stay_float32_under_autocast() -> None:
    classify, x = CosineClassifier(64, 10), draw(6, 64).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = classify(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, classify(x), rtol=0, atol=0)


def test_a_feature_of_zeros_has_no_direction_and_no_nan() -> None:
    assert CosineClassifier(3, 2)(torch.zeros(1, 3)).tolist() == [[0, 0]]


def test_a_scale_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        CosineClassifier(3, 2, scale=0)


def test_a_linear_classifier_starts_with_classes_almost_alike() -> None:
    torch.manual_seed(0)
    layer = linear_classifier(64, 1000)
    assert layer.weight.shape == (1000, 64)
    assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not layer.bias.any()
    share = layer(draw(5, 64).float()).softmax(1)
    assert (share * 1000 - 1).abs().max() < 0.5


def test_a_contrast_head_is_linear_norm_relu_linear() -> None:
    head, x = contrast_head(4, hidden=6, out=3).double(), draw(9, 4)
    (first, norm, _, last) = head.layers
    assert [type(m) for m in head.layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    y = x @ first.weight.T
    y = (y - y.mean(0)) / (y.var(0, unbiased=False) + norm.eps).sqrt()
    expected = y.clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(head(x), expected)


def prototypes(rows: int, cotangents: tuple[int, ...]) -> tuple[Tensor, ...]:
    """A head on the rows that all processes have, under this process's own part of the loss."""
    torch.manual_seed(3)
    head = use_global_batch_norm(contrast_head(4, hidden=6, out=3).double())
    weight = draw(rows, 4).requires_grad_()
    y = head(weight)
    own = (
        cotangents if dist_info().size == 1 else cotangents[dist_info().rank : dist_info().rank + 1]
    )
    (y * sum(draw(rows, 3, seed=seed) for seed in own) / len(own)).sum().backward()
    norm = head.layers[1]
    assert isinstance(norm, GlobalBatchNorm)
    gradients = [parameter.grad for parameter in (weight, *head.parameters())]
    return y.detach(), norm.running_mean, norm.running_var, *gradients


@pytest.mark.parametrize("rows", [2, 10])
def test_a_prototype_head_does_not_depend_on_the_number_of_processes(two_processes, rows) -> None:
    y, mean, variance, *gradients = prototypes(rows, (1, 2))
    parts = two_processes(prototypes, rows, (1, 2))
    for found, found_mean, found_variance, *_ in parts:
        torch.testing.assert_close(found, y)
        torch.testing.assert_close(found_mean, mean)
        start = 0.9  # of the variance 1 that momentum 0.1 leaves
        fewer = (rows - 1) / (rows - 1 / 2)
        torch.testing.assert_close(found_variance - start, (variance - start) * fewer)
    for one, other, expected in zip(*(part[3:] for part in parts), gradients, strict=True):
        torch.testing.assert_close((one + other) / 2, expected)  # as DDP averages
        assert not torch.allclose(one, other)
