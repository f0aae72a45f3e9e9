"""One instance or one distance by another verifier, where it is installed, run as a process of its own.

    python -m bench._peers NAME MODEL.onnx PROPERTY.vnnlib TIMEOUT      (as bench/vnncomp.py starts it)
    python -m bench._peers NAME --distance QUERY.json TIMEOUT           (as bench/distance.py starts it)

The first line of stdout is the answer: sat, unsat, unknown, timeout or error; after sat follow the values
``(X_i v)`` of the counterexample that the peer gave. For a distance every line is a bracket so far:
``bracket LOWER UPPER open|closed PROCESSOR_SECONDS``.
nnenum and alpha-beta-CROWN read the property themselves; Marabou reads the network and OMLT gets its layers
from our reader, and both get every region and alternative of the property one by one.

A peer that needs packages of its own runs in an interpreter of its own: the environment variable NAME_PYTHON
(``MARABOU_PYTHON``, ``OMLT_PYTHON``, ``NNENUM_PYTHON``, ``ABCROWN_PYTHON``) names it. Whoever starts a peer
kills it, with all that it started, a few seconds after its limit (``spawn``).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.graph import Affine, Gate, Graph, Input, Relu
from milpver.linear import Conv
from milpver.onnx_import import load_network
from milpver.property import Property
from milpver.property_file import load_property, read_text

if sys.platform != "win32":
    import resource

__all__ = ["GRACE", "NAMES", "Ended", "command", "distance", "missing", "spawn", "versions"]

ROOT = Path(__file__).resolve().parent.parent

NAMES = ("nnenum", "marabou", "abcrown", "omlt")

#: Seconds after its limit at which a verifier is killed: it may say by itself that its time is over.
GRACE = 5.0

#: Environment variable with alpha-beta-CROWN's script, which is no package.
ABCROWN = "ABCROWN"

#: What an interpreter needs for a peer; numpy, scipy and onnx for our readers.
_PACKAGES = {
    "nnenum": ("nnenum",),
    "marabou": ("maraboupy", "numpy", "scipy", "onnx"),
    "abcrown": ("torch",),
    "omlt": ("omlt", "pyomo", "highspy", "numpy", "scipy", "onnx"),
}
#: Those that are run by their own script from a process of ours; the others are imported.
_SCRIPTS = ("nnenum", "abcrown")

#: What verifiers call their answers. Anything else is an error.
_WORDS = {
    "holds": "unsat",
    "unsat": "unsat",
    "safe": "unsat",
    "verified": "unsat",
    "violated": "sat",
    "sat": "sat",
    "unsafe": "sat",
    "falsified": "sat",
    "timeout": "timeout",
    "unknown": "unknown",
    "quit_requested": "unknown",
}

Vector = NDArray[np.float64]
#: An answer, and the counterexample if one was given.
Answer = tuple[str, "Vector | None"]

# ---------------------------------------------------------------------------------------- what is installed


def interpreter(name: str) -> str:
    """The Python that has a peer's packages."""
    return os.environ.get(f"{name.upper()}_PYTHON", sys.executable)


def missing(name: str) -> str:
    """Why a verifier cannot be run, in a few words; "" where it can."""
    if name == "abcrown" and not Path(os.environ.get(ABCROWN, "")).is_file():
        return f"not installed ({ABCROWN} names no abcrown.py)"
    code = "import sys, importlib.util as u; print(*[p for p in sys.argv[1:] if u.find_spec(p) is None])"
    try:
        found = _asked(name, code, *_PACKAGES[name])
    except (OSError, subprocess.SubprocessError):
        return f"not installed ({name.upper()}_PYTHON names no interpreter: {interpreter(name)})"
    return f"not installed ({', '.join(found.split())})" if found.strip() else ""


