"""From labels to heads: folds without copies, the rule, what is unlike, wrong or to be labeled next."""

import numpy as np
import pytest
import torch

from sslgh.data import DataError
from sslgh.explore import label_photos as module
from sslgh.explore import predict
from sslgh.explore.classifier_folder import classifier_of, load_fitted, save_fitted
from sslgh.explore.copy_folds import copy_units, folds_of_units
from sslgh.explore.head_choice import compare_heads, mean_over_kinds
from sslgh.explore.label_photos import label_photos
from sslgh.explore.next_labels import likeliest, next_labels
from sslgh.explore.novelty import fitted_novelty
from sslgh.explore.photo_heads import folder_scaler, out_of_fold_scores, trained_heads
from sslgh.explore.wrong_labels import likely_wrong
from sslgh.functional.temperature import fitted_temperature

# Their quality is tested elsewhere.
pytestmark = pytest.mark.usefixtures("short_heads")
SIZES = {"ape": 40, "bee": 24, "cat": 12, "dog": 6, "eel": 1}


def drawn(sizes=SIZES, *, seed=0, dims=12, spread=1.0, distance=4.0):
    """Features around one mean per kind, names of files and their kinds."""
    generator = np.random.default_rng(seed)
    centers = distance * np.random.default_rng(7).normal(size=(len(sizes), dims)) / np.sqrt(dims)
    kinds = [kind for kind, size in sizes.items() for _ in range(size)]
    rows = np.repeat(centers, list(sizes.values()), axis=0)
    features = (rows + spread * generator.normal(size=rows.shape) / 2).astype(np.float32)
    files = [f"{kind}/{number}.jpg" for number, kind in enumerate(kinds)]
    return features, files, dict(zip(files, kinds, strict=True))


@pytest.fixture(scope="module")
def labeled(short_heads):
    features, files, kinds = drawn()
    known = dict(kinds)
    for file in files[30:40]:
        del known[file]  # not labeled
    known[files[0]] = "cat"  # a wrong label
    return features, files, kinds, label_photos(features, files, known)


def test_near_copies_share_a_fold() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    rows[20:30] = rows[:10] + 0.01
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    units = copy_units(rows)
    part = folds_of_units(torch.tensor([0, 1] * 20), units, 5)

    assert len(np.unique(units)) == 30
    assert torch.equal(part[:10], part[20:30])
    assert set(part.tolist()) == set(range(5))


def test_a_chain_of_pairs_alike_is_cut_where_it_leaves_its_first_photo() -> None:
    angle = np.arange(12) * np.deg2rad(15)
    rows = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)

    units = copy_units(rows)

    assert units.tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]
    assert len(set(copy_units(np.repeat(rows[:1], 40, 0)).tolist())) == 1
    assert copy_units(np.zeros((3, 2), np.float32)).tolist() == [0, 1, 2]


