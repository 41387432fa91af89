"""Every self-supervised recipe of the digits shelf, made small: it learns, keeps images apart and can go on."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.recipe import Recipe, load_recipe

SHELF = Path(__file__).parents[2] / "recipes" / "digits-lt"
FILES = {p.stem: yaml.safe_load(p.read_text()) for p in SHELF.glob("*.yaml")}
PLAIN = [name for name, file in FILES.items() if "method" in file and "harmonize" not in file]
RECIPES = sorted(
    {*PLAIN, *(f"{name}-gh" for name in PLAIN), *(n for n, f in FILES.items() if "harmonize" in f)}
)
SMALL = (
    "data.size=8",
    "model.width=0.125",
    "optim.warmup_epochs=1",
    "train.batch_size=64",
    "train.log_every=1",
    "train.checkpoint_every=1000",
)
STEPS = 6  # of an epoch: 351 images in batches of 64


# GH begins once there is something to group: right from the start it outweighs the method.
LATE = (
    "visibility=1",
    "warmup_epochs=null",
    "ramp_epochs=4",
    "refresh_every=1",
)  # in the middle of the run
AT_ONCE = ("visibility=1", "warmup_epochs=0", "ramp_epochs=1", "refresh_every=1")  # from epoch 1 on
GENTLY = "optim.lr=0.01"  # with GH at once: at its own 0.2 VICReg diverges in epoch 1


def small(name: str, directory: Path, *overrides: str, gh: tuple[str, ...] = LATE) -> Recipe:
    """The recipe of a file, or the GH twin of one that has no file of its own."""
    if "-gh" in name:
        overrides = (*(f"harmonize.{setting}" for setting in gh), *overrides)
    file = SHELF / f"{name if name in FILES else name.removesuffix('-gh')}.yaml"
    words = [*SMALL, f"run_dir={directory}", *overrides]
    return load_recipe(file, words, gh=name not in FILES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small are slower with two, and much slower where the cores have other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(recipe: Recipe) -> Path:
    return pretrain(recipe, init_accelerator())


def lines(directory: Path, kind: str = "train") -> list[dict[str, float]]:
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_bundled_recipes_are_found() -> None:
    assert len(RECIPES) >= 30
    assert {"dino-gh", "swav", "sdclr-boost-gh", "simclr-gh-prototypes"} <= set(RECIPES)


# Most methods must end below their first epoch. These must come down from their worst one, since their loss is low
# before anything is learned: the teacher of MoCo v2 and DINO begins as the student (beside a queue of unrelated
# random directions), SDCLR's pruned branch begins almost as the whole one, and boosted views grow harder once
# losses are known. The first two are given more epochs.
EPOCHS = 8
FROM_THE_WORST_EPOCH = {"moco-v2": 24, "dino": 24} | dict.fromkeys(
    ("sdclr", "sdclr-boost", "simclr-boost"), EPOCHS
)


# Twins that no file states are slow: the term on every method is tested by steps in tests/methods/test_methods.py.
LEARNING = [
    name if name in {*FILES, "dino-gh"} else pytest.param(name, marks=pytest.mark.slow)
    for name in RECIPES
]


@pytest.mark.parametrize("name", LEARNING)
def test_it_learns_and_keeps_images_apart(name, tmp_path) -> None:
    base = name.removesuffix("-gh")
    epochs = FROM_THE_WORST_EPOCH.get(base, EPOCHS)
    directory = run(small(name, tmp_path, f"train.epochs={epochs}"))
    found = lines(directory)
    assert len(found) == epochs * STEPS
    ssl = [line["ssl"] for line in found]
    by_epoch = [mean(ssl[start : start + STEPS]) for start in range(0, len(ssl), STEPS)]
    before = max(by_epoch) if base in FROM_THE_WORST_EPOCH else by_epoch[0]
    late = found[-len(found) // 4 :]
    assert mean([line["ssl"] for line in late]) < before
    assert min(line["embedding_std"] for line in late) > 0.1
    assert min(line["effective_rank"] for line in late) > 2
    assert ("gh" in found[-1]) == ("-gh" in name)


StoppedAt = Callable[[int], AbstractContextManager[None]]


def stopped_and_unbroken(
    recipe: Recipe, unbroken: Recipe, stopped_at: StoppedAt, *, step: int
) -> tuple[Path, Path]:
    """Directories of a run that SIGTERM stopped after ``step`` and that went on, and of its twin."""
    with stopped_at(step):
        run(recipe)
    return run(recipe), run(unbroken)


def assert_same_end(first: Path, second: Path) -> None:
    """The backbone and all that is remembered beside it: teachers, queues, centers, the bank."""
    (one,), (other,) = (
        sorted((path / "checkpoints").glob("step-*"))[-1:] for path in (first, second)
    )
    files = sorted(path.name for path in other.glob("*.safetensors"))
    assert "module.safetensors" in files
    pairs = [(first / "backbone.safetensors", second / "backbone.safetensors")]
    for left, right in pairs + [(one / name, other / name) for name in files]:
        mine, theirs = load_file(left), load_file(right)
        assert mine.keys() == theirs.keys()
        different = [key for key in mine if not torch.equal(mine[key], theirs[key])]
        assert not different, (left.name, different)


# GH's own state does not depend on the method: two of its recipes stand for all.
GOING_ON = [name for name in RECIPES if "-gh" not in name] + ["simclr-gh", "sdclr-boost-gh"]


@pytest.mark.parametrize("name", GOING_ON)
def test_a_stopped_run_goes_on_and_ends_with_the_bits_of_an_unbroken_one(
    name, tmp_path, stopped_at
) -> None:
    twins = [
        small(name, tmp_path / twin, "train.epochs=3", GENTLY, gh=AT_ONCE)
        for twin in ("broken", "whole")
    ]
    ends = stopped_and_unbroken(*twins, stopped_at, step=STEPS + STEPS // 2)
    assert_same_end(*ends)
    assert [line["step"] for line in lines(ends[0])] == list(range(1, 3 * STEPS + 1))


def test_a_resampled_run_shows_images_repeatedly_and_can_go_on(tmp_path, stopped_at) -> None:
    resample = ("harmonize.resample=hierarchical", "train.epochs=3", GENTLY)
    twins = [
        small("simclr-gh", tmp_path / twin, *resample, gh=AT_ONCE) for twin in ("broken", "whole")
    ]
    ends = stopped_and_unbroken(*twins, stopped_at, step=STEPS + STEPS // 2)
    assert_same_end(*ends)
    checkpoint = sorted((ends[0] / "checkpoints").glob("step-*"))[-1]
    memory = load_file(checkpoint / "aux_state.safetensors")
    (sequences,) = (value for name, value in memory.items() if name.endswith("sequences"))
    shown = sequences[2 % 2]  # of the last epoch
    assert len(shown) == 351
    assert 10 < len(shown.unique()) < 300  # the epoch repeats images of sparse clusters
    assert int(shown.unique(return_counts=True)[1].max()) <= 10  # harmonize.max_weight
