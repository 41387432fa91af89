"""Float32 islands: exp, log and normalize keep their range inside autocast."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

HALVES = (torch.float16, torch.bfloat16)


def _widen(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with autocast off and its half-precision tensors widened to float32.

    exp(1 / 0.05) is infinite in float16, and a float32 tensor that meets a matmul under
    autocast is rounded to half again: casting the inputs alone is not enough. Float64 stays
    float64.
    """

    @wraps(function)
    def island(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        device = next((tensor.device.type for tensor in tensors), "cpu")
        with torch.autocast(device_type=device, enabled=False):
            widened = {name: _widen(value) for name, value in kwargs.items()}
            return function(*(_widen(value) for value in args), **widened)

    return island
