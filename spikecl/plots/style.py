"""What all figures share: colours, small type, quiet axes."""

from __future__ import annotations

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe & Ito, Color Universal Design (2008), without the yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DARK, GREY, LIGHT = "#222222", "#707070", "#DDDDDD"
SMALL, NORMAL = 8.0, 9.0


class NotebookFigure(Figure):
    """A figure that a notebook shows without ``pyplot`` or a chosen backend."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=110)
        return stream.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, that keeps its axes from overlapping."""
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.07)
    return NotebookFigure(figsize=(width, height), layout=layout, facecolor="white")


def colour(i: int) -> str:
    """Return the colour of the i-th group; after seven they come again."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """Return the marker of the i-th group; it goes on to the next when the colours come again."""
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def ordered_colours(n: int) -> list[str]:
    """Return n colours for things in an order: a few distinct ones, or many along viridis."""
    if n < len(COLOURS):
        return list(COLOURS[:n])
    return [to_hex(c) for c in matplotlib.colormaps["viridis"](np.linspace(0, 0.9, n))]


def percent(value: float, digits: int = 1) -> str:
    """Return a fraction as per cent, without the sign, with a real minus."""
    return f"{100 * value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def plain(text: str) -> str:
    """Return text in which a dollar is a dollar and not the start of a formula."""
    return text.replace("$", r"\$")


def thinned(n: int, most: int) -> list[int]:
    """Return at most ``most`` of the positions 0 to n - 1, evenly spaced, the first among them."""
    return list(range(0, n, max(1, -(-n // most))))


def tidy(ax: Axes, title: str, *, grid: str = "y") -> None:
    """Give axes a title, small type, and as few lines as possible."""
    ax.set_title(plain(title), fontsize=NORMAL, color=DARK, loc="left")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(labelsize=SMALL, color=GREY, labelcolor=DARK, length=3)
    ax.xaxis.label.set(fontsize=SMALL, color=DARK)
    ax.yaxis.label.set(fontsize=SMALL, color=DARK)
    ax.set_axisbelow(True)
    if grid == "y":
        ax.yaxis.grid(True, color=LIGHT, linewidth=0.6)
    elif grid == "x":
        ax.xaxis.grid(True, color=LIGHT, linewidth=0.6)


def only_possible(axis: Axis) -> None:
    """Drop the ticks of an axis in per cent that no accuracy can reach."""
    low, high = sorted(axis.get_view_interval())
    axis.set_ticks([t for t in axis.get_ticklocs() if max(low, -100) <= t <= min(high, 100)])


def note(ax: Axes, text: str) -> None:
    """Write in the middle of axes why there is nothing to see."""
    ax.text(
        0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=SMALL, color=GREY
    )
