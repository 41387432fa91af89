"""How near out-of-fold figures come to the truth, with few labels per kind, and predictions on test photos.

    python scripts/studies/five_labels.py DATA [DATA ...] --cache CACHE

DATA holds folders train and test with a folder per kind. Of each kind five training photos are labeled, drawn anew for
each seed. Features of EfficientNet-Lite0 are kept in CACHE, where `scripts/studies/select_photos.py` keeps them too.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from sslgh.explore.classifier_folder import classifier_of
from sslgh.explore.embed import embed_folder
from sslgh.explore.embeddings import Embeddings
from sslgh.explore.label_photos import Labeled, label_photos
from sslgh.explore.model import load_model
from sslgh.explore.photo_heads import OBJECTIVES, decision
from sslgh.explore.predict import photo_kinds

NETWORK = "package:efficientnet-lite0"


def kind_of(file: str) -> str:
    """The folder of a photo."""
    return file.split("/", maxsplit=1)[0]


def drawn_labels(files: list[str], number: int, seed: int) -> dict[str, str]:
    """So many labels of each kind."""
    order = np.random.default_rng(seed).permutation(len(files))
    found: dict[str, list[str]] = {}
    for file in (files[i] for i in order):
        members = found.setdefault(kind_of(file), [])
        if len(members) < number:
            members.append(file)
    return {file: kind for kind, members in found.items() for file in members}


def true_accuracy(result: Labeled, test: Embeddings, objective: str) -> float:
    """Mean accuracy over kinds on the test photos, as the objective decides."""
    fitted = result.fitted
    scores = fitted.heads[objective].scores(torch.from_numpy(test.features))
    shares = fitted.counts.double() / fitted.counts.sum()
    predicted = decision(scores, objective, shares).numpy()
    truth = np.array([fitted.class_names.index(kind_of(file)) for file in test.files])
    return float(np.mean([(predicted[truth == k] == k).mean() for k in np.unique(truth)]))


def prediction_line(result: Labeled, test: Embeddings) -> str:
    """How sure the predictions of the test photos are, and how many of the unsure ones are wrong."""
    found = photo_kinds(classifier_of(result.fitted, "five labels"), test.features, test.files)
    right = np.array(
        [
            found.class_names[k] == kind_of(f)
            for k, f in zip(found.kinds[:, 0], test.files, strict=True)
        ]
    )
    confidence = 100 * found.probabilities[:, 0].mean()
    unsure = found.unsure
    assert found.unlike is not None
    return (
        f"test photos: {100 * right.mean():.1f} % right at a mean probability of {confidence:.1f} %; {unsure.sum()} unsure, "
        f"of which {(~right[unsure]).sum()} wrong; {found.unlike.sum()} unlike anything seen (at most "
        f"{result.fitted.novelty.rate:.0%} expected)"
    )


def main() -> None:
    """Print a table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--labels", type=int, default=5, help="labels per kind")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    model = load_model(NETWORK)
    for data in arguments.data:
        train, test = (
            embed_folder(model, data / split, out=arguments.cache / f"{data.name}-{split}.npz")
            for split in ("train", "test")
        )
        begun, rows = time.monotonic(), []
        for seed in range(arguments.seeds):
            kinds = drawn_labels(train.files, arguments.labels, seed)
            result = label_photos(train.features, train.files, kinds)
            figures = result.comparison.heads
            pairs = [(figures[o].average, true_accuracy(result, test, o)) for o in OBJECTIVES]
            rows.append(pairs)
            print(f"{data.name} seed {seed}: {result.fitted.objective} chosen, ", end="")
            print(f"temperature {result.fitted.temperature:.2f}; {prediction_line(result, test)}")
        values = 100 * np.array(rows)  # (seeds, objectives, 2)
        seconds = (time.monotonic() - begun) / arguments.seeds
        print(f"\n{data.name}, {arguments.labels} labels per kind, {seconds:.0f} s per seed")
        print("| head | out of fold | test photos | mean distance of the two |")
        print("|---|---|---|---|")
        for place, objective in enumerate(OBJECTIVES):
            estimate, truth = values[:, place].T
            print(
                f"| {objective} | {estimate.mean():.1f} ± {estimate.std(ddof=1):.1f} | {truth.mean():.1f} ± "
                f"{truth.std(ddof=1):.1f} | {np.abs(estimate - truth).mean():.1f} |"
            )


if __name__ == "__main__":
    main()
