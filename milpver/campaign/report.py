"""A campaign as people read it: one HTML page that stands alone, and its figures as SVG and PNG.

The page is made of the store alone: neither networks nor data need to be there. It has no line a query, so
that a campaign of a hundred thousand queries opens at once; ``export`` has those. Everything shown can be
read without colours, on a phone, in print, and by a screen reader; nothing is loaded from anywhere.
"""

from __future__ import annotations

import base64
import html
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver import __version__
from milpver.campaign.figures import Group, cell_text, critical, figures, groups
from milpver.campaign.results import Answers, answers, parameters_text
from milpver.campaign.store import CampaignRow, Store
from milpver.drawing import STYLE, Figure, counted, draw, facts_table, figure_html, items, put, text
from milpver.errors import DataError
from milpver.picture import Panel
from milpver.picture import draw as draw_panels
from milpver.verdict import Answer, Status

__all__ = ["write"]

#: Inputs that are shown as images, and rows of tables.
_HARDEST, _NEURONS, _FAILURES = 8, 10, 20
#: Neurons that a picture of a mask can show, and removed ones that are named where it cannot.
_DRAWABLE, _NAMED = 400, 3

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style
td.words { text-align: left; white-space: normal; min-width: 12rem; }
figure img { max-width: 100%; height: auto; }
nav ul { columns: 12rem; padding-left: 1.2rem; }
@media print { nav { display: none; } pre { font-size: 8pt; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$lead</p>
$warnings
<nav aria-label="Sections"><ul>
$contents
</ul></nav>
$sections
</main>
</body>
</html>
""")

_RULES = (
    "Robust: the worst margin over every admissible removal of neurons (and every input of the ball) is "
    "proven to be above 0. Vulnerable: a removal and an input that change the prediction were replayed "
    "through the network. Everything else is open, and never counted as robust.",
    "Verified accuracy counts all inputs that were asked about, misclassified ones included; where several "
    "solvers answered the same query, what one of them proved counts.",
    "Distances count a tie with another class as reaching it, in the units of the data.",
    "Time is wall-clock time of a query, all competing classes together; loading is left aside.",
)


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of the page; ``body`` is HTML."""

    id: str
    title: str
    body: str


def write(folder: Path, store: Store, campaign: CampaignRow) -> Path:
    """Write ``report.html`` and the figures, replacing what stands there under these names.

    Args:
        folder: made where it is missing; its parent has to be there.
        store: where the answers are.
        campaign: which.

    Returns:
        The page's path.

    Raises:
        DataError: the folder cannot be written.
        RecordError: the store cannot be read.
    """
    _make(folder)
    networks = store.networks(campaign)
    widths = {
        name: {layer["number"]: layer["width"] for layer in each["layers"]} for name, each in networks.items()
    }
    found = groups(list(answers(store, campaign)))
    sections = [_results(found)]
    drawn: list[tuple[Figure, str]] = []
    for figure in figures(found, widths):
        svg = draw(figure, kind="svg", caption=False)
        put(folder / f"{figure.name}.svg", svg)
        put(folder / f"{figure.name}.png", draw(figure, kind="png"))
        drawn.append((figure, svg.decode("utf-8")))
    sections += _drawn(drawn)
    sections += _critical(found)
    sections += _hardest(store, found, networks, folder)
    sections += _failures(store, found)
    sections += [_settings(campaign, found, networks), _Section("rules", "How it is counted", _list(_RULES))]
    page = folder / "report.html"
    put(page, _page(campaign, found, sections).encode("utf-8"))
    return page


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"--out {folder}: {error.strerror or error}",
            needed="a folder that can be written, or a name for one in a folder that is there",
            fix="name another folder with --out",
        ) from error


def _page(campaign: CampaignRow, found: Sequence[Group], sections: Sequence[_Section]) -> str:
    planned = sum(len(each.words) for group in found for each in group.cells)
    done = sum(int((each.words != "").sum()) for group in found for each in group.cells)
    title = f"Campaign {campaign.name}"
    lead = f"{counted(done, 'query', 'queries')} answered" + (
        f" of {planned} planned: this campaign is not finished."
        if done < planned
        else ", all that were planned."
    )
    words: Counter[str] = Counter()
    for group in found:
        for each in group.cells:
            words.update(str(word) for word in each.words if word)
    lead += f" {_worded(words)}." if words else ""
    lead += f" Written on {time.strftime('%Y-%m-%d %H:%M')} by milpver {__version__}."
    wrong = [
        f"CONTRADICTION: {cell_text(group.cells[0].cell)}: two solvers cannot both be right on inputs "
        f"{', '.join(map(str, group.wrong[:10]))}{' ...' * (len(group.wrong) > 10)}; these count as open"
        for group in found
        if group.wrong
    ]
    return _PAGE.substitute(
        title=html.escape(title),
        style=STYLE,
        lead=html.escape(lead),
        warnings="".join(f'<p class="wrong">{html.escape(line)}</p>' for line in wrong),
        contents="\n".join(
            f'<li><a href="#{each.id}">{html.escape(each.title)}</a></li>' for each in sections
        ),
        sections="\n".join(
            f'<section aria-labelledby="{each.id}">\n<h2 id="{each.id}">{html.escape(each.title)}</h2>\n'
            f"{each.body}\n</section>"
            for each in sections
        ),
    )


def _worded(words: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(words.items(), key=lambda each: -each[1]))


def _list(lines: Sequence[str]) -> str:
    return f"<ul>\n{items(lines)}\n</ul>"


def _table(name: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int | None = None) -> str:
    """A table; column ``words`` holds text that may fold."""
    top = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in head)
    body = []
    for row in rows:
        cells = "".join(
            f'<td class="words">{html.escape(cell)}</td>' if k == words else f"<td>{html.escape(cell)}</td>"
            for k, cell in enumerate(row[1:], start=1)
        )
        body.append(f'<tr><th scope="row">{html.escape(row[0])}</th>{cells}</tr>')
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(name)}">\n<table>\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>\n</div>"
    )


