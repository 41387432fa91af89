"""``report.html`` of a folder that was looked at.

Shapes: N photos, P photos on the page, K groups.
"""

import json
import math
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np

from sslgh.explore.findings import Findings
from sslgh.explore.groups import Group, kept_count
from sslgh.explore.look import LookResult, classify_line
from sslgh.explore.neighbors import nearest_neighbors
from sslgh.explore.photo_map import neighbor_map, principal_plane, shown_on_map, umap_map
from sslgh.explore.picture_quality import RULES
from sslgh.explore.select import Choice
from sslgh.recipe.errors import printable
from sslgh.report.page import percent, render
from sslgh.report.pictures import LARGE, MEDIUM, SMALL, thumbnails

TYPICAL, EDGE, NEAREST = 12, 4, 10
MOST_KINDS, MOST_COPIES, MOST_ODD, MOST_FAULTY = 40, 40, 36, 12
# Photos of one group of copies that are shown, and pictures in the highest column of the tail curve.
SHOWN_COPIES, HIGHEST = 4, 9


def look_page(result: LookResult) -> str:
    """The page as text."""
    folder, found, first = result.folder, result.findings, result.first
    model, skipped = result.model, result.embeddings.skipped
    kinds = [_kind(n, group) for n, group in enumerate(found.groups.groups, 1)]
    shown = kinds[:MOST_KINDS]
    on_map = shown_on_map(len(found.files))
    pictures = thumbnails(folder, found.files, _wanted(found, shown, first, on_map.tolist()))
    data = _data(found, first, on_map, pictures)
    return render(
        "look.html",
        "look.js",
        title=printable(folder.name or str(folder)),
        folder=printable(folder),
        model=printable(model),
        made=datetime.now(UTC).strftime("%Y-%m-%d"),
        counts=_counts(found, skipped),
        headline=_headline(found),
        columns=_columns(shown),
        per_picture=max(1, round(found.tail.sizes[0] / HIGHEST)),
        kinds=shown,
        resamples=len(found.groups.numbers),
        left_out=1 - kept_count(len(found.files)) / len(found.files),
        widest=max(max(kind["share"], kind["high"] or 0) for kind in kinds),
        more_kinds=kinds[MOST_KINDS:],
        copies=_copies(found),
        more_copies=max(0, len(found.copies.groups) - MOST_COPIES),
        leaks=len(found.leaks),
        split=any(found.split),
        odd=found.odd[:MOST_ODD].tolist(),
        faults=_faults(found),
        first=[{"position": one.row, "reason": one.reason} for one in first],
        mapped=len(on_map),
        has_umap="umap" in data["map"],
        pictured=len(pictures),
        skipped=[(printable(name), printable(why)) for name, why in list(skipped.items())[:20]],
        skipped_count=len(skipped),
        command=f"sslgh look {shlex.quote(str(folder))} --out {shlex.quote(str(result.out))} --model {shlex.quote(model)}",
        classify=classify_line(result),
        names=[printable(name) for name in found.files],
        data=_json(data),
    )


def _kind(number: int, group: Group) -> dict[str, Any]:
    """One group as the page shows it."""
    members = group.members.tolist()
    return {
        "number": number,
        "count": len(members),
        "share": group.share,
        "low": None if math.isnan(group.low) else group.low,
        "high": None if math.isnan(group.high) else group.high,
        "found": group.found,
        "resamples": group.resamples,
        "recurs": 2 * group.found >= group.resamples > 0,
        "typical": members[:TYPICAL],
        "edge": members[TYPICAL:][-EDGE:],
    }


def _wanted(
    found: Findings, kinds: list[dict[str, Any]], first: list[Choice], on_map: list[int]
) -> Iterator[tuple[int, int]]:
    """Position and side of each thumbnail, the most needed first."""
    yield from ((one.row, LARGE) for one in first)
    for kind in kinds:
        yield from ((i, MEDIUM) for i in kind["typical"] + kind["edge"])
    for group in found.copies.groups[:MOST_COPIES]:
        yield from ((i, MEDIUM) for i in group[:SHOWN_COPIES])
    yield from ((i, MEDIUM) for i in found.odd[:MOST_ODD].tolist())
    for mask in found.faults.values():
        yield from ((i, MEDIUM) for i in np.flatnonzero(mask)[:MOST_FAULTY].tolist())
    yield from ((i, SMALL) for i in np.random.default_rng(0).permutation(on_map).tolist())


