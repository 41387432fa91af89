"""One process at a time trains in a run directory."""

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path

from sslgh.recipe import RecipeError

LOCK = ".lock"
# A process that was asked to end may still be at it when the same command is given again.
PATIENCE = 10.0


class BusyError(RecipeError):
    """Another process trains in the run directory."""


def hold(directory: Path, *, patience: float = PATIENCE) -> int | None:
    """Keep other processes from training in a run directory.

    The kernel lets go when this process ends, however it ends. Loader workers, which are forks, hold nothing.

    Args:
        directory: The run directory.
        patience: Seconds to wait for a process that is there.

    Returns:
        A file descriptor that holds the directory until it is closed; None where the file system knows no locks.

    Raises:
        BusyError: If another process keeps it.
    """
    until = time.monotonic() + patience
    try:
        file = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        return None
    while not _taken(file):
        if time.monotonic() >= until:
            holder = _holder(file)
            os.close(file)
            raise BusyError(
                f"run directory {directory} is being trained in by {holder}; wait for it to end, or choose another "
                "run_dir"
            )
        time.sleep(0.2)
    with contextlib.suppress(OSError):  # who it is matters to those alone who are refused
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return file


def _taken(file: int) -> bool:
    """Whether nobody else has the lock; also where the file system has none."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _holder(file: int) -> str:
    with contextlib.suppress(OSError):
        return os.pread(file, 200, 0).decode(errors="replace") or "another process"
    return "another process"
