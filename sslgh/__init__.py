"""Self-supervised pretraining on long-tailed images, and classification on top of it."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["load", "pretrain_backbone"]

PUBLIC = {"load": "sslgh.explore.photo_model", "pretrain_backbone": "sslgh.own_backbone"}


def __getattr__(name: str) -> Any:
    """Public functions, imported when they are asked for: `sslgh --help` must not wait for torch."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'sslgh' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)
