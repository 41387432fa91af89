"""Which shares of the kinds are expected among new photos. Shapes: C kinds."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sslgh.data.image_set import DataError
from sslgh.explore.photo_classifier import PhotoClassifier
from sslgh.recipe.errors import located, printable, shown, some_of


def expected_prior(classifier: PhotoClassifier, wanted: str | None) -> Tensor | None:
    """Shares (C,) by their name; None: as the classifier decides.

    Args:
        classifier: Where its prior cannot be changed, every word is refused.
        wanted: ``train`` (shares of the training labels), ``balanced``, a file of lines ``kind,share``, or None.

    Raises:
        DataError: If the classifier cannot be brought to it, or the file cannot be used.
    """
    if wanted is None:
        return None
    if classifier.fixed:
        raise DataError(
            f"--prior cannot be used with {printable(classifier.source)}: {classifier.fixed}; leave it out"
        )
    if wanted == "balanced":
        return torch.full_like(classifier.default, 1 / len(classifier.class_names))
    if wanted == "train":
        return classifier.trained
    prior = read_prior(Path(wanted).expanduser(), classifier.class_names)
    if classifier.trained is not None and not (prior[classifier.trained > 0] > 0).any():
        raise DataError(
            f"--prior {printable(wanted)} gives a share only to kinds without a training image; give one to another"
        )
    return prior


def read_prior(path: Path, class_names: Sequence[str]) -> Tensor:
    """Shares (C,), which sum to 1, of a file of lines ``kind,share`` or ``kind,count``.

    Raises:
        DataError: If it cannot be read, or does not name every kind once with a number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"--prior {located(path)} cannot be read ({error.strerror}); give train, balanced or a file of lines "
            "'kind,share'"
        ) from None
    except UnicodeDecodeError:
        raise DataError(
            f"--prior {located(path)} is not UTF-8 text; save it as CSV in UTF-8"
        ) from None
    separator = next((s for s in ("\t", ";") if s in text), ",")
    rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(row)]
    found: dict[str, float] = {}
    for number, row in enumerate(rows):
        kind, share = row[0].strip(), _number(row[1], separator) if len(row) == 2 else None
        if share is None and number == 0:
            continue  # names of the columns
        if share is None or kind in found:
            raise DataError(
                f"--prior {printable(path)} has {shown(separator.join(row))}, expected every kind once, as 'kind,share'"
            )
        found[kind] = share
    return _shares(path, found, class_names)


def _number(text: str, separator: str) -> float | None:
    try:
        value = float(text if separator == "," else text.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _shares(path: Path, found: dict[str, float], class_names: Sequence[str]) -> Tensor:
    if unknown := [kind for kind in found if kind not in class_names]:
        raise DataError(
            f"--prior {printable(path)} names kinds that the classifier does not know: {some_of(unknown)}; its kinds: "
            f"{some_of(class_names)}"
        )
    if missing := [kind for kind in class_names if kind not in found]:
        raise DataError(
            f"--prior {printable(path)} lacks kinds: {some_of(missing)}; give each a share, 0 for what cannot occur"
        )
    shares = torch.tensor([found[kind] for kind in class_names], dtype=torch.float64)
    if not shares.sum() > 0:
        raise DataError(
            f"--prior {printable(path)} gives every kind the share 0; one must be larger"
        )
    return shares / shares.sum()
