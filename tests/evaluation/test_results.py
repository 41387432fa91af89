import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sslgh.data import ImageSet
from sslgh.evaluation import read_results, write_results
from sslgh.evaluation.results import (
    METRICS,
    MeasuredData,
    Result,
    Scores,
    Spread,
    measured_on,
    measured_on_features,
)
from sslgh.recipe.data import Data

SCORES = {name: Spread(0.5, None) for name in METRICS}
RESULT = Result(
    protocol="knn",
    version=1,
    summary="a line",
    settings={},
    class_names=["a", "b"],
    group_counts=[5, 3],
    train_counts=[5, 3],
    test_counts=[2, 2],
    scores={"knn": Scores({"thresholds": SCORES, "thirds": SCORES}, [0.5, None])},
)


def test_results_come_back(tmp_path):
    write_results([RESULT], tmp_path)
    assert read_results(tmp_path) == [RESULT]


def test_a_full_disk_leaves_what_was_there_and_no_half(tmp_path, monkeypatch):
    def write(path, text):
        path.write_bytes(text.encode()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    write_results([RESULT], tmp_path)
    monkeypatch.setattr(Path, "write_text", write)
    with pytest.raises(
        OSError, match=r"knn\.json could not be written \(No space left on device\); "
    ):
        write_results([replace(RESULT, version=2)], tmp_path)
    assert [path.name for path in (tmp_path / "probe").iterdir()] == ["knn.json"]
    assert read_results(tmp_path) == [RESULT]


def test_two_probes_may_write_at_once(tmp_path, monkeypatch):
    original = Path.write_text

    def write(path, text):
        original(path, text)
        monkeypatch.setattr(Path, "write_text", original)
        write_results([replace(RESULT, version=2)], tmp_path)  # the other, from beginning to end

    monkeypatch.setattr(Path, "write_text", write)
    write_results([RESULT], tmp_path)
    assert [path.name for path in (tmp_path / "probe").iterdir()] == ["knn.json"]
    assert read_results(tmp_path) == [RESULT]


HERE = MeasuredData("folder", "/photos", None, "a" * 32, "b" * 32, test_images=4, train_images=8)
ELSEWHERE = replace(HERE, root="/others", fingerprint="c" * 32)


def files(folder: Path) -> dict[str, Result]:
    """Results in a folder by file."""
    paths = sorted((folder / "probe").glob("*.json"))
    return dict(zip([path.stem for path in paths], read_results(folder), strict=True))


def test_a_result_names_its_data_in_its_file(tmp_path):
    write_results([replace(RESULT, data=HERE)], tmp_path)
    data = json.loads((tmp_path / "probe" / "knn.json").read_text())["data"]
    assert data["root"] == "/photos"
    assert data["fingerprint"] == "a" * 32
    assert (data["train_images"], data["test_images"]) == (8, 4)


def test_other_data_overwrite_nothing_and_the_same_data_do(tmp_path):
    here, elsewhere = replace(RESULT, data=HERE), replace(RESULT, data=ELSEWHERE)
    write_results([here, here], tmp_path)
    write_results([elsewhere, elsewhere], tmp_path)
    key = ELSEWHERE.key
    assert files(tmp_path) == {
        "knn": here,
        "knn-2": here,
        f"knn-{key}": elsewhere,
        f"knn-2-{key}": elsewhere,
    }
    write_results([replace(here, summary="again")], tmp_path)
    write_results([replace(elsewhere, summary="again, elsewhere")], tmp_path)
    found = files(tmp_path)
    assert found["knn"].summary == "again"
    assert found[f"knn-{key}"].summary == "again, elsewhere"
    assert len(found) == 4


@pytest.mark.parametrize("change", [{"fingerprint": "d" * 32}, {"train_fingerprint": "d" * 32}])
def test_data_differ_by_training_and_test_set_and_not_by_their_place(change):
    assert replace(HERE, **change).key != HERE.key
    assert replace(HERE, root="/moved").key == HERE.key


def test_a_result_of_an_older_version_is_read_and_replaced_by_one_of_the_same_counts(tmp_path):
    write_results([RESULT], tmp_path)
    path = tmp_path / "probe" / "knn.json"
    content = json.loads(path.read_text())
    del content["data"]
    path.write_text(json.dumps(content))
    assert read_results(tmp_path) == [RESULT]
    other = replace(RESULT, data=ELSEWHERE, test_counts=[1, 2])
    write_results([other], tmp_path)
    assert files(tmp_path) == {"knn": RESULT, f"knn-{ELSEWHERE.key}": other}
    write_results([replace(RESULT, data=HERE)], tmp_path)
    assert files(tmp_path)["knn"].data == HERE


def test_a_damaged_result_is_replaced(tmp_path):
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "knn.json").write_text("{")
    write_results([replace(RESULT, data=HERE)], tmp_path)
    assert read_results(tmp_path) == [replace(RESULT, data=HERE)]


def images(seed, labels):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 2, 2, 3), dtype=np.uint8)
    names = tuple(map(str, range(len(labels))))
    return ImageSet(pixels, np.array(labels), ("a", "b"), names)


def test_data_are_known_by_pixels_and_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Data(source="arrays", root=Path("photos"))
    found = measured_on(data, images(0, [0, 1, 1]), images(1, [0, 1]))
    assert (found.root, found.test) == (str(tmp_path / "photos"), None)
    assert (found.train_images, found.test_images) == (3, 2)
    others = [
        measured_on(data, images(0, [0, 1, 1]), images(1, [1, 1])),
        measured_on(data, images(0, [0, 1, 1]), images(2, [0, 1])),
    ]
    assert len({entry.fingerprint for entry in (found, *others)}) == 3
    assert {entry.train_fingerprint for entry in others} == {found.train_fingerprint}
    given = data.model_copy(update={"test_root": Path("later")})
    assert measured_on(given, images(0, [0]), images(1, [0])).test == str(tmp_path / "later")


def test_features_of_two_backbones_share_a_test_set_and_no_file():
    labels = torch.tensor([0, 1])
    one, other = (
        measured_on_features("/f.npz", (values, labels), (values, labels))
        for values in (torch.zeros(2, 3), torch.ones(2, 3))
    )
    assert one.fingerprint == other.fingerprint
    assert one.key != other.key
    flipped = measured_on_features(
        "/f.npz", (torch.zeros(2, 3), labels), (torch.zeros(2, 3), labels.flip(0))
    )
    assert flipped.fingerprint != one.fingerprint