# ------------------------------------------------------------------------------------------- sections


def _results(found: Sequence[Group]) -> _Section:
    """A row a cell."""
    head = (
        "network", "data", "question", "asked", "solver", "encoding", "bounds", "done", "of", "ended",
        "verified %", "open %", "median s", "total s",
    )  # fmt: skip
    rows = [_result_row(group, each) for group in found for each in group.cells]
    # What is the same everywhere is said once: a table should fit a screen and a sheet of paper.
    same = [k for k in _SAME if len(rows) > 1 and len({row[k] for row in rows}) == 1]
    note = (
        f"<p>{html.escape('All: ' + ', '.join(f'{head[k]} {rows[0][k]}' for k in same))}.</p>" if same else ""
    )
    whole = [head.index("of")] if all(row[7] == row[8] for row in rows) else []
    kept = [k for k in range(len(head)) if k not in (*same, *whole)]
    table = _table(
        "Results",
        [head[k] for k in kept],
        [[row[k] for k in kept] for row in rows],
        words=kept.index(head.index("ended")),
    )
    return _Section("results", "Results", note + table)


#: Columns of the results that are left out where they hold one value: data, solver, encoding, bounds.
_SAME = (1, 4, 5, 6)


def _result_row(group: Group, each: Answers) -> list[str]:
    cell = each.cell
    done = each.words != ""
    words = Counter(str(word) for word in each.words[done])
    asked = len(each.words)
    verified = open_ = "–"
    if group.is_margin:
        settled = words[Answer.ROBUST] + words[Answer.VULNERABLE] + words[Status.MISCLASSIFIED]
        verified = f"{100 * words[Answer.ROBUST] / asked:.2f}"
        open_ = f"{100 * (asked - settled) / asked:.2f}"
    spent = each.seconds[done]
    return [
        cell["network"],
        cell["data"],
        cell["question"],
        parameters_text(cell),
        cell["solver"],
        cell["encoding"],
        cell["bounds"],
        str(int(done.sum())),
        str(asked),
        _worded(words),
        verified,
        open_,
        text(float(np.median(spent)) if len(spent) else None),
        text(float(spent.sum())),
    ]


