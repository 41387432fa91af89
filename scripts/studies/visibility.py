"""Does visibility, measured without labels, tell features that show the rare kinds from features that hide them?

    .venv/bin/python scripts/studies/visibility.py --cifar10 DIR --photos DIR --steel DIR

Every data set is seen by a backbone drawn at random, by one that SimCLR trains here, and by EfficientNet-Lite0 with
weights of ImageNet. With the visibility stands what labels say: how far the clusters agree with the classes, and how
often the rarest third of the classes is shown when images are shown by the share of their cluster^-1, at most
8 times, without a gate. A data set that is not given is left out; what is in the JSON file next to --page is not measured
again. The table is printed, and put into the page where there is one.
"""

import argparse
import io
import json
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from sslgh.data import EvalDataset, input_size, training_set
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.evaluation.features import extract_features
from sslgh.harmonize import CleanRows
from sslgh.harmonize.instance_weights import instance_weights
from sslgh.harmonize.population import LEAST_VISIBILITY, ClusterPopulation
from sslgh.models import load_backbone
from sslgh.models.initial import initial_backbone
from sslgh.preprocessing import Preprocessing
from sslgh.recipe import Harmonize, Recipe, load_recipe
from sslgh.recipe.schema import Model

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE, RECIPES = REPOSITORY / "docs" / "studies" / "visibility.md", REPOSITORY / "recipes"
WEIGHTS = "package:efficientnet-lite0"
LONG_TAIL = "data.long_tail={imbalance: 100, max_per_class: 1000, class_order: {shuffled: 0}}"
SMALL = "model={backbone: resnet18, stem: cifar, width: 0.25, projector: {hidden: 256, out: 128}}"
KINDS = ("random", "SimCLR", "ImageNet")


class Setting(NamedTuple):
    """A data set: the recipe that SimCLR is trained by, and the side at which pretrained weights see it."""

    recipe: Recipe
    side: int


def settings(options: argparse.Namespace) -> dict[str, Setting]:
    """Every data set that is given."""
    out = options.runs
    digits = load_recipe(RECIPES / "digits-lt/simclr.yaml", [f"run_dir={out}/digits"])
    found = {"digits": Setting(digits, 64)}
    if options.cifar10:
        words = ["data.source=arrays", f"data.root={options.cifar10}", "data.size=16", LONG_TAIL]
        words += [f"run_dir={out}/cifar10-lt", "model.projector.out=128", "train.epochs=60"]
        recipe = load_recipe(RECIPES / "cifar10-lt/small-simclr.yaml", words)
        found["cifar10-lt"] = Setting(recipe, 96)
    for name in ("photos", "steel"):
        if (root := getattr(options, name)) is None:
            continue
        words = [f"data.root={root}", "data.size=32", SMALL, f"run_dir={out}/{name}-lt"]
        words += ["train.batch_size=128", "train.epochs=100", "optim.lr=0.2"]
        found[f"{name}-lt"] = Setting(load_recipe(RECIPES / "folder/simclr.yaml", words), 224)
    return found


def features(
    setting: Setting, kind: str, accelerator: Accelerator
) -> tuple[Tensor, NDArray[np.int64]]:
    """Features (N, F) of the training images by one kind of weights, and their labels (N,)."""
    recipe = setting.recipe
    images = training_set(recipe.data)
    assert images.labels is not None
    size = setting.side if kind == "ImageNet" else input_size(recipe.data, images)
    if kind == "SimCLR":
        pretrain(recipe, accelerator)
        backbone, _ = load_backbone(recipe.directory)
    else:
        torch.manual_seed(0)
        model = Model(init=WEIGHTS) if kind == "ImageNet" else recipe.model
        backbone = initial_backbone(model, size)
    dataset = EvalDataset(images, Preprocessing.of(backbone).at(size))
    return extract_features(
        backbone, dataset, accelerator=accelerator, batch_size=64
    ), images.labels


def measured(rows: Tensor, labels: NDArray[np.int64]) -> dict[str, float]:
    """Visibility of features (N, F), and what the labels (N,) say."""
    population = ClusterPopulation(len(rows), 1, Harmonize(), clean=True, seed=0)
    found = population.estimate(CleanRows(rows, rows[:, :1]))
    weights = instance_weights(
        found.log_share.exp(), found.labels >= 0, power=1.0, max_weight=8.0
    ).numpy()
    counts = np.bincount(labels)
    order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    rare = np.isin(labels, order[-(len(order) // 3) :])
    figures = {
        "recurring": float(np.exp(found.recurring)),
        "noise": float(np.exp(found.noise)),
        "visibility": found.visibility,
        "clusters": len(found.means),
        "nmi": float(normalized_mutual_info_score(labels, found.labels.numpy())),
        "rare": 100 * float(rare.mean()),
        "rare_shown": 100 * float(weights[rare].sum() / weights.sum()),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def table(results: dict[str, dict[str, float]]) -> str:
    """Markdown of all that was measured."""
    lines = [
        "| data | features | g | g0 | visibility | clusters | NMI | rare third, share % | shown % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, row in results.items():
        data, kind = key.split(", ")
        lines.append(
            f"| {data} | {kind} | {row['recurring']:.1f} | {row['noise']:.1f} | {row['visibility']:.2f} | "
            f"{row['clusters']} | {row['nmi']:.2f} | {row['rare']:.1f} | {row['rare_shown']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def picture(results: dict[str, dict[str, float]]) -> str:
    """SVG: visibility against the agreement of clusters and classes, and against how often the rare kinds are shown."""
    mpl.rcParams["svg.hashsalt"] = "sslgh"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for kind, marker in zip(KINDS, "osD", strict=True):
        rows = {k.split(", ")[0]: v for k, v in results.items() if k.endswith(f", {kind}")}
        seen = [row["visibility"] for row in rows.values()]
        gains = [row["rare_shown"] / row["rare"] for row in rows.values()]
        for axis, heights in zip(axes, ([row["nmi"] for row in rows.values()], gains), strict=True):
            axis.scatter(seen, heights, marker=marker, label=kind)
            for name, x, y in zip(rows, seen, heights, strict=True):
                axis.annotate(name, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7)
    for axis, name in zip(
        axes, ("NMI of clusters and classes", "rare third shown / its share"), strict=True
    ):
        axis.axvline(LEAST_VISIBILITY, color="gray", linestyle="--", linewidth=1)
        axis.set(xlabel="visibility (dashed: the gate)", ylabel=name, xlim=(-0.03, 1))
    axes[0].legend(frameon=False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()


def write_page(page: Path, results: dict[str, dict[str, float]]) -> None:
    """Put table and picture in: the words around the table are kept."""
    before, _, rest = page.read_text(encoding="utf-8").partition("| data |")
    after = rest.partition("\n\n")[2]
    page.write_text(f"{before}{table(results)}\n{after}", encoding="utf-8")
    page.with_suffix(".svg").write_text(picture(results), encoding="utf-8")


def main() -> None:
    """Measure what the JSON file lacks, print a line for each, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("cifar10", "photos", "steel"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/visibility"))
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    file = options.page.with_suffix(".json")
    results = json.loads(file.read_text()) if file.exists() else {}
    accelerator = init_accelerator(None)
    for name, setting in settings(options).items():
        for kind in KINDS:
            if (key := f"{name}, {kind}") in results:
                continue
            results[key] = measured(*features(setting, kind, accelerator))
            print(key, results[key], flush=True)
            file.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results), end="")
    if options.page.exists():
        write_page(options.page, results)
        print(f"written: {options.page}")


if __name__ == "__main__":
    main()
