"""Embeddings as a table for other programs: .csv, or .parquet where pyarrow is installed."""

import csv
import importlib.util
from pathlib import Path

from sslgh.explore.embeddings import Embeddings
from sslgh.recipe.errors import printable

SUFFIXES = (".npz", ".csv", ".parquet")


def check_suffix(out: Path) -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        ValueError: If its suffix is none of `SUFFIXES`, or pyarrow is needed and not installed.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(
            f"{printable(out)} has the suffix {out.suffix!r}; give a file that ends with {', '.join(SUFFIXES)}"
        )
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"{printable(out)} needs pyarrow, which is not installed; pip install pyarrow, or write .npz or .csv"
        )


def write_table(found: Embeddings, out: Path) -> None:
    """Write the names and features, with columns ``file``, ``f0``, ``f1``, ...; what was there stays if it fails.

    The numbers are those of the features, to the last bit. A name that is no UTF-8 keeps its bytes in .csv.

    Raises:
        OSError: If it cannot be written.
    """
    temporary = out.with_name(out.name + ".tmp")
    try:
        if out.suffix == ".csv":
            _write_csv(found, temporary)
        else:
            _write_parquet(found, temporary)
        temporary.replace(out)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _columns(found: Embeddings) -> list[str]:
    return [f"f{i}" for i in range(found.features.shape[1])]


def _write_csv(found: Embeddings, path: Path) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *_columns(found)])
        for name, row in zip(found.files, found.features, strict=True):
            writer.writerow([name, *row.astype(str)])  # as many digits as tell float32 apart


def _write_parquet(found: Embeddings, path: Path) -> None:
    import pyarrow  # noqa: PLC0415 - optional
    import pyarrow.parquet  # noqa: PLC0415

    names = [printable(name) if _broken_text(name) else name for name in found.files]
    columns = dict(zip(_columns(found), found.features.T, strict=True))
    pyarrow.parquet.write_table(pyarrow.table({"file": names} | columns), path)


def _broken_text(name: str) -> bool:
    """Whether a file's name is no UTF-8, which parquet demands."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)
