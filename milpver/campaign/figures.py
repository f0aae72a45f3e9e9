"""The figures of a campaign's report, each from the answers of some cells.

What is no proof is never drawn as one: verified accuracy is what was proven robust, and what is open
(time-outs, errors, queries without an answer) is a band above it. Distributions are of closed brackets only,
and say how many there are.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.campaign.questions import KINDS
from milpver.campaign.results import Answers, parameters_text
from milpver.drawing import FAINT, INK, Figure, counted, frame, free_name, look, slug
from milpver.linear import Float
from milpver.verdict import Answer, Status

__all__ = ["Group", "contender", "critical", "figures", "groups"]

#: Curves in one figure, bins of a histogram, runs in a comparison of solvers, rows of a heat map.
_CURVES, _BINS, _RUNS, _ROWS = 8, 30, 2000, 12
#: Two proven numbers this far apart, times max(1, |number|), contradict each other.
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Cells that ask the same of the same inputs, whoever answers; what they prove together.

    Attributes:
        network, data, kind: names.
        raw, parameters: what is asked.
        cells: their answers.
        words: for each input: robust, vulnerable, misclassified, a closed bracket without a sign
            (``optimal``, ``infeasible``, ``unknown``), why it is open, or "" without an answer.
        lower, upper: the best of all, NaN where nothing is known.
        closed: where one cell's bracket is closed.
        wrong: inputs on which two cells contradict each other.
    """

    network: str
    data: str
    kind: str
    raw: Mapping[str, Any]
    parameters: Mapping[str, Any]
    cells: tuple[Answers, ...]
    words: NDArray[np.str_]
    lower: Float
    upper: Float
    closed: NDArray[np.bool_]
    wrong: tuple[int, ...]

    @property
    def is_margin(self) -> bool:
        """Whether there is a sign to decide."""
        return "budget" in self.parameters

    @property
    def budget(self) -> str:
        """The budget of a margin, with the neurons that are forced."""
        forced = [f"{name} {self.raw[name]}" for name in ("keep", "remove") if self.raw.get(name)]
        return ", ".join([str(self.raw["budget"]), *forced])

    @property
    def family(self) -> tuple[str, str]:
        """Budgets that are counted alike, and can stand on one axis: a name for files, and one for people."""
        budget = str(self.raw["budget"])
        forced = self.budget.removeprefix(budget).removeprefix(", ")
        name, title = "", "neurons that may be removed, a layer each"
        if budget.startswith("total:"):
            name, title = "total", "neurons that may be removed, all layers together"
        elif any(letter.isalpha() for letter in budget):
            name, title = "named", "neurons or channels that may be removed, by layer"
        return "-".join(filter(None, (name, forced and slug(forced)))), title + f"; {forced}" * bool(forced)

    def count(self, *words: str) -> int:
        """How many inputs ended in one of some ways."""
        return int(np.isin(self.words, words).sum())

    @property
    def answered(self) -> int:
        """How many inputs have an answer."""
        return len(self.words) - self.count("")

    @property
    def open(self) -> int:
        """How many inputs are neither proven robust, nor vulnerable, nor misclassified."""
        return len(self.words) - self.count(Answer.ROBUST, Answer.VULNERABLE, Status.MISCLASSIFIED)


def groups(found: Sequence[Answers]) -> list[Group]:
    """Put the cells together that ask the same."""
    together: dict[str, list[Answers]] = {}
    for each in found:
        cell = each.cell
        key = repr((cell["network"], cell["data"], cell["kind"], sorted(cell["parameters"].items())))
        together.setdefault(key, []).append(each)
    return [_group(cells) for cells in together.values()]


