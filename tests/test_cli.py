"""The commands as a user types them, in this process unless a launcher is what is tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sslgh.cli import main

REPOSITORY = Path(__file__).parents[1]
PROBES = (
    "probe=[{protocol: longtail, objectives: [ce, la, la-posthoc]}, {protocol: knn, neighbors: 5}]"
)


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_run_pretrains_probes_and_prints_one_table_of_several_recipes(
    recipe_file, tmp_path, capsys
) -> None:
    settings = yaml.safe_load(recipe_file.read_text())
    second = tmp_path / "gh.yaml"
    gh = {"harmonize": {"vertices": 10, "ramp_epochs": 1}, "run_dir": str(tmp_path / "gh")}
    second.write_text(yaml.safe_dump(settings | gh))
    assert call("run", recipe_file, second, PROBES) == 0
    table = capsys.readouterr().out
    for word in (
        "longtail",
        "knn",
        "ce",
        "la",
        "la-posthoc",
        "run",
        "gh",
        "many",
        "few",
        "average",
    ):
        assert word in table
    for run in ("run", "gh"):
        assert json.loads((tmp_path / run / "status.json").read_text())["state"] == "done"
        assert "Results" in (tmp_path / run / "report.html").read_text()
        assert {p.name for p in (tmp_path / run / "probe").iterdir()} == {
            "longtail.json",
            "knn.json",
        }


def test_a_second_run_gives_the_same_table(recipe_file, tmp_path, capsys) -> None:
    tables = []
    for name in ("a", "b"):
        assert call("run", recipe_file, PROBES, f"run_dir={tmp_path / name / 'run'}") == 0
        lines = capsys.readouterr().out.split("longtail", 1)[1].splitlines()
        tables.append([line for line in lines if str(tmp_path) not in line])
    assert tables[0] == tables[1]


def test_probe_judges_a_run_a_backbone_and_a_feature_file(recipe_file, tmp_path, capsys) -> None:
    assert call("pretrain", recipe_file) == 0
    assert call("probe", tmp_path / "run", "probe=[{protocol: knn, neighbors: 3}]") == 0
    assert "knn" in capsys.readouterr().out
    assert call(
        "probe", "timm:resnet10t", "--recipe", recipe_file, "--out", tmp_path, "probe=[{protocol: knn}]", "data.size=32"
    ) == 0  # fmt: skip
    assert "timm-resnet10t-random" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 40)
    arrays = {
        f"{s}_features": rng.normal(size=(120, 4)) + labels[:, None] for s in ("train", "test")
    }
    np.savez(tmp_path / "mine.npz", train_labels=labels, test_labels=labels, **arrays)
    assert call("probe", "--features", tmp_path / "mine.npz", "--out", tmp_path) == 0
    assert "mine" in capsys.readouterr().out


def test_recipe_show_resolves_and_its_output_is_a_recipe_again(
    recipe_file, tmp_path, capsys
) -> None:
    assert call("recipe", "show", recipe_file, "train.epochs=7") == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["train"]["epochs"] == 7
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert call("recipe", "show", again) == 0
    assert capsys.readouterr().out == shown


def test_recipe_schema_is_json_with_a_description_for_every_setting(capsys) -> None:
    main_schema = call("recipe", "schema")
    schema = json.loads(capsys.readouterr().out)
    assert main_schema == 0
    described = [
        name in ("data", "model", "optim", "train", "method", "augment", "projector")
        or "description" in field
        for section in (schema, *schema["$defs"].values())
        for name, field in section.get("properties", {}).items()
    ]
    assert len(described) > 80
    assert all(described)


def test_recipe_list_names_the_bundled_recipes(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("recipe", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 58
    kinds = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert kinds["digits-lt/simclr-gh"] == "simclr +GH faiss 200 epochs"
    assert kinds["digits-lt/byol"] == "byol plain, --gh 200 epochs"
    assert kinds["digits-lt/supervised"].split()[1] == "supervised"


def test_gh_turns_a_recipe_into_its_twin_in_every_command_that_pretrains(
    recipe_file, tmp_path, capsys
) -> None:
    assert call("recipe", "show", recipe_file, "--gh", "harmonize.vertices=10") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["name"], shown["harmonize"]["vertices"]) == ("tiny-gh", 10)
    words = ("harmonize={vertices: 10, ramp_epochs: 1}", f"run_dir={tmp_path / 'twin'}")
    assert call("run", recipe_file, "--gh", *words, "probe=[{protocol: knn}]") == 0
    assert "twin" in capsys.readouterr().out
    lines = (tmp_path / "twin" / "metrics.jsonl").read_text().splitlines()
    assert any("gh" in json.loads(line) for line in lines)
    assert call("pretrain", recipe_file, "--gh", "--dry-run", *words) == 0
    assert call("run", tmp_path / "twin" / "recipe.yaml", "--gh") == 2
    assert "has harmonize: already; leave --gh out" in capsys.readouterr().err


def folder(tmp_path: Path, *names: str) -> Path:
    from PIL import Image  # noqa: PLC0415

    root = tmp_path / "photos"
    root.mkdir()
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(root / name)
    return root


BAD = [
    (["train.epochz=3"], "train: unknown key 'epochz'; did you mean 'epochs'?"),
    (["train.epochs=many"], "train.epochs: expected a whole number, got 'many'"),
    (["trainepochs"], "no such recipe"),
    (["train.=3"], "expected key.path=value"),
    (
        ["harmonize={vertices: 10, warmup_epochs: 99}"],
        "harmonize.warmup_epochs is 99, but the run ends after epoch 3",
    ),
    (["harmonize={vertices: 500}"], "harmonize.vertices is 500, but there are only 118 images"),
    (
        ["probe=[{protocol: knn}, {protocol: longtial}]", "data={source: cifar10, root: /nowhere}"],
        "probe.1.protocol: unknown key 'longtial'; did you mean 'longtail'?",
    ),
    (
        ["probe=[{protocol: longtail, objectives: [la, la-post]}]"],
        "probe.0.objectives.1: unknown key 'la-post'; did you mean 'la-posthoc'?",
    ),
    (["train.accumulation=2"], "set train.allow_fewer_negatives: true"),
    (["train={batch_size: 500, drop_last: true, epochs: 20}"], "lower train.batch_size"),
    (["data={source: cifar10, root: /nowhere}"], "/nowhere"),
    (["data={source: folder, root: /nowhere}"], "/nowhere"),
    (["data={source: arrays, root: /nowhere}"], "/nowhere"),
    (["data={source: list, list: /nowhere.txt}"], "/nowhere.txt"),
    (["data={source: folder, root: EMPTY}"], "no image"),
    (["data={source: list, list: LIST, root: EMPTY}"], "missing"),
    (["data={source: folder, root: FLAT}", "data.long_tail={imbalance: 10}"], "label"),
    (["data.long_tail.max_per_class=4000"], "which holds"),
    (["train.processes=2"], "train.processes is 2, but 1 started"),
    (["method.temprature=1"], "did you mean 'temperature'?"),
    (["method.temperature=0"], "method.temperature must be positive"),
    (["run_dir=3"], "run_dir: expected a path, got 3"),
    (["model.backbone=resnet19"], "unknown backbone 'resnet19'"),
]


@pytest.mark.parametrize(("words", "sentence"), BAD, ids=[words[0] for words, _ in BAD])
def test_bad_input_is_one_sentence_on_stderr_exit_code_2_and_nothing_overwritten(
    recipe_file, tmp_path, capsys, words, sentence
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("gone.png 0\nlost.png 1\n")
    flat = folder(tmp_path, *(f"{n}.png" for n in range(40)))
    places = {"EMPTY": tmp_path / "empty", "LIST": tmp_path / "list.txt", "FLAT": flat}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert call("pretrain", recipe_file, *words) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1, told
    assert sentence in told[0]
    left = {path.name for path in (tmp_path / "run").glob("*")}
    assert left <= {"status.json"}
    if left:
        status = json.loads((tmp_path / "run" / "status.json").read_text())
        assert status["state"] == "failed"
        assert sentence in status["message"]


def test_an_objective_that_trains_no_network_is_refused_before_data_are_read(
    recipe_file, tmp_path, capsys
) -> None:
    missing = "data={source: cifar10, root: /nowhere}"
    for command in ("run", "finetune", "doctor"):
        words = ("method=null", "finetune={objective: la-posthoc}", missing)
        assert call(command, recipe_file, *words) == 2
        assert "finetune.objective: unknown key 'la-posthoc'" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("metrics.jsonl"))


def test_probes_that_the_data_cannot_serve_are_refused_before_pretraining(
    recipe_file, tmp_path, capsys
) -> None:
    assert (
        call("run", recipe_file, "probe=[{protocol: gh-100shot}]", "data.test_per_class=140") == 2
    )
    assert "gh-100shot" in capsys.readouterr().err
    root = folder(tmp_path, *(f"{n}.png" for n in range(40)))
    words = (f"data={{source: folder, root: {root}, size: 16}}", "probe=[{protocol: knn}]")
    assert call("run", recipe_file, *words) == 2
    assert "label" in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_folder_without_labels_is_pretrained_on(recipe_file, tmp_path) -> None:
    root = folder(tmp_path, *(f"{n}.png" for n in range(20)), *(f"sub/{n}.JPG" for n in range(20)))
    words = (f"data={{source: folder, root: {root}, size: 16, workers: 0}}", "train.epochs=1")
    assert call("run", recipe_file, *words) == 0
    assert (tmp_path / "run" / "backbone.safetensors").is_file()


def test_a_checkpoint_of_another_model_is_refused_and_recorded_in_the_status(
    recipe_file, tmp_path, capsys
) -> None:
    assert call("pretrain", recipe_file) == 0
    directory = tmp_path / "run"
    (directory / "status.json").write_text('{"state": "running"}')
    recipe = (directory / "recipe.yaml").read_text()
    (directory / "recipe.yaml").write_text(recipe.replace("out: 16", "out: 8"))
    assert call("pretrain", recipe_file, "model.projector.out=8") == 2
    assert "belongs to another model" in capsys.readouterr().err
    assert "another model" in json.loads((directory / "status.json").read_text())["message"]


def test_a_run_of_another_recipe_keeps_its_status(recipe_file, tmp_path, capsys) -> None:
    assert call("pretrain", recipe_file) == 0
    assert call("pretrain", recipe_file, "optim.lr=0.3") == 2
    assert "holds another run" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"


def test_nothing_to_probe_and_unknown_runs_are_reported(tmp_path, capsys) -> None:
    assert call("probe") == 2
    assert "nothing to probe" in capsys.readouterr().err
    assert call("probe", tmp_path) == 2
    assert "is not a run directory" in capsys.readouterr().err
    assert call("probe", "timm:resnet10t") == 2
    assert "add --recipe" in capsys.readouterr().err


def launch(*words: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "accelerate.commands.launch", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=200, check=False
    )


def test_two_launched_processes_train_as_one_does(recipe_file, tmp_path) -> None:
    config = REPOSITORY / "recipes" / "accelerate" / "cpu-2.yaml"
    gh = "harmonize={vertices: 10, warmup_epochs: 1, ramp_epochs: 1}"
    words = (recipe_file, gh, "train.epochs=3", "train.channels_last=false")
    ended = launch("--config_file", config, "-m", "sslgh.pretrain", *words, "train.processes=2")
    assert ended.returncode == 0, ended.stderr
    assert "2 processes on 1 machine(s), cpu" in ended.stdout
    assert call("pretrain", *words, f"run_dir={tmp_path / 'alone'}") == 0
    both = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("run", "alone")
    ]
    losses = [[line["loss"] for line in lines if line["kind"] == "train"] for lines in both]
    assert len(losses[0]) == 12
    # Rounding grows from step to step, on some CPUs to 6 % at the fourth; test_methods.py compares single steps.
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=5e-3)
    assert [line["epoch"] for line in both[0] if line["kind"] == "refresh"] == [1]


def test_two_launched_processes_finetune_as_one_does(recipe_file, tmp_path) -> None:
    config = REPOSITORY / "recipes" / "accelerate" / "cpu-2.yaml"
    words = (
        recipe_file,
        "method=null",
        "finetune={objective: rcl, policy: none, sampling: class-balanced, ema: 0.9}",
        "train.epochs=2",
        "train.channels_last=false",
    )
    ended = launch("--config_file", config, "-m", "sslgh", "finetune", *words)
    assert ended.returncode == 0, ended.stderr
    assert "rcl" in ended.stdout  # the table, once
    assert call("finetune", *words, f"run_dir={tmp_path / 'alone'}") == 0
    both = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("run", "alone")
    ]
    losses = [[line["loss"] for line in lines] for lines in both]
    assert len(losses[0]) == len(losses[1]) == 8
    assert losses[0][:2] == pytest.approx(losses[1][:2], rel=1e-5)  # a whole step between them
    assert losses[0][:3] == pytest.approx(losses[1][:3], rel=5e-3)  # rounding grows
    judged = [
        json.loads((tmp_path / run / "probe" / "supervised.json").read_text())
        for run in ("run", "alone")
    ]
    assert judged[0]["test_counts"] == judged[1]["test_counts"]


def test_a_launcher_that_silently_starts_one_of_two_processes_is_refused(
    recipe_file, tmp_path
) -> None:
    ended = launch("--cpu", "--num_processes", 2, "-m", "sslgh.pretrain", recipe_file)
    assert ended.returncode != 0
    assert "asked for several processes but started one" in ended.stderr
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert (
        "asked for several" in json.loads((tmp_path / "run" / "status.json").read_text())["message"]
    )


def test_processes_that_each_believe_to_be_alone_are_refused(
    recipe_file, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert call("pretrain", recipe_file) == 2
    assert "asked for several processes" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, sslgh.cli; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]


def test_a_reader_that_has_seen_enough_ends_a_listing_in_peace() -> None:
    command = f"{sys.executable} -m sslgh recipe list | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert len(ended.stdout.splitlines()) == 1
