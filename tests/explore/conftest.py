"""Drawn photos and a small network."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from sslgh.classify import Convergence
from sslgh.classify.plateau_heads import Plateau
from sslgh.cli import main
from sslgh.explore import photo_heads
from sslgh.explore.model import load_model
from sslgh.models import build_backbone, save_backbone
from sslgh.preprocessing import Preprocessing

SIDE = 16


def drawn(path, seed, size=(20, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="session")
def call():
    """Runs a command as a user types it; returns its exit code."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return int(ended.value.code or 0)

    return run


@pytest.fixture(scope="session")
def read():
    """Reads a CSV file with a header, as rows by column; names that are no text keep their bytes."""

    def rows(path):
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.DictReader(file))

    return rows


@pytest.fixture(scope="module")
def short_heads():
    """Heads with an embedding layer end at their first plateau."""
    plateau = Plateau(width=8, round_steps=5, improvement=0.5, fall=1e-3)
    with pytest.MonkeyPatch.context() as patch:
        training = Convergence(weight_decay=1e-2, embedding=plateau)
        patch.setattr(photo_heads, "CONVERGED_HEADS", training)
        yield


@pytest.fixture
def draw():
    """Writes a photo of a seed to a path."""
    return drawn


@pytest.fixture
def photos(tmp_path):
    """Seven photos in a tree, one of them broken."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(["b.png", "a/1.png", "a/2.png", "c/x/3.png", "c/4.png", "c/5.png"]):
        drawn(folder / name, seed)
    (folder / "a" / "broken.jpg").write_bytes(b"no image at all")
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run directory with a small backbone of moments of its own."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    own = {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    shape = {"backbone": "resnet18", "stem": "cifar", "width": 0.125, "image_size": SIDE}
    card = shape | Preprocessing().card() | own
    save_backbone(build_backbone("resnet18", width=0.125), folder, card)
    return folder


@pytest.fixture(scope="session")
def model(run):
    return load_model(str(run))
