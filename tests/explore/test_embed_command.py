"""``sslgh embed`` as a user types it."""

import csv
import importlib.util
import re
import shlex

import numpy as np
import pytest

import sslgh
from sslgh.explore.embeddings import load_embeddings


def test_the_command_says_what_it_does_writes_it_and_names_the_next_step(
    call, run, photos, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (photos / "doc.pdf").write_bytes(b"%PDF-1.4")
    (photos / "raw.nef").write_bytes(b"II*\0")
    assert call("embed", run, photos, "--workers", 0) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"embedding 7 photos of {photos} by {run} (16 x 16 pixels, 64 features)"
    )
    assert "broken, left out: 1" in lines
    assert "  a/broken.jpg: not a known image format" in lines
    assert any(re.match(r"no photos: 1 \.nef .*1 \.pdf", line) for line in lines)
    assert "photos-embeddings.npz: 6 photos x 64 features" in lines
    scope = {}
    exec(lines[-2].removeprefix("in Python: "), scope)
    expected = sslgh.load(run, workers=0).embed(photos)
    np.testing.assert_allclose(scope["found"].features, expected.features, atol=1e-6)
    assert lines[-1] == f"next: sslgh look {photos} --model {run}"
    assert call("embed", run, photos, "--workers", 0) == 0
    assert capsys.readouterr().out.startswith("embedding 1 of 7 photos")


def test_a_table_has_the_same_numbers_to_the_last_bit(call, run, photos, tmp_path, capsys) -> None:
    (photos / "b.png").rename(photos / 'quote"\n,.png')
    out = tmp_path / "new" / "x.csv"
    assert call("embed", run, photos, "-o", out, "--workers", 0) == 0
    found = load_embeddings(out.with_suffix(".npz"))
    with out.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    assert head == ["file", *(f"f{i}" for i in range(64))]
    assert [row[0] for row in rows] == found.files
    assert np.array_equal(np.array([row[1:] for row in rows], dtype=np.float32), found.features)
    assert "x.csv: 6 photos x 64 features and x.npz, from which" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is optional")
def test_parquet_has_the_same_numbers(call, run, photos, tmp_path) -> None:
    import pyarrow.parquet  # noqa: PLC0415

    assert call("embed", run, photos, "-o", tmp_path / "x.parquet", "--workers", 0) == 0
    table = pyarrow.parquet.read_table(tmp_path / "x.parquet")
    found = load_embeddings(tmp_path / "x.npz")
    assert table["file"].to_pylist() == found.files
    assert np.array_equal(table["f3"].to_numpy(), found.features[:, 3])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "{run} {photos} -o x.txt",
            r"x\.txt has the suffix '\.txt'; give a file that ends with \.npz",
        ),
        ("{run} {photos} more", "expected FOLDER, or MODEL and FOLDER, got 3 words"),
        ("{run} {photos}/gone", "gone is not a folder; give the folder that holds the photos"),
        ("{photos} {photos}", r"holds no backbone\.json"),
        ("{run} {run}", "holds no image"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_2(call, run, photos, capsys, words, message) -> None:
    assert call("embed", *shlex.split(words.format(run=run, photos=photos))) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, err[-1])


def test_a_table_for_which_a_package_is_missing_is_refused_at_once(
    call, run, photos, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert call("embed", run, photos, "-o", "x.parquet") == 2
    assert "needs pyarrow, which is not installed; pip install pyarrow" in capsys.readouterr().err
