"""Text from outside, made safe to print."""

import os


def printable(text: str | os.PathLike[str]) -> str:
    r"""The text in one line, with what a terminal would act on written as an escape.

    A name of a file or a class can hold line breaks, terminal codes, turned writing direction or
    bytes that are no text: printed as they are they forge lines, or cannot be encoded.

    Examples:
        >>> printable("Grüße, 猫")
        'Grüße, 猫'
        >>> print(printable("cat\n\x1b[31mdog\udcff"))
        cat\n\x1b[31mdog\udcff
    """
    return "".join(one if one.isprintable() else _escaped(one) for one in os.fspath(text))


def _escaped(one: str) -> str:
    return one.encode("unicode_escape").decode("ascii")
