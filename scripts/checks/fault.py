"""What a planted fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """What to replace by what, and the tests that must notice.

    Args:
        name: In plain words, one of its own.
        file: Below ``sslgh/``.
        old: A text that is in the file once.
        new: What to plant in its place.
        tests: A test file below ``tests/``, after it pytest's options if any: ``-k swav``.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
