r"""Compare predicted memory and time of training with what short runs then take, on a CPU.

    python scripts/checks/memory_and_time.py --cifar DIR     # DIR/train.npz and test.npz, 32 x 32 pixels

Each run has a process of its own. Memory is the peak resident set of the whole process, Python and
torch included, without loader workers: predicted is the resident set once the run is built plus
`memory_need`, measured is `ru_maxrss` at the end of training. Also printed is the growth alone: peak
minus what the built run holds. Time is that of `trainer.train`, predicted is the doctor's
`seconds_per_image`, timed right after; with --cpu-time both are processor time of the training
process, for a machine that others use too. The exit code is 1 if a total memory is off by more than 25 %
or a time by more than 30 %.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from sslgh.data import num_workers, training_set
from sslgh.doctor.training_time import build_stage, seconds_per_image
from sslgh.engine import trainer
from sslgh.engine.checkpoint import Progress
from sslgh.engine.memory import WORKER, memory_need
from sslgh.engine.run import open_run
from sslgh.recipe import load_recipe

MEMORY_LIMIT, TIME_LIMIT = 0.25, 0.30
SHORT = ("optim.warmup_epochs=1", "train.checkpoint_every=1000")
# Bytes per unit of ru_maxrss.
UNIT = 1 if sys.platform == "darwin" else 1024


def main() -> int:
    """Run all, print the table; return an exit code."""
    if len(sys.argv) > 1 and sys.argv[1] == "--one":
        if sys.argv[2] == "1":
            time.perf_counter = time.process_time
        return one_run(sys.argv[3], sys.argv[4:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as .npz files; without it, left out")
    parser.add_argument("--cpu-time", action="store_true", help="time by the processor's clock")
    parser.add_argument("--only", help="a part of the name of a run")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory(prefix="memory-and-time-") as folder:
        draw_photos(Path(folder) / "photos", 160)
        print(f"{'run':<24} {'':<8} {'predicted':>10} {'measured':>10} {'ratio':>6}")
        for name, words in cases(Path(folder), options.cifar):
            if options.only is None or options.only in name:
                failed |= report(
                    name, measured(options.cpu_time, [*words, *SHORT, f"run_dir={folder}/{name}"])
                )
    return int(failed)


def cases(folder: Path, cifar: Path | None) -> list[tuple[str, list[str]]]:
    """Names, recipes and overrides of the runs."""
    photos = ["recipes/folder/simclr.yaml", f"data.root={folder}/photos", "data.size=64"]
    photos += ["train.epochs=2", "train.batch_size=160", "train.precision=fp32", "data.workers=1"]
    found = [
        ("digits-lt-simclr", ["recipes/digits-lt/simclr.yaml", "train.epochs=15"]),
        ("folder-resnet50", photos),
        ("folder-checkpointing", [*photos, "model.checkpointing=true"]),
    ]
    if cifar is not None:
        words = ["recipes/cifar10-lt/small-simclr.yaml", "data.source=arrays", f"data.root={cifar}"]
        words += ["data.long_tail.max_per_class=200", "train.epochs=2", "train.precision=fp32"]
        found.insert(1, ("cifar10-lt-small-simclr", words))
    return found


def draw_photos(folder: Path, count: int) -> None:
    """Draw photos of colored patches."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for position in range(count):
        patches = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        photo = Image.fromarray(patches).resize((320, 240), Image.Resampling.BICUBIC)
        photo.save(folder / f"{position:04}.jpg")


def measured(cpu_time: bool, words: list[str]) -> dict[str, float]:
    """Figures of a run in a process of its own."""
    command = [sys.executable, __file__, "--one", str(int(cpu_time)), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed: {done.stderr.strip()[-800:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def one_run(file: str, overrides: list[str]) -> int:
    """Predict and train in this process; print the figures as JSON."""
    recipe = load_recipe(Path(file), overrides)
    images = training_set(recipe.data)
    stage = build_stage(recipe, images)
    built = psutil.Process().memory_info().rss
    began = time.perf_counter()
    need = memory_need(stage, stage.image_size)
    seconds = time.perf_counter() - began
    workers = WORKER * num_workers(recipe.data, in_memory=images.in_memory)
    open_run(stage.run)
    began = time.perf_counter()
    trainer.train(stage, stage.batches(Progress(), recipe.directory), Progress())
    trained = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    pace = seconds_per_image(recipe, images)
    figures = {
        "built": built,
        "growth": need.total - workers,
        "peak": peak,
        "trained": trained,
        "predicted_time": pace * len(images) * recipe.train.epochs,
        "estimate_took": seconds,
    }
    print(json.dumps(figures))
    return 0


def report(name: str, figures: dict[str, float]) -> bool:
    """Print the lines of a run; whether a limit is passed."""
    built, growth, peak = figures["built"], figures["growth"], figures["peak"]
    memory, pace = (built + growth) / peak, figures["predicted_time"] / figures["trained"]
    gb = 1e9
    print(
        f"{name:<24} {'memory':<8} {(built + growth) / gb:8.2f} GB {peak / gb:7.2f} GB {memory:6.2f}"
    )
    grown = peak - built
    print(
        f"{'':<24} {'growth':<8} {growth / gb:8.2f} GB {grown / gb:7.2f} GB {growth / grown:6.2f}"
    )
    trained, predicted = figures["trained"], figures["predicted_time"]
    print(f"{'':<24} {'time':<8} {predicted:8.1f} s  {trained:7.1f} s  {pace:6.2f}")
    print(f"{'':<24} the estimate of memory took {figures['estimate_took']:.2f} s", flush=True)
    return abs(memory - 1) > MEMORY_LIMIT or abs(pace - 1) > TIME_LIMIT


if __name__ == "__main__":
    sys.exit(main())
