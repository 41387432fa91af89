import errno
from dataclasses import replace
from pathlib import Path

import pytest

from sslgh.evaluation import read_results, write_results
from sslgh.evaluation.results import METRICS, Result, Scores, Spread

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
