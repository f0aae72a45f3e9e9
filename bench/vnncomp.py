"""Run VNN-COMP benchmarks: solved, wrong and timed-out instances, median times, and a cactus plot.

    python -m bench.vnncomp FOLDER [FOLDER...] [--out DIR] [--timeout S] [--every N] [--by net,expected]
    python -m bench.vnncomp FOLDER --every 6 --timeout 60 --peers nnenum,marabou,abcrown,omlt

A FOLDER has ``expected.csv`` (columns net, property, timeout_s, expected) or the competition's
``instances.csv`` (onnx, vnnlib, timeout; then no verdict is known). Each instance is a process of its own,
started as the competition's script starts it: times are wall-clock seconds with start-up; beside them stands
the processor time, which other work on the machine moves less. One that has no answer five seconds after its
limit is killed. An answer is right
only where it is the expected one; a counterexample is checked here once more, in ONNX Runtime on the file and
against the formula: ours to the letter, those of peers with the competition's tolerance of 1e-4, which is
noted. ``unknown`` is never right. Where no verdict is known, an answer counts as ``new``. Wrong
answers come first, and make the exit status 1. Results are appended to DIR/results.csv; the same command goes
on from there. Peers (``bench/_peers.py``) that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import _peers
from milpver.drawing import Figure, draw, frame, look, marked, plain_numbers
from milpver.property import Property
from milpver.property_file import load_property

COLUMNS = (
    "benchmark",
    "net",
    "property",
    "timeout",
    "threads",
    "tool",
    "expected",
    "answer",
    "seconds",
    "processor",
    "note",
)
DECIDED = ("sat", "unsat")
#: Columns by which instances can be grouped.
BY = ("net", "expected")
OURS = "milpver"
#: By how much a peer's counterexample may miss its property, as in the competition.
TOLERANCE = 1e-4
#: How the note on a counterexample begins that is none.
NONE = "the counterexample"


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance: files relative to its benchmark's folder."""

    folder: Path
    net: str
    prop: str
    timeout: float
    expected: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What names it in the results."""
        return self.folder.name, self.net, self.prop


def instances(folder: Path) -> list[Instance]:
    """The instances of a benchmark."""
    known = folder / "expected.csv"
    if known.is_file():
        rows = list(csv.DictReader(known.read_text(encoding="utf-8").splitlines()))
        return [
            Instance(folder, row["net"], row["property"], float(row["timeout_s"]), row["expected"])
            for row in rows
        ]
    lines = csv.reader((folder / "instances.csv").read_text(encoding="utf-8").splitlines())
    return [Instance(folder, row[0], row[1], float(row[2]), "unknown") for row in lines if row]


def run(tool: str, instance: Instance, limit: float, threads: int) -> tuple[str, float, float, str]:
    """One instance by one tool: answer, seconds, processor seconds, note."""
    model, prop = str(instance.folder / instance.net), str(instance.folder / instance.prop)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        result = str(Path(folder) / "result.txt")
        if tool == OURS:
            command = [sys.executable, "-m", "milpver", "verify", model, prop, "--timeout", str(limit)]
            command += ["--threads", str(threads), "--result", result]
        else:
            command = _peers.command(tool, model, prop, limit)
        ended = _peers.spawn(command, limit + _peers.GRACE, environment)
    answer = (ended.stdout.split() or ["error"])[0]
    if ended.killed:
        return "timeout", ended.seconds, ended.processor, "killed"
    if answer not in (*DECIDED, "unknown", "timeout"):
        answer = "error"
    note = ""
    if answer == "error":
        note = " ".join(ended.stderr.split())[-200:] or f"exit status {ended.status}"
    elif ended.seconds > limit and answer in DECIDED:
        answer, note = "timeout", f"{answer} after the limit"
    elif answer == "sat":
        note = refuted(instance, ended.stdout) if tool == OURS else missed(instance, ended.stdout)
    return answer, ended.seconds, ended.processor, note


def refuted(instance: Instance, text: str) -> str:
    """Why a counterexample is none; "" where it is one."""
    prop = load_property(instance.folder / instance.prop)
    found = {name: float(value) for name, value in re.findall(r"([XY]_\d+) (\S+?)\)", text)}
    try:
        exact = [found[f"X_{i}"] for i in range(prop.inputs)]
    except KeyError as error:
        return f"{NONE} has no {error}"
    x = np.array(exact, dtype=np.float32)
    if x.astype(np.float64).tolist() != exact:
        return f"{NONE} is not in float32"
    return "" if prop.violated(x, outputs(instance, x)) else f"{NONE} does not meet the property"


def outputs(instance: Instance, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime computes for an input, flat."""
    import onnxruntime  # noqa: PLC0415  only for counterexamples

    session = onnxruntime.InferenceSession(
        str(instance.folder / instance.net), providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    return np.asarray(session.run(None, {entry.name: x.reshape(shape)})[0], dtype=np.float32).reshape(-1)


def missed(instance: Instance, text: str) -> str:
    """By how much the counterexample of a peer misses the property; "" where it does not.

    It is taken to float32, and into the box where it is within the tolerance of it: peers compute in other
    numbers than the file's.
    """
    found = _peers.witness_of(text)
    if found is None:
        return "no counterexample given"
    prop = load_property(instance.folder / instance.prop)
    if found.shape != (prop.inputs,) or not np.all(np.isfinite(found)):
        return f"{NONE} has {len(found)} values, or infinite ones"
    least = np.inf
    for region in prop.regions:
        near = np.clip(found, region.lower - TOLERANCE, region.upper + TOLERANCE)
        if np.any(near != found) or not region.has_float32:
            least = min(least, _beyond(prop, found, outputs(instance, found.astype(np.float32))))
            continue
        x = np.clip(found.astype(np.float32), region.inner_lower, region.inner_upper).astype(np.float32)
        y = outputs(instance, x)
        if prop.violated(x, y):
            return ""
        least = min(least, _beyond(prop, x.astype(np.float64), y))
    return (
        f"within {TOLERANCE:g} only" if least <= TOLERANCE else f"{NONE} misses the property by {least:.3g}"
    )


def _beyond(prop: Property, x: NDArray[np.float64], y: NDArray[np.float32]) -> float:
    """By how much a point is outside of the nearest region and alternative, in the largest of its rows."""
    values = np.concatenate([y.astype(np.float64), x]) if prop.joint else y.astype(np.float64)
    return min(
        max(
            float(np.max(np.maximum(region.lower - x, x - region.upper), initial=0.0)),
            float(np.max(there.rows @ values - there.limits, initial=0.0)),
        )
        for region in prop.regions
        for there in region.alternatives
    )


def mark(row: Mapping[str, str]) -> str:
    """right, wrong, new, or the answer itself where it decides nothing."""
    answer, expected = row["answer"], row["expected"]
    if answer not in DECIDED:
        return answer
    if row["tool"] == OURS and answer == "sat":
        # A checked counterexample proves itself, whatever others said; one that fails is wrong.
        return "wrong" if row["note"] or expected == "unsat" else ("right" if expected == "sat" else "new")
    if row["note"].startswith(NONE):
        return "wrong"
    if expected not in DECIDED:
        return "new"
    return "right" if answer == expected else "wrong"


# ------------------------------------------------------------------------------------------- results


def done(path: Path) -> list[dict[str, str]]:
    """What a results file holds; a last line that was cut short is left out."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return list(csv.DictReader(whole.splitlines()))


def table(rows: Sequence[Mapping[str, str]], by: Sequence[str] = ()) -> Iterator[str]:
    """Markdown: wrong answers first, then a line a benchmark, value of the columns ``by``, and tool."""
    wrong = [row for row in rows if mark(row) == "wrong"]
    yield f"**{len(wrong)} wrong answers**"
    for row in wrong:
        asked = f"{row['net']} {row['property']} (expected {row['expected']})"
        yield f"- {row['tool']}: {row['answer']} for {asked} {row['note']}"
    yield ""
    counted = ("right", "new", "wrong", "unknown", "timeout", "error")
    heads = ("benchmark", *by, "tool", "instances", *counted, "median s", "PAR-2 s", "processor s, median")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in ("benchmark", *by, "tool")), []).append(row)
    for key, part in sorted(
        groups.items(), key=lambda group: (*group[0][:-1], group[0][-1] != OURS, group[0][-1])
    ):
        marks = [mark(row) for row in part]
        solved = [m in ("right", "new") for m in marks]
        times = [
            float(row["seconds"]) if s else float(row["timeout"]) for row, s in zip(part, solved, strict=True)
        ]
        own = [float(row["processor" if s else "timeout"]) for row, s in zip(part, solved, strict=True)]
        late = [t if s else 2 * t for t, s in zip(times, solved, strict=True)]
        counts = [marks.count(word) for word in counted]
        middle = statistics.median(times)
        bound = "≥ " if sum(solved) <= len(part) / 2 else ""
        yield (
            f"| {' | '.join(key)} | {len(part)} | {' | '.join(map(str, counts))} | "
            f"{bound}{middle:.2f} | {statistics.mean(late):.2f} | {bound}{statistics.median(own):.2f} |"
        )


def cactus(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Solved instances against time, a curve a tool."""
    tools = sorted({row["tool"] for row in rows}, key=lambda tool: (tool != OURS, tool))

    def paint(axes: Any) -> None:
        for k, tool in enumerate(tools):
            own = [row for row in rows if row["tool"] == tool]
            times = sorted(float(row["seconds"]) for row in own if mark(row) in ("right", "new"))
            axes.plot(
                range(1, len(times) + 1),
                times,
                label=f"{tool} ({len(times)} of {len(own)})",
                markevery=marked(len(times)),
                **look(k),
            )
        axes.set_yscale("log")
        axes.set_xlim(left=0)
        plain_numbers(axes.yaxis)
        frame(axes, "instances solved", "time of an instance [s]")
        axes.legend(fontsize=8.5, frameon=True, handlelength=3.2, title="tool (solved)")

    caption = (
        "How many instances each tool solves when each may take the time on the vertical axis, start-up "
        "included; wrong answers do not count. Lower and further to the right is better."
    )
    return Figure("cactus", "VNN-COMP instances", caption, paint, (6.4, 4.2))


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("bench-vnncomp"))
    parser.add_argument("--timeout", type=float, help="at most this many seconds an instance (its own limit)")
    parser.add_argument("--every", type=int, default=1, help="only every N-th instance")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", default="", help=f"others to run as well: {','.join(_peers.NAMES)}")
    parser.add_argument("--only-peers", action="store_true", help="leave milpver out")
    parser.add_argument("--by", default="", help=f"a line for each value of these as well: {','.join(BY)}")
    given = parser.parse_args(words)
    given.by = [column for column in given.by.split(",") if column]
    if not set(given.by) <= set(BY):
        parser.error(f"--by {','.join(given.by)}: any of {','.join(BY)}")
    return given


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for and print the table; 1 where an answer is wrong."""
    arguments = _arguments(words)
    tools = [] if arguments.only_peers else [OURS]
    for name in filter(None, arguments.peers.split(",")):
        if name not in _peers.NAMES:
            sys.exit(f"--peers {name}: one of {', '.join(_peers.NAMES)}")
        reason = _peers.missing(name)
        if reason:
            sys.stderr.write(f"{name}: {reason}\n")
        else:
            tools.append(name)
            sys.stderr.write(f"{name}: {_peers.versions(name)}\n")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.csv"
    rows = done(path)
    there = {(r["benchmark"], r["net"], r["property"], r["timeout"], r["threads"], r["tool"]) for r in rows}
    with path.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        if not rows and stream.tell() == 0:
            writer.writeheader()
        for folder in arguments.folders:
            for instance in instances(folder)[:: arguments.every]:
                limit = min(instance.timeout, arguments.timeout or instance.timeout)
                for tool in tools:
                    key = (*instance.key, str(limit), str(arguments.threads), tool)
                    if key in there:
                        continue
                    answer, seconds, used, note = run(tool, instance, limit, arguments.threads)
                    times = f"{seconds:.3f}", f"{used:.3f}"
                    values = (*key, instance.expected, answer, *times, note)
                    row = dict(zip(COLUMNS, values, strict=True))
                    writer.writerow(row)
                    stream.flush()
                    rows.append(row)
                    said = f"{mark(row):8} {answer:8} {seconds:7.2f} s {used:7.2f} s"
                    sys.stderr.write(f"{said}  {tool} {' '.join(instance.key)} {note}\n")
    text = "\n".join(table(rows, arguments.by)) + "\n"
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    for kind in ("png", "svg"):
        (arguments.out / f"cactus.{kind}").write_bytes(draw(cactus(rows), kind=kind))
    sys.stdout.write(text)
    return 1 if any(mark(row) == "wrong" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
