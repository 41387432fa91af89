import pytest
import torch
from torch import Tensor

from sslgh.harmonize import MomentumLoss
from sslgh.harmonize.boosted import loss_strengths

N, EPOCHS = 11, 4


def epoch_order(epoch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return list(torch.randperm(N, generator=generator).split(4))


def losses(epoch: int, index: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(100 + epoch)
    return (torch.rand(N, generator=generator) * 3 + torch.arange(N) / 4)[index]


def the_papers_loop(epochs: int, beta: float = 0.97) -> list[list[float]]:
    """Strengths in force in each epoch, one sample after another in double precision."""
    remembered: dict[int, float] = {}
    strengths = [[0.0] * N]
    for epoch in range(epochs - 1):
        for index in epoch_order(epoch):
            for i, loss in zip(index.tolist(), losses(epoch, index).tolist(), strict=True):
                old = remembered.get(i)
                remembered[i] = loss if old is None else beta * old + (1 - beta) * loss
        mean = sum(remembered.values()) / N
        std = (sum((m - mean) ** 2 for m in remembered.values()) / N) ** 0.5
        u = [(remembered[i] - mean) / std for i in range(N)]
        strengths.append([x / (2 * max(abs(v) for v in u)) + 0.5 for x in u])
    return strengths


def run_epoch(module: MomentumLoss, epoch: int) -> Tensor:
    module.begin_epoch(epoch)
    found = module.strength(torch.arange(N)).clone()
    for index in epoch_order(epoch):
        module.observe(losses(epoch, index), index)
    return found


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.97])
def test_strengths_are_those_of_a_loop_over_samples(beta) -> None:
    module = MomentumLoss(N, momentum=beta)
    for epoch, expected in enumerate(the_papers_loop(EPOCHS, beta)):
        found = run_epoch(module, epoch)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)
        assert ((found >= 0) & (found <= 1)).all()


def test_strengths_are_zero_before_the_first_update_and_stand_still_within_an_epoch() -> None:
    module = MomentumLoss(N)
    assert (run_epoch(module, 0) == 0).all()
    assert (module.strengths == 0).all()
    module.begin_epoch(1)
    before = module.strengths.clone()
    assert before.any()
    module.observe(torch.rand(4), torch.arange(4))
    module.begin_epoch(1)
    assert torch.equal(module.strengths, before)


def test_the_scale_is_symmetric_around_the_mean_and_reaches_one_end() -> None:
    values, seen = losses(0, torch.arange(N)), torch.ones(N, dtype=torch.bool)
    strengths = loss_strengths(values, seen)
    torch.testing.assert_close(strengths.mean(), torch.tensor(0.5))
    torch.testing.assert_close(loss_strengths(-values, seen), 1 - strengths)
    torch.testing.assert_close(loss_strengths(7 + 3 * values, seen), strengths)
    torch.testing.assert_close((strengths - 0.5).abs().max(), torch.tensor(0.5))
    torch.testing.assert_close(
        loss_strengths(torch.tensor([1.0, 2, 3, 10]), seen[:4]),
        torch.tensor([0.25, 1 / 3, 5 / 12, 1.0]),
    )


@pytest.mark.parametrize("value", [0.0, 2.3, 1e-30, 1e30])
def test_equal_losses_are_in_the_middle(value) -> None:
    module = MomentumLoss(1000)
    for epoch in range(3):
        module.begin_epoch(epoch)
        module.observe(torch.full((1000,), value), torch.arange(1000))
    assert (module.strengths == 0.5).all()


def test_samples_never_seen_have_strength_zero_and_do_not_count() -> None:
    module = MomentumLoss(6)
    module.observe(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([4, 0, 2]))
    module.begin_epoch(0)
    assert module.strengths.tolist() == [0.5, 0, 1, 0, 0, 0]
    assert module.memory.seen.tolist() == [True, False, True, False, True, False]


def test_losses_that_are_not_finite_are_left_out_and_repeats_count_once() -> None:
    module = MomentumLoss(4, momentum=0.5)
    module.observe(torch.tensor([1.0, torch.nan, 9.0, 2.0]), torch.tensor([0, 1, 0, 2]))
    assert module.memory.rows[:, 0].tolist() == [1, 0, 2, 0]
    module.observe(torch.tensor([torch.inf, 3.0]), torch.tensor([0, 2]))
    assert module.memory.rows[:, 0].tolist() == [1, 0, 2.5, 0]


def test_no_gradient_is_kept() -> None:
    module = MomentumLoss(4)
    module.observe(torch.ones(2, requires_grad=True) * 2, torch.tensor([0, 1]))
    assert not module.memory.rows.requires_grad


def test_half_precision_losses_are_remembered_exactly() -> None:
    module, given = MomentumLoss(4), torch.tensor([0.3, 7.1]).bfloat16()
    module.observe(given, torch.tensor([3, 1]))
    assert torch.equal(module.memory.rows[[3, 1], 0], given.float())


def test_a_run_resumed_in_the_middle_of_an_epoch_goes_on_bit_for_bit() -> None:
    whole = MomentumLoss(N)
    for epoch in range(3):
        run_epoch(whole, epoch)
    first, resumed = MomentumLoss(N), MomentumLoss(N)
    run_epoch(first, 0)
    first.begin_epoch(1)
    order = epoch_order(1)
    first.observe(losses(1, order[0]), order[0])
    resumed.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
    resumed.begin_epoch(1)
    assert torch.equal(resumed.strengths, first.strengths)
    for index in order[1:]:
        resumed.observe(losses(1, index), index)
    run_epoch(resumed, 2)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def strengths_of_part(cut: int) -> tuple[Tensor, Tensor, Tensor]:
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    local = slice(0, cut) if dist.get_rank() == 0 else slice(cut, None)
    module = MomentumLoss(N)
    for epoch in range(3):
        module.begin_epoch(epoch)
        for index in epoch_order(epoch):
            module.observe(losses(epoch, index)[local], index[local])
    return module.strengths, module.memory.rows, module.epoch


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_two_processes_have_the_strengths_of_one(two_processes, cut) -> None:
    alone = MomentumLoss(N)
    for epoch in range(3):
        run_epoch(alone, epoch)
    (first, rows, _), (second, none, epoch) = two_processes(strengths_of_part, cut)
    assert torch.equal(first, alone.strengths)
    assert torch.equal(second, alone.strengths)
    torch.testing.assert_close(rows, alone.memory.rows)
    assert none.shape == (0, 1)
    assert int(epoch) == 2


def test_losses_and_index_of_different_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"share a shape \(n,\), got \(2,\) and \(3,\)"):
        MomentumLoss(4).observe(torch.ones(2), torch.arange(3))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_a_momentum_outside_its_range_is_refused(momentum) -> None:
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got"):
        MomentumLoss(4, momentum=momentum)
