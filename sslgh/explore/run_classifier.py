"""The classifier of a finetuned run as one whose prior can be changed."""

from pathlib import Path

import torch
from torch import Tensor

from sslgh.classify import OBJECTIVES
from sslgh.data import drawn_shares
from sslgh.data.run_record import read_record
from sslgh.explore.loaded_model import LoadedModel
from sslgh.explore.photo_classifier import PhotoClassifier
from sslgh.recipe.run_recipe import load_run


def run_classifier(model: LoadedModel, directory: Path) -> PhotoClassifier:
    """The classifier of a loaded run; its logits are brought to log likelihoods where the run's objective allows it."""
    head = model.classifier
    assert head is not None

    def logits(features: Tensor) -> Tensor:
        return head(features).double()  # type: ignore[no-any-return]

    classes = len(model.class_names)
    shares, objective, tau, size = _training(directory)
    fixed, shift = "", torch.zeros(classes, dtype=torch.float64)
    default = torch.full_like(shift, 1 / classes)
    if shares is None or len(shares) != classes:
        fixed = "the run has not recorded how many images of each kind it was trained on"
        shares = None
    elif not OBJECTIVES[objective].shifts:
        fixed = f"what the scores of objective {objective} estimate is not known"
    else:
        equal = torch.full_like(shares, 1 / classes)
        shift = OBJECTIVES[objective].adjustment(
            shares, tau=tau, num_samples=size, test_prior=equal
        )
        # The shares for which the sum is the logits again, up to a constant: 0 for a class without images.
        default = (-shift.masked_fill(shares == 0, torch.inf)).softmax(0)
    return PhotoClassifier(
        model.class_names,
        lambda features: logits(features) + shift,
        default,
        shares,
        fixed,
        None,
        model.name,
    )


def _training(directory: Path) -> tuple[Tensor | None, str, float, int]:
    """Shares of the kinds as they were drawn in the last epoch, objective, tau and number of images."""
    recipe, record = load_run(directory), read_record(directory)
    settings = recipe.finetune
    assert settings is not None
    if record is None or record.labels is None:
        return None, settings.objective, settings.tau, 0
    counts = torch.bincount(torch.tensor(record.labels), minlength=len(record.class_names))
    epochs = recipe.train.epochs
    drawn = drawn_shares(counts.numpy(), settings.sampling, epoch=epochs - 1, epochs=epochs)
    return torch.from_numpy(drawn).double(), settings.objective, settings.tau, len(record.labels)
