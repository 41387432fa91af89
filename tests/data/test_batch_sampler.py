import itertools

import numpy as np
import pytest

from sslgh.data import ResumableBatchSampler


def batches_of(*args, **kwargs):
    return list(ResumableBatchSampler(*args, **kwargs))


def test_every_epoch_visits_every_image_once_in_an_order_of_its_own():
    batches = batches_of(20, 6, seed=0, epochs=3)
    assert [len(batch) for batch in batches] == [6, 6, 6, 2] * 3
    orders = []
    for epoch in range(3):
        items = list(itertools.chain(*batches[4 * epoch : 4 * epoch + 4]))
        assert {(key.epoch, key.repeat) for key in items} == {(epoch, 0)}
        orders.append([key.index for key in items])
        assert sorted(orders[-1]) == list(range(20))
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_the_order_depends_on_the_seed_alone():
    assert batches_of(20, 6, seed=0, epochs=2) == batches_of(20, 6, seed=0, epochs=2)
    assert batches_of(20, 6, seed=0, epochs=2) != batches_of(20, 6, seed=1, epochs=2)


def test_a_longer_run_begins_like_a_shorter_one():
    assert batches_of(20, 6, seed=0, epochs=3)[:8] == batches_of(20, 6, seed=0, epochs=2)


@pytest.mark.parametrize("start", [(0, 0), (0, 3), (1, 0), (1, 4), (2, 0), (2, 2)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_stream_is_the_rest_of_the_whole_one(start, accumulation):
    whole = ResumableBatchSampler(23, 6, seed=1, epochs=3, accumulation=accumulation)
    rest = ResumableBatchSampler(23, 6, seed=1, epochs=3, accumulation=accumulation, start=start)
    done = (start[0] * whole.steps_per_epoch + start[1]) * accumulation
    assert list(rest) == list(whole)[done:]
    assert len(rest) == len(whole) - done == len(list(rest))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("num_samples", [48, 54, 59])
def test_parts_gathered_in_process_order_are_the_batches_of_one_process(
    world_size, accumulation, num_samples
):
    one = batches_of(num_samples, 12, seed=2, epochs=2, accumulation=accumulation)
    parts = [
        batches_of(
            num_samples,
            12,
            seed=2,
            epochs=2,
            accumulation=accumulation,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    gathered = [list(itertools.chain(*shares)) for shares in zip(*parts, strict=True)]
    assert gathered == one
    assert all(share for shares in zip(*parts, strict=True) for share in shares)


def test_parts_are_as_equal_as_they_can_be():
    parts = [
        batches_of(22, 12, seed=0, epochs=1, rank=r, world_size=2, accumulation=2) for r in range(2)
    ]
    assert [[len(batch) for batch in part] for part in parts] == [[3, 3, 3, 3], [3, 3, 2, 2]]


@pytest.mark.parametrize(
    ("num_samples", "world_size", "accumulation", "steps"),
    [
        (24, 1, 1, 2),
        (25, 1, 1, 2),
        (26, 1, 1, 3),
        (27, 2, 2, 2),
        (28, 2, 2, 3),
        (26, 3, 1, 2),
        (27, 3, 1, 3),
    ],
)
def test_a_last_batch_too_small_to_share_is_left_out(num_samples, world_size, accumulation, steps):
    for rank in range(world_size):
        order = ResumableBatchSampler(
            num_samples,
            12,
            seed=0,
            epochs=2,
            rank=rank,
            world_size=world_size,
            accumulation=accumulation,
        )
        assert order.steps_per_epoch == steps
        assert len(list(order)) == len(order) == 2 * steps * accumulation
        assert all(order)


def test_drop_last_leaves_out_every_smaller_batch():
    order = ResumableBatchSampler(23, 6, seed=0, epochs=1, drop_last=True)
    assert order.steps_per_epoch == 3
    assert [len(batch) for batch in order] == [6, 6, 6]


def test_one_small_batch_is_enough():
    assert [len(batch) for batch in batches_of(5, 512, seed=0, epochs=1)] == [5]


def test_a_batch_smaller_than_the_processes_says_what_would_work():
    with pytest.raises(
        ValueError, match=r"train\.batch_size 7 .* 2 processes x 2 parts .* at least 8"
    ):
        ResumableBatchSampler(100, 7, seed=0, epochs=1, world_size=2, accumulation=2)
    assert (
        ResumableBatchSampler(
            100, 8, seed=0, epochs=1, world_size=2, accumulation=2
        ).steps_per_epoch
        == 13
    )


def test_too_few_images_for_a_batch_are_an_error():
    with pytest.raises(ValueError, match="5 images do not fill one batch"):
        ResumableBatchSampler(5, 6, seed=0, epochs=1, drop_last=True)
    with pytest.raises(ValueError, match="1 images do not fill"):
        ResumableBatchSampler(1, 6, seed=0, epochs=1)


@pytest.mark.parametrize("start", [(-1, 0), (0, -1), (0, 5), (3, 0), (2, 1)])
def test_a_start_outside_the_run_is_an_error(start):
    with pytest.raises(ValueError, match=r"2 epochs of 4 steps"):
        ResumableBatchSampler(23, 6, seed=0, epochs=2, start=start)


def test_the_end_of_the_run_is_a_start_with_nothing_left():
    for start in ((2, 0), (1, 4)):
        assert batches_of(23, 6, seed=0, epochs=2, start=start) == []
    with pytest.raises(ValueError, match=r"rank must lie in 0\.\.1"):
        ResumableBatchSampler(23, 6, seed=0, epochs=2, rank=2, world_size=2)


@pytest.mark.parametrize(("num_samples", "steps"), [(17, 2), (15, 2), (13, 1), (11, 1)])
def test_a_part_of_one_image_is_left_out_where_batch_statistics_need_two(num_samples, steps):
    order = ResumableBatchSampler(
        num_samples, 10, seed=0, epochs=1, world_size=2, accumulation=1, smallest_part=2, rank=1
    )
    assert order.steps_per_epoch == steps
    assert min(map(len, order)) >= 2


def test_an_epoch_that_is_over_is_not_asked_for_again():
    asked = []

    def epoch_indices(epoch):
        asked.append(epoch)
        return np.arange(8)

    order = ResumableBatchSampler(8, 4, seed=0, epochs=3, epoch_indices=epoch_indices)
    assert len(list(order.resume_at(1, 2))) == len(order.resume_at(1, 2)) == 2
    assert asked == [2]


@pytest.mark.parametrize("num_samples", [8, 13, 30])
@pytest.mark.parametrize("accumulation", [1, 3, 4])
def test_shares_are_those_of_the_parts(num_samples, accumulation):
    order = ResumableBatchSampler(
        num_samples, 12, seed=0, epochs=1, accumulation=accumulation, smallest_part=0
    )
    sizes = iter([len(batch) for batch in order])
    for step in range(order.steps_per_epoch):
        own = [next(sizes) for _ in range(accumulation)]
        shares = order.micro_batch_weights(step)
        assert shares == pytest.approx([size / sum(own) for size in own])
