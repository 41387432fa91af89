"""One picture of a folder: a row of typical photos per group."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sslgh.explore.findings import Findings
from sslgh.explore.thumbnails import thumbnail

SIDE, GAP, MARGIN, TITLE = 112, 6, 24, 190
MOST_ROWS, COLUMNS = 24, 8
INK, FAINT, PAPER, EMPTY = "#1c2024", "#6b7280", "#ffffff", "#eceef1"


def contact_sheet(folder: Path, found: Findings) -> Image.Image:
    """Typical photos of the largest groups and the smallest: at most 24 rows of 8, with shares."""
    groups = list(enumerate(found.groups.groups, 1))
    shown = (
        groups
        if len(groups) <= MOST_ROWS
        else [*groups[: MOST_ROWS // 2], *groups[-MOST_ROWS // 2 :]]
    )
    width = 2 * MARGIN + TITLE + COLUMNS * (SIDE + GAP)
    sheet = Image.new("RGB", (width, 2 * MARGIN + len(shown) * (SIDE + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    write = _writer(draw)
    for row, (number, group) in enumerate(shown):
        top = MARGIN + row * (SIDE + GAP)
        write((MARGIN, top + 22), f"group {number}", 20, INK)
        write(
            (MARGIN, top + 48), f"{len(group.members):,} photos, {_percent(group.share)}", 14, FAINT
        )
        if group.resamples:
            write((MARGIN, top + 68), f"found again {group.found} of {group.resamples}", 14, FAINT)
        for column, i in enumerate(group.members[:COLUMNS].tolist()):
            left = MARGIN + TITLE + column * (SIDE + GAP)
            picture = thumbnail(folder / found.files[i], SIDE)
            if picture is None:
                draw.rectangle((left, top, left + SIDE, top + SIDE), fill=EMPTY)
            else:
                sheet.paste(picture, (left, top))
    return sheet


def _writer(draw: ImageDraw.ImageDraw) -> Callable[[tuple[int, int], str, int, str], None]:
    def write(place: tuple[int, int], text: str, size: int, color: str) -> None:
        draw.text(place, text, fill=color, font=ImageFont.load_default(size))

    return write


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
