from itertools import chain

import numpy as np
import pytest

from sslgh.data import ResumableBatchSampler, class_sampling

COUNTS = np.array([40, 0, 17, 6, 3, 1])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), COUNTS))
N = len(LABELS)
KINDS = ["class-balanced", "square-root", "progressive"]


def sampling(kind, *, seed=0, epochs=4, labels=LABELS):
    return class_sampling(labels, kind, seed=seed, epochs=epochs)


def shown(kind, *, seed=0, epochs=4):
    """How often each epoch shows each class, (T, C)."""
    epoch = sampling(kind, seed=seed, epochs=epochs)
    return np.stack([np.bincount(LABELS[epoch(t)], minlength=6) for t in range(epochs)])


def expected(kind, t, epochs):
    """N p_c, from the paper's q = 1, 0 and 1/2, class by class."""
    present = [n for n in COUNTS.tolist() if n]
    power = {"instance": 1, "class-balanced": 0, "square-root": 0.5}
    if kind == "progressive":
        one, other = (np.array(expected(k, t, epochs)) for k in ("instance", "class-balanced"))
        return (1 - t / epochs) * one + t / epochs * other
    total = sum(n ** power[kind] for n in present)
    return [N * n ** power[kind] / total if n else 0.0 for n in COUNTS.tolist()]


@pytest.mark.parametrize("kind", [*KINDS, "instance"])
def test_an_epoch_gives_every_class_its_share_rounded_up_or_down(kind):
    for seed in range(10):
        counts = shown(kind, seed=seed)
        wanted = np.stack([expected(kind, t, 4) for t in range(4)])
        assert (np.abs(counts - wanted) < 1).all()
        assert (counts.sum(axis=1) == N).all()
        assert (counts[:, COUNTS == 0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_rounding_has_no_bias(kind):
    epochs = 800
    wanted = np.stack([expected(kind, t, epochs) for t in range(epochs)])
    rounding = shown(kind, epochs=epochs) - wanted
    spread = np.sqrt(0.25 / epochs)
    assert (np.abs(rounding.mean(axis=0)) < 4.5 * spread).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_shows_no_image_again_before_all_its_others(kind):
    epoch, seen = sampling(kind), np.zeros(N, dtype=int)
    for t in range(4):
        seen += np.bincount(epoch(t), minlength=N)
        for label in np.unique(LABELS):
            assert np.ptp(seen[label == LABELS]) <= 1
    assert seen.min() >= 0
    assert seen[LABELS == 5] == sum(shown(kind)[:, 5])  # a class of one image


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_of_a_class_is_as_likely_as_another(kind):
    drawn = np.zeros(N)
    for seed in range(400):
        drawn += np.bincount(sampling(kind, seed=seed, epochs=1)(0), minlength=N)
    for label in (0, 2, 3):
        own = drawn[label == LABELS] / 400
        assert np.abs(own - own.mean()).max() < 4.5 * 0.5 / np.sqrt(400)


def test_every_class_and_every_round_has_a_permutation_of_its_own():
    labels = np.repeat(np.arange(6), [8, 8, 2, 2, 2, 2])  # 4 places a class: half of the large ones
    epoch = sampling("class-balanced", labels=labels, epochs=20)
    shown = [set(epoch(t).tolist()) for t in range(0, 20, 2)]
    halves = [
        [frozenset(p - first for p in s if first <= p < first + 8) for s in shown]
        for first in (0, 8)
    ]
    assert all(len(half) == 4 for half in halves[0] + halves[1])
    assert min(len(set(half)) for half in halves) > 5
    assert sum(a == b for a, b in zip(*halves, strict=True)) < 3


def test_progressive_begins_with_every_image_once_and_ends_almost_balanced():
    epoch = sampling("progressive", epochs=50)
    assert sorted(epoch(0).tolist()) == list(range(N))
    last = np.bincount(LABELS[epoch(49)], minlength=6)[COUNTS > 0]
    assert np.abs(last - N / 5).max() < 1 + (40 - N / 5) / 50
    tail = shown("progressive", epochs=50)[:, 5]
    assert tail[-10:].mean() > tail[20:30].mean() > tail[:10].mean()


def test_an_epoch_depends_on_the_seed_and_its_number_alone():
    for kind in KINDS:
        again = sampling(kind)
        later = again(3)
        epochs = [sampling(kind)(t) for t in range(4)]
        assert np.array_equal(epochs[3], later)
        assert not np.array_equal(epochs[1], epochs[2])
        assert not np.array_equal(epochs[1], sampling(kind, seed=1)(1))
    assert np.array_equal(sampling("square-root", epochs=9)(3), sampling("square-root")(3))


def test_classes_are_mixed_within_an_epoch():
    labels = LABELS[sampling("class-balanced")(0)]
    halves = [np.bincount(half, minlength=6)[COUNTS > 0] for half in np.array_split(labels, 2)]
    assert min(half.min() for half in halves) >= 1


def test_instance_sampling_is_the_order_of_a_run_without_it():
    plain = ResumableBatchSampler(N, 8, seed=3, epochs=2)
    sampled = ResumableBatchSampler(
        N, 8, seed=3, epochs=2, epoch_indices=sampling("instance", seed=3, epochs=2)
    )
    assert list(sampled) == list(plain)


def test_a_set_of_one_class_shows_every_image_once():
    for kind in KINDS:
        epoch = sampling(kind, labels=np.full(7, 3))
        assert sorted(epoch(2).tolist()) == list(range(7))


def test_labels_and_kinds_that_cannot_be_used_are_named():
    with pytest.raises(ValueError, match="unknown sampling 'sqrt'; use instance, class-balanced"):
        sampling("sqrt")
    with pytest.raises(ValueError, match=r"needs labels of shape \(N,\), got \(0,\)"):
        sampling("square-root", labels=LABELS[:0])
    with pytest.raises(ValueError, match=r"epoch must lie in 0\.\.3, got 4"):
        sampling("square-root")(4)


def order(**settings):
    return ResumableBatchSampler(
        N, 12, seed=2, epochs=3, **settings, epoch_indices=sampling("class-balanced")
    )


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_together_see_the_batches_of_one(world_size, accumulation):
    one = list(order(accumulation=accumulation))
    parts = [
        order(accumulation=accumulation, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert [list(chain(*shares)) for shares in zip(*parts, strict=True)] == one


@pytest.mark.parametrize("start", [(0, 2), (1, 0), (1, 3), (2, 5)])
def test_a_resumed_order_is_the_rest_of_the_whole_one(start):
    done = start[0] * order().steps_per_epoch + start[1]
    assert list(order(start=start)) == list(order())[done:]


def test_a_repeated_image_has_a_key_of_its_own_that_still_tells_the_epoch():
    steps = order().steps_per_epoch
    batches = list(order())
    for epoch in range(3):
        keys = list(chain(*batches[epoch * steps : (epoch + 1) * steps]))
        shown = sampling("class-balanced")(epoch)[: len(keys)].tolist()
        assert [key.index for key in keys] == shown
        assert {key.epoch for key in keys} == {epoch}
        repeats = {}
        for key in keys:
            repeats.setdefault(key.index, []).append(key.repeat)
        assert max(map(len, repeats.values())) >= 12
        assert all(found == list(range(len(found))) for found in repeats.values())


def test_a_sequence_of_another_length_is_an_error():
    short = ResumableBatchSampler(
        N + 1, 12, seed=2, epochs=3, epoch_indices=sampling("class-balanced")
    )
    with pytest.raises(ValueError, match=r"must have the shape \(68,\), got \(67,\)"):
        next(iter(short))
