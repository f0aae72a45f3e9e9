"""Run VNN-COMP benchmarks: solved, wrong and timed-out instances, median times, and a cactus plot.

    python -m bench.vnncomp FOLDER [FOLDER...] [--out DIR] [--timeout S] [--every N] [--peers nnenum,marabou]

A FOLDER has ``expected.csv`` (columns net, property, timeout_s, expected) or the competition's
``instances.csv`` (onnx, vnnlib, timeout; then no verdict is known). Each instance is a process of its own,
started as the competition's script starts it: times are wall-clock seconds with start-up; beside them stands
the processor time, which other work on the machine moves less. An answer is right
only where it is the expected one; a counterexample is checked here once more, in ONNX Runtime on the file and
against the formula. ``unknown`` is never right. Where no verdict is known, an answer counts as ``new``. Wrong
answers come first, and make the exit status 1. Results are appended to DIR/results.csv; the same command goes
on from there.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import _peers
from milpver.drawing import Figure, draw, frame, look, marked, plain_numbers
from milpver.property_file import load_property

ROOT = Path(__file__).resolve().parent.parent
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
OURS = "milpver"


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
        result = Path(folder) / "result.txt"
        if tool == OURS:
            command = [sys.executable, "-m", "milpver", "verify", model, prop, "--timeout", str(limit)]
            command += ["--threads", str(threads), "--result", str(result)]
        else:
            command = [sys.executable, "-m", "bench._peers", tool, model, prop, str(limit)]
        began, used = time.perf_counter(), _processor()
        try:
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                timeout=limit + 30,
                cwd=ROOT,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return "timeout", time.perf_counter() - began, _processor() - used, "killed"
        seconds, used = time.perf_counter() - began, _processor() - used
    answer = (done.stdout.split() or ["error"])[0]
    if answer not in (*DECIDED, "unknown", "timeout"):
        answer = "error"
    note = " ".join(done.stderr.split())[-200:] if answer == "error" else ""
    if seconds > limit and answer in DECIDED:
        answer, note = "timeout", f"{answer} after the limit"
    if tool == OURS and answer == "sat":
        note = refuted(instance, done.stdout)
    return answer, seconds, used, note


def _processor() -> float:
    """Processor seconds of the processes that have ended so far."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def refuted(instance: Instance, text: str) -> str:
    """Why a counterexample is none; "" where it is one."""
    import onnxruntime  # noqa: PLC0415  only for counterexamples

    prop = load_property(instance.folder / instance.prop)
    found = {name: float(value) for name, value in re.findall(r"([XY]_\d+) (\S+?)\)", text)}
    try:
        exact = [found[f"X_{i}"] for i in range(prop.inputs)]
    except KeyError as error:
        return f"the counterexample has no {error}"
    x = np.array(exact, dtype=np.float32)
    if x.astype(np.float64).tolist() != exact:
        return "the counterexample is not in float32"
    session = onnxruntime.InferenceSession(
        str(instance.folder / instance.net), providers=["CPUExecutionProvider"]
    )
    entry = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else 1 for size in entry.shape]
    y = np.asarray(session.run(None, {entry.name: x.reshape(shape)})[0], dtype=np.float32).reshape(-1)
    return "" if prop.violated(x, y) else "the counterexample does not meet the property"


def mark(row: Mapping[str, str]) -> str:
    """right, wrong, new, or the answer itself where it decides nothing."""
    answer, expected = row["answer"], row["expected"]
    if answer not in DECIDED:
        return answer
    if row["tool"] == OURS and answer == "sat":
        # A checked counterexample proves itself, whatever others said; one that fails is wrong.
        return "wrong" if row["note"] or expected == "unsat" else ("right" if expected == "sat" else "new")
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


def table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Markdown: wrong answers first, then a line a benchmark and tool."""
    wrong = [row for row in rows if mark(row) == "wrong"]
    yield f"**{len(wrong)} wrong answers**"
    for row in wrong:
        asked = f"{row['net']} {row['property']} (expected {row['expected']})"
        yield f"- {row['tool']}: {row['answer']} for {asked} {row['note']}"
    yield ""
    counted = ("right", "new", "wrong", "unknown", "timeout", "error")
    heads = ("benchmark", "tool", "instances", *counted, "median s", "PAR-2 s", "processor s, median")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["benchmark"], row["tool"]), []).append(row)
    for (benchmark, tool), part in sorted(groups.items()):
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
            f"| {benchmark} | {tool} | {len(part)} | {' | '.join(map(str, counts))} | "
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
    return parser.parse_args(words)


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
    text = "\n".join(table(rows)) + "\n"
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    for kind in ("png", "svg"):
        (arguments.out / f"cactus.{kind}").write_bytes(draw(cactus(rows), kind=kind))
    sys.stdout.write(text)
    return 1 if any(mark(row) == "wrong" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