def _group(cells: list[Answers]) -> Group:
    """All cells of a group have the same inputs in the same order: the same network reads the same data."""
    first = cells[0]
    lower = np.fmax.reduce([each.lower for each in cells])
    upper = np.fmin.reduce([each.upper for each in cells])
    words = np.array([each.words for each in cells], dtype="<U16")
    best = words[0].copy()
    # What is proven by one holds for all; otherwise the first that has an answer says why there is no more.
    ranking = (Answer.VULNERABLE, Answer.ROBUST, Status.MISCLASSIFIED, Status.OPTIMAL, Status.INFEASIBLE)
    for row in words[1:]:
        best = np.where(best == "", row, best)
    for word in reversed(ranking):
        best = np.where((words == word).any(axis=0), word, best)
    both = (words == Answer.ROBUST).any(axis=0) & (words == Answer.VULNERABLE).any(axis=0)
    with np.errstate(invalid="ignore"):
        apart = lower > upper + _TOLERANCE * np.maximum(1.0, np.abs(upper))
    closed = np.zeros(len(best), dtype=np.bool_)
    for each in cells:
        closed |= each.finished & (each.words != Status.MISCLASSIFIED) & np.isfinite(each.upper)
    if KINDS[first.cell["kind"]].decide:
        closed[:] = False
    wrong = tuple(int(index) for index in first.indices[both | apart])
    # Of two proofs that contradict each other neither is to be trusted.
    best = np.where(both | apart, str(Status.ERROR), best)
    return Group(
        network=first.cell["network"],
        data=first.cell["data"],
        kind=first.cell["kind"],
        raw=first.cell["raw"],
        parameters=first.cell["parameters"],
        cells=tuple(cells),
        words=best,
        lower=lower,
        upper=upper,
        closed=closed & ~(both | apart),
        wrong=wrong,
    )


def contender(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    """Who answers a cell: solver, encoding, bounds."""
    return cell["solver"], cell["encoding"], cell["bounds"]


def figures(found: Sequence[Group], widths: Mapping[str, Mapping[int | str, int]]) -> list[Figure]:
    """All figures that the answers are enough for.

    Args:
        found: what was asked.
        widths: of each network's gateable layers, by what masks call them.
    """
    taken: set[str] = set()
    made = [
        *_accuracies(found),
        *_margins(found),
        *_distances(found),
        *_removals(found),
        *_masks(found, widths),
        *_comparisons(found),
        *_times(found),
    ]
    return [replace(figure, name=free_name(figure.name, taken)) for figure in made]


# -------------------------------------------------------------------------------------------- accuracy


@dataclass(frozen=True, slots=True, eq=False)
class _Band:
    """Verified accuracy of one network: percent that is proven, and percent that is not refuted."""

    name: str
    at: Float
    proven: Float
    possible: Float


def _accuracies(found: Sequence[Group]) -> Iterator[Figure]:
    """Verified accuracy against the budget, for each data set and radius; and against the radius."""
    asked = [group for group in found if group.is_margin and group.answered]
    for data in dict.fromkeys(group.data for group in asked):
        mine = [group for group in asked if group.data == data]
        radii = sorted({float(group.raw["radius"]) for group in mine})
        budgets = list(dict.fromkeys(group.budget for group in mine))
        for radius, family in dict.fromkeys((float(group.raw["radius"]), group.family) for group in mine):
            lines = [g for g in mine if (float(g.raw["radius"]), g.family) == (radius, family)]
            where = f", radius {radius:g}" * (radius > 0 or len(radii) > 1)
            ticks = list(dict.fromkeys(str(group.raw["budget"]) for group in lines))
            yield _accuracy(
                f"accuracy-{slug(data)}-{radius:g}" + f"-{family[0]}" * bool(family[0]),
                f"Verified accuracy against budget: {data}{where}",
                lines,
                [(str(group.raw["budget"]), ticks) for group in lines],
                family[1],
            )
        if len(radii) > 1:
            for budget in budgets:
                lines = [group for group in mine if group.budget == budget]
                yield _accuracy(
                    f"accuracy-radius-{slug(data)}-{slug(budget)}",
                    f"Verified accuracy against radius: {data}, budget {budget}",
                    lines,
                    [(f"{float(group.raw['radius']):g}", [f"{r:g}" for r in radii]) for group in lines],
                    "radius of the L-inf ball [units of the data]",
                )


def _accuracy(
    name: str, title: str, lines: Sequence[Group], places: Sequence[tuple[str, list[str]]], across: str
) -> Figure:
    ticks = places[0][1]
    bands = []
    for network in dict.fromkeys(group.network for group in lines):
        at, proven, possible = [], [], []
        for group, (tick, _) in zip(lines, places, strict=True):
            if group.network == network:
                size = len(group.words)
                at.append(float(ticks.index(tick)))
                robust = group.count(Answer.ROBUST)
                proven.append(100 * robust / size)
                possible.append(100 * (robust + group.open) / size)
        order = np.argsort(at, kind="stable")
        bands.append(_Band(network, np.array(at)[order], np.array(proven)[order], np.array(possible)[order]))
    caption = (
        "Share of all inputs, misclassified ones included, whose prediction is proven to be kept for every "
        "admissible removal (and every input of the ball). The shaded band above a line is what is open: "
        "time-outs, errors and queries without an answer, which are never counted as robust."
    )
    return Figure(
        name, title, caption, partial(_paint_accuracy, bands=bands, ticks=ticks, across=across), (6.4, 4.0)
    )


def _paint_accuracy(axes: Any, bands: Sequence[_Band], ticks: Sequence[str], across: str) -> None:
    for k, band in enumerate(bands):
        style = look(k)
        axes.plot(band.at, band.proven, label=band.name, **style)
        is_open = band.possible > band.proven + 1e-9
        if is_open.any():
            axes.fill_between(
                band.at, band.proven, band.possible, color=style["color"], alpha=0.18, linewidth=0
            )
            axes.vlines(band.at[is_open], band.proven[is_open], band.possible[is_open], color=style["color"])
            axes.plot(band.at, band.possible, color=style["color"], linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(ticks)))
    room = max(6, 70 // len(ticks))
    axes.set_xticklabels([tick if len(tick) <= room else f"{tick[: room - 1]}…" for tick in ticks])
    axes.set_xlim(-0.4, len(ticks) - 0.6)
    axes.set_ylim(-2, 102)
    frame(axes, across, "verified accuracy [%]")
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, handlelength=3.2)


