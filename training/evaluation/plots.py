"""Plots for the documentation: plain axes, and labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from models.checkpoint import bytes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

INK, PALE, ACCENT = "#2f3437", "#8b9196", "#b5563c"
# Blue, rust, green, violet, ochre, teal, grey, of equal darkness.
COLOURS = ("#40658f", "#b5563c", "#5c8a58", "#82659a", "#b08a35", "#3f8b92", "#75797d")

# Directions from a dot to its label, in order of preference.
_DIRECTIONS = ((1, 0), (0, 1), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1))
_GAPS = (4.0, 10.0, 18.0, 28.0, 40.0)  # points between a dot and its label
_LEADER = 18.0  # with this gap or more, a thin line connects dot and label
_SIDES: dict[int, Literal["left", "center", "right"]] = {1: "left", 0: "center", -1: "right"}
_ENDS: dict[int, Literal["bottom", "center", "top"]] = {1: "bottom", 0: "center", -1: "top"}


@dataclass(frozen=True)
class Dot:
    """A labelled point in data coordinates; `area` in square points; `top` is the upper end of its arrow, if any."""

    x: float
    y: float
    area: float
    label: str
    colour: str = INK
    top: float | None = None

    @property
    def radius(self) -> float:
        """The radius in points."""
        return math.sqrt(self.area / math.pi)


def blank(title: str, subtitle: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Return an empty plot of 8 x 5 inches with a title, a subtitle and a light grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{title}\n", loc="left", fontsize=13, fontweight="bold", color=INK)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color=PALE)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(which="major", color="#e6e8ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3c7ca")
    axes.tick_params(which="both", colors=INK, length=0)
    return figure, axes


def place_labels(axes: Axes, dots: Sequence[Dot]) -> int:
    """Draw each dot's label near it, without covering dots or other labels; return the number of labels drawn.

    Earlier dots get better positions; a label without a free position is left out. Call it after everything else is
    drawn and the limits are set.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes.get_figure(root=True)
    assert figure is not None  # noqa: S101  `blank` made it
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    occupied = [_covered(axes, dot, figure.dpi / 72) for dot in dots]
    for dot in dots:
        if (box := _place(axes, dot, occupied, renderer)) is not None:
            occupied.append(box)
    return len(occupied) - len(dots)


def _covered(axes: Axes, dot: Dot, scale: float) -> Bbox:
    """Return the area of the dot and its arrow; `scale` is pixels per point."""
    from matplotlib.transforms import Bbox

    (left, low), (right, high) = axes.transData.transform([(dot.x, dot.y), (dot.x, dot.top or dot.y)])
    reach = dot.radius * scale
    return Bbox.from_extents(left - reach, low - reach, right + reach, max(high, low) + reach)


def _place(axes: Axes, dot: Dot, occupied: Sequence[Bbox], renderer: RendererAgg) -> Bbox | None:
    frame = axes.get_window_extent()
    for gap in _GAPS:
        for direction in _DIRECTIONS:
            text = _annotate(axes, dot, direction, gap)
            box = _extent(text, renderer)
            inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in occupied):
                return box
            text.remove()
    return None


def _annotate(axes: Axes, dot: Dot, direction: tuple[int, int], gap: float) -> Annotation:
    across, up = direction
    distance = dot.radius * (0.75 if across and up else 1) + gap
    line = {"arrowstyle": "-", "color": PALE, "linewidth": 0.6, "shrinkA": 1, "shrinkB": dot.radius}
    return axes.annotate(
        dot.label,
        (dot.x, dot.y),
        (across * distance, up * distance),
        textcoords="offset points",
        ha=_SIDES[across],
        va=_ENDS[up],
        fontsize=9,
        color=dot.colour,
        arrowprops=line if gap >= _LEADER else None,
    )


def _extent(text: Annotation, renderer: RendererAgg) -> Bbox:
    """Return the area of the text without its connecting line."""
    from matplotlib.text import Text

    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file."""
    return bytes_of(lambda file: figure.savefig(file, format="png"))
