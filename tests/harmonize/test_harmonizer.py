import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslgh.data import ResumableBatchSampler
from sslgh.functional import harmonization_loss, nt_xent, simplex_etf, vertex_scores
from sslgh.harmonize import CleanRows, GeometricHarmonizer
from sslgh.harmonize.alignment import align_vertices, match_groups
from sslgh.recipe import RecipeError

SIZES = (400, 120, 40)


def population(seed: int = 0, dim: int = 16, noise: float = 0.15) -> tuple[Tensor, Tensor]:
    """Embeddings around three orthogonal directions, 400, 120 and 40 of them, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    z = torch.eye(dim)[labels] + noise * torch.randn(len(labels), dim, generator=generator)
    return z, labels


def fed(harmonizer: GeometricHarmonizer, z: Tensor, batch: int = 56) -> GeometricHarmonizer:
    for index in torch.arange(len(z)).split(batch):
        harmonizer.observe(5 * z[index], index)
    return harmonizer


def make(**settings) -> GeometricHarmonizer:
    defaults = {"num_vertices": 8, "warmup_epochs": 2, "ramp_epochs": 4, "refresh_every": 3}
    return GeometricHarmonizer(sum(SIZES), 16, **(defaults | settings))


def test_the_weight_of_the_term_is_zero_in_warmup_then_ramps_as_in_the_official_code() -> None:
    """Epoch ``warmup`` has the weight 1 / ramp: (epoch + 1 - warmup) / ramp, clipped."""
    harmonizer = fed(make(weight=2.0, population="prototypes"), population()[0])
    scales = []
    for epoch in range(8):
        harmonizer.begin_epoch(epoch)
        scales.append(harmonizer.loss_weight)
    assert scales == [0, 0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_the_term_waits_for_clusters_that_recur_and_ramps_from_there() -> None:
    harmonizer = make(refresh_every=1)
    fed(harmonizer, cloud())
    scales, accepted = [], []
    for epoch in range(8):
        if epoch == 4:
            for _ in range(7):
                fed(harmonizer, population()[0])
        harmonizer.begin_epoch(epoch)
        scales.append(harmonizer.loss_weight)
        if epoch >= 2:
            accepted.append(harmonizer.last_refresh.accepted)
    assert accepted == [False, False, True, True, True, True]
    assert scales == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1]


def test_the_term_in_warmup_is_zero_and_afterwards_the_scaled_loss_of_centered_embeddings() -> None:
    harmonizer, (z, _) = make(), population()
    fed(harmonizer, z)
    z1, z2 = z[:50], z[50:100]
    harmonizer.begin_epoch(1)
    assert harmonizer(z1, z2) == 0
    harmonizer.begin_epoch(2)
    center = sum(
        0.99 ** (9 - step) * 5 * z[index].mean(0)
        for step, index in enumerate(torch.arange(560).split(56))
    ) / sum(0.99**step for step in range(10))
    expected = harmonization_loss(
        z1 - center,
        z2 - center,
        harmonizer.vertices,
        torch.ones(8),
        epsilon=0.05 * (100 / 8) ** 0.5,
        temperature=0.1 * (100 / 8) ** 0.5,
    )
    torch.testing.assert_close(harmonizer(z1, z2), 0.25 * expected)


def test_a_direction_that_all_embeddings_share_does_not_count() -> None:
    """Methods whose projector ends without a norm: uncentered, all images have one nearest vertex."""
    z, _ = population()
    terms = []
    for shared in (0.0, 20.0):
        direction = shared * torch.eye(16)[15]
        harmonizer = fed(make(align=False, visibility=1.0), z + direction / 5)
        harmonizer.begin_epoch(2)
        terms.append(harmonizer(5 * z[:50] + direction, 5 * z[50:100] + direction))
        assert len(harmonizer.nearest.unique()) >= 3
    assert terms[0] > 0
    torch.testing.assert_close(terms[0], terms[1], rtol=1e-3, atol=0)


def test_refreshes_fall_at_the_end_of_warmup_and_then_every_so_often() -> None:
    harmonizer, (z, _) = make(), population()
    epochs = []
    for epoch in range(10):
        harmonizer.begin_epoch(epoch)
        if harmonizer.last_refresh is not None and harmonizer.last_refresh.epoch == epoch:
            epochs.append(epoch)
        fed(harmonizer, z)
    assert epochs == [2, 5, 8]


def test_without_warmup_the_first_refresh_waits_until_something_was_seen() -> None:
    harmonizer, (z, _) = make(warmup_epochs=0), population()
    harmonizer.begin_epoch(0)
    assert harmonizer.last_refresh is None
    torch.testing.assert_close(harmonizer.prior, torch.full((8,), 1 / 8))
    fed(harmonizer, z).begin_epoch(1)
    assert harmonizer.last_refresh is not None


def test_beginning_an_epoch_again_changes_nothing() -> None:
    harmonizer, (z, _) = make(), population()
    fed(harmonizer, z).begin_epoch(2)
    assert harmonizer.last_refresh.accepted
    before = {name: buffer.clone() for name, buffer in harmonizer.state_dict().items()}
    fed(harmonizer, z.flip(0))  # the bank moves on within the epoch
    harmonizer.begin_epoch(2)
    for name in ("labels", "prior", "vertices", "instance_weight"):
        assert torch.equal(harmonizer.state_dict()[name], before[name])


def test_beginning_an_epoch_again_does_not_catch_up_on_a_refresh() -> None:
    """A resume in the middle of an epoch at whose start nothing had been seen yet."""
    harmonizer = make(warmup_epochs=0)
    harmonizer.begin_epoch(0)
    fed(harmonizer, population()[0]).begin_epoch(0)
    assert harmonizer.last_refresh is None


def test_faiss_finds_the_shares_of_the_population_with_vertices_to_spare() -> None:
    harmonizer, (z, labels) = make(), population()
    fed(harmonizer, z).begin_epoch(2)
    shares = harmonizer.prior[harmonizer.prior > 0].sort(descending=True).values
    torch.testing.assert_close(shares, torch.tensor(SIZES) / sum(SIZES), rtol=0, atol=0.01)
    for surrogate in harmonizer.labels.unique():
        assert len(labels[harmonizer.labels == surrogate].unique()) == 1


@pytest.mark.parametrize("prior", ["flat", "power", "estimate"])
def test_no_vertex_has_the_prior_zero(prior) -> None:
    """A vertex of prior 0 would push all images into the cone of the others, labels or not."""
    harmonizer, (z, _) = make(prior=prior), population()
    fed(harmonizer, z).begin_epoch(2)
    target = harmonizer.target_marginal
    torch.testing.assert_close(target.sum(), torch.tensor(1.0))
    assert target.min() >= 0.5 / 8
    flat, law = torch.full((8,), 1 / 8), torch.arange(1, 9) ** -0.5
    shares = torch.bincount(harmonizer.nearest, minlength=8) / 560
    expected = {"flat": flat, "power": law / law.sum(), "estimate": (flat + shares) / 2}[prior]
    torch.testing.assert_close(target, expected)
    assert shares.max() > 0.4


def test_clusters_keep_their_identity_their_shares_are_averaged_and_weights_hardly_move() -> None:
    harmonizer, (z, labels) = make(refresh_every=1), population()
    fed(harmonizer, z).begin_epoch(2)
    names = harmonizer.labels.clone()
    generator = torch.Generator().manual_seed(5)
    for epoch in range(3, 7):
        # The embedding turns, which moves every cluster, but hardly a sample changes its cluster.
        turn = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
        for _ in range(7):
            fed(harmonizer, z @ turn)
        harmonizer.begin_epoch(epoch)
        refresh = harmonizer.last_refresh
        assert refresh.accepted
        assert refresh.churn < 0.02
        assert refresh.drift < 0.02
        assert refresh.reweighted < 0.02
    assert (harmonizer.labels == names).float().mean() > 0.98
    before = harmonizer.prior.clone()
    half = labels.clone()  # now the head loses half of its images to the smallest kind
    half[(labels == 0).nonzero().squeeze(1)[:200]] = 2
    other = torch.eye(16)[half] + (z - torch.eye(16)[labels])
    for _ in range(7):
        fed(harmonizer, other)
    harmonizer.begin_epoch(7)
    moved = 0.25 * 200 / 560  # the fourth refresh and later ones count a quarter
    torch.testing.assert_close(
        before.max() - harmonizer.prior.max(), torch.tensor(moved), atol=0.01, rtol=0
    )
    assert harmonizer.last_refresh.drift == pytest.approx(200 / 560, abs=0.02)
    assert harmonizer.last_refresh.churn == pytest.approx(200 / 560, abs=0.02)


def test_a_refresh_that_does_not_agree_with_itself_changes_nothing() -> None:
    harmonizer, (z, _) = make(refresh_every=1), population()
    fed(harmonizer, z).begin_epoch(2)
    before = {name: buffer.clone() for name, buffer in harmonizer.state_dict().items()}
    for _ in range(7):
        fed(harmonizer, cloud())
    harmonizer.begin_epoch(3)
    assert not harmonizer.last_refresh.accepted
    assert harmonizer.last_refresh.visibility < 0.25
    for name in ("labels", "prior", "vertices", "instance_weight", "log_share", "nearest"):
        assert torch.equal(harmonizer.state_dict()[name], before[name])
    assert harmonizer.loss_weight == 0.5  # the ramp goes on


def test_visibility_says_how_strongly_weights_follow_the_shares() -> None:
    z, labels = population()
    ratios = []
    for visibility in (0.2, 0.5, 1.0):
        harmonizer = fed(make(visibility=visibility, max_weight=100.0), z)
        harmonizer.begin_epoch(2)
        weight = harmonizer.weights(torch.arange(560))
        ratios.append(float(weight[labels == 2].mean() / weight[labels == 0].mean()))
    # From a share of 400 to one of 40.
    assert ratios == pytest.approx([1.0, 10**0.5, 10.0], rel=0.05)


def test_kmeans_splits_the_head_where_groups_do_not() -> None:
    z, _ = population()
    largest = {}
    for clustering in ("groups", "kmeans"):
        harmonizer = fed(make(num_vertices=3, clustering=clustering, visibility=1.0), z)
        harmonizer.begin_epoch(2)
        largest[clustering] = float(harmonizer.prior.max())
    assert abs(largest["groups"] - 400 / 560) < 0.03
    assert largest["kmeans"] < 400 / 560 - 0.2


def test_alignment_turns_the_vertices_once_and_keeps_their_angles() -> None:
    harmonizer, (z, labels) = make(refresh_every=1), population()
    before = harmonizer.vertices.clone()
    fed(harmonizer, z).begin_epoch(2)
    turned = harmonizer.vertices.clone()
    assert not torch.allclose(turned, before, atol=0.1)
    torch.testing.assert_close(turned @ turned.T, before @ before.T, rtol=0, atol=1e-5)
    for y in range(3):  # nearly all of a kind have one nearest vertex
        assert torch.bincount(harmonizer.nearest[labels == y]).max() > 0.9 * SIZES[y]
    for _ in range(7):
        fed(harmonizer, z.roll(1, dims=1))
    harmonizer.begin_epoch(3)  # no step has pulled yet, but once is enough
    assert harmonizer.last_refresh.accepted
    assert torch.equal(harmonizer.vertices, turned)


def test_clusters_that_first_recur_at_a_later_refresh_are_aligned_then() -> None:
    harmonizer, (z, labels) = make(refresh_every=1), population()
    fed(harmonizer, cloud()).begin_epoch(2)
    for _ in range(7):
        fed(harmonizer, z)
    harmonizer.begin_epoch(3)
    for y in range(3):
        assert torch.bincount(harmonizer.nearest[labels == y]).max() > 0.9 * SIZES[y]


def test_without_alignment_the_vertices_stay() -> None:
    harmonizer, (z, _) = make(align=False), population()
    before = harmonizer.vertices.clone()
    fed(harmonizer, z).begin_epoch(2)
    assert harmonizer.last_refresh.accepted
    assert torch.equal(harmonizer.vertices, before)


def test_weights_have_mean_one_favor_rare_labels_and_start_as_ones() -> None:
    harmonizer, (z, labels) = make(weight_power=0.5, visibility=1.0), population()
    everyone = torch.arange(len(z))
    assert torch.equal(harmonizer.weights(everyone), torch.ones(len(z)))
    fed(harmonizer, z).begin_epoch(2)
    weights = harmonizer.weights(everyone)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    means = [float(weights[labels == y].mean()) for y in range(3)]
    expected = torch.tensor(SIZES).float().rsqrt()
    expected = expected * sum(SIZES) / (expected * torch.tensor(SIZES)).sum()
    torch.testing.assert_close(torch.tensor(means), expected, rtol=0.05, atol=0)


def test_the_first_refresh_of_the_paper_is_no_drift() -> None:
    harmonizer, (z, _) = make(population="prototypes"), population()
    fed(harmonizer, z).begin_epoch(2)
    assert harmonizer.last_refresh.accepted
    assert harmonizer.prior.max() > 2 / 8
    assert harmonizer.last_refresh.drift == 0


def test_rows_that_are_not_finite_do_not_enter_the_paper_s_bank() -> None:
    harmonizer, (z, _) = make(population="prototypes"), population()
    z[3] = torch.nan
    harmonizer.observe(z, torch.arange(560))
    assert harmonizer.population.memory.seen.sum() == 559


def test_power_zero_turns_reweighting_off() -> None:
    harmonizer, (z, _) = make(weight_power=0.0), population()
    fed(harmonizer, z).begin_epoch(2)
    assert harmonizer.last_refresh.accepted
    assert torch.equal(harmonizer.weights(torch.arange(len(z))), torch.ones(len(z)))


def test_samples_never_seen_keep_weight_one_and_enter_no_share() -> None:
    harmonizer, (z, labels) = make(), population()
    known = (labels != 0).nonzero().squeeze(1)
    harmonizer.observe(z[known], known)
    harmonizer.begin_epoch(2)
    hidden = labels == 0
    assert (harmonizer.labels[hidden] == -1).all()
    assert (harmonizer.weights(hidden.nonzero().squeeze(1)) == 1).all()
    shares = harmonizer.prior[harmonizer.prior > 0].sort(descending=True).values
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25]), rtol=0, atol=0.01)


def cloud() -> Tensor:
    return torch.randn(560, 16, generator=torch.Generator().manual_seed(0))


def around_vertices(harmonizer: GeometricHarmonizer, counts: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    noise = 0.1 * torch.randn(len(labels), 16, generator=generator)
    return harmonizer.vertices[labels] + noise


def test_prototypes_find_the_shares_of_embeddings_around_their_vertices() -> None:
    counts = [300, 150, 60, 30, 20, 0, 0, 0]
    harmonizer = make(population="prototypes")
    z = around_vertices(harmonizer, counts)
    fed(harmonizer, z).begin_epoch(2)
    torch.testing.assert_close(harmonizer.prior, torch.tensor(counts) / 560, rtol=0, atol=0.01)


def test_prototypes_average_scores_with_one_beta_in_warmup_and_another_after() -> None:
    harmonizer = make(population="prototypes", warmup_momentum=0.9, momentum=0.5)
    z, index = population()[0], torch.arange(560)
    harmonizer.begin_epoch(0)
    harmonizer.observe(z, index)
    harmonizer.observe(-z, index)
    t = vertex_scores(z, harmonizer.vertices)
    torch.testing.assert_close(harmonizer.population.memory.rows, 0.8 * t)
    harmonizer.begin_epoch(2)
    harmonizer.observe(-z, index)
    torch.testing.assert_close(harmonizer.population.memory.rows, -0.1 * t)


def test_the_prior_floor_counts_for_every_vertex() -> None:
    harmonizer = make(population="prototypes", prior_floor=10)
    counts = [400, 160, 0, 0, 0, 0, 0, 0]
    z = around_vertices(harmonizer, counts)
    fed(harmonizer, z).begin_epoch(2)
    torch.testing.assert_close(
        harmonizer.prior, (torch.tensor(counts) + 10) / 640, rtol=0, atol=0.01
    )


@pytest.mark.parametrize("kind", ["faiss", "prototypes"])
def test_state_goes_through_a_file_and_the_copy_goes_on_alike(kind) -> None:
    harmonizer, (z, _) = make(population=kind), population()
    harmonizer.begin_epoch(2)
    fed(harmonizer, z).begin_epoch(3)
    file = io.BytesIO()
    torch.save(harmonizer.state_dict(), file)
    file.seek(0)
    copy = make(population=kind)
    copy.vertices.fill_(torch.nan)  # comes from the file
    copy.load_state_dict(torch.load(file, weights_only=True))
    for each in (harmonizer, copy):
        each.begin_epoch(3)
        fed(each, 2 * z.flip(0)).begin_epoch(6)
    for name, buffer in harmonizer.state_dict().items():
        assert torch.equal(copy.state_dict()[name], buffer), name


def test_it_has_no_parameters_and_all_its_state_is_in_buffers() -> None:
    harmonizer = make()
    assert list(harmonizer.parameters()) == []
    assert {"vertices", "prior", "labels", "instance_weight"} <= set(harmonizer.state_dict())


def test_observing_keeps_no_graph() -> None:
    harmonizer, (z, _) = make(), population()
    harmonizer.observe(z.requires_grad_(), torch.arange(560))
    assert not harmonizer.population.memory.rows.requires_grad


def test_nothing_is_read_from_uninitialized_memory() -> None:
    first, second = make(population="prototypes"), make(population="prototypes")
    for name, buffer in first.state_dict().items():
        assert torch.equal(buffer, second.state_dict()[name])
        assert buffer.isfinite().all()


def test_gradient_descent_on_the_term_spreads_rare_classes_that_had_collapsed() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([300, 100, 30, 15, 15]))
    # 4 dimensions are the span of 5 vertices: GH does not see what lies outside it.
    centers = torch.randn(5, 4, generator=generator)
    centers[3:] = centers[2] + 0.6 * torch.randn(2, 4, generator=generator)
    z = F.normalize(centers)[labels] + 0.03 * torch.randn(len(labels), 4, generator=generator)
    means = torch.stack([z[labels == y].mean(0) for y in range(5)])
    vertices = align_vertices(simplex_etf(5, 4), means)
    shares = torch.tensor([300, 100, 30, 15, 15])[match_groups(means, vertices).argsort()] / 460
    free = z.clone().requires_grad_()
    optimizer = torch.optim.SGD([free], lr=100.0)
    for _ in range(60):
        optimizer.zero_grad()
        noise = 0.03 * torch.randn(2, *z.shape, generator=generator)
        harmonization_loss(free + noise[0], free + noise[1], vertices, shares).backward()
        optimizer.step()
    assert class_cosines(z, labels).max() > 0.6
    assert class_cosines(free.detach(), labels).max() < 0.25


def class_cosines(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Cosines between the mean directions of different classes."""
    unit = F.normalize(embeddings)
    means = F.normalize(torch.stack([unit[labels == y].mean(0) for y in labels.unique()]))
    return (means @ means.T)[~torch.eye(len(means), dtype=torch.bool)]


