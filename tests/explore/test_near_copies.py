"""Near copies, neighbors, outliers and leaks, on drawn pictures and directions."""

import io

import numpy as np
import pytest
from PIL import Image

from sslgh.explore import neighbors as neighbors_module
from sslgh.explore.directions import directions
from sslgh.explore.leaks import leaking, split_of
from sslgh.explore.near_copies import LEAST_COSINE, Copies, near_copies
from sslgh.explore.neighbors import Neighbors, nearest_neighbors
from sslgh.explore.outliers import odd_photos, strangeness
from sslgh.explore.perceptual_hash import hash_distances, perceptual_hash


def rows(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def scene(seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def distance(first: Image.Image, second: Image.Image) -> int:
    one, two = (np.uint64([perceptual_hash(image)]) for image in (first, second))
    return int(hash_distances(one, two)[0])


def test_the_hash_survives_size_and_compression() -> None:
    for seed in range(5):
        image = scene(seed)
        assert distance(image, compressed(image, 25)) <= 6
        assert distance(image, image.resize((97, 71))) <= 6


def test_hashes_of_other_pictures_are_far() -> None:
    assert min(distance(scene(a), scene(b)) for a in range(6) for b in range(a)) >= 14


def test_distances_count_the_bits_that_differ() -> None:
    first, second = np.uint64([0, 2**64 - 1, 5]), np.uint64([2**63, 0, 5])
    assert hash_distances(first, second).tolist() == [1, 64, 0]


def test_neighbors_are_those_of_all_pairs() -> None:
    drawn = rows(200)
    found = nearest_neighbors(drawn, 5)
    cosine = drawn @ drawn.T
    np.fill_diagonal(cosine, -2)
    assert (found.index == np.argsort(-cosine, axis=1, kind="stable")[:, :5]).all()
    assert np.allclose(found.cosine, np.take_along_axis(cosine, found.index, 1), atol=1e-6)


def test_no_photo_is_its_own_neighbor_among_equal_ones() -> None:
    found = nearest_neighbors(np.repeat(rows(2), 6, axis=0), 4)
    assert (found.index != np.arange(12)[:, None]).all()


def test_the_inverted_file_finds_copies_too(monkeypatch) -> None:
    monkeypatch.setattr(neighbors_module, "MOST_EXACT", 100)
    monkeypatch.setattr(neighbors_module, "CELLS", 16)
    monkeypatch.setattr(neighbors_module, "SEARCHED", 4)
    drawn = rows(1500, seed=1)
    drawn[700] = drawn[3]
    found = nearest_neighbors(drawn, 3)
    assert found.index[3, 0] == 700
    assert found.index[700, 0] == 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_photos_have_few_neighbors(count) -> None:
    assert nearest_neighbors(rows(count), 10).index.shape == (count, count - 1)


def pair(cosine: float, bits: int) -> Copies:
    near = Neighbors(np.int64([[1], [0]]), np.float32([[cosine], [cosine]]))
    return near_copies(near, np.uint64([0, 2**bits - 1]))


def test_copies_are_alike_in_both_features_and_hash() -> None:
    assert pair(0.99, 3).groups == [[0, 1]]
    assert pair(0.99, 11).groups == []
    assert pair(LEAST_COSINE - 0.01, 0).groups == []


def test_copies_of_copies_are_one_group() -> None:
    near = Neighbors(np.int64([[1], [2], [1], [0]]), np.float32([[0.95]] * 3 + [[0.1]]))
    found = near_copies(near, np.uint64([0, 1, 3, 0]))
    assert found.groups == [[0, 1, 2]]
    assert found.spare == 2
    assert found.group_of(4).tolist() == [0, 0, 0, -1]
    assert found.pairs.tolist() == [[0, 1], [1, 2]]


def test_copies_that_make_up_the_folder_are_found() -> None:
    for features in (np.float32([[3, 1, 0], [3.01, 1, 0]]), np.full((40, 3), 2, np.float32)):
        near = nearest_neighbors(directions(features), 15)
        hashes = np.full(len(features), 5, np.uint64)
        assert near_copies(near, hashes, features).spare == len(features) - 1


def test_unlike_features_or_hashes_are_no_copies_without_centering_either() -> None:
    near = Neighbors(np.int64([[1], [0]]), np.float32([[-1], [-1]]))
    same, other = np.float32([[3, 1], [3, 1]]), np.float32([[3, 1], [1, 3]])
    assert near_copies(near, np.uint64([0, 3]), same).groups == [[0, 1]]
    assert near_copies(near, np.uint64([0, 7]), same).groups == []
    assert near_copies(near, np.uint64([0, 0]), other).groups == []


def test_a_photo_far_from_all_is_odd_and_a_copy_is_no_company() -> None:
    drawn = np.repeat(rows(1, 3), 40, axis=0) + 0.05 * rows(40, 3, seed=1)
    drawn = np.concatenate([drawn, -drawn[:1], -drawn[:1]])
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    near = nearest_neighbors(drawn, 15)
    copies = np.full(42, -1)
    assert strangeness(near, copies)[41] == pytest.approx(strangeness(near, copies)[40])
    copies[40:] = 0
    score = strangeness(near, copies)
    assert set(odd_photos(score)[:2].tolist()) == {40, 41}
    assert score[40] > 1


def test_the_score_is_the_mean_distance_to_the_five_nearest() -> None:
    cosine = np.float32([np.linspace(0.9, 0.1, 9)])
    near = Neighbors(np.arange(1, 10)[None], cosine)
    copies = np.full(10, -1)
    assert strangeness(near, copies)[0] == pytest.approx(1 - cosine[0, :5].mean())
    copies[:2] = 0  # the nearest is a copy
    assert strangeness(near, copies)[0] == pytest.approx(1 - cosine[0, 1:6].mean())


def test_directions_do_not_depend_on_a_common_part_or_on_scale() -> None:
    drawn = np.random.default_rng(2).normal(size=(50, 8)).astype(np.float32)
    first, second = directions(drawn), directions(3 * drawn + 7)
    assert np.allclose(first @ first.T, second @ second.T, atol=1e-4)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)


def test_directions_of_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        directions(np.float32([[1, np.nan], [0, 1]]))


def test_leaks_are_copies_in_two_splits(tmp_path) -> None:
    for name in ("train/a", "test/a"):
        (tmp_path / name).mkdir(parents=True)
        scene(1).save(tmp_path / name / "x.png")
    split = split_of(tmp_path, ["test/a/x.png", "train/a/x.png", "train/b/y.png"])
    assert split == ["test", "train", "train"]
    assert leaking([[1, 2], [0, 1]], split) == [1]