def versions(name: str) -> str:
    """A peer's packages with their versions."""
    code = "import sys, importlib.metadata as m; print(*[f'{p} {m.version(p)}' for p in sys.argv[1:]])"
    own = [package for package in _PACKAGES[name] if package not in ("numpy", "scipy", "onnx")]
    try:
        return _asked(name, code, *own).strip()
    except (OSError, subprocess.SubprocessError):
        return name


def _asked(name: str, code: str, *words: str) -> str:
    """What a line of Python prints in a peer's interpreter."""
    line = [interpreter(name), "-c", code, *words]
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout


# ------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended.

    Attributes:
        stdout, stderr: what it wrote, up to its end.
        status: its exit status, negative for a signal.
        seconds: wall-clock time.
        processor: processor seconds of it and of those of its children that it waited for.
        killed: whether it had to be killed.
    """

    stdout: str
    stderr: str
    status: int
    seconds: float
    processor: float
    killed: bool


def spawn(words: Sequence[str], limit: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Run a command in the repository; whatever of it is left ``limit`` seconds later is killed.

    It leads a process group of its own, so that what it started ends with it.
    """
    began, used = time.perf_counter(), _processor()
    process = subprocess.Popen(
        list(words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=ROOT,
        env=None if environment is None else dict(environment),
        start_new_session=True,
    )
    killed = False
    try:
        stdout, stderr = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        killed = True
        _end(process)
        stdout, stderr = process.communicate()
    finally:
        _end(process)  # what it left running; and all of it after Ctrl-C
        process.wait()
    seconds = time.perf_counter() - began
    return Ended(stdout, stderr, process.returncode, seconds, _processor() - used, killed)


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and its group."""
    if sys.platform == "win32":
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is gone; some systems say so this way
        os.killpg(process.pid, signal.SIGKILL)


def _processor() -> float:
    """Processor seconds of the processes that have ended so far."""
    if sys.platform == "win32":
        return 0.0
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def command(name: str, model: str, prop: str, limit: float) -> list[str]:
    """How a peer is started on an instance."""
    python = sys.executable if name in _SCRIPTS else interpreter(name)
    return [python, "-m", "bench._peers", name, model, prop, str(limit)]


# --------------------------------------------------------------------------------- peers with scripts


def _by_script(words: list[str], result: Path) -> Answer:
    """Run a verifier that leaves its answer in a file; our own limit, and who started us, end it."""
    done = subprocess.run(words, check=False, stdout=sys.stderr)
    if not result.exists():
        raise RuntimeError(f"no answer, exit status {done.returncode}")
    text = result.read_text(encoding="utf-8")
    return answer_of(text), witness_of(text)


def answer_of(text: str) -> str:
    """The answer in a result file; "error" where its first word is none."""
    words = text.replace(",", " ").replace(":", " ").split()
    return _WORDS.get(words[0].lower().split("-")[0], "error") if words else "error"


def witness_of(text: str) -> Vector | None:
    """The inputs of a counterexample as the competition writes it, ``(X_i v)``; None where there is none."""
    found: dict[int, float] = {}
    for part in text.split("(")[1:]:
        words = part.replace(")", " ").split()
        if len(words) > 1 and words[0].startswith("X_") and words[0][2:].isdigit():
            found[int(words[0][2:])] = float(words[1])
    if not found or sorted(found) != list(range(len(found))):
        return None
    return np.array([found[i] for i in range(len(found))])


def _nnenum(model: Path, prop: Path, timeout: float, folder: Path) -> Answer:
    result = folder / "result.txt"
    words = [interpreter("nnenum"), "-m", "nnenum.nnenum", str(model), str(prop), str(timeout), str(result)]
    return _by_script(words, result)


def _abcrown(model: Path, prop: Path, timeout: float, folder: Path) -> Answer:
    script, result = Path(os.environ[ABCROWN]), folder / "result.txt"
    words = [interpreter("abcrown"), str(script), "--onnx_path", str(model), "--vnnlib_path", str(prop)]
    words += ["--results_file", str(result), "--timeout", str(timeout), "--device", "cpu"]
    return _by_script(words, result)


# ----------------------------------------------------------------------------------- peers as packages

#: The rows of an alternative that matter: coefficients of the outputs, of the inputs, and the limit.
Rows = list[tuple[Vector, Vector, float]]
#: Asks about one alternative: its number, its rows and the seconds it may take.
Ask = Callable[[int, Rows, float], Answer]


def rows_of(prop: Property, region: int, alternative: int) -> Rows:
    """The rows ``a y + c x <= b`` of an alternative."""
    there = prop.regions[region].alternatives[alternative]
    inputs = there.rows[:, prop.outputs :] if prop.joint else np.zeros((len(there.rows), prop.inputs))
    limits = there.limits.tolist()
    return list(zip(there.rows[:, : prop.outputs], inputs, limits, strict=True))


def combined(questions: Sequence[Rows], ask: Ask, deadline: float) -> Answer:
    """The answer to a region from those to its alternatives, before ``deadline`` (of ``time.monotonic``).

    Every alternative gets an equal share of half the time first, so that the counterexample of the last is
    not lost behind the first; those without an answer share the rest in turn.
    """
    share = 0.5 * (deadline - time.monotonic()) / len(questions)
    open_ones: dict[int, str] = {}
    for number, rows in enumerate(questions):
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout", None
        word, witness = ask(number, rows, left if len(questions) == 1 else min(left, share))
        if word == "sat":
            return word, witness
        if word != "unsat":
            open_ones[number] = word
    if len(questions) > 1:
        for number in list(open_ones):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            word, witness = ask(number, questions[number], left)
            if word == "sat":
                return word, witness
            open_ones[number] = word
    found = set(open_ones.values())
    return next((word for word in ("error", "timeout", "unknown") if word in found), "unsat"), None


def _each(prop: Property, start: Callable[[Vector, Vector], Ask], timeout: float) -> Answer:
    """The answer to a property; ``start`` gets the box of a region. Starting up is part of the time."""
    deadline = time.monotonic() + timeout - time.process_time()
    found = []
    for number, region in enumerate(prop.regions):
        questions = [rows_of(prop, number, k) for k in range(len(region.alternatives))]
        now = time.monotonic()
        until = now + (deadline - now) / (len(prop.regions) - number)
        word, witness = combined(questions, start(region.lower, region.upper), until)
        if word == "sat":
            return word, witness
        found.append(word)
    return next((word for word in ("error", "timeout", "unknown") if word in found), "unsat"), None


def _marabou_asked(model: str, lower: Vector, upper: Vector, rows: Rows, timeout: float) -> Answer:
    """Marabou on one box and one conjunction."""
    from maraboupy import Marabou  # noqa: PLC0415  only where it is installed

    network = Marabou.read_onnx(model)
    inputs = np.concatenate([np.asarray(part).reshape(-1) for part in network.inputVars])
    outputs = np.concatenate([np.asarray(part).reshape(-1) for part in network.outputVars])
    for variable, low, high in zip(inputs.tolist(), lower.tolist(), upper.tolist(), strict=True):
        network.setLowerBound(variable, low)
        network.setUpperBound(variable, high)
    for of_outputs, of_inputs, limit in rows:
        weights = np.concatenate([of_outputs, of_inputs])
        used = np.flatnonzero(weights)
        variables = np.concatenate([outputs, inputs])[used]
        network.addInequality(variables.tolist(), weights[used].tolist(), float(limit))
    # Whole seconds, and 0 is no limit at all.
    options = Marabou.createOptions(timeoutInSeconds=max(1, int(timeout)), verbosity=0, numWorkers=1)
    word, values, _ = network.solve(verbose=False, options=options)
    answer = _WORDS.get(str(word).lower(), "error")
    if answer == "error":
        sys.stderr.write(f"marabou: {word}\n")
    return answer, np.array([values[k] for k in inputs.tolist()]) if answer == "sat" else None


def _marabou(model: Path, prop: Path, timeout: float, folder: Path) -> Answer:
    del folder

    def start(lower: Vector, upper: Vector) -> Ask:
        return lambda _, rows, left: _marabou_asked(str(model), lower, upper, rows, left)

    return _each(load_property(prop), start, timeout)


def chain(graph: Graph) -> list[tuple[Vector, Vector, bool]]:
    """A chain of dense layers: weights [outputs, inputs], biases, whether a ReLU follows.

    Affine nodes that follow each other are one layer; gates, which remove nothing here, are left out.

    Raises:
        ValueError: the network is anything else.
    """
    layers: list[tuple[Any, Vector, bool]] = []
    for index, node in enumerate(graph.nodes):
        match node:
            case Input() if index == 0:
                pass
            case Affine(terms=((source, linear),), bias=bias) if source == index - 1:
                if isinstance(linear, Conv):
                    raise ValueError(f"{node.name or 'a node'} is a convolution: only chains of dense layers")
                weights = linear.csr
                if layers and not layers[-1][2]:
                    before, shift, _ = layers.pop()
                    bias, weights = weights @ shift + bias, weights @ before
                layers.append((weights, np.asarray(bias), False))
            case Relu(source=source) if source == index - 1 and layers and not layers[-1][2]:
                weights, bias, _ = layers.pop()
                layers.append((weights, bias, True))
            case Gate(source=source) if source == index - 1:
                pass
            case _:
                raise ValueError(f"{node.name or type(node).__name__} is no layer of a chain")
    return [(np.asarray(weights.toarray()), bias, rectified) for weights, bias, rectified in layers]


def _omlt_program(layers: Sequence[tuple[Vector, Vector, bool]], lower: Vector, upper: Vector) -> Any:
    """The network over a box in OMLT's full-space big-M formulation."""
    import logging  # noqa: PLC0415  only here

    import pyomo.environ as pyo  # noqa: PLC0415  only where it is asked for
    from omlt import OmltBlock  # noqa: PLC0415  only where it is installed
    from omlt.neuralnet import FullSpaceNNFormulation, NetworkDefinition  # noqa: PLC0415  as above
    from omlt.neuralnet.layer import DenseLayer, InputLayer  # noqa: PLC0415  as above

    logging.getLogger("pyomo").setLevel(logging.ERROR)  # a warning an input: its initial 0 is outside the box
    ends = dict(enumerate(zip(lower.tolist(), upper.tolist(), strict=True)))
    made = NetworkDefinition(scaling_object=None, scaled_input_bounds=ends)
    before: Any = InputLayer([len(lower)])
    made.add_layer(before)
    for weights, bias, rectified in layers:
        layer = DenseLayer(
            [weights.shape[1]],
            [weights.shape[0]],
            activation="relu" if rectified else "linear",
            weights=weights.T,
            biases=bias,
        )
        made.add_layer(layer)
        made.add_edge(before, layer)
        before = layer
    program: Any = pyo.ConcreteModel()
    program.net = OmltBlock()
    program.net.build_formulation(FullSpaceNNFormulation(made))
    program.rows = pyo.ConstraintList()
    return program


def _omlt_solved(program: Any, timeout: float, **options: float) -> tuple[str, Any]:
    """HiGHS on a program: how it ended, and Pyomo's results."""
    from pyomo.contrib.appsi.solvers import Highs  # noqa: PLC0415  only where it is installed

    solver = Highs()
    solver.config.load_solution = False
    solver.config.time_limit = max(timeout, 0.01)
    solver.highs_options = {"threads": 1, **options}
    results = solver.solve(program)
    return results.termination_condition.name, results


def _omlt(model: Path, prop: Path, timeout: float, folder: Path) -> Answer:
    import pyomo.environ as pyo  # noqa: PLC0415  only where it is asked for

    del folder
    layers = chain(load_network(model).graph)
    words = {"infeasible": "unsat", "optimal": "sat", "maxTimeLimit": "timeout", "unknown": "unknown"}

    def start(lower: Vector, upper: Vector) -> Ask:
        program = _omlt_program(layers, lower, upper)
        program.goal = pyo.Objective(expr=0.0)
        inputs, outputs = list(program.net.inputs.values()), list(program.net.outputs.values())

        def ask(number: int, rows: Rows, left: float) -> Answer:
            del number
            program.rows.clear()
            for of_outputs, of_inputs, limit in rows:
                terms = [float(a) * outputs[k] for k, a in enumerate(of_outputs) if a]
                terms += [float(c) * inputs[k] for k, c in enumerate(of_inputs) if c]
                if not terms:
                    if limit < 0:
                        return "unsat", None
                    continue
                program.rows.add(sum(terms) <= float(limit))
            ending, results = _omlt_solved(program, left)
            word = words.get(ending, "error")
            if word == "error":
                sys.stderr.write(f"omlt: {ending}\n")
            if word != "sat":
                return word, None
            results.solution_loader.load_vars()
            return word, np.array([pyo.value(variable) for variable in inputs])

        return ask

    return _each(load_property(prop), start, timeout)


# --------------------------------------------------------------------------------------------- distances

#: A bracket of a distance: lower, upper, whether it is closed.
Bracket = tuple[float, float, bool]


@dataclass(frozen=True, slots=True)
class Query:
    """The L-infinity distance of an image to the decision boundary.

    Attributes:
        model: the network's file.
        image: float64 [inputs].
        label: its class.
        logits: of the image, by which classes are ordered.
        low, high: the domain of every input.
        reach: a radius within which there is an input of another class, or the domain's width.
        gap: width of a bracket that is closed.
    """

    model: str
    image: tuple[float, ...]
    label: int
    logits: tuple[float, ...]
    low: float
    high: float
    reach: float
    gap: float

    def box(self, radius: float) -> tuple[Vector, Vector]:
        """The ball in the domain."""
        x = np.array(self.image)
        return np.maximum(self.low, x - radius), np.minimum(self.high, x + radius)

    def others(self) -> list[int]:
        """The competing classes, the closest first."""
        return [j for j in np.argsort(self.logits)[::-1].tolist() if j != self.label]


def distance(name: str, query: Query, limit: float) -> tuple[float, float, float, bool, str]:
    """A peer's bracket: processor seconds without start-up, lower, upper, closed, what went wrong.

    A bracket that is not closed took the processor time of the whole process.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "query.json"
        path.write_text(json.dumps({key: getattr(query, key) for key in Query.__slots__}), encoding="utf-8")
        words = [interpreter(name), "-m", "bench._peers", name, "--distance", str(path), str(limit)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = spawn(words, limit + GRACE, environment)
    lines = [line.split() for line in ended.stdout.splitlines() if line.startswith("bracket ")]
    wrong = "" if ended.killed or ended.status == 0 else " ".join(ended.stderr.split())[-200:] or "crashed"
    if not lines:
        return ended.processor, 0.0, query.reach, False, wrong
    _, lower, upper, closed, spent = lines[-1]
    done = closed == "closed" and not wrong
    return float(spent) if done else ended.processor, float(lower), float(upper), done, wrong


def _marabou_distance(query: Query, deadline: float) -> Iterator[Bracket]:
    """Bisection: is there a point within the radius at which another class is level or ahead?"""
    lower, upper, others = 0.0, query.reach, query.others()
    while upper - lower > query.gap:
        radius = 0.5 * (lower + upper)
        low, high = query.box(radius)
        for other in others:
            left = deadline - time.monotonic()
            if left <= 1:
                return
            row = np.zeros(len(query.logits))
            row[query.label], row[other] = 1.0, -1.0
            word, _ = _marabou_asked(query.model, low, high, [(row, np.zeros(len(low)), 0.0)], left)
            if word == "sat":
                upper, others = radius, [other, *(j for j in others if j != other)]
                break
            if word == "error":
                raise RuntimeError("Marabou failed")
            if word != "unsat":
                return
        else:
            lower = radius
        yield lower, upper, upper - lower <= query.gap


def _omlt_distance(query: Query, deadline: float) -> Iterator[Bracket]:
    """The smallest radius, class by class, in the ball that is left by those before."""
    import pyomo.environ as pyo  # noqa: PLC0415  only where it is asked for

    layers = chain(load_network(Path(query.model)).graph)
    upper, others = query.reach, query.others()
    floors = dict.fromkeys(others, 0.0)
    for other in others:
        program = _omlt_program(layers, *query.box(upper))
        program.radius = pyo.Var(bounds=(0.0, upper))
        program.goal = pyo.Objective(expr=program.radius)
        for variable, value in zip(program.net.inputs.values(), query.image, strict=True):
            program.rows.add(variable - value <= program.radius)
            program.rows.add(value - variable <= program.radius)
        outputs = list(program.net.outputs.values())
        program.rows.add(outputs[query.label] <= outputs[other])
        left = deadline - time.monotonic()
        if left <= 0:
            return
        ending, results = _omlt_solved(program, left, mip_abs_gap=query.gap, mip_rel_gap=0.0)
        if ending not in ("optimal", "infeasible", "maxTimeLimit"):
            raise RuntimeError(f"HiGHS: {ending}")
        bound, reached = results.best_objective_bound, results.best_feasible_objective
        floors[other] = upper if ending == "infeasible" else max(0.0, bound or 0.0)
        if reached is not None:
            upper = min(upper, reached)
        lower = min(upper, *floors.values())
        yield lower, upper, ending != "maxTimeLimit" and other == others[-1]
        if ending == "maxTimeLimit":
            return


_ASK: dict[str, Callable[[Path, Path, float, Path], Answer]] = {
    "nnenum": _nnenum,
    "marabou": _marabou,
    "abcrown": _abcrown,
    "omlt": _omlt,
}
_DISTANCE: dict[str, Callable[[Query, float], Iterator[Bracket]]] = {
    "marabou": _marabou_distance,
    "omlt": _omlt_distance,
}


def main(words: list[str]) -> int:
    """Answer one instance or one distance."""
    name, model, prop, timeout = words
    answers = os.dup(1)  # solvers print where they like: everything but the answer goes to stderr
    os.dup2(2, 1)

    def say(text: str) -> None:
        os.write(answers, f"{text}\n".encode("ascii"))

    if name not in _SCRIPTS:
        _limit_memory()
    try:
        if model == "--distance":
            given = json.loads(Path(prop).read_text(encoding="utf-8"))
            begun, deadline = time.process_time(), time.monotonic() + float(timeout)
            for lower, upper, closed in _DISTANCE[name](Query(**given), deadline):
                spent = time.process_time() - begun
                say(f"bracket {lower!r} {upper!r} {'closed' if closed else 'open'} {spent:.3f}")
            return 0
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "property.vnnlib"  # not everyone reads packed files
            plain.write_text(read_text(Path(prop)), encoding="utf-8")
            answer, witness = _ASK[name](Path(model), plain, float(timeout), Path(folder))
    except Exception as error:
        sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
        say("error")
        return 1
    say(answer)
    if witness is not None:
        say("(" + "\n".join(f"(X_{k} {value!r})" for k, value in enumerate(witness.tolist())) + ")")
    return 0


def _limit_memory() -> None:
    """At most half of the machine's memory: a peer that wants more is an error, not the machine's end."""
    if sys.platform != "win32":
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        resource.setrlimit(resource.RLIMIT_AS, (half, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
