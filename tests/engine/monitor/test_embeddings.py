import pytest
import torch
import torch.distributed as dist
from lightly.utils.debug import std_of_l2_normalized
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from sslgh.engine.monitor.embeddings import (
    LINES,
    CollapseAlarm,
    batch_health,
    embedding_norm,
    gh_share,
    spread,
)
from sslgh.functional import alignment, effective_rank, uniformity
from sslgh.harmonize import GeometricHarmonizer
from sslgh.methods import SimCLR
from sslgh.models import simclr_projector, use_global_batch_norm


def views(n: int = 12, d: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = 3 * torch.randn(n, d, generator=generator) + 1
    return z, z + torch.randn(n, d, generator=generator)


def test_it_is_measured_on_normalized_embeddings() -> None:
    z1, z2 = views()
    values = batch_health(z1, z2)
    assert values.pop("embedding_std") == spread(z1)
    assert values.pop("alignment") == alignment(z1, z2)
    assert values.pop("uniformity") == uniformity(z1)
    assert values.pop("effective_rank") == effective_rank(normalize(z1))
    assert values == {}
    scale = torch.rand(12, 1) + 0.1
    for name, value in batch_health(scale * z1, z2).items():
        torch.testing.assert_close(value, batch_health(z1, z2)[name])


def test_spread_is_that_of_lightly_times_the_root_of_the_width() -> None:
    z, _ = views(200)
    population = (199 / 200) ** 0.5
    torch.testing.assert_close(spread(z), std_of_l2_normalized(z) * population * 8**0.5)


def test_spread_tells_a_filled_sphere_from_a_point() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 32, generator=generator)
    assert spread(z).item() == pytest.approx(1, abs=0.01)
    assert spread(z[:1].expand(9, 32)).item() == pytest.approx(0, abs=1e-6)


def test_a_batch_of_one_image_has_an_alignment_alone() -> None:
    assert set(batch_health(*views(1))) == {"alignment"}


def test_half_precision_and_gradients_change_nothing() -> None:
    z1, z2 = (z.bfloat16() for z in views())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = batch_health(z1.requires_grad_(), z2)
    for name, value in batch_health(z1.float(), z2.float()).items():
        assert inside[name] == value
        assert not inside[name].requires_grad


def test_embeddings_that_are_not_finite_are_left_to_the_loop() -> None:
    z1, z2 = views()
    z1[2, 3] = torch.nan
    assert all(value.isnan() for value in batch_health(z1, z2).values())


def part_of(cuts: list[int], n: int) -> slice:
    if not dist.is_initialized():
        return slice(0, n)
    return slice(cuts[dist.get_rank()], cuts[dist.get_rank() + 1])


def health_of_part(cuts: list[int]) -> dict[str, Tensor]:
    local = part_of(cuts, 12)
    return batch_health(*(z[local] for z in views()))


def test_several_processes_see_the_batch_of_one(two_processes, three_processes) -> None:
    whole = health_of_part([0])
    for run, cuts in ((two_processes, [0, 7, 12]), (three_processes, [0, 5, 9, 12])):
        for found in run(health_of_part, cuts):
            torch.testing.assert_close(found, whole)


def norm_of_part(cuts: list[int]) -> Tensor:
    local = part_of(cuts, 12)
    return embedding_norm(*(z[local] for z in views()), gathered=True)


def test_the_length_is_that_of_all_images_however_they_are_shared(
    two_processes, three_processes
) -> None:
    whole = torch.stack([z.norm(dim=1).mean() for z in views()]).mean()
    torch.testing.assert_close(embedding_norm(*views(), gathered=False), whole)
    for run, cuts in ((two_processes, [0, 7, 12]), (three_processes, [0, 5, 9, 12])):
        torch.testing.assert_close(torch.stack(run(norm_of_part, cuts)).mean(), whole)


def test_the_share_of_gh_is_that_of_its_gradient() -> None:
    z1, z2 = (z.requires_grad_() for z in views(2, 2))
    ssl = (z1 * torch.tensor([[0.0, 4.0], [0.0, 0.0]])).sum()
    gh = (z1[0, 0] + 2 * z2[1, 1] + 2 * z2[0, 0]).sum()
    share = gh_share(ssl, gh, z1, z2)
    assert share.item() == pytest.approx(3 / (3 + 4))
    assert not share.requires_grad
    assert gh_share(ssl, 2 * gh, z1, z2).item() == pytest.approx(6 / (6 + 4))


def test_no_share_is_gh_s_while_it_is_off() -> None:
    z1, z2 = (z.requires_grad_() for z in views())
    harmonizer = GeometricHarmonizer(12, 8, num_vertices=5, warmup_epochs=1)
    harmonizer.begin_epoch(0)
    assert gh_share(z1.sum(), harmonizer(z1, z2), z1, z2).item() == 0
    assert gh_share(0 * z1.sum(), 0 * z2.sum(), z1, z2).item() == 0