# --------------------------------------------------------------------------------------- distributions


def _margins(found: Sequence[Group]) -> Iterator[Figure]:
    """Distributions of exact worst margins, a figure a network, data set and radius, a curve a budget."""
    asked = [group for group in found if group.kind == "margin" and group.closed.any()]
    for key in dict.fromkeys((group.network, group.data, float(group.raw["radius"])) for group in asked):
        mine = [g for g in asked if (g.network, g.data, float(g.raw["radius"])) == key][:_CURVES]
        network, data, radius = key
        where = f", radius {radius:g}" * (radius > 0)
        counts = "; ".join(f"{group.budget}: {_closed_of(group)}" for group in mine)
        yield Figure(
            f"margins-{slug(network)}-{slug(data)}-{radius:g}",
            f"Exact worst margins: {network} on {data}{where}",
            "Share of inputs by the smallest difference between the label's score and any other class's, "
            "over all removals within the budget; left of 0 the prediction changes. Closed brackets only, by "
            f"budget: {counts}.",
            partial(
                _paint_steps,
                curves=[(f"budget {group.budget}", group.upper[group.closed]) for group in mine],
                across="worst margin [score]",
                zero=True,
            ),
            (6.4, 3.8),
        )


def _distances(found: Sequence[Group]) -> Iterator[Figure]:
    """Histograms of exact distances to the decision boundary, a curve a network."""
    asked = [group for group in found if group.kind == "distance" and group.closed.any()]
    for data, norm in dict.fromkeys((group.data, str(group.raw["norm"])) for group in asked):
        mine = [group for group in asked if (group.data, group.raw["norm"]) == (data, norm)][:_CURVES]
        counts = ", ".join(f"{group.network}: {_closed_of(group)}" for group in mine)
        name = {"linf": "L-inf", "l1": "L1", "l2": "L2"}[norm]
        yield Figure(
            f"distances-{slug(data)}" + f"-{norm}" * (norm != "linf"),
            f"Distances to the decision boundary: {data}" + f", {name}" * (norm != "linf"),
            f"Share of inputs by the {name} distance to the closest input of another class, in the data's "
            f"units. Closed brackets only, by network: {counts}.",
            partial(
                _paint_steps,
                curves=[(group.network, group.upper[group.closed]) for group in mine],
                across="distance d_bnd [units of the data]",
                zero=False,
            ),
            (6.4, 3.8),
        )


