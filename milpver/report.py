"""A comparison as people read it: a table, figures (SVG and PNG), and one HTML page that stands alone.

Everything shown follows from the records and is the same for the same records, to the last byte. The figures
can be read without colours: markers, line styles and fill differ too. Matplotlib is used through its objects;
its settings hold only while a figure is drawn.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

import numpy as np

from milpver.compare import RESAMPLES, TOLERANCE, Record, Row, Summary, short_names, summarise
from milpver.drawing import (
    FAINT,
    INK,
    STYLE,
    Figure,
    counted,
    draw,
    facts_table,
    few_ticks,
    figure_html,
    frame,
    free_name,
    items,
    look,
    marked,
    plain_numbers,
    put,
    slug,
    text,
)
from milpver.linear import Float

__all__ = [
    "COLUMNS",
    "Figure",
    "Lanes",
    "at_least",
    "cells",
    "draw",
    "figures",
    "lanes",
    "markdown",
    "note_lines",
    "page",
    "text",
    "write",
]

#: Headings of the table, after the contender's.
COLUMNS = (
    "runs",
    "solved",
    "timeouts",
    "memory",
    "wrong",
    "withdrawn",
    "unavail.",
    "median s",
    "mean s",
    "PAR-2 s",
    "speed-up",
    "95 % interval",
    "nodes",
)

# ---------------------------------------------------------------------------------------------- table


def at_least(value: float | None, unsolved: bool) -> str:
    """A number, with ``≥`` where it rests on an unsolved run, which counts as the limit."""
    return "≥ " * (unsolved and value is not None) + text(value)


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row under ``COLUMNS``; a median rests on the upper one of two middle runs."""
    interval = "–" if row.interval is None else f"{text(row.interval[0])} to {text(row.interval[1])}"
    return (
        str(row.runs),
        str(row.solved),
        str(row.timeouts),
        str(row.memory),
        str(row.wrong),
        str(row.withdrawn),
        str(row.unavailable),
        at_least(row.median, row.solved <= row.runs // 2),
        at_least(row.mean, row.solved < row.runs),
        text(row.par2),
        text(row.speedup),
        interval,
        text(row.nodes),
    )


def _values(row: Row) -> tuple[float | int | None, ...]:
    """The numbers behind the cells, in full."""
    return (
        row.runs,
        row.solved,
        row.timeouts,
        row.memory,
        row.wrong,
        row.withdrawn,
        row.unavailable,
        row.median,
        row.mean,
        row.par2,
        row.speedup,
        None,
        row.nodes,
    )


def markdown(summary: Summary, names: Mapping[str, str]) -> str:
    """The table in Markdown, with notes."""
    head = ("contender", *COLUMNS)
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    lines += [f"| {names[row.contender]} | {' | '.join(cells(row))} |" for row in summary.rows]
    return "\n".join([*lines, "", *(f"- {line}" for line in note_lines(summary, names))]) + "\n"


def note_lines(summary: Summary, names: Mapping[str, str]) -> Iterator[str]:
    """What the table does not say by itself."""
    yield (
        f"{counted(summary.queries, 'query', 'queries')}, limit {text(summary.limit)} s each; an unsolved "
        "run counts as the limit in median, mean and speed-up, and twice in PAR-2"
    )
    first = summary.rows[0]
    if len(summary.rows) > 1:
        yield (
            f"speed-up: geometric mean of the seconds of {names[first.contender]} over the contender's own,"
            " over runs that either solved; bootstrap over queries"
        )
    if summary.misclassified:
        yield f"{counted(summary.misclassified, 'input')} left out: the network does not give the label"
    for row in summary.rows:
        if row.bounds_only:
            name = names[row.contender]
            yield f"{name}: {row.bounds_only} of {row.solved} solved by bounds, no solver asked"
    for row in summary.rows:
        if row.message:
            counts = f"{row.unavailable} unavailable, {row.withdrawn} withdrawn"
            yield f"{names[row.contender]}: {counts} of {row.runs}; the first says: {row.message}"
    for each in summary.contradictions:
        yield (
            f"WRONG: {names[each.contender]} on index {each.index}, repeat {each.repeat}: {each.claim}, but "
            f"{names[each.refuted_by]} has a replayed witness of {each.witness:.9g}"
        )


# --------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """Times as the figures show them.

    Attributes:
        names: of the contenders that could run, in order.
        times: float64 [contenders, runs], seconds; infinity for unsolved.
        limit: seconds a query.
    """

    names: tuple[str, ...]
    times: Float
    limit: float


def lanes(records: Sequence[Record], summary: Summary, names: Mapping[str, str]) -> Lanes:
    """The times of all runs that every contender in the table has done; the others are not comparable."""
    shown = [row.contender for row in summary.rows if row.median is not None]
    done: dict[tuple[int, int], dict[str, float]] = {}
    for record in records:
        outcome = summary.outcome[record["job"]]
        if record["contender"] in shown and record["predicted"] == record["label"]:
            solved = outcome == "solved"
            done.setdefault((record["index"], record["repeat"]), {})[record["contender"]] = (
                max(float(record["seconds"]), 1e-6) if solved else math.inf
            )
    whole = [done[key] for key in sorted(done) if len(done[key]) == len(shown)]
    times = np.array([[run[key] for run in whole] for key in shown], dtype=np.float64)
    return Lanes(tuple(names[key] for key in shown), times.reshape(len(shown), len(whole)), summary.limit)


def figures(found: Lanes) -> tuple[Figure, ...]:
    """A cactus plot, a performance profile, and a scatter plot for each pair; none where nothing ran."""
    count, runs = found.times.shape
    if not (count and runs):
        return ()
    many = f"{counted(runs, 'run')} of each of {counted(count, 'contender')}"
    made = [
        Figure(
            "cactus",
            "Cactus plot",
            "How many runs each contender solves when every run may take the time on the vertical axis: "
            f"{many}, each contender's solved runs sorted by their time. Lower and further to the right "
            f"is better; the horizontal line is the limit of {text(found.limit)} s.",
            partial(_cactus, found=found),
            (6.4, 4.2),
        ),
        Figure(
            "profile",
            "Performance profile",
            "Share of the runs that a contender solves within the factor on the horizontal axis of the "
            f"fastest contender's time on the same run (Dolan and Moré, 2002); {many}. At 1: how often "
            "it is the fastest; at the right end: how much it solves at all.",
            partial(_profile, found=found),
            (6.4, 4.2),
        ),
    ]
    taken: set[str] = set()
    for a, b in itertools.combinations(range(count), 2):
        name = free_name(f"scatter-{slug(found.names[a])}-{slug(found.names[b])}", taken)
        made.append(
            Figure(
                name,
                f"{found.names[a]} against {found.names[b]}",
                f"Time of {found.names[b]} against that of {found.names[a]}, a point a run. Below the "
                f"diagonal {found.names[b]} is faster; the dotted lines are factors of 10. Hollow points lie "
                f"on the dashed lines, the limit of {text(found.limit)} s, where one did not solve the run.",
                partial(_scatter, found=found, a=a, b=b),
                (4.6, 4.6),
            )
        )
    return tuple(made)


def _span(found: Lanes) -> tuple[float, float]:
    """Ends of a time axis: whole decades would leave the plot empty, so a little beyond the data."""
    finite = found.times[np.isfinite(found.times)]
    least = float(finite.min()) if finite.size else found.limit / 10
    most = max(float(finite.max()) if finite.size else 0.0, found.limit)
    return least / 1.6, most * 1.6


def _cactus(axes: Any, found: Lanes) -> None:
    runs = found.times.shape[1]
    for k, (name, times) in enumerate(zip(found.names, found.times, strict=True)):
        solved = np.sort(times[np.isfinite(times)])
        axes.plot(
            np.arange(1, len(solved) + 1),
            solved,
            label=f"{name} ({len(solved)})",
            markevery=marked(len(solved)),
            **look(k),
        )
    axes.axhline(found.limit, color=FAINT, linestyle=(0, (6, 3)), linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(*_span(found))
    axes.set_xlim(0, runs * 1.04)
    axes.xaxis.get_major_locator().set_params(integer=True)
    plain_numbers(axes.yaxis)
    frame(axes, f"runs solved (of {runs})", "time of a run [s]")
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, handlelength=3.2, title="contender (solved)")


def _profile(axes: Any, found: Lanes) -> None:
    runs = found.times.shape[1]
    fastest = found.times.min(axis=0)
    with np.errstate(invalid="ignore"):
        ratios = np.where(np.isfinite(found.times), found.times / fastest, np.inf)
    finite = ratios[np.isfinite(ratios)]
    end = max(2.0, float(finite.max(initial=1.0))) * 1.25
    for k, (name, row) in enumerate(zip(found.names, ratios, strict=True)):
        steps, counts = np.unique(row[np.isfinite(row)], return_counts=True)
        share = 100 * np.cumsum(counts) / runs
        # From 0 % at factor 1, where it is never the fastest, to the end of the axis; markers at the steps.
        across = np.concatenate([[1.0], steps, [end]])
        up = np.concatenate([[0.0], share, [share[-1] if len(share) else 0.0]])
        axes.plot(
            across,
            up,
            label=name,
            drawstyle="steps-post",
            markevery=[1 + k for k in marked(len(steps))],
            **look(k),
        )
    axes.set_xscale("log")
    axes.set_xlim(1.0, end)
    axes.set_ylim(-2, 104)
    few_ticks(axes.xaxis, 1.0, end)
    frame(axes, "factor of the fastest contender's time [1]", "runs solved within the factor [%]")
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.9, handlelength=3.2)


def _scatter(axes: Any, found: Lanes, a: int, b: int) -> None:
    low, high = _span(found)
    limit = found.limit
    x, y = np.minimum(found.times[a], limit), np.minimum(found.times[b], limit)
    solved = np.isfinite(found.times[a]) & np.isfinite(found.times[b])
    ends = np.array([low, high])
    axes.plot(ends, ends, color=INK, linewidth=0.9)
    for factor in (0.1, 10.0):
        axes.plot(ends, ends * factor, color=FAINT, linewidth=0.9, linestyle=":")
    axes.axvline(limit, color=FAINT, linewidth=1, linestyle=(0, (6, 3)))
    axes.axhline(limit, color=FAINT, linewidth=1, linestyle=(0, (6, 3)))
    points = {"linestyle": "none", "markersize": 5.5, "markeredgecolor": INK, "markeredgewidth": 0.9}
    axes.plot(x[solved], y[solved], marker="o", markerfacecolor="#4d4d4d", alpha=0.75, **points)
    axes.plot(x[~solved], y[~solved], marker="D", markerfacecolor="white", **points)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        few_ticks(axis, low, high)
    frame(axes, f"time of {found.names[a]} [s]", f"time of {found.names[b]} [s]")


# ------------------------------------------------------------------------------------------- the page

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$lead</p>
$wrong
<h2>Results</h2>
<div class="wide" tabindex="0" role="region" aria-label="Results">
$table
</div>
<ul>
$notes
</ul>
<h2>Figures</h2>
$figures
<h2>What was run</h2>
<div class="wide">
$facts
</div>
<p>The same command, with another folder for the report, runs it again:</p>
<pre>$command</pre>
<h2>How it is counted</h2>
<ul>
$rules
</ul>
<h2>Every query</h2>
<div class="wide" tabindex="0" role="region" aria-label="Every query">
$queries
</div>
</main>
</body>
</html>
""")

