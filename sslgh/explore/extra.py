"""Libraries of the extra `look`, imported where they are used."""

import importlib
from types import ModuleType


def optional(name: str) -> ModuleType:
    """Import a library that plain training does not need.

    Raises:
        ValueError: If it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} cannot be imported ({error}): pip install '.[look]' in the checkout of sslgh"
        ) from None
