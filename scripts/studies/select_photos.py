"""Compare photos that ``sslgh select`` lists with photos drawn at random: kinds seen, and accuracy of a head on them.

    python scripts/studies/select_photos.py DATA [DATA ...] --cache CACHE > docs/studies/select.md

DATA holds folders train and test with a folder per kind. Kinds are hidden from the choice. Features of EfficientNet-Lite0
are kept in CACHE. Each seed leaves out a tenth of the training photos, the same for both arms.
"""

import argparse
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sslgh.classify.ensemble import FeatureScaler
from sslgh.explore.copy_folds import copy_units
from sslgh.explore.directions import centered, directions
from sslgh.explore.embed import embed_folder
from sslgh.explore.embeddings import Embeddings
from sslgh.explore.groups import modes
from sslgh.explore.model import load_model
from sslgh.explore.photo_heads import folder_scaler, trained_heads
from sslgh.explore.select import select

NETWORK = "package:efficientnet-lite0"
BUDGETS = (30, 60, 120)
SEEDS = 5
LEFT_OUT = 0.1
ARMS = ("random", "select")


class Photos(NamedTuple):
    """Features (N, F) and kinds (N,) of photos."""

    features: NDArray[np.float32]
    kinds: NDArray[np.int64]


def embedded(data: Path, cache: Path) -> tuple[Photos, Photos, str]:
    """Training and test photos, and the name of the network."""
    model = load_model(NETWORK)
    parts = []
    for split in ("train", "test"):
        out = cache / f"{data.name}-{split}.npz"
        parts.append(embed_folder(model, data / split, out=out))
    names = sorted({kind_of(file) for file in parts[0].files})
    return (*(photos(part, names) for part in parts), model.name)


def kind_of(file: str) -> str:
    """The folder of a photo."""
    return file.split("/", maxsplit=1)[0]


def photos(found: Embeddings, names: list[str]) -> Photos:
    """Photos with the kinds of their folders."""
    kinds = [names.index(kind_of(file)) for file in found.files]
    return Photos(found.features, np.array(kinds, dtype=np.int64))


def chosen(pool: Photos, arm: str, seed: int) -> NDArray[np.int64]:
    """Positions of the photos that an arm would label, the first ones first."""
    if arm == "random":
        return np.random.default_rng(seed).permutation(len(pool.kinds))[: max(BUDGETS)]
    rows = directions(pool.features)
    groups, copies = modes(rows, seed), copy_units(centered(pool.features))
    found = select(rows, max(BUDGETS), groups=groups, copies=copies)
    return np.array([choice.row for choice in found])


def balanced_accuracy(labeled: Photos, test: Photos, scaler: FeatureScaler) -> float:
    """Mean accuracy over all kinds of the test photos; a kind without a label is never right."""
    seen, labels = np.unique(labeled.kinds, return_inverse=True)
    if len(seen) < 2:
        return 1 / (int(test.kinds.max()) + 1)
    inputs = torch.from_numpy(labeled.features)
    head = trained_heads(inputs, torch.from_numpy(labels), len(seen), ["la"], scaler)["la"]
    predicted = seen[head.scores(torch.from_numpy(test.features)).argmax(1).numpy()]
    kinds = np.unique(test.kinds)
    return float(np.mean([(predicted[test.kinds == k] == k).mean() for k in kinds]))


def measured(train: Photos, test: Photos) -> dict[tuple[str, int], list[tuple[int, float]]]:
    """Kinds seen and balanced accuracy, by arm and budget, for every seed."""
    found: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for seed in range(SEEDS):
        order = np.random.default_rng([seed, 1]).permutation(len(train.kinds))
        kept = np.sort(order[round(LEFT_OUT * len(order)) :])
        pool = Photos(train.features[kept], train.kinds[kept])
        scaler = folder_scaler(torch.from_numpy(pool.features))
        for arm in ARMS:
            rows = chosen(pool, arm, seed)
            for budget in BUDGETS:
                part = Photos(pool.features[rows[:budget]], pool.kinds[rows[:budget]])
                value = len(np.unique(part.kinds)), balanced_accuracy(part, test, scaler)
                found.setdefault((arm, budget), []).append(value)
        print(f"seed {seed} done", file=sys.stderr)
    return found


def table(name: str, kinds: int, found: dict[tuple[str, int], list[tuple[int, float]]]) -> str:
    """A table of one data set: means and standard deviations over seeds, and the paired difference."""
    lines = [
        f"**{name}**, {kinds} kinds\n",
        "| labels | kinds seen, random | kinds seen, select | accuracy, random | accuracy, select | difference |",
        "|---|---|---|---|---|---|",
    ]
    for budget in BUDGETS:
        drawn, listed = (np.array(found[arm, budget]) for arm in ARMS)
        cells = [spread(part[:, 0]) for part in (drawn, listed)]
        cells += [spread(100 * part[:, 1]) for part in (drawn, listed)]
        cells.append(spread(100 * (listed - drawn)[:, 1]))
        lines.append(f"| {budget} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: NDArray[np.float64]) -> str:
    """Mean and standard deviation."""
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    tables, network = [], ""
    for data in arguments.data:
        train, test, network = embedded(data, arguments.cache)
        tables.append(table(data.name, int(train.kinds.max()) + 1, measured(train, test)))
    names = " ".join(data.name for data in arguments.data)
    print(PAGE.format(names=names, network=network, tables="\n\n".join(tables), **MACHINE))


MACHINE = {"machine": f"{platform.machine()}, CPU, torch {torch.__version__}", "seeds": SEEDS}
PAGE = """# Photos to label first: `sslgh select` against random choice

    python scripts/studies/select_photos.py {names} --cache CACHE

Network {network}, {machine}; {seeds} seeds, each with a tenth of the training photos left out; mean ± standard
deviation. Accuracy is the mean over all kinds on the test photos, in %, of a logit-adjusted head on the labeled photos; a
kind without a label is never right. The difference is paired by seed.

{tables}

The settings of `select` (reach .2, power .5) were chosen on steel-lt, so its figures are too good for it by what that
choice brings; photos-lt was not looked at before. Its photos are training images of the network: the figures say how
the choice of photos compares, not how well the network does elsewhere.
"""


if __name__ == "__main__":
    main()