_RULES = (
    "A run is one query with one contender and one repeat; its time is wall-clock time for all competing"
    " classes of the query, bounds, encoding and replays included, loading excluded. The closed form, which"
    " needs no solver, is left aside.",
    "Solved: the bracket is closed within the gap, or the sign is proven where only that was asked, or the"
    " query is proven infeasible; every upper bound is a witness that was replayed through the network.",
    "Wrong: a lower bound above another run's replayed witness of the same query by more than"
    f" {TOLERANCE:g} times max(1, |witness|), a robust verdict against a witness of margin at most 0, or"
    " infeasible where there is a witness. A witness is a proof, so no majority is asked.",
    "Withdrawn: the solver's answer did not survive the replay, or the solver failed; nothing is concluded.",
    "Unsolved runs count as the limit in median, mean and speed-up and as twice the limit in PAR-2."
    " Speed-up: the geometric mean of the first contender's time over this one's, over runs that at least"
    f" one of the two solved; the interval is the percentile bootstrap over queries, {RESAMPLES} resamples.",
    "Nodes: median over solved runs that asked the solver. What a node is differs between solvers.",
)


def page(
    records: Sequence[Record],
    summary: Summary,
    names: Mapping[str, str],
    drawn: Sequence[tuple[Figure, str]],
    facts: Mapping[str, str],
    command: str,
    planned: int,
) -> str:
    """The HTML page.

    Args:
        records: of the comparison.
        summary: of them.
        names: short names of the contenders.
        drawn: the figures with their SVG.
        facts: settings and machine, as they are to be shown.
        command: the command line.
        planned: number of runs that were planned.
    """
    done = len(records)
    what = html.escape(facts.get("model", "a network"))
    title = f"Comparison of {counted(len(summary.rows), 'contender')} on {what}"
    lead = (
        f"{counted(summary.queries, 'query', 'queries')}, {counted(done, 'run')}"
        + (f" of {planned} planned: this comparison is not finished." if done < planned else ", all done.")
        + f" {html.escape(_headline(summary, names))}"
    )
    notes = list(note_lines(summary, names))
    wrong = "".join(f'<p class="wrong">{html.escape(line)}</p>' for line in notes if line.startswith("WRONG"))
    pairs = "".join(figure_html(*each) for each in drawn if each[0].name.startswith("scatter-"))
    others = "".join(figure_html(*each) for each in drawn if not each[0].name.startswith("scatter-"))
    return _PAGE.substitute(
        title=title,
        style=STYLE,
        lead=lead,
        wrong=wrong,
        table=_results(summary, names),
        notes=items(line for line in notes if not line.startswith("WRONG")),
        figures=(others + (f'<div class="pairs">\n{pairs}</div>' if pairs else "")) or "<p>Nothing ran.</p>",
        facts=facts_table(facts),
        command=html.escape(command),
        rules=items(_RULES),
        queries=_queries(records, summary, names),
    )