#: Prefixes of figures' names, and the section that they belong to.
_SECTIONS = {
    "accuracy": ("accuracy", "Verified accuracy"),
    "margins": ("margins", "Exact margins"),
    "distances": ("distances", "Distances to the decision boundary"),
    "removals": ("removals", "Fewest removals that change the prediction"),
    "masks": ("masks", "Critical neurons"),
    "cactus": ("solvers", "Solvers"),
    "profile": ("solvers", "Solvers"),
    "scatter": ("solvers", "Solvers"),
    "time": ("time", "Time spent"),
}


def _drawn(drawn: Sequence[tuple[Figure, str]]) -> Iterator[_Section]:
    """The figures, put under headings."""
    parts: dict[tuple[str, str], list[str]] = {}
    for figure, svg in drawn:
        place = _SECTIONS[re.split("[-_]", figure.name)[0]]
        parts.setdefault(place, []).append(figure_html(figure, svg))
    for (name, title), bodies in parts.items():
        yield _Section(name, title, "".join(bodies))


def _critical(found: Sequence[Group]) -> Iterator[_Section]:
    """The neurons that worst masks hold most often, in numbers."""
    rows: list[list[str]] = []
    totals: dict[str, tuple[Counter[tuple[int | str, int]], int]] = {}
    for group in found:
        removed, masks = critical(group)
        if removed:
            before, count = totals.get(group.network, (Counter(), 0))
            totals[group.network] = (before + removed, count + masks)
    for network, (removed, masks) in totals.items():
        # Equal counts in the order of the neurons, so that the same answers give the same page.
        ranked = sorted(removed.items(), key=lambda each: (-each[1], str(each[0][0]), each[0][1]))
        for (layer, neuron), count in ranked[:_NEURONS]:
            rows.append([network, str(layer), str(neuron), str(count), f"{100 * count / masks:.1f}"])
    if rows:
        head = ("network", "layer", "neuron", "worst masks", "share %")
        yield _Section("neurons", "The most critical neurons", _table("Critical neurons", head, rows))


def _failures(store: Store, found: Sequence[Group]) -> Iterator[_Section]:
    """What went wrong."""
    rows: list[list[str]] = []
    total = 0
    for group in found:
        for each in group.cells:
            failed = np.flatnonzero(np.isin(each.words, (Status.ERROR, Status.UNAVAILABLE)))
            total += len(failed)
            for k in failed[: max(0, _FAILURES - len(rows))]:
                record, _ = store.record(int(each.ids[k]))
                rows.append(
                    [str(each.indices[k]), cell_text(each.cell), str(each.words[k]), record["message"]]
                )
    if rows:
        note = f"<p>The first {len(rows)} of {total}.</p>" if total > len(rows) else ""
        head = ("index", "asked", "status", "message")
        yield _Section("errors", "Errors", note + _table("Errors", head, rows, words=3))


def _settings(campaign: CampaignRow, found: Sequence[Group], networks: Mapping[str, Any]) -> _Section:
    """Everything that a reader needs to run it again."""
    settings = campaign.settings
    machine = settings.get("machine", {})
    memory = machine.get("memory_gib")
    facts = {
        "campaign file": campaign.path,
        "begun, last run": f"{_when(campaign.created)}, {_when(campaign.updated)}",
        "milpver": str(settings.get("milpver", "")),
        "Python and packages": ", ".join(
            [f"Python {settings.get('python', '')}"]
            + [f"{name} {version}" for name, version in settings.get("packages", {}).items()]
        ),
        "machine": f"{machine.get('cpu')}, {machine.get('cores')} cores, "
        f"{'memory unknown' if memory is None else f'{memory} GiB memory'}, {machine.get('system')}",
        "workers": str(settings.get("workers", "")),
    }
    for name, each in networks.items():
        layers = ", ".join(
            f"{layer['number']}: {layer['name']} ({layer['width']})" for layer in each["layers"]
        )
        facts[f"network {name}"] = (
            f"{each['path']}, SHA-256 {each['sha256']}, gateable layers {layers or 'none'}"
        )
    solvers: dict[str, str] = {}
    engines: Counter[str] = Counter()
    for group in found:
        for answer in group.cells:
            solvers[answer.cell["solver"]] = answer.cell["solver_version"] or "not there"
            engines.update(answer.solvers)
    facts["solvers"] = ", ".join(f"{name} {version}" for name, version in solvers.items())
    facts["answered by"] = _worded(engines)
    for group in found:
        for answer in group.cells:
            cell = answer.cell
            limit = "none" if cell["memory"] is None else f"{cell['memory'] / 2**30:.3g} GiB"
            facts[f"cell {answer.number}: {cell_text(cell)}"] = (
                f"{cell['question']} on {cell['data']}; encoding {cell['encoding']}, bounds "
                f"{cell['bounds']}, "
                f"gap {cell['gap']:g}, time limit {cell['timeout']:g} s, threads {cell['threads']}, "
                f"memory {limit}, seed {cell['seed']}, device {cell['device']}, "
                f"parameters {dict(cell['parameters'])}"
                + (f", options {cell['solver_options']}" if cell["solver_options"] else "")
            )
    body = (
        f'<div class="wide">\n{facts_table(facts)}\n</div>\n<p>The campaign file, as it was last run:</p>\n'
        f"<pre>{html.escape(campaign.spec)}</pre>"
    )
    return _Section("settings", "What was run", body)


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