def _removals(found: Sequence[Group]) -> Iterator[Figure]:
    """How many neurons have to go before predictions change, a curve a network and choice of layers."""
    asked = [group for group in found if group.kind == "pruning-distance" and group.closed.any()]
    for data in dict.fromkeys(group.data for group in asked):
        mine = [group for group in asked if group.data == data][:_CURVES]
        names = [", ".join(filter(None, (g.network, parameters_text(g.cells[0].cell)))) for g in mine]
        counts = "; ".join(
            f"{name}: {_closed_of(group)}"
            + f", {group.count(Status.INFEASIBLE)} that no removal changes"
            * bool(group.count(Status.INFEASIBLE))
            for name, group in zip(names, mine, strict=True)
        )
        yield Figure(
            f"removals-{slug(data)}",
            f"Fewest removals that change the prediction: {data}",
            "Share of inputs, those predicted rightly, whose prediction some removal of at most so many "
            f"neurons changes. Closed brackets only: {counts}.",
            partial(
                _paint_counts,
                curves=[
                    (name, group.upper[group.closed], len(group.words) - group.count(Status.MISCLASSIFIED))
                    for name, group in zip(names, mine, strict=True)
                ],
            ),
            (6.4, 3.8),
        )


def _paint_counts(axes: Any, curves: Sequence[tuple[str, Float, int]]) -> None:
    """Shares up to each number, as steps."""
    most = max(int(values.max()) for _, values, _ in curves)
    at = np.arange(most + 2)
    for k, (name, values, asked) in enumerate(curves):
        style = look(k)
        shares = 100 * np.searchsorted(np.sort(values), at, side="right") / asked
        axes.step(
            at,
            shares,
            where="post",
            label=f"{name} (median {np.median(values):g})",
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=1.6,
        )
    axes.set_xlim(0, most + 1)
    axes.set_ylim(0, 102)
    axes.xaxis.get_major_locator().set_params(integer=True)
    frame(axes, "neurons removed", "inputs changed [%]")
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, handlelength=3.2)


def _closed_of(group: Group) -> str:
    asked = len(group.words) - group.count(Status.MISCLASSIFIED)
    return f"{int(group.closed.sum())} of {asked}"


def _paint_steps(axes: Any, curves: Sequence[tuple[str, Float]], across: str, *, zero: bool) -> None:
    """Histograms as outlines, which overlap without hiding each other."""
    every = np.concatenate([values for _, values in curves])
    low, high = float(every.min()), float(every.max())
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    for k, (name, values) in enumerate(curves):
        counts, _ = np.histogram(values, edges)
        style = look(k)
        axes.stairs(
            100 * counts / len(values),
            edges,
            label=f"{name} (median {np.median(values):.3g})",
            color=style["color"],
            linestyle=style["linestyle"],
            linewidth=1.6,
        )
    if zero and low < 0 < high:
        axes.axvline(0.0, color=INK, linewidth=0.9)
    axes.set_ylim(bottom=0)
    frame(axes, across, "inputs [%]")
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, handlelength=3.2)


# ----------------------------------------------------------------------------------------------- masks


