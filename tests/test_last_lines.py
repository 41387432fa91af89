"""The last lines of commands, and that the step they name works."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

from sslgh.cli import main
from sslgh.last_lines import last_lines
from sslgh.recipe import load_recipe

SMALL = (
    *("data.size=16", "data.workers=0", "model.backbone=resnet18", "model.width=0.125"),
    *("model.stem=cifar", "train.epochs=1", "train.batch_size=8", "optim.warmup_epochs=0"),
    "train.precision=fp32",
)


def call(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def lines_of(capsys):
    return capsys.readouterr().out.strip().splitlines()


def write_photos(root, counts):
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def next_step(lines):
    assert lines[-1].startswith("next: ")
    return shlex.split(lines[-1].removeprefix("next: sslgh "))


def test_each_command_names_the_next_one_until_all_is_printed(recipe_file, tmp_path, capsys):
    run = tmp_path / "run"
    assert call("pretrain", recipe_file, "probe=[]") == 0
    lines = lines_of(capsys)
    assert lines[-3] == f"{run}: backbone.safetensors, metrics.jsonl"
    assert re.fullmatch(r"loss \S+ at first, \S+ at last; no accuracy was measured", lines[-2])
    step = next_step(lines)
    assert step == ["probe", str(run), "probe=[{protocol: longtail}, {protocol: knn}]"]
    step[-1] = "probe=[{protocol: longtail, objectives: [ce, la]}]"  # the same in less time
    assert call(*step) == 0
    lines = lines_of(capsys)
    assert lines[-3] == f"{run}: backbone.safetensors, metrics.jsonl, probe"
    result = json.loads((run / "probe" / "longtail.json").read_text())
    average = result["scores"]["la"]["metrics"]["thresholds"]["average"]["mean"]
    assert lines[-2].startswith(f"mean accuracy over classes {100 * average:.1f} %")
    assert lines[-2].endswith("(la by longtail v2)")
    assert next_step(lines) == ["probe", str(run), "--details"]
    assert call("probe", run, "--details", "probe=[{protocol: knn, neighbors: 3}]") == 0
    assert lines_of(capsys)[-1].endswith("(knn by knn v1)")  # nothing is left to print


def test_a_recipe_with_probes_goes_on_with_them(recipe_file, tmp_path, capsys):
    assert call("pretrain", recipe_file, "probe=[{protocol: knn, neighbors: 3}]") == 0
    assert next_step(lines_of(capsys)) == ["probe", str(tmp_path / "run")]


def test_without_labels_the_next_step_is_the_backbone_in_python(tmp_path, capsys):
    write_photos(tmp_path / "photos", {".": 12})
    run = tmp_path / "run"
    words = ("folder/simclr", f"data.root={tmp_path / 'photos'}", f"run_dir={run}", *SMALL)
    assert call("run", *words) == 0
    lines = lines_of(capsys)
    assert lines[-2].endswith("no accuracy was measured")
    found = {}
    exec(lines[-1].removeprefix("next, in Python: "), found)
    assert found["card"]["image_size"] == 16
    assert call("probe", run, "probe=[{protocol: knn}]") == 2
    assert "sort the images into one folder per class" in capsys.readouterr().err


def test_a_dry_run_names_no_step(recipe_file, capsys):
    assert call("pretrain", recipe_file, "--dry-run") == 0
    assert "next:" not in capsys.readouterr().out


def test_finetuning_on_photos_without_a_test_set_says_how_to_evaluate_it(tmp_path, capsys):
    write_photos(tmp_path / "photos", {"ape": 8, "cat": 8})
    write_photos(tmp_path / "more", {"ape": 3, "cat": 3})
    run = tmp_path / "run"
    words = ("folder/supervised", f"data.root={tmp_path / 'photos'}", f"run_dir={run}", *SMALL)
    words = (*words, "finetune.folds=null")
    assert call("finetune", *words, "probe=[{protocol: knn, neighbors: 3}]") == 2
    assert "cannot be probed on the same images; set data.test_root" in capsys.readouterr().err
    assert call("finetune", *words) == 0
    printed = capsys.readouterr().out
    advice = re.search(r"sslgh (probe \S+) data.test_root=DIR evaluates it later", printed)
    assert call(*advice.group(1).split(), f"data.test_root={tmp_path / 'more'}") == 0
    assert "(la by supervised v1)" in lines_of(capsys)[-2]


def test_no_step_is_named_that_the_data_cannot_take(tmp_path, recipe_file):
    settings = ["probe=[]", "data.long_tail={imbalance: 2, max_per_class: 2}"]
    lines = last_lines(load_recipe(recipe_file, settings), [], details=False)
    assert "load_backbone" in lines[-1]  # 20 neighbors are more than the images