# --------------------------------------------------------------------------------------------- images


@dataclass(frozen=True, slots=True, eq=False)
class _Hard:
    """An input that is easily changed: where it stands, and what was found about it."""

    network: str
    data: str
    index: int
    label: int
    input: bytes
    distance: int | None
    margin: int | None
    asked: str


def _hardest(
    store: Store, found: Sequence[Group], networks: Mapping[str, Any], folder: Path
) -> Iterator[_Section]:
    """The inputs closest to the boundary with adversarial twins and worst masks, where they are images."""
    parts: list[str] = []
    skipped: list[str] = []
    for network, data in dict.fromkeys((group.network, group.data) for group in found):
        hard = _ranked([g for g in found if g.network == network and g.data == data])
        if not hard:
            continue
        shape = networks[network]["shape"]
        if _image(np.zeros(int(np.prod(shape or (1,)))), shape) is None:
            skipped.append(f"{network} on {data}: inputs of shape {tuple(shape)} are no images")
            continue
        layers = [layer["width"] for layer in networks[network]["layers"] if isinstance(layer["number"], int)]
        pixels = store.inputs({each.input for each in hard})
        span = _span(list(pixels.values()))
        panels = [_panel(store, each, pixels[each.input], shape, layers, span) for each in hard]
        picture = draw_panels(panels, f"{network} on {data}: the inputs that are changed most easily")
        put(folder / f"hardest-{len(parts)}.png", picture)
        described = "; ".join(
            f"index {each.index}, label {each.label}: {' '.join(panel.adversarial_title.split())}, "
            f"{' '.join(panel.mask_title.split())}"
            for each, panel in zip(hard, panels, strict=True)
        )
        parts.append(
            f'<figure>\n<img src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}" '
            f'alt="{html.escape(described)}">\n<figcaption><b>{html.escape(f"{network} on {data}")}.</b> '
            "Each input, its worst removal of neurons (crossed out), the closest input found that another "
            f"class takes, and the difference of the two. {html.escape(described)}.</figcaption>\n</figure>"
        )
    if parts or skipped:
        yield _Section("hardest", "The hardest inputs", "".join(parts) + (_list(skipped) if skipped else ""))


def _ranked(mine: Sequence[Group]) -> list[_Hard]:
    """Inputs by their distance where that was asked for, and by their worst margin otherwise."""
    distances = [group for group in mine if group.kind == "distance"]
    margins = [group for group in mine if group.is_margin]
    leading = distances[0] if distances else None
    if leading is None:
        # The largest budget has the smallest margins.
        leading = min(margins, key=lambda group: float(np.nansum(group.upper)), default=None)
    if leading is None:
        return []
    right = (leading.words != Status.MISCLASSIFIED) & np.isfinite(leading.upper)
    order = [int(k) for k in np.argsort(np.where(right, leading.upper, np.inf), kind="stable") if right[k]]
    first = leading.cells[0]
    hard = []
    for k in order[:_HARDEST]:
        about = max(margins, key=lambda group: _weight(group, k), default=None)
        hard.append(
            _Hard(
                network=leading.network,
                data=leading.data,
                index=int(first.indices[k]),
                label=int(first.labels[k]),
                input=first.inputs[k],
                distance=_best(distances[0], k) if distances else None,
                margin=None if about is None else _best(about, k),
                asked="" if about is None else parameters_text(about.cells[0].cell),
            )
        )
    return hard


