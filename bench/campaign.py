"""What campaigns cost and hold: the measurements that are too long for the test suite.

    python -m bench.campaign kills                              # 300 queries, kills at random instants
    python -m bench.campaign share                              # 200 one-second queries, one process, two
    python -m bench.campaign overhead --mnist DIR --model NET   # 1000 images x 3 budgets, native, 2 workers
    python -m bench.campaign report                             # 100,000 results: time and memory of it

``kills`` runs the shipped digit network and compares with an undisturbed run: status, verdict, target and
removed neurons exactly, brackets within the gap. ``share`` has workers that wait a second in place of
answers. ``overhead`` compares processor time: that of the queries asked in one process by
``milpver.margin.margins``, all of it with its start, against that of the campaign with everything it starts;
wall-clock time would count the machine's other work. NET is an ONNX file (those of ``onnx_models`` for MNIST
have short queries), or ``standard`` or ``robust``, networks that are trained first and kept in --out. The
exit status is 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bench._mnist_nets import networks
from milpver.campaign._worker import THREADS
from milpver.campaign.store import Limited, Result, Store, pack
from milpver.machine import host

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "onnx_models"
STUBS = ROOT / "tests" / "campaign"


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("kills", "share", "overhead", "report"))
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's idx files")
    parser.add_argument("--model", metavar="NET", help="a network for MNIST with three hidden layers")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-pruning"), help="where trained networks are kept"
    )
    parser.add_argument("--budgets", default="0,0,3;0,6,0;13,0,0", help="separated by semicolons")
    parser.add_argument("--count", type=int, default=1000, help="images")
    parser.add_argument("--repeat", type=int, default=1, help="how often `overhead` is measured")
    parser.add_argument("--kind", default="margin", choices=("margin", "decide"))
    parser.add_argument("--seconds", type=float, default=1.0, help="of a query of `share`")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.stdout.write(f"{json.dumps(host())}\n")
    with tempfile.TemporaryDirectory() as folder:
        checks: Mapping[str, Any] = {"kills": kills, "share": share, "overhead": overhead, "report": report}
        return int(not checks[arguments.what](Path(folder), arguments))


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def spec(path: Path, *, model: Path, data: Path, index: str, question: str, **campaign: Any) -> Path:
    """Write a campaign file."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in campaign.items())
    path.write_text(
        f'[campaign]\n{lines}[[network]]\npath = "{model}"\n[data]\npath = "{data}"\nindex = "{index}"\n'
        f"[[question]]\n{question}\n",
        encoding="utf-8",
    )
    return path


