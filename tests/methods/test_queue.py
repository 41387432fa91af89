import pytest
import torch
import torch.nn.functional as F
from lightly.models.modules import NNMemoryBankModule
from torch import Tensor

from sslgh.methods.queue import Queue


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_queue_holds_the_newest_rows_whatever_the_size_of_the_batches() -> None:
    """None of the sizes divides 10; full batches and single rows are among them."""
    torch.manual_seed(0)
    queue = Queue(10, 3)
    everything = list(queue.rows.clone())
    for number, size in enumerate((4, 4, 4, 10, 1, 7, 9)):
        batch = draw(size, 3, seed=number) * 5
        queue.push(batch)
        everything += list(F.normalize(batch))
        first = int(queue.oldest)
        found = torch.cat([queue.rows[first:], queue.rows[:first]])
        torch.testing.assert_close(found, torch.stack(everything[-10:]), rtol=0, atol=0)


def test_a_queue_begins_as_random_directions_that_the_seed_decides() -> None:
    queues = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        queues.append(Queue(500, 8).rows)
    torch.testing.assert_close(queues[0].norm(dim=1), torch.ones(500))
    assert queues[0].mean(0).norm() < 0.15
    assert torch.equal(queues[0], queues[1])
    assert not torch.equal(queues[0], queues[2])


def test_rows_and_place_are_in_the_state() -> None:
    queue, other = Queue(5, 2), Queue(5, 2)
    queue.push(draw(3, 2))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.push(draw(4, 2, seed=1))
    assert torch.equal(queue.rows, other.rows)
    assert int(queue.oldest) == int(other.oldest) == 2


def test_half_precision_batches_enter_as_unit_vectors_of_the_queues_precision() -> None:
    queue, batch = Queue(3, 4), draw(3, 4).to(torch.bfloat16)
    queue.push(batch)
    torch.testing.assert_close(queue.rows, F.normalize(batch.float()))


def test_the_nearest_row_is_lightlys() -> None:
    bank = NNMemoryBankModule(size=(50, 6))
    queue, z = Queue(50, 6), 7 * draw(20, 6)
    queue.rows.copy_(bank.bank)
    assert torch.equal(queue.nearest(z), bank(z))


def test_neighbors_are_not_sought_in_half_precision() -> None:
    """Rows that bfloat16 cannot tell apart."""
    queue = Queue(2, 2)
    queue.rows.copy_(F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1e-3]])))
    z = torch.tensor([[1.0, 0.0], [1.0, 1e-3]]) * 2
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(queue.nearest(z), queue.rows)


def test_a_batch_larger_than_the_queue_is_refused_with_the_remedy() -> None:
    queue = Queue(4, 2)
    with pytest.raises(ValueError, match=r"method.queue 4 is smaller than the batch of 5 images"):
        queue.push(draw(5, 2))
    with pytest.raises(ValueError, match=r"or lower train.batch_size"):
        queue.check(5)
    with pytest.raises(ValueError, match=r"method.queue must be at least 1, got 0"):
        Queue(0, 2)
