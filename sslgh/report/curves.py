"""Curves of runs as pictures that follow the colors of the page.

Series are lists of epochs and values.
"""

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

from sslgh.explore.extra import optional

# Stand-ins that the page's own colors replace, so that a curve is readable in light and dark.
INK, ACCENT = "#010203", "#040506"
COLORS = (ACCENT, "#d9822b", "#6a6fc4", "#4f9d69", "#b5539c", "#c2a52c", "#c0504d", "#3aa6a6")


class Curve(NamedTuple):
    """One line of a plot.

    Attributes:
        name: Name in the legend; empty for none.
        epochs: Epochs of the values.
        values: Measured values.
    """

    name: str
    epochs: Sequence[float]
    values: Sequence[float]


def plot_svg(
    curves: Sequence[Curve], label: str, *, shaded: tuple[float, float] | None = None
) -> str:
    """A plot as an SVG element without a header.

    Args:
        curves: Lines of the plot.
        label: Name of the values.
        shaded: Epochs from and to which the background is shaded, as while GH is ramped up.

    Raises:
        ValueError: If matplotlib is missing.
    """
    matplotlib = optional("matplotlib")
    figures = optional("matplotlib.figure")
    look = {
        "svg.fonttype": "none",
        "svg.hashsalt": label,
        "font.family": ["sans-serif"],
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.linewidth": 0.6,
    }
    with matplotlib.rc_context(look):
        figure = figures.Figure(figsize=(5.2, 2.7), layout="constrained")
        axes = figure.subplots()
        for curve, color in zip(curves, COLORS, strict=False):
            marker = "o" if len(curve.epochs) < 12 else None
            axes.plot(
                curve.epochs,
                curve.values,
                color=color,
                linewidth=1.8,
                label=curve.name or None,
                marker=marker,
                markersize=3.5,
            )
        if shaded is not None:
            axes.axvspan(*shaded, color=INK, alpha=0.07, linewidth=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        if any(curve.name for curve in curves):
            axes.legend(frameon=False, fontsize=9)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """The svg element alone, named for a screen reader, in the colors of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label} by epoch"', 1)
    return svg.replace(INK, "currentColor").replace(ACCENT, "var(--accent)")
