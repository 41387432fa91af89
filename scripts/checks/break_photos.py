"""Corruption test: break every 50th photo of a folder, train on it, and compare the report with the truth.

    python scripts/checks/break_photos.py PHOTOS [--out runs/broken]

The photos are copied first. What is broken is cut in half, emptied or overwritten, in turns; a small SimCLR + GH run of a
few epochs must train to the end, and its ``quarantine.json`` and ``sslgh scan`` must name those files and no others. Exit
code 1 if not. Started again, it resumes.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from sslgh.data.image_set import read_quarantine
from sslgh.engine.launch import init_accelerator
from sslgh.engine.pretraining import pretrain
from sslgh.recipe import load_recipe
from sslgh.recipe.named import find_recipe
from sslgh.scan.scan import scan_folder

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
SMALL = (
    "model.backbone=resnet18",
    "model.stem=cifar",
    "model.width=0.25",
    "data.size=32",
    "train.epochs=4",
    "train.batch_size=128",
    "optim.warmup_epochs=1",
)


def main() -> int:
    """Break, train, compare; returns an exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/broken"))
    asked = parser.parse_args()
    folder, listed = asked.out / "photos", asked.out / "broken.json"
    if not listed.exists():
        shutil.copytree(asked.photos, folder, dirs_exist_ok=True)
        listed.write_text(json.dumps(break_every(50, folder)))
    broken = set(json.loads(listed.read_text()))
    recipe = load_recipe(
        find_recipe("folder/simclr-gh"),
        [f"data.root={folder}", f"run_dir={asked.out / 'run'}", *SMALL],
    )
    directory = pretrain(recipe, init_accelerator())
    reported = set(read_quarantine(directory))
    found = {file.path.relative_to(folder).as_posix() for file in scan_folder(folder).broken}
    images = json.loads((directory / "images.json").read_text())["names"]
    print(
        f"{len(broken)} of {len(images)} files broken; trained to the end; quarantine.json names "
        f"{len(reported & broken)} of them and {len(reported - broken)} others, sslgh scan "
        f"{len(found & broken)} and {len(found - broken)}"
    )
    return 0 if reported == found == broken else 1


def break_every(period: int, folder: Path) -> list[str]:
    """Damage every so many images; their names."""
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    broken = images[::period]
    for place, path in enumerate(broken):
        content = path.read_bytes()
        path.write_bytes((content[: len(content) // 2], b"", b"no image" * 100)[place % 3])
    return [path.relative_to(folder).as_posix() for path in broken]


if __name__ == "__main__":
    sys.exit(main())
