"""Every supervised recipe of the papers takes a step on stand-in images.

.venv/bin/python -m pytest -m slow tests/test_supervised_recipes.py
"""

import numpy as np
import pytest
from PIL import Image

from sslgh.cli import main
from sslgh.recipe.named import recipe_files

RECIPES = [path for path in recipe_files() if "supervised" in path.stem]
CLASSES = {"cifar10-lt": 10, "cifar100-lt": 100}


@pytest.fixture
def arrays(tmp_path):
    def write(classes: int) -> list[str]:
        draws = np.random.default_rng(0)
        for split, each in (("train", 12), ("test", 2)):
            labels = np.repeat(np.arange(classes), each)
            images = draws.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
            np.savez(tmp_path / f"{split}.npz", images=images, labels=labels)
        return ["data.source=arrays", f"data.root={tmp_path}", "data.long_tail.max_per_class=12"]

    return write


@pytest.fixture
def photo_list(tmp_path):
    draws = np.random.default_rng(0)
    lines = []
    for number in range(24):
        pixels = draws.integers(0, 256, (240, 260, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
        lines.append(f"{number}.jpg {number % 3}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    keys = ("data.root", "data.test_root"), ("data.list", "data.test_list")
    words = [f"{key}={tmp_path}" for key in keys[0]]
    return [*words, *(f"{key}={tmp_path}/list.txt" for key in keys[1]), "data.workers=0"]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_starts(path, arrays, photo_list, tmp_path, capsys) -> None:
    words = [f"run_dir={tmp_path}/run", "train.batch_size=8"]
    if path.parent.name in CLASSES:
        words += [*arrays(CLASSES[path.parent.name]), "data.long_tail.imbalance=4"]
    elif path.parent.name != "digits-lt":
        words += photo_list
    with pytest.raises(SystemExit) as ended:
        main(["finetune", str(path), "--dry-run", *words])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "dry run, nothing written" in said.out
    assert not (tmp_path / "run").exists()


def test_there_are_recipes_to_start() -> None:
    assert len(RECIPES) >= 14
