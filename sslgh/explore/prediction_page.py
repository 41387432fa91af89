"""predictions.html: a gallery for each kind, in one file that needs no network."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

import numpy as np

from sslgh.explore.predict import PhotoKinds
from sslgh.explore.thumbnails import data_uri, thumbnail
from sslgh.recipe.errors import printable

# Thumbnails in all: of 5 to 8 kB each, they stay under 10 MB together.
MOST_THUMBNAILS = 1000
SIDE = 112
# Photos of one kind, and kinds, at most.
MOST_OF_A_KIND, MOST_KINDS = 24, 250

STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { margin: 1rem auto; max-width: 75rem; padding: 0 1rem; line-height: 1.4; }
ul { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; padding: 0; }
li { width: 112px; font-size: .75rem; overflow-wrap: anywhere; }
img { display: block; border-radius: 4px; }
.unsure img { opacity: .55; }
@media print { section { break-inside: avoid; } }
"""


def prediction_page(found: PhotoKinds, folder: Path, *, title: str, note: str) -> str:
    """The page: the kinds with the most photos first, of each the surest and the least sure photos.

    Args:
        found: Kinds of photos.
        folder: Folder in which their names start.
        title: Heading.
        note: A sentence under it.
    """
    first = found.kinds[:, 0]
    counts = np.bincount(first, minlength=len(found.class_names))
    order = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k]]
    shown = order[:MOST_KINDS]
    each = max(1, min(MOST_OF_A_KIND, MOST_THUMBNAILS // max(1, len(shown))))
    sections = "\n".join(_section(found, folder, kind, int(counts[kind]), each) for kind in shown)
    rest = len(order) - len(shown)
    more = f"<p>{rest} kinds with fewer photos are in predictions.csv only.</p>" if rest else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body><h1>{_text(title)}</h1>"
        f"<p>{_text(note)}</p>\n{sections}\n{more}</body></html>\n"
    )


def _section(found: PhotoKinds, folder: Path, kind: int, count: int, each: int) -> str:
    items = "".join(_items(found, folder, kind, each))
    name = _text(found.class_names[kind])
    return f"<section><h2>{name}</h2><p>{count:,} photos</p><ul>{items}</ul></section>"


def _items(found: PhotoKinds, folder: Path, kind: int, each: int) -> Iterator[str]:
    members = np.flatnonzero(found.kinds[:, 0] == kind)
    members = members[np.argsort(-found.probabilities[members, 0], kind="stable")]
    if len(members) > each:  # from the surest to the least sure, evenly
        members = members[np.linspace(0, len(members) - 1, each).round().astype(int)]
    for row in members.tolist():
        image = thumbnail(folder / found.files[row], SIDE)
        if image is None:
            continue
        words = f"{found.probabilities[row, 0]:.0%}"
        if found.unlike is not None and found.unlike[row]:
            words += ", unlike anything seen"
        name = _text(found.files[row])
        state = ' class="unsure"' if found.unsure[row] else ""
        yield (
            f'<li{state}><img src="{data_uri(image)}" width="{SIDE}" height="{SIDE}" alt="{name}">{_text(words)}<br>'
            f"{name}</li>"
        )


def _text(text: str) -> str:
    return escape(printable(text), quote=True)
