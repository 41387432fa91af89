"""Plain-text columns within 100 characters."""

from collections.abc import Iterator, Sequence

from sslgh.evaluation.results import Spread

WIDTH = 100


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Iterator[str]:
    """Lines of a table: its heads, then its rows.

    The first ``left`` columns are words, aligned to the left, and the last of these is cut in the
    middle where a line would be longer than `WIDTH`; the others are numbers.

    Examples:
        >>> for line in aligned(["run", "error"], [["a", "50.0"], ["bb", "7.5"]], left=1):
        ...     print(line)
        run  error
        a     50.0
        bb     7.5
    """
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    room = WIDTH - sum(widths) - 2 * (len(widths) - 1) + widths[left - 1]
    widths[left - 1] = min(room, widths[left - 1])
    for row in (heads, *rows):
        words = [f"{shortened(word, width):<{width}}" for word, width in _zip(row[:left], widths)]
        numbers = [f"{number:>{width}}" for number, width in _zip(row[left:], widths[left:])]
        yield "  ".join([*words, *numbers]).rstrip()


def _zip(cells: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[str, int]]:
    return zip(cells, widths[: len(cells)], strict=True)


def shortened(text: str, width: int) -> str:
    """Cut in the middle: names of runs differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def percent(value: Spread | None) -> str:
    """A share and its spread in percent; a dash for what is not known."""
    return "-" if value is None else _number(100 * value.mean, value.std and 100 * value.std, 1)


def plain(value: Spread | None) -> str:
    """A number and its spread."""
    return "-" if value is None else _number(value.mean, value.std, 2)


def _number(mean: float, std: float | None, digits: int) -> str:
    spread = "" if std is None else f"±{std:.{digits}f}"
    return f"{mean:.{digits}f}{spread}"