def start(*words: object) -> subprocess.Popen[str]:
    """Start ``milpver campaign``."""
    command = [sys.executable, "-m", "milpver", "campaign", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


def ended(process: subprocess.Popen[str]) -> str:
    """Wait until a process ends well; what it said."""
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {out}")
    return out


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and that these have: workers, and what they are forked from."""
    done = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], check=False, capture_output=True, text=True
    )
    found = [int(word) for word in done.stdout.split()]
    return found + [each for child in found for each in descendants(child)]


# ---------------------------------------------------------------------------------------------- kills


def kills(folder: Path, arguments: argparse.Namespace) -> bool:
    """Kill the campaign and its workers again and again."""
    question = 'kind = "margin"\nbudgets = ["2,1", "6,3", "8,5"]\nsolvers = ["bab"]'
    data: dict[str, Any] = {
        "model": MODELS / "digits_fc.onnx",
        "data": MODELS / "digits_test.npz",
        "index": "0:100",
    }
    calm = spec(folder / "calm.toml", question=question, name="calm", workers=2, **data)
    killed = spec(folder / "killed.toml", question=question, name="killed", workers=2, **data)
    ended(start("run", calm, "--quiet"))
    draw, count = random.Random(arguments.seed), {"campaign": 0, "worker": 0}
    process = start("run", killed, "--quiet")
    while process.poll() is None:
        # After a random number of answers, whatever the machine's load, somewhere in the next one.
        wanted = answered(folder / "killed.sqlite") + draw.randrange(1, 25)
        while process.poll() is None and answered(folder / "killed.sqlite") < wanted:
            time.sleep(draw.uniform(0.0, 0.02))
        others = descendants(process.pid)
        if process.poll() is None and others and draw.random() < 0.5:
            with suppress(ProcessLookupError):
                os.kill(draw.choice(others), signal.SIGKILL)
                count["worker"] += 1
        elif process.poll() is None:
            process.kill()
            process.communicate()
            count["campaign"] += 1
            process = start("run", killed, "--quiet")
    ended(process)
    rows = [results(folder / name) for name in ("calm.sqlite", "killed.sqlite")]
    differ = sum(a != b for a, b in zip(*rows, strict=True))
    apart = max(
        (abs(a[k] - b[k]) for a, b in zip(*rows, strict=True) for k in (4, 5) if None not in (a[k], b[k])),
        default=0.0,
    )
    with Store.open(folder / "killed.sqlite") as store:
        total, keys = store._db.execute("SELECT count(*), count(DISTINCT key) FROM result").fetchone()
    same = all(a[:4] + a[6:] == b[:4] + b[6:] for a, b in zip(*rows, strict=True))
    say(
        f"kills of the campaign: {count['campaign']}, of workers and what they are forked from: "
        f"{count['worker']}; queries {len(rows[1])}, "
        f"results {total}, different from the undisturbed run: {differ}, in more than a bracket's last bits: "
        f"{'none' if same else 'some'} (brackets apart by {apart:.3g})"
    )
    return total == keys == len(rows[1]) == 300 and same and apart <= 1e-6


def answered(path: Path) -> int:
    """How many results a store holds."""
    if not path.exists():
        return 0
    with Store.open(path, create=True) as store:
        return int(store._db.execute("SELECT count(*) FROM result").fetchone()[0])


def results(path: Path) -> list[tuple[Any, ...]]:
    """What answers each query: position, status, verdict, target, bracket, removed neurons."""
    columns = ("p.position", "r.status", "r.verdict", "r.target", "r.lower", "r.upper", "r.removed")
    with Store.open(path) as store:
        return list(store.rows(store.campaign(), columns))


# ---------------------------------------------------------------------------------------------- share


def share(folder: Path, arguments: argparse.Namespace) -> bool:
    """One process of one worker, and two on the same store."""
    question = 'kind = "margin"\nbudgets = ["2,1"]'
    data: dict[str, Any] = {
        "model": MODELS / "digits_fc.onnx",
        "data": MODELS / "digits_test.npz",
        "index": "0:200",
    }
    seconds = {}
    for count in (1, 2):
        path = spec(folder / f"{count}.toml", question=question, name=str(count), **data)
        log = folder / f"{count}.log"
        command = [
            sys.executable,
            str(STUBS / "stub_campaign.py"),
            str(path),
            str(arguments.seconds),
            str(log),
        ]
        began = time.perf_counter()
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(count)
        ]
        for process in processes:
            ended(process)
        seconds[count] = time.perf_counter() - began
        keys = [line.split()[0] for line in log.read_text(encoding="ascii").splitlines()]
        say(f"{count} processes: {seconds[count]:.1f} s, {len(keys)} answers to {len(set(keys))} queries")
        if not len(keys) == len(set(keys)) == 200:
            return False
    say(f"ratio {seconds[2] / seconds[1]:.3f} (aim: at most 0.6)")
    return seconds[2] <= 0.6 * seconds[1]


# ------------------------------------------------------------------------------------------- overhead


def overhead(folder: Path, arguments: argparse.Namespace) -> bool:
    """Processor time of the queries alone, and of a campaign of them."""
    if arguments.mnist is None or arguments.model is None:
        raise SystemExit("overhead needs --mnist and --model")
    if arguments.model in ("standard", "robust"):
        arguments.out.mkdir(parents=True, exist_ok=True)
    (net,) = networks(arguments.mnist, arguments.out, [arguments.model]).values()
    budgets = arguments.budgets.split(";")
    question = f'kind = "{arguments.kind}"\nbudgets = {json.dumps(budgets)}\nsolvers = ["bab"]'
    path = spec(
        folder / "c.toml",
        model=net.path.resolve(),
        data=arguments.mnist.resolve(),
        index=f"0:{arguments.count}",
        question=question,
        workers=2,
        timeout=60.0,
    )
    code = (
        "import sys; from pathlib import Path; from milpver.machine import keep_to_threads\n"
        "keep_to_threads(1)\n"
        "from milpver.campaign.plan import make_plan; from milpver.campaign.spec import read_spec\n"
        "from milpver.campaign.questions import KINDS, Asked\n"
        "plan = make_plan(read_spec(Path(sys.argv[1])))\n"
        "for cell in plan.cells:\n"
        "    s = plan.source(cell)\n"
        "    net = plan.networks[cell.network]\n"
        "    stop = lambda: False\n"
        "    some = (net, s.inputs, s.labels, s.indices, cell.parameters, s.domain, cell.options, stop)\n"
        "    for verdict in KINDS[cell.kind].ask(Asked(*some)): pass\n"
    )
    one_thread = os.environ | dict.fromkeys(THREADS, "1")  # as workers have it
    spent: dict[str, list[float]] = {"alone": [], "campaign": []}
    # In turns, so that other work on the machine, which lengthens processor time as well, hits both.
    for turn in range(arguments.repeat):
        before = processor()
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT, env=one_thread)
        spent["alone"].append(processor() - before)
        for file in folder.glob("c.sqlite*"):
            file.unlink()
        before, began = processor(), time.perf_counter()
        ended(start("run", path, "--quiet"))
        spent["campaign"].append(processor() - before)
        wall = time.perf_counter() - began
        with Store.open(folder / "c.sqlite") as store:
            work = sum(row[0] for row in store.rows(store.campaign(), ("r.seconds",)))
        say(
            f"turn {turn + 1}: {spent['alone'][-1]:.2f} s alone, {spent['campaign'][-1]:.2f} s as a "
            f"campaign; wall-clock {wall:.1f} s with 2 workers, {100 * work / (2 * wall):.1f} % in queries"
        )
    alone, campaign = (statistics.median(each) for each in spent.values())
    say(
        f"{arguments.count} images x {len(budgets)} budgets, {arguments.kind}: processor time {alone:.2f} s "
        f"alone, {campaign:.2f} s as a campaign: overhead {100 * (campaign / alone - 1):.2f} % "
        f"(aim: under 5 %), medians of {arguments.repeat}"
    )
    return campaign <= 1.05 * alone


def processor() -> float:
    """Processor time of all child processes that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --------------------------------------------------------------------------------------------- report


def report(folder: Path, arguments: argparse.Namespace) -> bool:
    """A store of 100,000 made-up results, and the report over it."""
    count, budgets = 10_000, [f"{k},1" for k in range(10)]
    rng = np.random.default_rng(arguments.seed)
    digits = np.load(MODELS / "digits_test.npz")
    x = np.clip(digits["x"][rng.integers(0, 360, count)] + rng.uniform(-0.05, 0.05, (count, 64)), 0, 1)
    np.savez(folder / "many.npz", x=x.astype(np.float32), y=digits["y"][rng.integers(0, 360, count)])
    question = f'kind = "margin"\nbudgets = {json.dumps(budgets[:9])}\n[[question]]\nkind = "distance"'
    path = spec(
        folder / "c.toml",
        model=MODELS / "digits_fc.onnx",
        data=folder / "many.npz",
        index=":",
        question=question,
    )
    fill(path, rng)
    began = time.perf_counter()
    process = start("report", path, "--out", folder / "out")
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    spent, memory = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    page = folder / "out" / "report.html"
    size = page.stat().st_size if page.exists() else 0
    say(
        f"report over 100,000 results: {wall:.1f} s wall-clock, {spent:.1f} s processor time (aim: 10 s), "
        f"{memory / 2**20:.0f} MiB (aim: under 1 GB), page {size / 2**20:.2f} MiB, exit code {status}"
    )
    return status == 0 and spent < 10 and memory < 10**9


def fill(path: Path, rng: np.random.Generator) -> None:
    """Answer every query of a campaign by made-up numbers."""
    from milpver.campaign.plan import make_plan  # noqa: PLC0415  only here
    from milpver.campaign.spec import read_spec  # noqa: PLC0415  as above

    plan = make_plan(read_spec(path))
    with Store.open(plan.spec.store, create=True) as store:
        store.register(plan, {"machine": host()})
        limits = Limited.of(60.0, 4 << 30, 1)
        part: list[tuple[Result, Limited]] = []
        for _, cell, _, _, key, _ in plan.rows():
            part.append((made_up(plan.cells[cell].kind, key, rng), limits))
            if len(part) == 5000:
                store.commit(part)
                part = []
        store.commit(part)


def made_up(kind: str, key: bytes, rng: np.random.Generator) -> Result:
    """A result as large as a real one."""
    value = float(rng.normal(2.0, 2.0)) if kind == "margin" else float(rng.gamma(4.0, 0.02))
    finished = rng.random() > 0.1
    removed = [[1, int(k)] for k in rng.integers(0, 48, 2)] if kind == "margin" else None
    columns = {
        "status": "optimal" if finished else "timeout",
        "verdict": ("robust" if value > 0 else "vulnerable") if kind == "margin" and finished else "unknown",
        "assurance": "rounded",
        "lower": value if finished else value - 1,
        "upper": value,
        "target": int(rng.integers(10)),
        "removed": None if removed is None else json.dumps(removed),
        "nodes": int(rng.integers(1000)),
        "seconds": float(rng.gamma(2.0, 0.5)),
        "engine": "bab",
        "message": "",
    }
    classes = [{"target": k, "lower": value, "upper": value + k, "status": "optimal"} for k in range(9)]
    record = columns | {"index": 0, "classes": classes, "adversarial_label": 3, "removed": removed}
    witness = pack(rng.uniform(size=64)) if kind == "distance" else None
    return Result(key, json.dumps(record), columns, "here", witness)


if __name__ == "__main__":
    sys.exit(main())