def distance_from_equal_angles(seed: int, *, gh: bool) -> float:
    """Train a small network with NT-Xent on a long tail of five classes, with or without GH."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor([200, 40, 10, 10, 10]))
    centers = F.normalize(torch.randn(5, 8, generator=generator))
    x = centers[labels] + 0.05 * torch.randn(len(labels), 8, generator=generator)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    harmonizer = GeometricHarmonizer(
        len(x), 8, num_vertices=5, population="prototypes", warmup_epochs=20
    )
    for epoch in range(150):
        harmonizer.begin_epoch(epoch)
        optimizer.zero_grad()
        z1, z2 = (net(x + 0.1 * torch.randn(x.shape, generator=generator)) for _ in range(2))
        loss = nt_xent(z1, z2, temperature=0.5).mean()
        (loss + harmonizer(z1, z2) if gh else loss).backward()
        optimizer.step()
        harmonizer.observe(z1, torch.arange(len(x)))
    return float((class_cosines(net(x).detach(), labels) + 1 / 4).abs().mean())


def test_class_means_end_nearer_to_equal_angles_with_gh_than_without() -> None:
    plain, harmonized = (
        torch.tensor([distance_from_equal_angles(seed, gh=gh) for seed in range(3)])
        for gh in (False, True)
    )
    assert (harmonized < plain).all()
    assert harmonized.mean() < 0.97 * plain.mean()


def resampling(**settings) -> GeometricHarmonizer:
    return make(resample="hierarchical", seed=5, **settings)


def test_a_resampled_run_shows_what_a_plain_one_shows_until_the_first_refresh() -> None:
    harmonizer = resampling()
    plain = ResumableBatchSampler(560, 56, seed=5, epochs=3)
    batches = iter(
        ResumableBatchSampler(560, 56, seed=5, epochs=4, epoch_indices=harmonizer.epoch_indices)
    )
    z, _ = population()
    for epoch in range(3):  # the refresh of epoch 2 comes too late for epoch 2
        harmonizer.begin_epoch(epoch)
        expected = list(plain)[10 * epoch : 10 * epoch + 10]
        assert [next(batches) for _ in range(10)] == expected
        fed(harmonizer, z)
    assert harmonizer.last_refresh.epoch == 2


def test_the_epoch_after_a_refresh_shows_the_tail_more_often_and_weighs_nothing() -> None:
    harmonizer, (z, labels) = resampling(), population()
    fed(harmonizer, z).begin_epoch(2)
    shown = harmonizer.epoch_indices(3)
    assert shown.shape == (560,)
    counts = torch.bincount(labels[shown])
    # By hierarchical k-means in (28, 5) clusters with places for ten times an image.
    assert counts[2] > 2 * SIZES[2]
    assert counts[0] < 0.75 * SIZES[0]
    assert torch.bincount(torch.from_numpy(shown)).max() <= 10
    assert torch.equal(harmonizer.weights(torch.arange(560)), torch.ones(560))
    harmonizer.begin_epoch(3)
    assert sorted(harmonizer.epoch_indices(4)) != sorted(shown)  # drawn anew from the same clusters


def test_max_weight_is_how_often_an_epoch_may_show_an_image() -> None:
    harmonizer = fed(resampling(max_weight=3.9), population()[0])
    harmonizer.begin_epoch(2)
    assert torch.bincount(torch.from_numpy(harmonizer.epoch_indices(3))).max() == 3


def test_images_never_seen_are_shown_once() -> None:
    harmonizer, (z, _) = resampling(), population()
    known = torch.arange(30, 560)
    harmonizer.observe(z[known], known)
    harmonizer.begin_epoch(2)
    times = torch.bincount(torch.from_numpy(harmonizer.epoch_indices(3)), minlength=560)
    assert (times[:30] == 1).all()
    assert times[30:].max() > 3


def test_the_term_expects_the_shares_that_the_epoch_shows() -> None:
    harmonizer, (z, _) = resampling(prior="estimate"), population()
    fed(harmonizer, z).begin_epoch(1)
    for epoch, moved in ((2, False), (3, True), (4, True)):
        harmonizer.begin_epoch(epoch)
        nearest = harmonizer.nearest
        shown = torch.bincount(nearest[harmonizer.epoch_indices(epoch)], minlength=8) / 560
        once = torch.bincount(nearest, minlength=8) / 560
        assert (float((shown - once).abs().max()) > 0.05) == moved
        torch.testing.assert_close(harmonizer.target_marginal, (1 / 8 + shown) / 2)
    assert harmonizer.prior.max() > 0.7  # that of the population stays what it is


def test_sequences_are_known_one_epoch_ahead_and_no_further() -> None:
    harmonizer = resampling()
    assert harmonizer.epoch_indices(0).shape == (560,)
    harmonizer.begin_epoch(0)
    harmonizer.epoch_indices(1)
    with pytest.raises(ValueError, match=r"epoch 2 while only epochs up to 1 .* data\.workers"):
        harmonizer.epoch_indices(2)
    harmonizer.begin_epoch(1)
    with pytest.raises(ValueError, match="epoch 0"):
        harmonizer.epoch_indices(0)
    with pytest.raises(RuntimeError, match="without resample"):
        make().epoch_indices(0)


def test_what_was_drawn_is_what_is_shown() -> None:
    """A loader asks for an epoch before it begins, and perhaps again after a resume."""
    harmonizer, (z, _) = resampling(refresh_every=1), population()
    fed(harmonizer, z)
    for epoch in range(6):
        before = harmonizer.epoch_indices(epoch)
        harmonizer.begin_epoch(epoch)  # from epoch 2 on with a refresh
        assert (harmonizer.epoch_indices(epoch) == before).all()
        ahead = harmonizer.epoch_indices(epoch + 1)
        fed(harmonizer, z.roll(epoch, dims=1))
        harmonizer.begin_epoch(epoch)
        assert (harmonizer.epoch_indices(epoch + 1) == ahead).all()


@pytest.mark.parametrize("at", [(1, 4), (2, 4), (3, 0), (3, 4), (4, 4), (5, 0)])
def test_a_resumed_run_shows_the_rest_of_an_unbroken_one(at) -> None:
    """Refreshes fall at the beginning of epochs 2 and 4."""
    z, _ = population()
    epochs, steps = 6, 10

    def run(harmonizer: GeometricHarmonizer, start: tuple[int, int], end: tuple[int, int]) -> list:
        order = ResumableBatchSampler(
            560, 56, seed=5, epochs=epochs, start=start, epoch_indices=harmonizer.epoch_indices
        )
        shown, batches = [], iter(order)
        for epoch in range(start[0], epochs):
            if (epoch, 0) == end:
                return shown
            harmonizer.begin_epoch(epoch)
            for step in range(start[1] if epoch == start[0] else 0, steps):
                if (epoch, step) == end:
                    return shown
                batch = next(batches)
                index = torch.tensor([key.index for key in batch])
                harmonizer.observe(z[index] * (1 + epoch + step), index)
                shown.append((batch, harmonizer.target_marginal.tolist()))
        return shown

    whole = run(resampling(refresh_every=2), (0, 0), (epochs, 0))
    broken = resampling(refresh_every=2)
    first = run(broken, (0, 0), at)
    file = io.BytesIO()
    torch.save(broken.state_dict(), file)
    file.seek(0)
    copy = resampling(refresh_every=2)
    copy.load_state_dict(torch.load(file, weights_only=True))
    assert first + run(copy, at, (epochs, 0)) == whole


def sequences_of_a_part(z: Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """What six epochs show, and the clusters at the end."""
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    harmonizer = resampling(refresh_every=2)
    shown = [harmonizer.epoch_indices(0).tolist()]
    for epoch in range(5):
        harmonizer.begin_epoch(epoch)
        shown.append(harmonizer.epoch_indices(epoch + 1).tolist())
        for index in torch.arange(560).split(56):
            local = index.tensor_split([20])[dist.get_rank()] if dist.is_initialized() else index
            harmonizer.observe(z[local], local)
    return shown, harmonizer.clusters.tolist()


def test_two_processes_are_shown_what_one_is(two_processes) -> None:
    z, _ = population()
    alone, clusters = sequences_of_a_part(z)
    assert sorted(alone[2]) == list(range(560)) != sorted(alone[3])
    for shown in two_processes(sequences_of_a_part, z):
        assert shown == (alone, clusters)


@pytest.mark.parametrize(("share", "step"), [(0.8, -1), (0.2, 1), (0.5, 0), (0.41, 0)])
def test_the_weight_moves_by_a_tenth_at_most_to_where_its_share_is_within_bounds(
    share, step
) -> None:
    harmonizer = fed(make(refresh_every=100), population()[0])
    harmonizer.begin_epoch(2)
    shares = []
    for epoch in range(3, 40):
        harmonizer.begin_epoch(epoch)
        before = float(harmonizer.scale)
        # The gradients' ratio at weight 1 is fixed, and the weight scales it.
        ratio = share / (1 - share) * before * harmonizer.ramp
        shares.append(ratio / harmonizer.ramp / (1 + ratio / harmonizer.ramp))
        harmonizer.adapt(torch.tensor(ratio / (1 + ratio)))
        assert 1 / 1.1001 < float(harmonizer.scale) / before < 1.1001
    assert float(harmonizer.scale - 1) * step > 0 if step else harmonizer.scale == 1
    assert 0.4 - 1e-5 <= shares[-1] <= 0.55 + 1e-5
    fixed = fed(make(gh_share=None), population()[0])
    fixed.begin_epoch(2)
    assert fixed.loss_weight > 0
    fixed.adapt(torch.tensor(0.9))
    harmonizer.adapt(torch.tensor(torch.nan))
    assert fixed.scale == 1
    assert harmonizer.scale.isfinite()


def test_a_simplex_that_does_not_fit_is_refused_and_a_frame_is_not() -> None:
    with pytest.raises(
        ValueError, match="a simplex of 18 vertices does not fit into 16 dimensions"
    ) as e:
        make(num_vertices=18, structure="etf")
    assert str(e.value).endswith("lower harmonize.vertices to 17 or use structure: frame")
    assert make(num_vertices=18).vertices.shape == (18, 16)
    fitting = make(num_vertices=17, structure="etf").vertices
    simplex = simplex_etf(17, 16)
    torch.testing.assert_close(fitting @ fitting.T, simplex @ simplex.T, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="'frame' or 'etf', got 'simplex'"):
        make(structure="simplex")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"weight_power": 0.5}, "hierarchical replaces instance weights, but weight_power is 0.5"),
        ({"population": "prototypes"}, "resample samples by clusters of the embeddings"),
        ({"max_weight": 1.5}, "would show no image twice, since max_weight is 1.5"),
    ],
)
def test_what_does_not_go_with_resampling_is_refused_in_one_sentence(
    tiny, settings, sentence
) -> None:
    with pytest.raises(ValueError, match=sentence):
        resampling(**settings)
    words = [f"harmonize.{key}={value}" for key, value in settings.items()]
    with pytest.raises(RecipeError, match=sentence) as refused:
        tiny("harmonize.resample=hierarchical", *words, gh=True)
    assert "\n" not in str(refused.value)


def test_one_recipe_line_turns_resampling_on_and_weights_off(tiny) -> None:
    recipe = tiny("harmonize={resample: hierarchical}", "train.epochs=20")
    assert recipe.harmonize.weight_power == 0
    assert tiny("harmonize={}").harmonize.weight_power == 1.0
    with pytest.raises(
        RecipeError, match=r"harmonize\.resample: expected 'clusters' or 'hierarchical'"
    ):
        tiny("harmonize={resample: flat}")


def part_of_a_step(z: Tensor, population_kind: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    import torch.distributed as dist  # noqa: PLC0415 - runs in a worker

    rank, size = dist.get_rank(), dist.get_world_size()
    harmonizer = make(population=population_kind)
    for index in torch.arange(len(z)).split(56):
        local = index.tensor_split([20])[rank]  # uneven on purpose
        harmonizer.observe(z[local], local)
    harmonizer.begin_epoch(2)
    harmonizer.begin_epoch(4)
    local = torch.arange(0, 30) if rank == 0 else torch.arange(30, 100)
    a, b = z[local].clone().requires_grad_(), z[local + 100].clone().requires_grad_()
    loss = harmonizer(a, b)
    loss.backward()
    assert a.grad is not None
    assert b.grad is not None
    state = {
        name: getattr(harmonizer, name)
        for name in ("labels", "prior", "vertices", "instance_weight")
    }
    return loss.detach(), torch.stack([a.grad, b.grad]) / size, state


@pytest.mark.parametrize("kind", ["faiss", "prototypes"])
def test_two_processes_have_the_state_value_and_gradient_of_one(two_processes, kind) -> None:
    z, _ = population()
    alone = fed(make(population=kind), z / 5)
    alone.begin_epoch(2)
    alone.begin_epoch(4)
    z1, z2 = z[:100].clone().requires_grad_(), z[100:200].clone().requires_grad_()
    loss = alone(z1, z2)
    gradients = torch.autograd.grad(loss, (z1, z2))
    parts = two_processes(part_of_a_step, z, kind)
    for value, _, state in parts:
        torch.testing.assert_close(value, loss.detach(), rtol=1e-5, atol=0)
        for name, buffer in state.items():
            torch.testing.assert_close(buffer, getattr(alone, name), rtol=1e-5, atol=1e-6)
    found = torch.cat([gradient for _, gradient, _ in parts], dim=1)
    torch.testing.assert_close(found, torch.stack(gradients), rtol=1e-4, atol=1e-7)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="num_vertices is 20, but there are 10 samples"):
        GeometricHarmonizer(10, 4, num_vertices=20)
    with pytest.raises(
        ValueError, match="population: expected 'faiss' or 'prototypes', got 'fais'"
    ):
        make(population="fais")
    with pytest.raises(ValueError, match="meaningless"):
        make(population="prototypes", align=True)
    with pytest.raises(ValueError, match="classes is 9, but there are only 8 vertices"):
        make(classes=9)


def test_more_vertices_than_a_simplex_holds_make_a_frame() -> None:
    harmonizer = GeometricHarmonizer(100, 8, num_vertices=12)
    cosines = (harmonizer.vertices @ harmonizer.vertices.T).fill_diagonal_(-1)
    assert float(cosines.max()) < 1e-5
    simplex, other = GeometricHarmonizer(100, 8, num_vertices=9).vertices, simplex_etf(9, 8)
    torch.testing.assert_close(simplex @ simplex.T, other @ other.T, rtol=0, atol=1e-6)


def test_embeddings_without_modes_change_nothing() -> None:
    """One cluster for all, or two halves of one cloud, say nothing of kinds."""
    harmonizer = make()
    before = {name: buffer.clone() for name, buffer in harmonizer.state_dict().items()}
    fed(harmonizer, cloud()).begin_epoch(2)
    assert not harmonizer.last_refresh.accepted
    for name in ("labels", "prior", "vertices", "instance_weight", "log_share", "nearest"):
        assert torch.equal(harmonizer.state_dict()[name], before[name])


def clean(z: Tensor) -> CleanRows:
    return CleanRows(3 * z, z.clone())


def test_a_clean_pass_replaces_the_bank() -> None:
    harmonizer, (z, labels) = make(clean=True), population()
    assert harmonizer.population.memory.rows.numel() == 0
    assert [harmonizer.refresh_due(epoch) for epoch in (1, 2)] == [False, True]
    fed(harmonizer, cloud())
    with pytest.raises(RuntimeError, match="needs begin_epoch"):
        harmonizer.begin_epoch(2)
    rows = clean(z)
    rows.features[3] = torch.nan  # an image that cannot be read
    harmonizer.begin_epoch(2, rows)
    assert not harmonizer.refresh_due(2)
    assert not harmonizer.refresh_due(4)
    assert harmonizer.labels[3] == -1
    assert harmonizer.weights(torch.tensor([3])) == 1
    for y in range(3):
        known = harmonizer.labels[(labels == y) & (harmonizer.labels >= 0)]
        assert torch.bincount(known).max() > 0.95 * len(known)


def test_more_clusters_than_a_fifth_of_the_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"classes is 12, but 50 images make at most 10 clusters"):
        GeometricHarmonizer(50, 8, num_vertices=20, classes=12)
    with pytest.raises(ValueError, match=r"weight_power"):
        make(weight_power=1.5)
    with pytest.raises(ValueError, match=r"max_weight"):
        make(max_weight=1.0)
    with pytest.raises(ValueError, match=r"ascending order, got \[0.6, 0.4\]"):
        make(gh_share=[0.6, 0.4])


def test_an_epoch_of_clusters_shows_images_as_often_as_they_would_weigh() -> None:
    z, labels = population()
    weighed, sampled = (
        fed(make(resample=resample, visibility=1.0, max_weight=5.0), z)
        for resample in (None, "clusters")
    )
    for harmonizer in (weighed, sampled):
        harmonizer.begin_epoch(2)
    weight = weighed.weights(torch.arange(560))
    times = torch.bincount(torch.from_numpy(sampled.epoch_indices(3)), minlength=560)
    assert times.sum() == 560
    assert times.max() <= 5
    assert ((times - weight).abs() < 1).all()
    expected = torch.stack([weight[labels == y].sum() for y in range(3)])
    shown = torch.stack([times[labels == y].sum() for y in range(3)])
    assert (shown - expected).abs().max() < 40
    assert shown[2] > 3 * SIZES[2]
    assert torch.equal(sampled.weights(torch.arange(560)), torch.ones(560))
