"""Worst cases as a picture: the digit, the neurons whose removal hurts it most, and its adversarial twin.

Colours are those of Okabe and Ito and a purple-orange scale, which all kinds of colour vision tell apart;
removed neurons are crossed out as well. Matplotlib is used through its objects: no window, no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Panel", "draw"]

KEPT, REMOVED, INK = "#c9dcea", "#d55e00", "#222222"

#: Inches of one panel (a row of four pictures), and of the space for the headings; dots an inch.
_WIDE, _HIGH, _HEAD = 6.4, 1.9, 0.7
_DPI = 110
#: Neurons in a row of the strip.
_ACROSS = 12
#: How far the colours of the difference reach beyond it: the ends of the scale are nearly black.
_FADE = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """What is drawn of one input.

    Attributes:
        title: a line about the input.
        image: float [height, width], grey values in ``span``.
        widths: neurons of each gateable layer.
        removed: (layer from 1, neuron from 0) of the worst mask; None where there is none.
        mask_title: a line about the worst mask.
        adversarial: the closest adversarial image, as ``image``; None where there is none.
        adversarial_title: a line about it.
        span: darkest and brightest grey value.
    """

    title: str
    image: NDArray[np.floating[Any]]
    widths: tuple[int, ...]
    removed: tuple[tuple[int, int], ...] | None
    mask_title: str
    adversarial: NDArray[np.floating[Any]] | None
    adversarial_title: str
    span: tuple[float, float] = (0.0, 1.0)


def draw(panels: Sequence[Panel], heading: str) -> bytes:
    """Draw the panels, two beside each other.

    Args:
        panels: at least one.
        heading: a line above all.

    Returns:
        A PNG file; the same for the same panels.

    Raises:
        ValueError: no panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  0.5 s, only to draw
    from matplotlib.figure import Figure  # noqa: PLC0415  as above

    if not panels:
        raise ValueError("no panels to draw")
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    size = (_WIDE * across, _HIGH * down + _HEAD)
    figure = Figure(figsize=size, dpi=_DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(0.5, 1 - 0.2 / size[1], heading, ha="center", va="top", fontsize=11, color=INK)
    room = 1 - _HEAD / size[1]
    for k, panel in enumerate(panels):
        row, column = divmod(k, across)
        corner = (column / across, room * (1 - (row + 1) / down))
        _draw_panel(figure, panel, corner, (1 / across, room / down))
    packed = io.BytesIO()
    canvas.print_figure(packed, format="png", dpi=_DPI, metadata={"Software": None})
    return packed.getvalue()


def _draw_panel(figure: Any, panel: Panel, corner: tuple[float, float], size: tuple[float, float]) -> None:
    """One panel in a rectangle of the figure, both in parts of it."""

    def axes(start: float, width: float) -> Any:
        added = figure.add_axes(
            (corner[0] + start * size[0], corner[1] + 0.06 * size[1], width * size[0], 0.68 * size[1])
        )
        added.set_xticks([])
        added.set_yticks([])
        return added

    low, high = panel.span
    picture = axes(0.02, 0.19)
    picture.imshow(panel.image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    _title(picture, panel.title)
    _draw_mask(axes(0.25, 0.27), panel)
    twin, change = axes(0.56, 0.19), axes(0.79, 0.19)
    _title(twin, panel.adversarial_title)
    if panel.adversarial is None:
        for empty in (twin, change):
            empty.set_axis_off()
        return
    twin.imshow(panel.adversarial, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    difference = panel.adversarial - panel.image
    most = float(np.abs(difference).max()) or 1.0
    change.imshow(difference, cmap="PuOr", vmin=-_FADE * most, vmax=_FADE * most, interpolation="nearest")
    _title(change, f"difference\norange -{most:.3f}\npurple +{most:.3f}")


def _draw_mask(axes: Any, panel: Panel) -> None:
    """The neurons of each layer as rows of cells, the removed ones crossed out."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415  only to draw

    gone = set(panel.removed or ())
    top = 0.0
    for layer, width in enumerate(panel.widths, start=1):
        axes.text(
            -0.4,
            top + math.ceil(width / _ACROSS) / 2,
            f"{layer}",
            ha="right",
            va="center",
            fontsize=7,
            color=INK,
        )
        for neuron in range(width):
            row, column = divmod(neuron, _ACROSS)
            is_gone = (layer, neuron) in gone
            place = (column + 0.06, top + row + 0.06)
            axes.add_patch(Rectangle(place, 0.88, 0.88, color=REMOVED if is_gone else KEPT, linewidth=0))
            if is_gone:
                x, y = column + 0.5, top + row + 0.5
                axes.plot([x - 0.3, x + 0.3], [y - 0.3, y + 0.3], color="white", linewidth=1)
                axes.plot([x - 0.3, x + 0.3], [y + 0.3, y - 0.3], color="white", linewidth=1)
        top += math.ceil(width / _ACROSS) + 0.6
    axes.set_xlim(-1.2, _ACROSS)
    axes.set_ylim(max(top, 1.0), 0)
    axes.set_aspect("equal", anchor="C")
    axes.set_axis_off()
    _title(axes, panel.mask_title)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=7.5, color=INK, pad=3)