def test_a_method_may_use_both_views_at_once() -> None:
    def share(parts: bool) -> Tensor:
        z = torch.cat(views()).requires_grad_() * 1
        z1, z2 = z.chunk(2)
        both = torch.cat([z1, z2]) if parts else z
        return gh_share(both.square().sum(), (z1 * z2).sum(), z1, z2)

    assert share(parts=False) == share(parts=True)
    # |(z2, z1)| / (|(z2, z1)| + |2 (z1, z2)|)
    torch.testing.assert_close(share(parts=False), torch.tensor(1 / 3))


def test_a_loss_that_bypasses_the_embeddings_is_refused() -> None:
    z1, z2 = (z.requires_grad_() for z in views())
    other = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="compute it from these tensors"):
        gh_share(other.sum(), (z1 * z2).sum(), z1, z2)


def share_and_gradients(cuts: list[int], measure: bool) -> tuple[Tensor, list[Tensor]]:
    """A step of SimCLR with GH; globalized, so that batch statistics are those of all processes."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    projector = simclr_projector(6, hidden=8, out=5, layers=2)
    method = SimCLR(backbone, projector).double()
    model: nn.Module = method
    if dist.is_initialized():
        model = DistributedDataParallel(use_global_batch_norm(method))
    x1, x2 = (x.double().view(-1, 3, 2, 2)[part_of(cuts, 12)] for x in views(d=12))
    harmonizer = GeometricHarmonizer(12, 5, num_vertices=4, ramp_epochs=1).double()
    harmonizer.started.fill_(0)
    harmonizer.begin_epoch(1)
    output = model([x1, x2])
    gh = harmonizer(*output.embeddings)
    share = gh_share(output.loss, gh, *output.embeddings) if measure else torch.zeros(())
    (output.loss + gh).backward()
    return share, [p.grad for p in method.parameters() if p.grad is not None]


def test_the_share_of_several_processes_is_that_of_one_and_disturbs_no_gradient(
    two_processes, three_processes
) -> None:
    whole, gradients = share_and_gradients([0], True)
    assert 0.01 < whole < 0.99
    torch.testing.assert_close(gradients, share_and_gradients([0], False)[1])
    for run, cuts in ((two_processes, [0, 7, 12]), (three_processes, [0, 5, 9, 12])):
        for share, found in run(share_and_gradients, cuts, True):
            torch.testing.assert_close(share, whole, rtol=1e-5, atol=0)
            for part, expected in zip(found, gradients, strict=True):
                assert (part - expected).norm() <= 1e-5 * expected.norm() + 1e-12


HEALTHY = {"embedding_std": 0.9, "effective_rank": 20.0}


def rings(lines: list[dict[str, float]]) -> list[int]:
    alarm = CollapseAlarm(64)
    return [number for number, line in enumerate(lines, 1) if alarm(line)]


@pytest.mark.parametrize("sign", [{"embedding_std": 0.1}, {"effective_rank": 1.2}])
def test_one_sign_that_stays_rings_once(sign) -> None:
    assert rings([HEALTHY] * 5 + [HEALTHY | sign] * 50) == [5 + LINES]


def test_healthy_runs_and_short_dips_do_not_ring() -> None:
    dip = [HEALTHY | {"embedding_std": 0.0}] * (LINES - 1) + [HEALTHY] * (LINES - 1)
    assert rings([HEALTHY] * 100 + dip * 5) == []


def test_a_collapse_that_flickers_rings_all_the_same() -> None:
    flicker = [HEALTHY | {"effective_rank": 1.1}] * 3 + [HEALTHY]
    assert len(rings(flicker * 20)) == 1


def test_it_is_armed_again_once_the_run_has_recovered() -> None:
    collapsed = [HEALTHY | {"embedding_std": 0.1}] * LINES
    assert rings(collapsed + [HEALTHY] * (LINES - 1) + collapsed) == [LINES]
    assert len(rings(collapsed + [HEALTHY] * LINES + collapsed)) == 2


def test_lines_without_the_numbers_are_passed_over() -> None:
    assert rings([{"loss": 1.0}, {"effective_rank": 1.0}] * 50) == []


def test_the_sentence_says_what_was_seen_and_what_helps() -> None:
    alarm = CollapseAlarm(64)
    sentence = [alarm({"embedding_std": 0.031, "effective_rank": 1.14}) for _ in range(LINES)][-1]
    assert sentence is not None
    for words in ("have collapsed", "embedding_std 0.03", "rank 1.1 of 64", "optim.lr", "warm-up"):
        assert words in sentence
    assert "\n" not in sentence