def test_copies_are_found_in_all_features() -> None:
    # Pairs that agree in the 64 directions of the largest variance, and in no other.
    generator = np.random.default_rng(0)
    shared = np.repeat(generator.normal(size=(60, 64)), 2, 0)
    features = np.concatenate([shared, 0.2 * generator.normal(size=(120, 400))], 1)
    files = [f"{n}.jpg" for n in range(120)]
    kinds = {f: "ab"[i // 60] for i, f in enumerate(files)}
    features = features.astype(np.float32)

    assert label_photos(features, files, kinds).copies == 0
    same = np.repeat(np.arange(60, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15), 2)
    assert label_photos(features, files, kinds, same).copies > 40


def test_a_kind_whose_photos_are_copies_of_one_is_never_held_out() -> None:
    part = folds_of_units(torch.tensor([0, 0, 0, 1, 1]), np.array([0, 1, 2, 3, 3]), 5)

    assert (part[:3] >= 0).all()
    assert part[3:].tolist() == [-1, -1]


def test_heads_have_seen_every_kind_that_is_predicted_out_of_fold() -> None:
    labels = torch.tensor([0] * 6 + [1] * 6 + [2, 2, 2])
    for seed in range(20):
        # Photos of kind 2 are copies of photos of other kinds.
        twins = np.random.default_rng(seed).choice(12, 3, replace=seed % 2 == 0)
        units = np.array([*range(12), *twins])
        part = folds_of_units(labels, units, 5)

        assert all(len(set(part[torch.from_numpy(units == u)].tolist())) == 1 for u in units)
        for fold in set(part.tolist()) - {-1}:
            assert set(labels[part != fold].tolist()) == {0, 1, 2}


def test_a_kind_without_a_photo_is_never_predicted() -> None:
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    heads = trained_heads(features, torch.tensor([0] * 6 + [1] * 6), 3)

    for head in heads.values():
        scores = head.scores(features)
        assert scores[:, :2].isfinite().all()
        assert (scores[:, 2] == -torch.inf).all()


def sparse_features() -> torch.Tensor:
    """Three kinds of 60 photos in 8 features, and 40 features that one photo in ten has."""
    draw = torch.Generator().manual_seed(0)
    kinds = 3 * torch.eye(3, 8).repeat_interleave(60, 0) + torch.randn(180, 8, generator=draw)
    strength = torch.rand(180, 40, generator=draw) * 1e-3
    seldom = torch.rand(180, 40, generator=draw) < 0.1
    return torch.cat([kinds, strength + seldom], 1)


def test_a_feature_that_the_labeled_photos_all_but_lack_moves_no_other_far() -> None:
    features = sparse_features()
    labels = torch.arange(3).repeat_interleave(5)
    few = torch.cat([torch.arange(5) + 60 * kind for kind in range(3)])
    part = torch.arange(15) % 5
    prior = torch.full((3,), 1 / 3)
    temperatures = []
    for scaler in (None, folder_scaler(features)):
        scores = out_of_fold_scores(features[few], labels, part, 3, scaler)["la"]
        temperatures.append(fitted_temperature(scores, labels, prior))
    assert temperatures[0] > 5  # the scores of some photos are wrong by far
    assert temperatures[1] < 2
    files = [f"{i}.jpg" for i in range(180)]
    found = label_photos(features.numpy(), files, {files[i]: "abc"[i // 60] for i in few.tolist()})
    assert found.fitted.temperature < 2
    (head,) = trained_heads(features[few], labels, 3, ["la"], folder_scaler(features)).values()
    torch.testing.assert_close(found.fitted.heads["la"].weight, head.weight)


def test_a_folder_is_standardized_by_all_its_photos_and_the_median_variance() -> None:
    features = sparse_features()
    features[:, 5] = 7.0
    mean, scale = folder_scaler(features)
    variance = features.double().var(0, correction=0)
    torch.testing.assert_close(mean, features.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(scale, (variance + variance.median()).sqrt(), rtol=1e-4, atol=1e-6)
    assert folder_scaler(torch.ones(4, 3)).scale.tolist() == [1, 1, 1]


def test_out_of_fold_estimates_do_not_profit_from_copies() -> None:
    # Kinds that look the same, each photo twice: copies in other folds would all be right.
    features = np.random.default_rng(1).normal(size=(60, 64)).astype(np.float32)
    features = np.concatenate([features, features + 1e-3])
    files = [f"{n}.jpg" for n in range(120)]
    found = label_photos(features, files, {f: "ab"[i % 2] for i, f in enumerate(files)})

    assert found.copies == 60
    assert found.comparison.heads["la"].average < 0.75


def test_figures_are_those_of_the_photos_that_were_held_out(labeled) -> None:
    found = labeled[3]

    assert found.held_out == 83 - 10 - 1
    assert found.single == ["eel"]
    assert set(found.comparison.heads) == {"ce", "la", "elm"}
    assert found.comparison.heads["la"].average > 0.8
    assert found.fitted.counts.tolist() == [29, 24, 13, 6, 1]


def test_a_wrong_label_is_found(labeled) -> None:
    _, files, _, found = labeled
    names = found.fitted.class_names

    first = found.wrong[0]
    assert (files[first.row], names[first.given], names[first.likely]) == (files[0], "cat", "ape")
    assert len(found.wrong) < 8


def test_photos_to_label_next_have_no_label_and_give_a_reason(labeled) -> None:
    _, _, _, found = labeled

    chosen = [choice.row for choice in found.next]
    assert set(chosen) == set(range(30, 40))
    assert all("%" in choice.reason for choice in found.next)


def test_a_folder_gives_back_what_was_saved(labeled, tmp_path) -> None:
    features, _, _, found = labeled
    save_fitted(found.fitted, tmp_path, {"model": "timm:x", "fingerprint": "f"})
    again, card = load_fitted(tmp_path)

    rows = torch.from_numpy(features)
    before, after = (classifier_of(each, "").posterior(rows) for each in (found.fitted, again))
    assert torch.allclose(before, after, atol=1e-4)
    assert (card["model"], again.class_names, again.objective) == (
        "timm:x",
        found.fitted.class_names,
        "la",
    )
    assert again.novelty.threshold == found.fitted.novelty.threshold


@pytest.mark.parametrize("damage", ["{", '{"format": 1}', '{"format": 9, "objectives": []}'])
def test_a_damaged_folder_is_one_sentence(labeled, tmp_path, damage) -> None:
    save_fitted(labeled[3].fitted, tmp_path, {"model": "timm:x", "fingerprint": "f"})
    (tmp_path / "photo_classifier.json").write_text(damage)

    with pytest.raises(
        DataError, match=r"cannot be read as a classifier \(.*\); run sslgh classify again"
    ):
        load_fitted(tmp_path)


def test_labels_of_one_kind_are_refused() -> None:
    features, files, _ = drawn({"ape": 4})

    with pytest.raises(DataError, match="all 4 labels are of one kind, ape; a classifier needs"):
        label_photos(features, files, dict.fromkeys(files, "ape"))


def test_two_labels_in_all_make_a_head_that_is_not_evaluated() -> None:
    features, files, _ = drawn({"ape": 3, "bee": 3})
    found = label_photos(features, files, {files[0]: "ape", files[5]: "bee"})

    assert (found.comparison.heads, found.held_out, found.calibration) == ({}, 0, None)
    assert "nothing could be held out" in found.comparison.rule
    best = classifier_of(found.fitted, "").posterior(torch.from_numpy(features)).argmax(1)
    assert best[[0, 5]].tolist() == [0, 1]


def test_photos_like_the_labeled_ones_are_unlike_at_the_stated_rate_at_most() -> None:
    rates, strange = [], []
    for seed in range(5):
        # Other photos of the same kinds, and kinds that were never labeled.
        features, _, _ = drawn({"ape": 60, "bee": 40}, seed=seed)
        new, _, _ = drawn({"ape": 300, "bee": 200}, seed=100 + seed)
        other, _, _ = drawn({"ape": 0, "bee": 0, "cat": 50, "dog": 50}, seed=seed)
        known, center = torch.from_numpy(features), torch.from_numpy(features.mean(0))
        every = torch.ones(100, dtype=torch.bool)
        found = fitted_novelty(known, center, torch.arange(100), every)
        assert found.rate == pytest.approx(0.05, abs=0.01)
        rates.append(found.unlike(torch.from_numpy(new)).double().mean().item())
        strange.append(found.unlike(torch.from_numpy(other)).double().mean().item())

    assert np.mean(rates) < 0.08
    assert np.mean(strange) > 0.5


def test_copies_and_single_photos_do_not_set_the_distance_of_the_unlike() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 1e-3], [0.6, 0.8], [-1.0, 0.0]])
    held_out = torch.tensor([True, True, True, False])
    found = fitted_novelty(rows, torch.zeros(2), torch.tensor([0, 0, 1, 2]), held_out)

    assert found.threshold == pytest.approx(0.4, abs=1e-2)  # to (0.6, 0.8), not to the copy
    assert found.rate == pytest.approx(1 / 4)


def test_another_head_is_chosen_only_when_it_is_clearly_better() -> None:
    labels = torch.arange(4).repeat_interleave(50)
    wrong = (labels + 1) % 4
    la = torch.where(torch.arange(200) % 10 < 5, wrong, labels)
    little = la.clone()
    little[0] = 0
    counts = torch.full((4,), 50)

    def chosen(ce):
        return compare_heads({"ce": ce, "la": la}, labels, counts).chosen

    assert chosen(little) == "la"
    assert chosen(labels) == "ce"
    assert chosen(wrong) == "la"


def test_the_standard_error_is_that_of_the_mean_over_kinds() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 100 + [1] * 10)
    means = [
        mean_over_kinds((torch.rand(110, generator=generator) < 0.7).double(), labels)
        for _ in range(2000)
    ]
    values, errors = torch.tensor(means).T

    assert values.std().item() == pytest.approx(errors.mean().item(), rel=0.05)
    assert values.mean().item() == pytest.approx(0.7, abs=0.01)


def test_a_kind_that_is_never_confident_is_measured_by_its_own_threshold() -> None:
    # All of kind 1 have a probability of .3 only: as many as usual for it.
    table = torch.tensor([[0.9, 0.1]] * 5 + [[0.7, 0.3]] * 5)
    labels = torch.tensor([0] * 5 + [1] * 5)
    assert likely_wrong(table, labels) == []

    labels[5] = 0
    assert [(s.row, s.likely) for s in likely_wrong(table, labels)] == [(5, 1)]


def test_the_next_labels_are_uncertain_of_rare_kinds_and_unlike_each_other() -> None:
    rows = np.eye(8, dtype=np.float32)[[0, 0, 1, 1, 2, 3, 4, 5]]
    labels = np.array([0, 0, 0, 1, -1, -1, -1, -1])
    sure, common, rare = [0.99, 0.01], [0.6, 0.4], [0.4, 0.6]
    table = np.array([sure, sure, sure, sure, sure, common, rare, sure])
    unlike = np.array([False] * 7 + [True])

    found = next_labels(rows, likeliest([table]), labels, ["ape", "bee"], unlike=unlike)

    assert [choice.row for choice in found] == [7, 6, 5, 4]
    assert found[0].reason == "unlike anything labeled; likely: ape 99% or bee 1%"
    assert found[1].reason == "likely: bee 60% or ape 40%"


def test_the_likeliest_kinds_of_chunks_are_those_of_the_whole_table() -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(5), 40).round(1)  # many are equal
    found = likeliest([table[:3], table[3:]])

    expected = np.argsort(table, axis=1, kind="stable")[:, :-3:-1]
    assert (found.kinds == expected).all()
    assert (found.probabilities == np.take_along_axis(table, expected, 1)).all()


@pytest.mark.parametrize("count", [0, 1, 10])
def test_predictions_in_chunks_are_those_of_the_whole(labeled, monkeypatch, count) -> None:
    features, files, _, found = labeled
    rows, names = features[:count], files[:count]
    classifier = classifier_of(found.fitted, "")
    whole = classifier.posterior(torch.from_numpy(rows)).topk(3)
    monkeypatch.setattr(predict, "CHUNK", 4)
    sizes = []

    def recorded(part):
        sizes.append(len(part))
        return classifier.log_likelihood(part)

    asked = classifier._replace(log_likelihood=recorded)
    parts = predict.photo_kinds(asked, rows, names, top=3)

    assert max(sizes) <= 4
    assert parts.kinds.tolist() == whole.indices.tolist()
    np.testing.assert_allclose(parts.probabilities, whole.values, rtol=1e-12)
    assert parts.unlike.shape == (count,)


def test_scores_that_do_not_fit_into_memory_are_refused_before_any_training(monkeypatch) -> None:
    features, files, kinds = drawn({"ape": 2, "bee": 2})
    monkeypatch.setattr(module, "free_memory", lambda: 2 * 3 * 8 * 4 * 2 - 1)
    monkeypatch.setattr(module, "trained_heads", None)

    with pytest.raises(DataError, match=r"scores of 4 labels for 2 kinds need about 0.00 MB, but"):
        label_photos(features, files, kinds)
