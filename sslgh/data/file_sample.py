"""A sample of a run's files, by whose content its images are known at another place."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from sslgh.data.decoding import HASH_BYTES, hash_files
from sslgh.recipe.errors import printable

T = TypeVar("T")
# Files whose content is recorded, at least, or all.
SAMPLE = 256
MISSING = bytes(HASH_BYTES).hex()


def sample_hashes(paths: Sequence[Path]) -> list[str]:
    """Hashes of the bytes of a few hundred files, evenly spread; `MISSING` for what is no file."""
    found = hash_files(tuple(_sample(paths)))
    return [found[i : i + HASH_BYTES].hex() for i in range(0, len(found), HASH_BYTES)]


def difference(
    names: Sequence[str], paths: Sequence[Path], hashes: Sequence[str], *, most_missing: float
) -> str | None:
    """Why files are not those of a run, in words; None if they are.

    Args:
        names: Names of the run's images.
        paths: Where they are looked for.
        hashes: Their `sample_hashes` when the run began; empty for a run that recorded none.
        most_missing: Largest share of the sample that may be missing.
    """
    found, sample = sample_hashes(paths), list(_sample(names))
    missing = [name for name, now in zip(sample, found, strict=True) if now == MISSING]
    if len(missing) > most_missing * len(sample):
        return (
            f"{len(missing)} of {len(sample)} images of the run that were looked for are missing there, the first is "
            f"{printable(missing[0])}"
        )
    known = zip(sample, found, hashes, strict=True) if hashes else ()
    for name, now, before in known:
        if now != before and MISSING not in (now, before):
            return f"{printable(name)} is another file there"
    return None


def _sample(items: Sequence[T]) -> Sequence[T]:
    return items[:: max(1, len(items) // SAMPLE)]
