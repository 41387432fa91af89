import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score
from torch import Tensor

from sslgh.harmonize.kmeans import spherical_kmeans
from sslgh.harmonize.mode_clustering import find_modes
from sslgh.harmonize.recurrence import gaussian_like, recurrence, shared_information


def kinds(
    seed: int, noise: float, sizes: tuple[int, ...] = (120, 60, 30, 15), dim: int = 16
) -> Tensor:
    """Directions around orthogonal centers; with much noise one cloud."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    z = torch.eye(dim)[labels] + noise * torch.randn(len(labels), dim, generator=generator)
    return F.normalize(z - z.mean(0))


def groups(rows: Tensor, seed: int) -> Tensor:
    return find_modes(rows, max_groups=20, seed=seed).labels


def halves(rows: Tensor, seed: int) -> Tensor:
    return spherical_kmeans(rows, 2, seed=seed)[1]


@pytest.mark.parametrize("seed", range(2))
def test_groups_are_visible_where_there_are_kinds_and_not_in_one_cloud(seed) -> None:
    assert recurrence(kinds(seed, 0.1), groups, seed=seed).visibility > 0.5
    assert recurrence(kinds(seed, 3.0), groups, seed=seed).visibility < 0.2


@pytest.mark.parametrize("seed", range(2))
def test_a_cut_across_a_stretched_cloud_recurs_but_is_not_visible(seed) -> None:
    """Two halves of a long cloud are the same in every resample: noise of its covariance is cut alike."""
    generator = torch.Generator().manual_seed(seed)
    stretched = torch.randn(200, 8, generator=generator) * torch.tensor([8.0] + [1.0] * 7)
    found = recurrence(F.normalize(stretched), halves, seed=seed)
    assert math.exp(found.recurring) > 1.5
    assert found.visibility < 0.2


def test_the_visibility_is_the_share_of_recurring_clusters_beyond_noise() -> None:
    found = recurrence(kinds(0, 0.1), groups, seed=0)
    expected = 1 - math.exp(found.noise) / math.exp(found.recurring)
    assert found.visibility == pytest.approx(expected)
    sizes = torch.tensor([120, 60, 30, 15]) / 225
    assert math.exp(found.recurring) == pytest.approx(
        math.exp(-(sizes * sizes.log()).sum()), rel=0.05
    )


def test_shares_are_those_of_the_clusters_where_they_recur_and_alike_where_they_do_not() -> None:
    rows = kinds(1, 0.1)
    shares = recurrence(rows, groups, seed=0).log_share.exp()
    truth = torch.repeat_interleave(
        torch.tensor([120, 60, 30, 15]) / 225, torch.tensor([120, 60, 30, 15])
    )
    torch.testing.assert_close(shares, truth, rtol=0.15, atol=0)
    generator = torch.Generator().manual_seed(0)

    def at_random(rows: Tensor, seed: int) -> Tensor:
        return (torch.rand(len(rows), generator=generator) < 0.1).long()

    spread = recurrence(rows, at_random, seed=0).log_share.exp()
    single = math.log(9) * 0.3  # shares of .9 and .1, with these probabilities
    assert spread.log().std() < 0.6 * single  # four of them are averaged


def test_information_equals_the_mutual_information_less_its_expectation() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 4, (200,), generator=generator)
    second = torch.where(torch.rand(200, generator=generator) < 0.7, first, 3 - first)
    held = torch.rand(200, generator=generator) < 0.8
    found = shared_information([torch.where(held, first, -1), second])
    a, b = first[held].numpy(), second[held].numpy()
    # AMI = (MI - E) / (H - E) with the mean entropy H, solved for MI - E.
    ami, mi = adjusted_mutual_info_score(a, b), mutual_info_score(a, b)
    entropy = (mutual_info_score(a, a) + mutual_info_score(b, b)) / 2
    assert found == pytest.approx(ami * (entropy - mi) / (1 - ami))
    shuffled = second[torch.randperm(200, generator=generator)]
    assert abs(shared_information([first, shuffled])) < 0.03


def test_noise_has_the_covariance_of_the_data() -> None:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    scales = torch.tensor([3.0, 2.0] + [1.0] * 30)
    rows = F.normalize(torch.randn(4000, 32, generator=generator) * scales @ turn)
    noise = gaussian_like(rows, seed=0)
    torch.testing.assert_close(noise.norm(dim=1), torch.ones(4000))
    ours, theirs = (torch.linalg.eigh(part.T @ part / 4000) for part in (rows, noise))
    torch.testing.assert_close(ours[0], theirs[0], rtol=0.2, atol=0)
    assert ((ours[1][:, -2:] * theirs[1][:, -2:]).sum(0).abs() > 0.95).all()


def test_the_same_arguments_give_the_same_bits() -> None:
    rows = kinds(2, 0.3)
    one, other = (recurrence(rows, groups, seed=4) for _ in range(2))
    assert torch.equal(one.log_share, other.log_share)
    assert one[1:] == other[1:]
