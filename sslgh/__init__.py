"""Self-supervised pretraining on long-tailed images, and classification on top of it."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["pretrain_backbone"]


def __getattr__(name: str) -> Any:
    """Public functions, imported when they are asked for: `sslgh --help` must not wait for torch."""
    if name != "pretrain_backbone":
        raise AttributeError(f"module 'sslgh' has no attribute {name!r}")
    from sslgh.own_backbone import pretrain_backbone  # noqa: PLC0415

    return pretrain_backbone