def _headline(summary: Summary, names: Mapping[str, str]) -> str:
    """Who solved most, the fastest of them first; nothing where no contender could run."""
    ran = [row for row in summary.rows if row.par2 is not None]
    if not ran:
        return "No contender could run."
    best = min(ran, key=lambda row: row.par2 or 0.0)
    return (
        f"Smallest PAR-2: {names[best.contender]}, {text(best.par2)} s, "
        f"{best.solved} of {best.runs} runs solved."
    )


def _results(summary: Summary, names: Mapping[str, str]) -> str:
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in ("contender", *COLUMNS))
    rows = []
    for row in summary.rows:
        shown = "".join(
            f"<td{_data(value)}>{html.escape(cell)}</td>"
            for cell, value in zip(cells(row), _values(row), strict=True)
        )
        rows.append(f'<tr><th scope="row">{html.escape(names[row.contender])}</th>{shown}</tr>')
    return (
        f'<table id="results">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + ("\n</tbody>\n</table>")
    )


def _data(value: float | None) -> str:
    """A number in full, for programs that read the page."""
    return "" if value is None else f' data-value="{value!r}"'


def _queries(records: Sequence[Record], summary: Summary, names: Mapping[str, str]) -> str:
    """A row a query: what is proven by all together, and each contender's median time."""
    keys = [row.contender for row in summary.rows]
    titles = ("index", "label", "lower", "upper", *(f"{names[key]} [s]" for key in keys))
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in titles)
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(record["index"], []).append(record)
    rows = []
    for index in sorted(groups):
        group = groups[index]
        trusted = [each for each in group if summary.outcome[each["job"]] not in ("wrong", "withdrawn")]
        lower = max((each["lower"] for each in trusted if each["lower"] is not None), default=None)
        upper = min((each["upper"] for each in group if each["upper"] is not None), default=None)
        shown = [str(group[0]["label"]), _decimals(lower), _decimals(upper)]
        for key in keys:
            shown.append(_times([each for each in group if each["contender"] == key], summary))
        line = "".join(f"<td>{html.escape(cell)}</td>" for cell in shown)
        rows.append(f'<tr><th scope="row">{index}</th>{line}</tr>')
    return (
        f'<table id="queries">\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + ("\n</tbody>\n</table>")
    )


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _times(group: Sequence[Record], summary: Summary) -> str:
    """The median time of a contender's solved runs, or how the others ended."""
    if not group:
        return "not run"
    ends = [summary.outcome[each["job"]] for each in group]
    solved = [float(each["seconds"]) for each, end in zip(group, ends, strict=True) if end == "solved"]
    others = ", ".join(dict.fromkeys(end for end in ends if end != "solved"))
    return ", ".join(([text(median(solved))] if solved else []) + ([others] if others else []))


