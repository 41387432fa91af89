"""Trees of image files: flat, nested, or one folder per class; divided into splits or not."""

import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sslgh.data.image_set import DataError, ImageSet
from sslgh.data.tree import HEIC, SUFFIXES, UNREAD, Tree, kinds, tree, visible_folders
from sslgh.distributed import dist_info
from sslgh.recipe.errors import located, printable

log = logging.getLogger(__name__)

# Names of splits, in lower case: what is not "train" or "test" is neither trained nor tested on.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
}
# Left-out kinds that a message names, and names of a record that are looked for.
MOST_KINDS, SAMPLE = 8, 20


class Splits(NamedTuple):
    """Which folder of a tree holds which images.

    Attributes:
        train: Folder of the training images.
        test: Folder of the test images, or None.
        folders: Folders of "train", "test" and "validation", as far as they are there; empty for a tree that is
            not divided.
        left_out: Images that are neither, by the name of the folder in ``root`` that holds them; "" for those
            in no folder.
        root: Folder that the names in ``left_out`` start from.
    """

    train: Path
    test: Path | None
    folders: dict[str, Path]
    left_out: dict[str, int]
    root: Path


def split_folders(root: Path, test_root: Path | None = None) -> Splits:
    """The folders of training and test images: the one answer that scan, training and evaluation ask for.

    ========================================  ==========================================================
    Right in ``root``                         Answer
    ========================================  ==========================================================
    no train/                                 the whole tree; no test set
    train/ and nothing else with an image     train/; no test set
    train/, and test/ or val/ with an image   train/ and test/; any other folder, validation and loose
                                              images are left out, and reported with their counts
    train/, no such split, but other folders  the whole tree: "train" is a class (of vehicles), or a
    or loose images                           folder among loose photos
    one folder that holds train/ and another  that folder in its place (as archives are unpacked)
    split, and no loose image
    ========================================  ==========================================================

    Case does not count, and "training", "testing", "valid", "validation" are as good as the names above.
    Hidden folders, those of the system (``__MACOSX``, ``@eaDir``), and folders without an image decide
    nothing. ``test_root`` replaces test/, which is then left out; inside ``root`` it is no folder of training
    images. Nothing is written.

    Raises:
        DataError: If ``root`` or ``test_root`` is not a folder or cannot be listed, or they are the
            same.
    """
    _check_roots(root, test_root)
    root, folders = _unwrapped(root)
    whole = Splits(root, test_root, {}, {}, root)
    of_split = {split: root / name for split, name in _splits_among(folders).items()}
    if "train" not in of_split:
        return whole
    others = {name: root / name for name in folders if root / name != of_split["train"]}
    found = {name: tree(path) for name, path in others.items()}
    found[""] = tree(root, [root / name for name in folders])
    # A folder that cannot be listed may hold test images.
    holding = {name for name, tree in found.items() if tree.images or tree.unreadable}
    tested = _same(others, test_root)
    if holding - tested and not holding & {path.name for path in of_split.values()}:
        return whole
    divided = of_split.get("test")
    test = test_root or (divided if divided is not None and divided.name in holding else None)
    left_out = {name: len(found[name].images) for name in sorted(holding - _same(others, test))}
    return Splits(of_split["train"], test, of_split, left_out, root)


def _splits_among(folders: list[str]) -> dict[str, str]:
    """Folder of each split; of several, the one whose name is the split's own."""
    named = [name for name in folders if name.lower() in SPLITS]
    named.sort(key=lambda name: name == SPLITS[name.lower()])
    return {SPLITS[name.lower()]: name for name in named}


def _same(folders: dict[str, Path], folder: Path | None) -> set[str]:
    """Names of the folders that are a given one."""
    return {name for name, path in folders.items() if folder is not None and path.samefile(folder)}


