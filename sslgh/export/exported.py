"""An exported network, reloaded in a fresh process by code that knows nothing of this project."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from sslgh.export.source import Source, drawn_images

# Largest difference, as a share of the largest output, that rounding explains.
TOLERANCE = 1e-3
ORIENTATION = 0x0112  # tag of EXIF
HEAD = """\
import sys

import numpy
from PIL import Image

folder, count = sys.argv[1], int(sys.argv[2])
images = [Image.open(f"{folder}/{i}.png") for i in range(count)]
"""
TAIL = """
assert not any(name.split(".")[0] == "sslgh" for name in sys.modules)
numpy.save(f"{folder}/outputs.npy", numpy.asarray(outputs))
"""


class Loading(NamedTuple):
    """How an exported network is loaded and used.

    Attributes:
        library: Library whose code does it.
        lines: Python lines that load it from the folder ``here``.
        outputs: Expression for the outputs of PIL ``images`` (N), given what the lines define.
        folder: The folder on this machine.
    """

    library: str
    lines: list[str]
    outputs: str
    folder: Path = Path()

    def placed(self, here: str | None = None) -> list[str]:
        """The lines behind one that names the folder, by default as it is called on this machine."""
        here = here or f"Path({str(self.folder)!r})"
        return ["from pathlib import Path", "", f"here = {here}", *self.lines]


class Exported(NamedTuple):
    """Files of a network for one target, and the ways to load it."""

    folder: Path
    files: list[str]
    loadings: list[Loading]


class MismatchError(OSError):
    """An exported network cannot be loaded, or gives other outputs than the original."""


class Difference(NamedTuple):
    """Largest absolute difference between outputs, and the largest absolute output."""

    largest: float
    scale: float


def largest_difference(loading: Loading, source: Source) -> Difference:
    """Load an exported network in a fresh process, preprocess drawn images there, and compare the outputs.

    Raises:
        MismatchError: If that fails, or the outputs differ by more than rounding.
    """
    images = drawn_images(source.size)
    expected = source.outputs(torch.stack([source.preprocess(image) for image in images])).numpy()
    with tempfile.TemporaryDirectory() as folder:
        for i, image in enumerate(images):
            _save_turned(image, f"{folder}/{i}.png")
        script = "\n".join([HEAD, *loading.placed(), f"outputs = {loading.outputs}", TAIL])
        _run(script, [folder, str(len(images))], loading.library)
        found = np.load(f"{folder}/outputs.npy")
    if found.shape != expected.shape:
        raise MismatchError(
            f"{loading.library} gives outputs of {found.shape}, expected {expected.shape}"
        )
    difference = Difference(float(abs(found - expected).max()), float(abs(expected).max()))
    if not difference.largest <= TOLERANCE * max(difference.scale, 1.0):
        raise MismatchError(
            f"{loading.library} gives outputs that differ by {difference.largest:.2g} from those of {source.run}, which "
            f"are up to {difference.scale:.2g}; the installed versions do not fit together"
        )
    return difference


def _save_turned(image: Image.Image, path: str) -> None:
    """Save an image as a camera does that was held upright: lying, with an EXIF orientation that turns it back."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def _run(script: str, arguments: Sequence[str], library: str) -> None:
    # Without the user's variables and folders: what is loaded is what is installed.
    command = [sys.executable, "-I", "-c", script, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise MismatchError(f"{library} cannot load what was exported ({reason[:300]})")
