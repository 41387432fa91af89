"""The switch that takes every kernel whose result does not depend on timing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class DeterminismError(ValueError):
    """An operation has no deterministic kernel on this device."""


@contextmanager
def determinism(asked: bool) -> Iterator[None]:
    """Within it, operations are deterministic if that was asked for; as before otherwise.

    On a CPU with a fixed number of threads the runs of this package are alike to the bit without it too.
    On a GPU it costs speed.

    Raises:
        DeterminismError: If an operation has no deterministic kernel; it is named.
    """
    if not asked:
        yield
        return
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(". ")[0]
        raise DeterminismError(f"{reason}; set train.deterministic: false") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
