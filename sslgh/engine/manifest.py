"""What a folder of files must look like: sizes and SHA-256, written last and looked at first."""

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


class DamagedError(OSError):
    """A folder whose files are not those of its manifest."""


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: size (bytes) and SHA-256 of every other file of ``folder``.

    Raises:
        OSError: If it cannot be written.
    """
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    listed = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
    # The manifest vouches for itself too: one altered character in it must not go unseen.
    text = json.dumps(listed, sort_keys=True)
    held = {"files": listed, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    # No space and no line end: every byte says something.
    text = json.dumps(held, separators=(",", ":"))
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Compare the files of ``folder`` with its manifest.

    Raises:
        DamagedError: If one lacks, is of another size or holds other bytes; it is named.
    """
    listed = _read(folder / MANIFEST)
    missing = listed.keys() - {path.name for path in folder.iterdir()}
    if missing:
        raise DamagedError(f"{min(missing)} lacks")
    for name, expected in listed.items():
        size = (folder / name).stat().st_size
        if size != expected["bytes"]:
            raise DamagedError(f"{name} has {size} bytes instead of {expected['bytes']}")
        if _digest(folder / name) != expected["sha256"]:
            raise DamagedError(f"{name} was altered")


def _read(path: Path) -> dict[str, dict[str, int | str]]:
    try:
        held = json.loads(path.read_bytes())
        listed: dict[str, dict[str, int | str]] = held["files"]
        text = json.dumps(listed, sort_keys=True)
        if held["sha256"] != hashlib.sha256(text.encode()).hexdigest():
            raise DamagedError(f"{path.name} was altered")
    except FileNotFoundError:
        raise DamagedError(f"{path.name} lacks") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path.name} cannot be read ({type(error).__name__})") from None
    return listed


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
