"""What all reports share: figures (SVG and PNG), their look, and the pieces of a page that stands alone.

The same input gives the same file, to the last byte. The figures can be read without colours: markers, line
styles and fill differ too. Matplotlib is used through its objects; its settings hold only while a figure is
drawn.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milpver.errors import DataError

__all__ = [
    "FAINT",
    "INK",
    "STYLE",
    "Figure",
    "counted",
    "draw",
    "facts_table",
    "few_ticks",
    "figure_html",
    "frame",
    "free_name",
    "items",
    "look",
    "marked",
    "plain_numbers",
    "put",
    "slug",
    "text",
]

#: Okabe and Ito's colours, dark ones first; with markers, dashes and fill that differ without them.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 3)))

INK, FAINT = "#222222", "#b0b0b0"
_DPI = 150


def text(value: float | None) -> str:
    """A number for people, three digits; an en dash for None."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 query``, ``2 queries``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A figure before it is drawn.

    Attributes:
        name: of its files, without ending.
        title: a short line.
        caption: what it shows and how to read it.
        paint: draws it into axes.
        size: inches.
    """

    name: str
    title: str
    caption: str
    paint: Callable[[Any], None]
    size: tuple[float, float]


def draw(figure: Figure, *, kind: str, caption: bool = True) -> bytes:
    """Draw a figure.

    Args:
        figure: what to draw.
        kind: ``svg`` or ``png``.
        caption: whether the caption stands below it; without, no title either.

    Returns:
        The file; the same for the same figure.
    """
    import matplotlib as mpl  # noqa: PLC0415  0.5 s, only to draw
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  as above
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415  as above
    from matplotlib.figure import Figure as Sheet  # noqa: PLC0415  as above

    wide, high = figure.size
    lines = textwrap.wrap(figure.caption, width=int(wide * 16)) if caption else []
    room = 0.16 * len(lines) + (0.15 if lines else 0.0)
    # The hash salt is what makes the names inside an SVG the same each time; Matplotlib takes it only so.
    with mpl.rc_context({"svg.hashsalt": "milpver", "svg.fonttype": "path"}):
        sheet = Sheet(figsize=(wide, high + room), dpi=_DPI, facecolor="white")
        canvas = (FigureCanvasSVG if kind == "svg" else FigureCanvasAgg)(sheet)
        total, top = high + room, 0.35 if caption else 0.12
        left, bottom = 0.75, 0.5
        axes = sheet.add_axes(
            (left / wide, (room + bottom) / total, (wide - left - 0.2) / wide, (high - bottom - top) / total)
        )
        figure.paint(axes)
        if caption:
            axes.set_title(figure.title, fontsize=11, color=INK)
            sheet.text(0.15 / wide, 0.08 / total, "\n".join(lines), fontsize=8, va="bottom", color=INK)
        packed = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        canvas.print_figure(packed, format=kind, dpi=_DPI, metadata=metadata)
    return _described(packed.getvalue(), figure) if kind == "svg" else packed.getvalue()


def _described(svg: bytes, figure: Figure) -> bytes:
    """An SVG with title and description for screen readers, and nothing that points outside."""
    found = svg.decode("utf-8")
    found = re.sub(r"<!DOCTYPE.*?>\s*", "", found, flags=re.DOTALL)
    found = re.sub(r"\s*<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    # Several of them may stand in one page, where names have to differ.
    found = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{figure.name}-", found)
    words = (
        f'<title id="{figure.name}-t">{html.escape(figure.title)}</title>'
        f'<desc id="{figure.name}-d">{html.escape(figure.caption)}</desc>'
    )
    label = f' role="img" aria-labelledby="{figure.name}-t {figure.name}-d"'
    found = re.sub(r"(<svg\b[^>]*?)>", lambda m: f"{m[1]}{label}>\n {words}", found, count=1, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in found.splitlines()).encode("utf-8") + b"\n"


def look(k: int) -> dict[str, Any]:
    """How the k-th curve looks."""
    colour = _COLOURS[k % len(_COLOURS)]
    return {
        "color": colour,
        "marker": _MARKERS[k % len(_MARKERS)],
        "linestyle": _DASHES[(k + k // len(_DASHES)) % len(_DASHES)],
        "markerfacecolor": colour if k % 2 == 0 else "white",
        "markeredgecolor": colour,
        "markersize": 5.5,
        "linewidth": 1.4,
    }


def marked(points: int) -> list[int]:
    """Which points of a curve get a marker: about a dozen, the last one among them."""
    return sorted(range(points - 1, -1, -max(1, points // 12)))


def frame(axes: Any, across: str, up: str) -> None:
    """Label the axes, and give them a quiet grid."""
    axes.set_xlabel(across, fontsize=10, color=INK)
    axes.set_ylabel(up, fontsize=10, color=INK)
    axes.grid(True, which="major", color="#e2e2e2", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis 0.1, 1, 10 in place of powers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: PLC0415  only to draw

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def few_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks at 1, 2, 5 of each decade where there are few decades, at the decades otherwise."""
    from matplotlib.ticker import FixedLocator, NullLocator  # noqa: PLC0415  only to draw

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    plain_numbers(axis)


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "x"


def free_name(name: str, taken: set[str]) -> str:
    """A name that is not taken: slugs may fall together."""
    found = next(each for k in itertools.count() if (each := name + f"_{k}" * (k > 0)) not in taken)
    taken.add(found)
    return found


# ------------------------------------------------------------------------------------------- the page

STYLE = """\
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
  padding: 1rem; max-width: 62rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ccc; }
thead th { border-bottom: 2px solid #222; vertical-align: bottom; }
th:first-child, .facts td { text-align: left; }
.facts th { text-align: left; vertical-align: top; font-weight: 600; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .9rem; max-width: 46rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.wrong { border-left: .4rem solid #222; padding-left: .8rem; font-weight: 600; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .7rem; }
@media print { body { max-width: none; font-size: 10pt; padding: 0; } table { font-size: 7.5pt; }
  th, td { padding: .15rem .25rem; } figure, tr { break-inside: avoid; } .wide { overflow: visible; } }
"""


def items(lines: Sequence[str] | Iterator[str]) -> str:
    """Lines as the entries of an HTML list."""
    return "\n".join(f"<li>{html.escape(line)}</li>" for line in lines)


def facts_table(facts: Mapping[str, str]) -> str:
    """Names and values as an HTML table."""
    rows = "\n".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f'<table class="facts">\n<tbody>\n{rows}\n</tbody>\n</table>'


def figure_html(figure: Figure, svg: str) -> str:
    """A figure in the page: without the XML declaration, and without namespaces, which HTML does not need."""
    inline = re.sub(r"<\?xml.*?\?>\s*", "", svg, flags=re.DOTALL)
    inline = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", inline)
    caption = html.escape(figure.caption)
    words = f"<b>{html.escape(figure.title)}.</b> {caption}"
    return f"<figure>\n{inline}<figcaption>{words}</figcaption>\n</figure>\n"


def put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            needed="a folder that can be written, with room for the report",
            fix="free the disk or the permission, or name another folder with --report",
        ) from error
