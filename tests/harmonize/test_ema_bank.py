import torch
from torch import Tensor

from sslgh.harmonize.ema_bank import EmaBank


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))


def test_the_first_row_is_taken_as_it_is_and_later_ones_are_blended() -> None:
    memory, first, second = EmaBank(5, 3), rows(2), rows(2, seed=1)
    index = torch.tensor([3, 1])
    memory.update(first, index, momentum=0.9)
    assert torch.equal(memory.rows[index], first)
    memory.update(second, index, momentum=0.9)
    torch.testing.assert_close(memory.rows[index], 0.9 * first + 0.1 * second)
    assert memory.seen.tolist() == [False, True, False, True, False]
    assert (memory.rows[[0, 2, 4]] == 0).all()


def test_a_sample_that_occurs_twice_counts_once_the_first_time() -> None:
    memory, given = EmaBank(4, 3), rows(3)
    memory.update(given, torch.tensor([2, 0, 2]), momentum=0.5)
    assert torch.equal(memory.rows[2], given[0])
    memory.update(given.flip(0), torch.tensor([2, 0, 2]), momentum=0.5)
    torch.testing.assert_close(memory.rows[2], (given[0] + given[2]) / 2)


def test_rows_that_are_not_finite_are_left_out() -> None:
    memory, good = EmaBank(4, 3), rows(4)
    memory.update(good, torch.arange(4), momentum=0.5)
    bad = rows(4, seed=1)
    bad[1, 0], bad[2, 2] = torch.nan, torch.inf
    memory.update(bad, torch.tensor([0, 1, 2, 2]), momentum=0.5)
    assert torch.equal(memory.rows[1], good[1])
    torch.testing.assert_close(memory.rows[2], (good[2] + bad[3]) / 2)
    fresh = EmaBank(4, 3)
    fresh.update(bad[1:2], torch.tensor([3]), momentum=0.5)
    assert not fresh.seen.any()
    assert fresh.rows.isfinite().all()


def test_an_empty_batch_changes_nothing() -> None:
    memory = EmaBank(4, 3)
    memory.update(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), momentum=0.5)
    assert not memory.seen.any()


def remember_part(given: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    memory, rank = EmaBank(6, 3), dist.get_rank()
    for step in range(2):
        local = slice(0, 3) if rank == 0 else slice(3, None)
        memory.update(given[step][local], index[local], momentum=0.8)
    return memory.rows, memory.seen


def test_several_processes_fill_one_memory_on_process_zero(two_processes) -> None:
    given, index = torch.stack([rows(5), rows(5, seed=1)]), torch.tensor([4, 0, 2, 0, 5])
    alone = EmaBank(6, 3)
    for step in range(2):
        alone.update(given[step], index, momentum=0.8)
    (found, seen), (other, _) = two_processes(remember_part, given, index)
    torch.testing.assert_close(found, alone.rows)
    assert torch.equal(seen, alone.seen)
    assert other.shape == (0, 3)
