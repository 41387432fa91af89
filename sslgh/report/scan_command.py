"""``sslgh scan FOLDER --report``: what only features show, added to what decoding shows."""

from pathlib import Path
from typing import Any, NamedTuple

from sslgh.explore.extra import optional
from sslgh.explore.look import LookResult, results_folder
from sslgh.recipe.errors import printable
from sslgh.report.look_command import look_and_report


class Likeness(NamedTuple):
    """Near copies and quality of a folder, for a scan.

    Attributes:
        record: For ``json.dumps``: ``near_duplicates`` and ``near_leaks`` (groups of names), ``quality`` (names by
            fault), ``report`` (path of the page).
        text: The same for a terminal, in lines.
    """

    record: dict[str, Any]
    text: str


def check_needs(folder: Path, out: Path | None) -> None:
    """Refuse before the scan what `likeness` would refuse after it: missing packages, a folder of others' files."""
    for name in ("jinja2", "imagehash"):
        optional(name)
    results_folder(folder, out)


def likeness(folder: Path, out: Path | None, model: str | None) -> Likeness:
    """Look at a folder and write its page; arguments and errors as for `look_folder`."""
    result = look_and_report(folder, out, model, quiet=True)
    assert result is not None  # a scan is one process
    record = likeness_record(result)
    faults = ", ".join(f"{len(names)} {fault}" for fault, names in record["quality"].items())
    lines = [
        f"near duplicates: {len(record['near_duplicates'])} groups, {len(record['near_leaks'])} of them in several splits",
        f"quality: {faults or 'no picture is dark, bright, blurred, tiny, empty or of an odd shape'}",
        f"report: {printable(record['report'])}",
    ]
    return Likeness(record, "\n".join(lines))


def likeness_record(result: LookResult) -> dict[str, Any]:
    """Near copies and quality by name."""
    found = result.findings
    groups = [[found.files[i] for i in group] for group in found.copies.groups]
    return {
        "near_duplicates": groups,
        "near_leaks": [groups[number] for number in found.leaks],
        "quality": {
            fault: [found.files[i] for i in mask.nonzero()[0]]
            for fault, mask in found.faults.items()
            if mask.any()
        },
        "report": str(result.out / "report.html"),
    }