# --------------------------------------------------------------------------------------------- files


def write(
    folder: Path,
    records: Sequence[Record],
    facts: Mapping[str, str],
    command: str,
    *,
    planned: int,
    seed: int = 0,
) -> Summary:
    """Write ``table.md``, the figures and ``report.html``, replacing what stands there under these names.

    Args:
        folder: an existing folder.
        records: of one comparison, at least one.
        facts: settings and machine, as they are to be shown.
        command: the command line that made them.
        planned: number of runs that were planned.
        seed: of the bootstrap.

    Raises:
        DataError: a file cannot be written.
    """
    summary = summarise(records, seed)
    names = short_names([row.contender for row in summary.rows])
    made = figures(lanes(records, summary, names))
    drawn = []
    for old in sorted(folder.glob("scatter-*.*")):
        # An earlier, interrupted run may have drawn pairs that are no longer there.
        if old.suffix in (".svg", ".png") and old.stem not in {figure.name for figure in made}:
            old.unlink(missing_ok=True)
    for figure in made:
        put(folder / f"{figure.name}.png", draw(figure, kind="png"))
        put(folder / f"{figure.name}.svg", draw(figure, kind="svg"))
        drawn.append((figure, draw(figure, kind="svg", caption=False).decode("utf-8")))
    put(folder / "table.md", markdown(summary, names).encode("utf-8"))
    put(
        folder / "report.html",
        page(records, summary, names, drawn, facts, command, planned).encode("utf-8"),
    )
    return summary
