"""Checks of arguments shared by the losses: one sentence that says expected and got."""

from torch import Tensor


def check_views(z1: Tensor, z2: Tensor) -> None:
    """Raise ``ValueError`` unless both views are (N, D) and alike."""
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(
            f"views must share a shape (N, D), got {tuple(z1.shape)} and {tuple(z2.shape)}"
        )


def check_positive(**values: float) -> None:
    """Raise ``ValueError`` for the first named value that is not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_labels(rows: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` unless ``rows`` is (N, ...) with one integer label a row."""
    if rows.ndim != 2 or target.shape != rows.shape[:1]:
        raise ValueError(
            f"expected rows (N, .) with labels (N,), got {tuple(rows.shape)} and {tuple(target.shape)}"
        )
    if target.is_floating_point():
        raise ValueError(f"labels must be integers, got {target.dtype}")


def check_prior(prior: Tensor, classes: int) -> None:
    """Raise ``ValueError`` unless ``prior`` is (C,); its values are the caller's to vouch for."""
    if prior.shape != (classes,):
        raise ValueError(
            f"prior must have shape ({classes},), one share a class, got {tuple(prior.shape)}"
        )
