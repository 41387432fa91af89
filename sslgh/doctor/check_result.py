"""Result of a check of the doctor."""

from typing import Literal, NamedTuple

from sslgh.recipe.errors import printable


class CheckResult(NamedTuple):
    """One line of the doctor.

    Attributes:
        state: FAIL where a run would die or be wrong, warn where it would be slow or tight.
        subject: Subject of the check.
        found: State that was found.
        remedy: Remedy; empty if none is needed.
    """

    state: Literal["ok", "warn", "FAIL"]
    subject: str
    found: str
    remedy: str = ""


def format_result(finding: CheckResult) -> str:
    """The finding as a line.

    Examples:
        >>> format_result(CheckResult("warn", "disk", "1.0 GB free", "move old runs"))
        'warn  disk: 1.0 GB free; move old runs'
    """
    text = f"{finding.state:<4}  {finding.subject}: {finding.found}"
    return printable(f"{text}; {finding.remedy}" if finding.remedy else text)