def _check_roots(root: Path, test_root: Path | None) -> None:
    for key, folder in (("data.root", root), ("data.test_root", test_root)):
        # os.path: unlike Path's, it is False where a folder above must not be entered.
        if folder is not None and not os.path.isdir(folder):  # noqa: PTH112
            raise DataError(
                f"{key} {located(folder)} is not a folder; give the folder that holds the images"
            )
    if test_root is not None and test_root.samefile(root):
        raise DataError(
            f"data.test_root {printable(test_root)} is data.root; give other images to test on"
        )


def _unwrapped(root: Path) -> tuple[Path, list[str]]:
    """A folder, or the divided one that is all it holds, and the names of the folders right in it."""
    folders = _subfolders(root)
    if len(folders) == 1:
        inner = _subfolders(root / folders[0])
        splits = _splits_among(inner)
        if "train" in splits and len(splits) > 1 and not tree(root, [root / folders[0]]).images:
            return root / folders[0], inner
    return root, folders


def _subfolders(folder: Path) -> list[str]:
    try:
        return visible_folders(folder)
    except OSError as error:
        raise _unlistable(Path(error.filename or folder), error.strerror or str(error)) from error


def warn_of_splits(splits: Splits) -> None:
    """Log once what a divided tree holds besides its training and test images."""
    if not splits.left_out:
        return
    places = [
        f"{n} in {printable(name)}/" if name else f"{n} in no folder"
        for name, n in splits.left_out.items()
    ]
    split = " and ".join(
        f"{path.name}/" for path in (splits.train, splits.test) if path is not None
    )
    warn_once(
        f"{printable(splits.root)} is divided into splits, and images that are not in {printable(split)} are left "
        f"out: {', '.join(places)}"
    )


def folder_of_record(names: Sequence[str], root: Path, test_root: Path | None) -> Path:
    """Folder that the names in the record of a run start from.

    That of the training images, unless the tree is divided in another way than when the run began: then the
    one of ``root`` and its train/ in which files of those names exist.

    Raises:
        DataError: As `split_folders`.
    """
    splits = split_folders(root, test_root)
    sample = names[:: max(1, len(names) // SAMPLE)]
    train = _splits_among(_subfolders(splits.root)).get("train", "train")
    for folder in (splits.train, splits.root, splits.root / train, root):
        if any(os.path.lexists(folder / name) for name in sample):
            return folder
    return splits.train


def read_folder(
    folder: Path,
    *,
    without: Path | None = None,
    classes: tuple[str, ...] = (),
    train: Path | None = None,
    labeled: bool = True,
) -> ImageSet:
    """All images under ``folder``, sorted by their path.

    Labels are the names of the immediate subfolders when every image lies in one and there are at
    least two; any other tree is unlabeled. Hidden files and folders are skipped, links are followed,
    and a folder that is reached twice counts once.

    Args:
        folder: The folder.
        without: A folder inside it that belongs to another split.
        classes: Classes that are already known (of the training set). A test set may lack some of
            them but must not hold others.
        train: Folder of the training images, for the message.
        labeled: Whether folders are taken as classes.

    What cannot be read stays in the list as long as one file exists: a link that leads nowhere or a
    file without permission is found, and named, when it is read.

    Raises:
        DataError: If there is no image, none exists, a folder cannot be listed, or the classes do not
            agree.
    """
    paths = find_images(folder, without).images
    relative = [path.relative_to(folder) for path in paths]
    names = tuple(path.as_posix() for path in relative)
    if not labeled:
        return ImageSet(tuple(paths), None, (), names)
    strays = [path for path in relative if len(path.parts) == 1]
    if 0 < len(strays) < len(relative) / 2:
        warn_once(
            f"{len(strays)} of the images in {printable(folder)} lie in no folder of a class, the first is "
            f"{printable(strays[0])}: none has a label; move each into the folder of its class if labels are wanted"
        )
    nested = not strays
    found = sorted({path.parts[0] for path in relative}) if nested else []
    class_names = classes or (tuple(found) if len(found) > 1 else ())
    if not class_names:
        return ImageSet(tuple(paths), None, (), names)
    _check_classes(folder, found, class_names, train)
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[path.parts[0]] for path in relative], dtype=np.int64)
    return ImageSet(tuple(paths), labels, class_names, names)


