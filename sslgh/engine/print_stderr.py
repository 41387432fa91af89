"""Sentences on stderr, where nobody may be listening."""

import contextlib
import sys

from tqdm import tqdm


def print_stderr(sentence: str) -> None:
    """Print a line, without tearing a progress bar.

    The disk that is full may hold the log of the run too, and a pipe may have been closed: neither ends
    a run.
    """
    with contextlib.suppress(OSError):
        tqdm.write(sentence, file=sys.stderr)
        sys.stderr.flush()