def _masks(found: Sequence[Group], widths: Mapping[str, Mapping[int | str, int]]) -> Iterator[Figure]:
    """How often each neuron is in a worst mask: a figure a network and data set, a row a budget."""
    asked = [group for group in found if any(each.removed for each in group.cells)]
    for network, data in dict.fromkeys((group.network, group.data) for group in asked):
        mine = [g for g in asked if g.network == network and g.data == data][:_ROWS]
        layers = widths[network]
        rows = []
        for group in mine:
            removed, masks = critical(group)
            shares = {layer: np.zeros(width) for layer, width in layers.items()}
            for (layer, neuron), count in removed.items():
                shares[layer][neuron] = 100 * count / masks
            asked_for = parameters_text(group.cells[0].cell)
            if not group.is_margin:
                asked_for = ": ".join(filter(None, ("fewest", asked_for)))
            rows.append((asked_for, masks, shares))
        shown = [layer for layer in layers if any(shares[layer].any() for _, _, shares in rows)]
        counts = "; ".join(f"{name}: {counted(masks, 'mask')}" for name, masks, _ in rows)
        high = max(1.6, 0.55 + 0.28 * len(rows)) * len(shown) + 1.0
        yield Figure(
            f"masks-{slug(network)}-{slug(data)}",
            f"Critical neurons: {network} on {data}",
            "How often each neuron is removed in the worst mask, in percent of the masks: those of closed "
            "brackets, and those that are proven to change the prediction. A row a question, a panel a "
            f"layer. {counts}.",
            partial(_paint_masks, rows=rows, layers=shown),
            (7.0, min(high, 9.5)),
        )


def critical(group: Group) -> tuple[Counter[tuple[int | str, int]], int]:
    """How many worst masks hold each (layer, neuron), and the number of masks, over a group's cells."""
    total: Counter[tuple[int | str, int]] = Counter()
    masks = 0
    for each in group.cells:
        total.update(each.removed)
        masks += each.masks
    return total, masks


#: Share of a heat map's height that the numbers and words below it take.
_BELOW = 0.35


def _paint_masks(
    axes: Any, rows: Sequence[tuple[str, int, Mapping[int | str, Float]]], layers: Sequence[int | str]
) -> None:
    axes.set_axis_off()
    most = max(float(shares[k].max()) for _, _, shares in rows for k in layers)
    # A panel and what is written below it; what is below the last one stands where the figure's own does.
    step = 1 / (len(layers) - _BELOW)
    picture: Any = None
    for place, k in enumerate(layers):
        high = (1 - _BELOW) * step
        inner = axes.inset_axes((0.16, 1 - place * step - high, 0.74, high))
        grid = np.stack([shares[k] for _, _, shares in rows])
        picture = inner.imshow(
            grid, aspect="auto", cmap="cividis", vmin=0, vmax=most, interpolation="nearest"
        )
        inner.set_yticks(range(len(rows)))
        inner.set_yticklabels([textwrap.shorten(name, 22, placeholder="…") for name, _, _ in rows])
        inner.xaxis.get_major_locator().set_params(integer=True)
        inner.tick_params(labelsize=8, colors=INK)
        what = f"neuron of layer {k}" if isinstance(k, int) else f"channel of {k}"
        inner.set_xlabel(what, fontsize=8.5, color=INK)
    bar = axes.inset_axes((0.93, 0.2, 0.02, 0.6))
    axes.figure.colorbar(picture, cax=bar)
    bar.set_ylabel("share of worst masks [%]", fontsize=8.5, color=INK)
    bar.tick_params(labelsize=8, colors=INK)


# --------------------------------------------------------------------------------------------- solvers


def _comparisons(found: Sequence[Group]) -> Iterator[Figure]:
    """Cactus plot, performance profile and scatter plots over the queries that all contenders were asked."""
    from milpver.report import Lanes  # noqa: PLC0415  loads torch, which only drawing this costs
    from milpver.report import figures as compared  # noqa: PLC0415  as above

    lineups: dict[tuple[tuple[str, str, str], ...], list[Group]] = {}
    for group in found:
        lineups.setdefault(tuple(dict.fromkeys(contender(each.cell) for each in group.cells)), []).append(
            group
        )
    # One that nobody is compared with is of interest only where nobody is compared with anybody.
    most = max(map(len, lineups), default=0)
    for everyone, mine in lineups.items():
        if len(everyone) > 1 or most == 1:
            drawn = _lanes(everyone, mine)
            if drawn is not None:
                lanes, sample = drawn
                for figure in compared(Lanes(*lanes)):
                    if len(everyone) > 1 or figure.name == "cactus":
                        yield replace(figure, caption=figure.caption + sample)