def _check_found(folder: Path, paths: list[Path]) -> None:
    if not paths:
        endings = " ".join(sorted(SUFFIXES))
        raise DataError(
            f"{printable(folder)} holds no image; point to a folder with images (files that end in {endings}, or "
            "begin as an image)"
        )
    # Ends at the first that can: nothing is spent on a sound folder.
    if not any(os.access(path, os.R_OK) for path in paths):
        raise DataError(
            f"{printable(folder)} holds {len(paths)} images of which none can be opened (first "
            f"{printable(paths[0])}); restore what their links lead to, or allow reading them"
        )


def _check_classes(
    folder: Path, found: list[str], classes: tuple[str, ...], train: Path | None
) -> None:
    if not found:
        raise DataError(
            f"{printable(folder)} holds images outside class folders, but the training set has "
            f"{len(classes)} classes ('{printable(classes[0])}', ...); put each image into the "
            "folder of its class"
        )
    unknown = sorted(set(found) - set(classes))
    if unknown:
        first, place = unknown[0], "the training set" if train is None else printable(train)
        # An empty folder is no class, though it looks like one.
        empty = train is not None and os.path.isdir(train / first)  # noqa: PTH112
        fault = "whose folder holds no image" if empty else "which has no folder"
        raise DataError(
            f"{printable(folder)} holds images of classes with no training image ({len(unknown)} in all; first "
            f"'{printable(first)}', {fault} in {place}); put images there, or take the class out of the "
            "test images"
        )


def find_images(folder: Path, without: Path | None = None) -> Tree:
    """Everything under a folder, with the images sorted by their path; what is skipped is logged once.

    Args:
        folder: The folder.
        without: A folder inside it that is left out.

    Raises:
        DataError: If there is no image, none exists, or a folder cannot be listed.
    """
    found = tree(folder, [] if without is None else [without])
    if found.unreadable:
        path, reason = found.unreadable[0]
        raise _unlistable(path, reason)
    if words := skipped_words(kinds(found), len(found.hidden)):
        warn_once(f"{printable(folder)}: skipped {words}")
    found.images.sort(key=lambda path: path.relative_to(folder).parts)
    _check_found(folder, found.images)
    return found


def skipped_words(counts: dict[str, int], hidden: int) -> str:
    """Counts of what is left out of a tree in words; empty if there is nothing.

    Args:
        counts: Counts by suffix.
        hidden: Number of hidden files and folders.

    Examples:
        >>> skipped_words({".txt": 12, "": 1, ".heic": 3}, 2)
        "3 .heic (photos that are not read: pip install '.[heic]', or convert them to JPEG or PNG), 12 .txt, 1 without suffix, 2 hidden"
    """
    photos = [f"{n} {printable(kind)}" for kind, n in counts.items() if kind in UNREAD]
    words = []
    if photos:
        remedy = "pip install '.[heic]', or " if HEIC & counts.keys() else ""
        words.append(
            f"{', '.join(photos)} (photos that are not read: {remedy}convert them to JPEG or PNG)"
        )
    others = [(kind, n) for kind, n in counts.items() if kind not in UNREAD]
    words += [f"{n} {printable(kind) or 'without suffix'}" for kind, n in others[:MOST_KINDS]]
    rest = sum(n for _, n in others[MOST_KINDS:])
    words += [f"{n} {kind}" for n, kind in ((rest, "of other kinds"), (hidden, "hidden")) if n]
    return ", ".join(words)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning on rank 0, once, since a command reads its data several times."""
    if dist_info().rank == 0:
        log.warning("%s", message)


def _unlistable(folder: Path, reason: str) -> DataError:
    return DataError(
        f"{printable(folder)} cannot be listed ({reason}); allow reading it, or take it out of the data"
    )