def _weight(group: Group, k: int) -> float:
    """How low a group's margin of an input is; what is not known is higher than all."""
    value = float(group.upper[k])
    return -value if np.isfinite(value) else -np.inf


def _best(group: Group, k: int) -> int | None:
    """The result with the smallest witness of an input."""
    known = [each for each in group.cells if each.ids[k] >= 0 and np.isfinite(each.upper[k])]
    return int(min(known, key=lambda each: float(each.upper[k])).ids[k]) if known else None


def _panel(
    store: Store,
    hard: _Hard,
    x: NDArray[np.float32],
    shape: Sequence[int],
    layers: Sequence[int],
    span: tuple[float, float],
) -> Panel:
    margin, witness = (None, None) if hard.margin is None else store.record(hard.margin)
    title = "no removal asked for"
    if margin is not None:
        title = f"{hard.asked}: {margin['verdict'] or margin['status']}\nmargin {_bracket(margin)}"
    twin, twin_title = None, "no adversarial input\nwas asked for"
    if hard.distance is not None:
        distance, near = store.record(hard.distance)
        twin = near if near is not None else x.astype(np.float64)
        twin_title = f"taken for {distance['adversarial_label']}\nd_bnd {_bracket(distance)}"
    elif margin is not None and witness is not None:
        twin, twin_title = witness, f"worst input of the ball\nagainst {margin['target']}"
    removed = None if margin is None or margin["removed"] is None else margin["removed"]
    channels = any(isinstance(layer, str) for layer, _ in removed or ())
    small = sum(layers) <= _DRAWABLE and not channels
    if removed and len(removed) <= _NAMED and not small:
        title += f"\nremoved: {', '.join(f'{layer}:{neuron}' for layer, neuron in removed)}"
    elif removed and not small:
        title += f"\n{counted(len(removed), 'channel' if channels else 'neuron')} removed"
    image = _image(x, shape)
    return Panel(
        title=f"label {hard.label}\nindex {hard.index}",
        image=np.zeros((1, 1)) if image is None else image,
        widths=tuple(layers) if small else (),
        removed=tuple((layer, neuron) for layer, neuron in removed) if removed and small else None,
        mask_title=title,
        adversarial=None if twin is None else _image(twin, shape),
        adversarial_title=twin_title,
        span=span,
    )


def _bracket(record: Mapping[str, Any]) -> str:
    """A closed bracket as a number, an open one as two."""
    lower, upper = record["lower"], record["upper"]
    if upper is None:
        return "not known"
    if record["status"] == Status.OPTIMAL:
        return f"{upper:.4g}"
    return f"{'?' if lower is None else format(lower, '.4g')} to {upper:.4g}"


def _span(images: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Darkest and brightest value; [0, 1] where they lie in it."""
    low = min((float(each.min()) for each in images), default=0.0)
    high = max((float(each.max()) for each in images), default=1.0)
    return (0.0, 1.0) if low >= 0.0 and high <= 1.0 else (low, high if high > low else low + 1.0)


def _image(x: NDArray[Any], shape: Sequence[int]) -> NDArray[np.float64] | None:
    """An input as grey values [height, width]; None where it is no image. Colours become their mean."""
    sides = [side for side in shape if side != 1]
    values = np.asarray(x, dtype=np.float64)
    if len(sides) == 1 and round(sides[0] ** 0.5) ** 2 == sides[0] and sides[0] >= 16:
        side = round(sides[0] ** 0.5)
        return values.reshape(side, side)
    if len(sides) == 2 and min(sides) >= 4:
        return values.reshape(sides)
    if len(sides) == 3 and min(sides) in (2, 3, 4):
        grey: NDArray[np.float64] = values.reshape(sides).mean(axis=int(np.argmin(sides)))
        return grey
    return None
