r"""Divide and Contrast (arXiv:2105.08054): a base model, an expert for each cluster of images, one student.

    .venv/bin/python scripts/studies/divide_and_contrast.py recipes/digits-lt/simclr.yaml --clusters 5 \
        [key=value ...]

1. ``base``: the recipe as it is, on all images.
2. ``expert-1`` to ``expert-5``: the recipe on the images of one cluster each, by spherical k-means of the
   base model's features (``clusters``: positions of the images, and the centroids).
3. ``student``: the recipe on all images with ``method: distil``, whose teachers are all of these.

Each is a run in a folder of the run directory (runs/NAME-dnc), which every sslgh command takes. All train
for as many epochs as the recipe says; the experts share the images out, so the whole is three runs' work
and the teachers' forward passes. A stage that is done is not repeated, one that was stopped goes on: the
command can be given again, also under accelerate launch.

After the paper: the lengths of its steps and its distillation loss were not recovered.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from sslgh.data import input_size, training_set
from sslgh.engine.exit_codes import run_command
from sslgh.engine.launch import init_accelerator, shutdown_distributed
from sslgh.engine.pretraining import pretrain
from sslgh.engine.run_dir import read_status, write_text
from sslgh.evaluation.features import cached_features
from sslgh.harmonize.kmeans import spherical_kmeans
from sslgh.models import load_backbone
from sslgh.recipe import Recipe, RecipeError, load_recipe, make_recipe
from sslgh.recipe.named import find_recipe

CLUSTERS, CENTROIDS = "clusters", "centroids.npy"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not trained yet and say what there is; returns an exit code of sslgh."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--clusters", type=int, default=5, help="experts (the paper: 5, 10, more)")
    options = parser.parse_intermixed_args(arguments)
    stages: list[Recipe] = []
    code = run_command(lambda: stages.extend(plan(options)))
    for number, stage in enumerate(stages):
        code = code or train(stage)
        if number == 0:  # the others need the clusters of its features
            code = code or run_command(lambda: divide(stages[0], options.clusters))
    if stages and init_accelerator().is_main_process:
        print(summary(stages))
    shutdown_distributed()
    return code


def plan(options: argparse.Namespace) -> list[Recipe]:
    """The recipes of base, experts and student.

    Raises:
        RecipeError: If the recipe cannot be used, or its run directory is a run.
    """
    recipe = load_recipe(find_recipe(options.recipe), options.overrides)
    root = recipe.run_dir or Path("runs") / f"{recipe.name}-dnc"
    if (root / "recipe.yaml").exists():
        raise RecipeError(f"run directory {root} holds a run of one stage; choose another run_dir")
    if options.clusters < 2:
        raise RecipeError(
            f"--clusters is {options.clusters}, but images are divided into 2 or more"
        )
    if recipe.data.subset is not None:
        raise RecipeError("data.subset says what an expert is trained on; leave it out")
    files = [_positions_file(root / CLUSTERS, number) for number in range(options.clusters)]
    base = _stage(recipe, root / "base")
    experts = [_stage(recipe, root / file.stem, {"subset": str(file)}) for file in files]
    distil = {
        "name": "distil",
        "teachers": [str(stage.directory) for stage in (base, *experts)],
        "centroids": str(root / CLUSTERS / CENTROIDS),
    }
    two_views = recipe.data.augment.model_dump(mode="json", exclude_unset=True) | {"local_crops": 0}
    student = _stage(recipe, root / "student", {"augment": two_views}, method=distil)
    return [base, *experts, student]


def _stage(
    recipe: Recipe, directory: Path, data: dict[str, Any] | None = None, **changes: Any
) -> Recipe:
    """The recipe with its own directory and name, and what else is different."""
    settings = recipe.model_dump(mode="json", exclude_unset=True)
    settings |= {"name": f"{recipe.name}-{directory.name}", "run_dir": str(directory), **changes}
    return make_recipe(settings | {"data": settings["data"] | (data or {})})


def _positions_file(folder: Path, number: int) -> Path:
    return folder / f"expert-{number + 1}.txt"


def train(stage: Recipe) -> int:
    """Train one stage, or go on with it; returns an exit code."""

    def work() -> None:
        world = init_accelerator(stage.train.processes)
        pretrain(stage, world)
        world.free_memory()

    return run_command(work, stage)


def divide(base: Recipe, num_clusters: int) -> None:
    """Cluster the base model's features; write the images of each expert, and the centroids last.

    Raises:
        RecipeError: If there are other clusters already, or one is too small for an expert.
    """
    world = init_accelerator(base.train.processes)
    root = base.directory.parent
    found = root / CLUSTERS / CENTROIDS
    if found.exists():
        have = len(np.load(found))
        if have != num_clusters:
            raise RecipeError(
                f"{root / CLUSTERS} holds {have} clusters, not {num_clusters}; choose another run_dir or "
                f"--clusters {have}"
            )
        return
    features = _features(base, world)
    if features is not None:
        centroids, labels = spherical_kmeans(features, num_clusters, seed=base.seed)
        _write_clusters(base, centroids, labels, 2 * world.num_processes)
    world.wait_for_everyone()


def _features(base: Recipe, world: Accelerator) -> Tensor | None:
    """Of every training image, (N, F), on the main process."""
    images = training_set(base.data)
    return cached_features(
        load_backbone(base.directory)[0],
        images,
        base.data,
        size=input_size(base.data, images),
        directory=base.directory,
        accelerator=world,
    )


def _write_clusters(base: Recipe, centroids: Tensor, labels: Tensor, least: int) -> None:
    counts = torch.bincount(labels, minlength=len(centroids)).tolist()
    if min(counts) < least:
        raise RecipeError(
            f"the smallest of {len(counts)} clusters holds {min(counts)} images, but an expert needs "
            f"{least} for a batch; lower --clusters"
        )
    folder = base.directory.parent / CLUSTERS
    folder.mkdir(exist_ok=True)
    for number in range(len(centroids)):
        positions = (labels == number).nonzero().flatten().tolist()
        write_text(_positions_file(folder, number), "".join(f"{p}\n" for p in positions))
    np.save(folder / CENTROIDS, centroids.numpy())


def summary(stages: Sequence[Recipe]) -> str:
    """A line a stage: images, state, seconds and where it is."""
    files = [stage.data.subset for stage in stages]
    sizes = {file: len(file.read_text().split()) for file in files if file and file.exists()}
    lines = [f"{'stage':<12}{'images':>8}  {'state':<8}{'seconds':>8}  run directory"]
    for stage, file in zip(stages, files, strict=True):
        status = read_status(stage.directory)
        images = sizes.get(file, 0) if file else sum(sizes.values())  # the experts share them out
        lines.append(
            f"{stage.directory.name:<12}{images or '-':>8}  {status.get('state', 'to do'):<8}"
            f"{status.get('seconds', '-'):>8}  {stage.directory}"
        )
    if read_status(stages[-1].directory).get("state") == "done":
        base, student = stages[0].directory, stages[-1].directory
        lines.append(f"what it brought: sslgh probe {base} {student}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