def _lanes(
    everyone: Sequence[tuple[str, str, str]], mine: Sequence[Group]
) -> tuple[tuple[tuple[str, ...], Float, float], str] | None:
    """Names, times [contenders, queries] and limit, infinity where unsolved; and what to say of a sample."""
    parts: list[Float] = []
    limits: set[float] = set()
    for group in mine:
        cells = {contender(each.cell): each for each in group.cells}
        answered = np.logical_and.reduce([each.words != "" for each in cells.values()])
        answered &= group.words != Status.MISCLASSIFIED
        limits |= {float(each.cell["timeout"]) for each in cells.values()}
        solved = [np.where(each.finished, np.maximum(each.seconds, 1e-6), np.inf) for each in cells.values()]
        parts.append(np.stack([row[answered] for row in solved]))
    times = np.concatenate(parts, axis=1)
    total = times.shape[1]
    if not total:
        return None
    if total > _RUNS:
        times = times[:, np.sort(np.random.default_rng(0).choice(total, _RUNS, replace=False))]
    differ = [k for k in range(3) if len({each[k] for each in everyone}) > 1] or [0]
    names = tuple(" ".join(each[k] for k in differ) for each in everyone)
    sample = f" A sample of {_RUNS} of the {total} queries is drawn." if total > _RUNS else ""
    return (names, times, max(limits)), sample


# ------------------------------------------------------------------------------------------------ time


def _times(found: Sequence[Group]) -> Iterator[Figure]:
    """Where the time went: seconds of work in each cell, finished and not."""
    bars = []
    for group in found:
        for each in group.cells:
            done = float(each.seconds[each.finished].sum())
            rest = float(each.seconds[~each.finished].sum())
            if done + rest > 0:
                bars.append((cell_text(each.cell), done, rest))
    if not bars:
        return
    total = sum(done + rest for _, done, rest in bars)
    bars.sort(key=lambda bar: -(bar[1] + bar[2]))
    shown = bars[:20]
    left = f" The {len(bars) - 20} cells with the least time are left out." if len(bars) > 20 else ""
    yield Figure(
        "time",
        "Time spent",
        f"Seconds of work in each cell, {total:.4g} s in all: on queries that were finished, and on those "
        f"that a limit or an error ended (hatched).{left}",
        partial(_paint_times, bars=shown),
        (7.0, 1.4 + 0.36 * len(shown)),
    )


def cell_text(cell: Mapping[str, Any]) -> str:
    """A cell in a few words."""
    asked = parameters_text(cell)
    return ", ".join(part for part in (cell["network"], cell["kind"], asked, cell["solver"]) if part)


def _paint_times(axes: Any, bars: Sequence[tuple[str, float, float]]) -> None:
    at = np.arange(len(bars))
    done = np.array([bar[1] for bar in bars])
    rest = np.array([bar[2] for bar in bars])
    axes.barh(at, done, color="#0072b2", edgecolor=INK, linewidth=0.5, label="finished", height=0.45)
    axes.barh(
        at, rest, left=done, color="white", edgecolor=INK, linewidth=0.5, hatch="///", label="not finished",
        height=0.45,
    )  # fmt: skip
    axes.set_yticks(at)
    axes.set_yticklabels([])
    most = float((done + rest).max())
    for k, (name, _, _) in enumerate(bars):
        # Names stand in the plot: beside it they would need a margin as wide as the longest.
        axes.text(
            most * 0.01, k - 0.26, textwrap.shorten(name, 90, placeholder="…"), fontsize=7.5, va="bottom",
            color=INK, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
    axes.invert_yaxis()
    axes.set_ylim(len(bars) - 0.4, -0.8)
    axes.set_xlim(0, most * 1.04)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    frame(axes, "time [s]", "")
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, loc="lower right")
