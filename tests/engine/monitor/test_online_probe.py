import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sslgh.engine.monitor.labels import (
    CLASS_WINDOW,
    EPSILON,
    FEATURE_WINDOW,
    RATE,
    SHARE_WINDOW,
    OnlineProbe,
)

COUNTS = torch.tensor([60, 25, 10, 5])


def batches(steps: int, n: int = 16, f: int = 6, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Features around a center of their class, on axes of very different size."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(4, f, generator=generator)
    found = []
    for _ in range(steps):
        labels = COUNTS.float().multinomial(n, replacement=True, generator=generator)
        features = centers[labels] + 0.2 * torch.randn(n, f, generator=generator)
        found.append(((features + 1) * 10 ** torch.linspace(-3, 3, f), labels))
    return found


def after(steps: list[tuple[Tensor, Tensor]]) -> tuple[OnlineProbe, list[Tensor]]:
    probe = OnlineProbe(6, COUNTS)
    return probe, [probe.update(features, labels) for features, labels in steps]


def test_it_is_a_linear_layer_trained_with_torch_s_adam() -> None:
    """Logit-adjusted cross-entropy of features standardized by the moments of all batches so far."""
    steps = batches(30)
    linear = nn.Linear(6, 4).double()
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    adam = torch.optim.Adam(linear.parameters(), lr=RATE, eps=EPSILON)
    shares = (COUNTS / COUNTS.sum()).double()
    expected = []
    for step, (features, labels) in enumerate(steps):
        past = torch.cat([f for f, _ in steps[: step + 1]]).double()
        deviation = past.std(0, correction=0)
        inputs = (features.double() - past.mean(0)) / deviation / 6**0.5
        scores = linear(inputs)
        expected.append((scores.argmax(1) == labels).float().mean())
        adam.zero_grad()
        kept = (1 - 1 / (SHARE_WINDOW * 100)) ** 16
        shares = kept * shares + (1 - kept) * labels.bincount(minlength=4) / 16
        cross_entropy(scores + shares.log(), labels).backward()
        adam.step()
    probe, accuracy = after(steps)
    assert torch.equal(torch.stack(accuracy), torch.stack(expected))
    torch.testing.assert_close(probe.weight[:, :6].double(), linear.weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(probe.weight[:, 6].double(), linear.bias, rtol=1e-3, atol=1e-3)


def test_a_batch_is_judged_before_it_is_learned() -> None:
    features, labels = batches(1)[0]
    probe = OnlineProbe(6, COUNTS)
    # Nothing is learned yet, so that every image is taken for class 0.
    assert probe.update(features, labels) == (labels == 0).float().mean()
    assert probe.update(features, labels) > 0.5


def test_a_separable_problem_is_learned_and_rare_classes_with_it() -> None:
    probe, accuracy = after(batches(300))
    assert torch.stack(accuracy[-20:]).mean() > 0.99
    assert probe.class_accuracy.min() > 0.97


def test_the_scale_and_place_of_the_features_do_not_count() -> None:
    steps = batches(20)
    plain, accuracy = after(steps)
    scaled, same = after([(1024 * features, labels) for features, labels in steps])
    assert torch.equal(scaled.weight, plain.weight)
    assert same == accuracy
    place = 10 ** torch.linspace(-3, 3, 6)
    moved, _ = after([(features - place, labels) for features, labels in steps])
    torch.testing.assert_close(moved.weight, plain.weight, rtol=1e-2, atol=1e-2)


def test_features_that_never_change_are_harmless() -> None:
    steps = [(features.clone(), labels) for features, labels in batches(300)]
    for features, _ in steps:
        features[:, 0] = 0.1
    _, accuracy = after(steps)
    assert torch.stack(accuracy[-20:]).mean() > 0.95
    same = torch.full((15, 6), 1 / 3)
    constant, _ = after([(same, labels[:15]) for _, labels in steps[:20]])
    constant.weight.zero_()
    constant.weight[1, 0], constant.weight[1, 6] = 100, -1
    # A millionth more is a rounding error, and no reason to leave class 0.
    assert constant.update(same * (1 + 1e-6), torch.zeros(15, dtype=torch.int64)) == 1


def test_the_moments_follow_a_backbone_that_moves() -> None:
    steps = batches(2 * FEATURE_WINDOW)
    probe, _ = after(steps[:FEATURE_WINDOW])
    past = torch.cat([features for features, _ in steps[:FEATURE_WINDOW]])
    torch.testing.assert_close(probe.mean, past.mean(0))
    torch.testing.assert_close(probe.variance, past.var(0, correction=0))
    for features, labels in 4 * steps:
        probe.update(10 * features, labels)
    torch.testing.assert_close(probe.variance, 100 * past.var(0, correction=0), rtol=0.2, atol=0)


def test_the_shares_follow_a_stream_that_is_resampled() -> None:
    probe = OnlineProbe(6, COUNTS)
    torch.testing.assert_close(probe.shares, COUNTS / 100)
    for features, _ in batches(400):
        probe.update(features, torch.arange(16) % 4)
    torch.testing.assert_close(probe.shares, torch.full((4,), 0.25), rtol=0.02, atol=0)


def test_class_accuracy_counts_the_latest_images_of_a_class() -> None:
    probe = OnlineProbe(6, COUNTS)
    assert probe.class_accuracy.tolist() == [0.25] * 4
    features, labels = batches(1)[0]
    first, others = torch.zeros_like(labels), torch.full_like(labels, 3)
    probe.update(features, first)
    kept = (1 - 1 / CLASS_WINDOW) ** 16
    assert probe.class_accuracy[0].item() == pytest.approx((0.25 * kept + 16) / (kept + 16))
    assert probe.class_accuracy[1:].tolist() == [0.25] * 3
    probe.update(features, others)  # taken for class 0, the only one learned
    assert probe.class_accuracy[3].item() == pytest.approx(0.25 * kept / (kept + 16))


def test_a_class_without_images_is_never_predicted() -> None:
    probe = OnlineProbe(6, torch.tensor([0, 50, 50, 0]))
    for features, labels in batches(5):
        probe.update(features, labels % 2 + 1)
    assert probe.weight.isfinite().all()
    probe.weight[[0, 3]] = 1e6
    features, labels = batches(1)[0]
    assert probe.update(features, labels % 2 + 1) > 0.5


def test_the_backbone_feels_nothing() -> None:
    features, labels = batches(1)[0]
    features.requires_grad_()
    assert not OnlineProbe(6, COUNTS).update(features, labels).requires_grad


def test_half_precision_and_autocast_change_nothing() -> None:
    features, labels = batches(1)[0]
    half = (features / 1000).bfloat16()
    inside, outside = OnlineProbe(6, COUNTS), OnlineProbe(6, COUNTS)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside.update(half, labels)
        outside.update(half.float(), labels)
    assert torch.equal(inside.weight, outside.weight)


def test_a_probe_restored_goes_on_exactly() -> None:
    steps = batches(20)
    whole, accuracy = after(steps)
    first, _ = after(steps[:9])
    restored = OnlineProbe(6, COUNTS)
    restored.load_state_dict(first.state_dict())
    rest = [restored.update(features, labels) for features, labels in steps[9:]]
    assert rest == accuracy[9:]
    for name, value in whole.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name


def probe_of_part(cuts: list[int]) -> tuple[dict[str, Tensor], list[Tensor]]:
    rank = dist.get_rank() if dist.is_initialized() else 0
    local = slice(cuts[rank], cuts[rank + 1])
    probe, accuracy = after([(features[local], labels[local]) for features, labels in batches(10)])
    return probe.state_dict(), accuracy


def test_several_processes_train_the_probe_of_one(two_processes, three_processes) -> None:
    state, accuracy = probe_of_part([0, 16])
    for run, cuts in ((two_processes, [0, 9, 16]), (three_processes, [0, 7, 12, 16])):
        for found, right in run(probe_of_part, cuts):
            torch.testing.assert_close(found, state, rtol=1e-5, atol=1e-6)
            assert right == accuracy