def _columns(kinds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups as columns of pictures: their heights are in the ratio of the sizes, one picture at least."""
    largest = kinds[0]["count"]
    return [
        {**kind, "pictures": kind["typical"][: max(1, round(HIGHEST * kind["count"] / largest))]}
        for kind in kinds
    ]


def _counts(found: Findings, skipped: dict[str, str]) -> list[tuple[str, str]]:
    """The numbers at the top of the page, each with its words."""
    groups = found.groups
    counts = [
        (f"{len(found.files):,}", "photos read" + (f", {len(skipped):,} not" if skipped else "")),
        (f"{len(groups.recurring)}", f"groups recur, of {len(groups.groups)} found")
        if groups.numbers
        else (f"{len(groups.groups)}", "groups; too few photos to divide them again"),
        (f"{found.copies.spare:,}", "near copies"),
        (f"{len(found.odd):,}", "unlike all others"),
    ]
    if any(found.split):
        counts.append((f"{len(found.leaks):,}", "copies across splits"))
    return counts


def _headline(found: Findings) -> str:
    """One sentence on how unequal the groups are."""
    tail = found.tail
    if len(tail.sizes) == 1:
        return "To this network the photos are one group: it sees no gaps between kinds."
    most = "The largest group holds" if tail.half == 1 else f"The {tail.half} largest groups hold"
    share, rare = percent(sum(tail.sizes[: tail.half]) / sum(tail.sizes)), percent(tail.rare_share)
    return (
        f"{most} {share} of the photos; the {len(tail.sizes) // 2} smallest together hold {rare}."
    )


def _copies(found: Findings) -> list[dict[str, Any]]:
    leaks = set(found.leaks)
    # Those across splits first: they make a test result wrong.
    order = sorted(range(len(found.copies.groups)), key=lambda n: n not in leaks)
    return [
        {
            "photos": [_copy(found, i) for i in found.copies.groups[n][:SHOWN_COPIES]],
            "more": max(0, len(found.copies.groups[n]) - SHOWN_COPIES),
            "leak": n in leaks,
        }
        for n in order[:MOST_COPIES]
    ]


def _copy(found: Findings, position: int) -> dict[str, Any]:
    width, height = found.sides[position].tolist()
    size = f"{width} x {height}" if width else ""
    return {"position": position, "size": size, "split": found.split[position]}


def _faults(found: Findings) -> list[dict[str, Any]]:
    """Kinds of faults of the pictures themselves that occur."""
    return [
        {
            "words": RULES[name].words,
            "count": int(mask.sum()),
            "photos": np.flatnonzero(mask)[:MOST_FAULTY].tolist(),
        }
        for name, mask in found.faults.items()
        if mask.any()
    ]


def _data(
    found: Findings, first: list[Choice], on_map: np.ndarray[Any, Any], pictures: dict[int, str]
) -> dict[str, Any]:
    """What the script needs: photos by position, their pictures, neighbors, places on the map."""
    here = np.array(sorted(pictures), dtype=np.int64)
    near = nearest_neighbors(found.rows[here], NEAREST).index if len(here) else here
    rows = found.rows[on_map]
    named = sorted({*on_map.tolist(), *pictures, *(one.row for one in first)})
    return {
        "files": {i: found.files[i] for i in named},
        "group": {i: int(found.label[i]) + 1 for i in named},
        "pictures": pictures,
        "near": {int(i): here[row].tolist() for i, row in zip(here, near, strict=True)},
        "map": {"photos": on_map.tolist()} | _places(rows),
        "first": [one.row for one in first],
    }


def _places(rows: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Places of the photos on each map that there is."""
    maps = {
        "neighbors": neighbor_map(rows),
        "axes": principal_plane(rows),
        "umap": umap_map(rows),
    }
    return {name: found.round(3).tolist() for name, found in maps.items() if found is not None}


def _json(data: dict[str, Any]) -> str:
    """JSON in which nothing can end a script element, whatever names hold."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
