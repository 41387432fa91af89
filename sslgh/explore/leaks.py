"""Near copies that lie in more than one split, so that a test is not one."""

from collections.abc import Sequence
from pathlib import Path

from sslgh.data.folders import split_folders


def split_of(folder: Path, files: Sequence[str]) -> list[str]:
    """Name of the split's folder of each photo, such as "train"; "" outside, and in a tree without splits.

    Args:
        folder: The folder that was read.
        files: Names relative to it, with slashes.
    """
    parts = {
        path.relative_to(folder).parts: path.name for path in split_folders(folder).folders.values()
    }
    return [
        next((name for part, name in parts.items() if Path(file).parts[: len(part)] == part), "")
        for file in files
    ]


def leaking(groups: list[list[int]], split: Sequence[str]) -> list[int]:
    """Numbers of the groups of copies that lie in several splits.

    Examples:
        >>> leaking([[0, 1], [1, 2]], ["train", "train", "test"])
        [1]
    """
    return [n for n, group in enumerate(groups) if len({split[i] for i in group} - {""}) > 1]
