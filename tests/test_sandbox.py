"""Nothing is written outside the run directory and --out, whatever names and paths are given."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from sslgh.cli import main


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.fixture
def sandbox(tmp_path, recipe_file, monkeypatch) -> Path:
    """A home, a repository with a recipe and a feature file, and a folder to work in."""
    work = tmp_path / "home" / "repository" / "folder"
    work.mkdir(parents=True)
    (work.parent / "pyproject.toml").write_text("")
    tiny = yaml.safe_load(recipe_file.read_text())
    recipe_file.unlink()
    del tiny["run_dir"]
    tiny["train"] |= {"epochs": 1, "batch_size": 64}
    (work / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    labels = np.repeat(np.arange(3), 30)
    arrays = {f"{s}_{k}": np.eye(3)[labels] for s in ("train", "test") for k in ("features",)}
    arrays |= {f"{split}_labels": labels for split in ("train", "test")}
    for name in ("x.npz", "folder/...npz", "folder/..npz", "folder/run.npz"):
        with (work.parent / name).open("wb") as file:
            np.savez(file, **arrays)
    (tmp_path / "elsewhere").mkdir()
    (work / "link").symlink_to(tmp_path / "elsewhere")
    (work / "lost").symlink_to(tmp_path / "nowhere" / "run")
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Every file, link and folder below, with its content."""
    found: dict[str, bytes | str] = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            content = path.readlink() if path.is_symlink() else "folder"
            found[str(path.relative_to(folder))] = (
                path.read_bytes() if path.is_file() and not path.is_symlink() else str(content)
            )
    return found


REFUSED = [
    ("pretrain", "tiny.yaml", "name=../../x"),
    ("pretrain", "tiny.yaml", "name=/etc/x"),
    ("pretrain", "tiny.yaml", "name=.."),
    ("pretrain", "tiny.yaml", "run_dir=''"),
    ("pretrain", "tiny.yaml", "run_dir=/"),
    ("pretrain", "tiny.yaml", "run_dir=~/"),
    ("pretrain", "tiny.yaml", "run_dir=.."),
    ("pretrain", "tiny.yaml", "run_dir=."),
    ("pretrain", "tiny.yaml", "run_dir=tiny.yaml"),
    ("pretrain", "tiny.yaml", "run_dir=tiny.yaml/x"),
    ("pretrain", "tiny.yaml", "run_dir=lost"),
    ("pretrain", "tiny.yaml", "run_dir=~nobody-of-this-name/x"),
    ("pretrain", "tiny.yaml", 'run_dir="a\\0b"'),
    ("pretrain", "tiny.yaml", "run_dir=runs/" + "a" * 300),
    ("pretrain", "tiny.yaml", "run_dir=" + "a/" * 3000),
    ("pretrain", "tiny.yaml", "name=" + "a" * 300),
    ("pretrain", "a" * 300),
    ("probe", "timm:../../x", "--recipe", "tiny.yaml", "--out", "out"),
    ("probe", "torchvision:/etc/x", "--recipe", "tiny.yaml", "--out", "out"),
    ("probe", "../..", "--out", "out"),
    ("probe", "a" * 300),
    ("doctor", "tiny.yaml", "name=../x"),
    ("recipe", "show", "../../../../etc/passwd"),
]


@pytest.mark.parametrize("words", REFUSED, ids=lambda words: " ".join(words)[:50])
def test_paths_that_lead_elsewhere_are_refused_and_nothing_is_written(
    sandbox, words, capsys
) -> None:
    before = snapshot(sandbox)
    assert call(*words) == 2
    told = capsys.readouterr().err.strip()
    assert told.isprintable()
    assert told.startswith("sslgh: ")
    after = snapshot(sandbox)
    # A failed run may leave its status in its own directory, and nowhere else.
    new = {name for name in after if after[name] != before.get(name)}
    assert {name for name in new if "/folder/runs" not in name} == set()
    assert set(before) <= set(after)


def test_results_of_features_lie_below_out_whatever_the_file_is_called(sandbox) -> None:
    before = snapshot(sandbox)
    for file in ("../x.npz", "...npz", "..npz"):
        assert call("probe", "--features", file, "--out", "out", "probe=[{protocol: knn}]") == 0
    new = set(snapshot(sandbox)) - set(before)
    assert {name.split("/folder/")[1].split("/")[0] for name in new} == {"out"}
    assert len([name for name in new if name.endswith("knn.json")]) == 2  # x, and features twice


def test_results_of_features_do_not_replace_those_of_a_run(sandbox, capsys) -> None:
    assert call("pretrain", "tiny.yaml", "run_dir=runs/run") == 0
    assert call("probe", "runs/run", "probe=[{protocol: knn, neighbors: 3}]") == 0
    before = snapshot(sandbox)
    assert call("probe", "--features", "run.npz", "probe=[{protocol: knn}]") == 2
    assert "runs/run is a run, whose results would be lost" in capsys.readouterr().err
    assert snapshot(sandbox) == before


def test_a_run_directory_that_is_a_link_is_followed_and_nothing_else_is_touched(sandbox) -> None:
    before = snapshot(sandbox)
    assert call("pretrain", "tiny.yaml", "run_dir=link/run") == 0
    new = set(snapshot(sandbox)) - set(before)
    assert "elsewhere/run/backbone.safetensors" in new
    assert {name.split("/")[0] for name in new} == {"elsewhere"}
    assert snapshot(sandbox)["home/repository/folder/link"] == str(sandbox / "elsewhere")
