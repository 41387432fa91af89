"""Checks of arguments shared by the losses, and the float32 islands they compute in."""

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

    exp(1 / 0.05) is infinite in float16, and autocast rounds the inputs of a matmul to half again.
    """

    @wraps(function)
    def island(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        device = next((tensor.device.type for tensor in tensors), "cpu")
        with torch.autocast(device_type=device, enabled=False):
            widened = {name: _widen(value) for name, value in kwargs.items()}
            return function(*(_widen(value) for value in args), **widened)

    return island


def with_float64(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run ``function`` on the CPU where its tensors are on an MPS device, which has no float64.

    The result comes back to the device, unless it is float64.
    """

    @wraps(function)
    def island(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        if device.type != "mps":
            return function(*args, **kwargs)
        moved = {name: _to_cpu(value) for name, value in kwargs.items()}
        result = function(*(_to_cpu(value) for value in args), **moved)
        return result if result.dtype == torch.float64 else result.to(device)

    return island


def _to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def shapes(*tensors: Tensor) -> str:
    """Shapes of tensors as a message shows them: ``(3, 4) and (3, 5)``."""
    return " and ".join(str(tuple(tensor.shape)) for tensor in tensors)


def check_views(z1: Tensor, z2: Tensor) -> None:
    """Raise ``ValueError`` unless both views are (N, D) and alike."""
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"views must share a shape (N, D), got {shapes(z1, z2)}")


def check_positive(**values: float) -> None:
    """Raise ``ValueError`` for the first named value that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_labels(rows: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` unless ``rows`` is (N, ...) with one integer label per row."""
    if rows.ndim != 2 or target.shape != rows.shape[:1]:
        raise ValueError(f"expected rows (N, .) with labels (N,), got {shapes(rows, target)}")
    if target.is_floating_point():
        raise ValueError(f"labels must be integers, got {target.dtype}")


def check_prior(prior: Tensor, classes: int) -> None:
    """Raise ``ValueError`` unless ``prior`` is (C,): its values are not checked."""
    if prior.shape != (classes,):
        raise ValueError(
            f"prior must have shape ({classes},), one share per class, got {tuple(prior.shape)}"
        )
