"""The commands' flags, and how a command line is read.

Values stay texts here: the commands turn them into numbers and say in one line what is wrong with them. The
modules of the commands are named, not imported.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from milpver.cli.campaign_flags import CAMPAIGN_EXAMPLES, add_campaign

__all__ = ["UsageError", "parse"]

DESCRIPTION = """\
Exact verification of neural networks against pruning and perturbation: the worst
class margin over all removals of neurons that a budget allows, and the distance
to the decision boundary. Networks are ONNX files."""

EXAMPLES = """\
examples:
  milpver demo
  milpver info model.onnx
  milpver margin model.onnx --data test.npz --budget 2,1
  milpver distance model.onnx --data test.npz --domain 0,1 --records distances.jsonl
  milpver verify model.onnx property.vnnlib

exit codes: 0 completed (whatever the verdicts), 2 a mistake that the message says
how to mend, 130 interrupted.  `milpver COMMAND --help` explains a command."""

INFO_EXAMPLES = """\
example:
  milpver info model.onnx --json"""

MARGIN_EXAMPLES = """\
A record says robust where the margin is proven > 0, vulnerable where a replayed
witness has a margin <= 0, unknown otherwise. Ctrl-C ends a run and keeps what is
done; the same command with the same --records FILE goes on from there.

examples:
  milpver margin model.onnx --data test.npz --budget 2,1
  milpver margin model.onnx --data mnist/ --budget 10%,- --radius 0.01 --decide
  milpver margin model.onnx --data test.csv --scale 255 --budget 2=3 --records out.jsonl
  milpver margin model.onnx --data test.npz --budget total:3 --keep 1:3,7 --remove 2:0"""

DISTANCE_EXAMPLES = """\
The distance is that of the closest input, in the data's units, at which another
class reaches the label's score (a tie counts). Ctrl-C ends a run and keeps what is
done; the same command with the same --records FILE goes on from there.

examples:
  milpver distance model.onnx --data test.npz --domain 0,1
  milpver distance model.onnx --data mnist/ --index 0:100 --records out.jsonl --quiet
  milpver distance model.onnx --data test.npz --target 3 --save-witness witnesses"""

PRUNING_DISTANCE_EXAMPLES = """\
Each layer is asked about by itself, and the distance is the smallest of theirs; with
--total removals count over all layers together. A tie counts as changed. Ctrl-C ends
a run and keeps what is done; the same command with the same --records FILE goes on
from there.

examples:
  milpver pruning-distance model.onnx --data test.npz --index 0:20
  milpver pruning-distance model.onnx --data mnist/ --layers 1,2 --total --records out.jsonl
  milpver pruning-distance model.onnx --data test.npz --layers 2 --keep 2:3,7"""

COMPARE_EXAMPLES = """\
Every combination of solver, encoding and bounds is a contender; all get the same
queries in turn. DIR gets results.jsonl, table.md, figures and report.html. Ctrl-C
keeps what is done; the same command goes on from there.

examples:
  milpver compare model.onnx --data test.npz --budget 2,1 --solvers highs,scip --report out
  milpver compare model.onnx --data mnist/ --budget 10%,-,- --solvers highs,gurobi,pyomo:cbc \\
      --encodings reference,fused --timeout 60 --repeat 3 --report out"""

DEMO_EXAMPLES = """\
example:
  milpver demo --out /tmp/milpver-demo --count 10"""

EXPORT_EXAMPLES = """\
The objective of the program is the label's score minus the competing class's. Beside
it, a .json file says what the columns mean.

example:
  milpver export model.onnx --data test.npz --index 5 --budget 2,1 q.mps
  cbc q.mps solve solution q.sol
  milpver import-solution q.mps q.sol"""

IMPORT_EXAMPLES = """\
Reads solution files of HiGHS, Gurobi, SCIP, CBC and GLPK. Checked are the program's
rows, bounds and integers, the objective, and the margin in the real network.

example:
  milpver import-solution q.mps q.sol"""

TRAIN_EXAMPLES = """\
Methods: standard; robust, the neuron-pruning paper's loss; sam; targeted-dropout;
exact-bound, through bounds that know the budget. The network is written once it is
trained, and compared with torch's in ONNX Runtime. Ctrl-C ends a run; with the same
--checkpoint FILE the same command goes on.

examples:
  milpver train --arch 784-128-64-32-10 --no-bias --data mnist/ --method exact-bound \\
      --budget 10%,0,0 --epochs 30 --save net.onnx
  milpver train --arch 64-48-24-10 --data digits_train.npz --test-data digits_test.npz \\
      --method robust --budget 2,1 --checkpoint net.ckpt --log net.csv --save net.onnx
  milpver train --arch smallconv --data cifar10_train.npz --keys x_train,y_train --scale 255 \\
      --mean 0.4914,0.4822,0.4465 --std 0.2470,0.2435,0.2616 --method standard --save net.onnx"""

VERIFY_EXAMPLES = """\
The first line of stdout is sat, unsat, unknown, timeout or error; after sat follows
the counterexample, a float32 input with the outputs that ONNX Runtime gives.

examples:
  milpver verify model.onnx property.vnnlib.gz --timeout 120 --result out.txt
  milpver verify query.vnnlib --network f=model.onnx
  milpver verify query.vnnlib --network f=model.onnx --network g=smaller.onnx
  milpver verify --instances instances.csv --results results.csv"""

SUPPORTS_EXAMPLES = """\
example:
  milpver supports                        # everything
  milpver supports --vnnlib-versions"""

ATTACK_EXAMPLES = """\
Methods: random (masks drawn uniformly, the same for all inputs), l2 (the neurons with the
largest weights go), pgd (on importance scores, a mask for each input), shared (pgd, one
mask for all inputs), greedy, swap (greedy, then exchanges). What they find bounds the
worst margin from above; milpver margin finds it exactly.

example:
  milpver attack model.onnx --data test.npz --budget 2,1 --index 0:100 --method pgd,swap
  milpver attack model.onnx --data mnist/ --budget 10%,0,0 --index 0:1000 --records out.jsonl"""

PRUNE_EXAMPLES = """\
Removes as many neurons of each layer as the budget says, those with the least score, and
takes their rows and columns out of the file. The outcome is compared with the masked
network in ONNX Runtime before it is written.

examples:
  milpver prune model.onnx --method l1 --budget 10%,0,0 --save small.onnx
  milpver prune model.onnx --method taylor --budget 2,1 --data test.npz --save small.onnx"""

SUBSTITUTE_EXAMPLES = """\
A substitute has linear functions in place of the ReLUs that vary least between an
input and an adversarial one: con constants, lin the line through both, act the line
that holds at the input. For act, delta is the radius in which both networks agree,
and so min(delta, d_bnd of the substitute) is certified for the network.

example:
  milpver substitute model.onnx --data mnist/ --kind con,lin,act --ratio 0.9,0.99 --index 0:10"""

SOLVERS_EXAMPLES = """\
example:
  milpver solvers --json"""


#: What argparse says of an unknown command, and the names that it lists.
_UNKNOWN = re.compile(r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
_NAME = re.compile(r"[a-z]+(?:-[a-z]+)*")


class UsageError(Exception):
    """A command line that cannot be read; the message is one line."""


class _Parser(argparse.ArgumentParser):
    """Reports mistakes by an exception, with names that come near."""

    def error(self, message: str) -> NoReturn:
        """See argparse; never prints, never exits."""
        if found := _UNKNOWN.fullmatch(message):
            from milpver.registry import near  # noqa: PLC0415  only for a mistake

            message = f"unknown command {found[1]!r}; {near(found[1], re.findall(_NAME, found[2]))}"
        raise UsageError(f"{message}; see `{self.prog} --help`")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    Returns:
        The flags as texts; ``module`` is the module whose ``run`` takes them.

    Raises:
        UsageError: it cannot be read.
        SystemExit: a help text was asked for and printed.
    """
    parser, commands = _parsers()
    words = list(argv)
    name = next((word for word in words if word in commands), "")
    inner = next((f"{name} {word}" for word in words if f"{name} {word}" in commands), name)
    command = commands.get(inner, parser)
    _refuse_unknown(words, parser, command)
    arguments = parser.parse_args(_joined(words, command))
    if arguments.version:
        arguments.module = "milpver.cli.version"
    elif arguments.command is None:
        known = ", ".join(each for each in commands if " " not in each)
        raise UsageError(f"no command; choose one of {known}; see `milpver --help`")
    elif arguments.module is None:
        known = ", ".join(each.partition(" ")[2] for each in commands if each.startswith(f"{name} "))
        raise UsageError(f"milpver {name} needs to know what to do: {known}; see `milpver {name} --help`")
    elif arguments.version_json:
        raise UsageError("--json stands after the command: milpver info MODEL --json")
    return arguments


def _joined(words: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Tie values that start with a minus sign to their flags, or argparse takes them for flags.

    ``--domain -1,1`` becomes ``--domain=-1,1``; what starts with two signs stays a flag.
    """
    valued = {flag for action in _actions(parser) if action.nargs is None for flag in action.option_strings}
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in valued and len(word) > 1 and word[0] == "-" and word[1] != "-":
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    """The flags and arguments of a parser (argparse has no public name for them)."""
    return parser._actions


def _refuse_unknown(
    words: Sequence[str], parser: argparse.ArgumentParser, command: argparse.ArgumentParser
) -> None:
    """Name the flags that come near a misspelt one, before argparse finds that the right one is missing."""
    known = {
        flag for each in (parser, command) for action in _actions(each) for flag in action.option_strings
    }
    given = words[: words.index("--")] if "--" in words else words
    flags = (word.partition("=")[0] for word in given if word.startswith("--"))
    for flag in flags:
        if flag not in known:
            from milpver.registry import near  # noqa: PLC0415  only for a mistake

            own = [flag for action in _actions(command) for flag in action.option_strings]
            raise UsageError(f"unknown option {flag!r}; {near(flag, own)}; see `{command.prog} --help`")


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of the commands by name."""
    parser = _Parser(
        prog="milpver",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    parser.add_argument(
        "--json", action="store_true", dest="version_json", help="with --version: print it as JSON"
    )
    added = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands: dict[str, argparse.ArgumentParser] = {}

    def add(name: str, summary: str, examples: str, flags: Callable[[argparse.ArgumentParser], None]) -> None:
        commands[name] = command = added.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(module=f"milpver.cli.{name.replace('-', '_')}")
        flags(command)

    add("info", "what is in a network file, and which layers can be pruned", INFO_EXAMPLES, _info)
    add("margin", "worst class margins over all prunings within a budget", MARGIN_EXAMPLES, _margin)
    add("distance", "distances to the decision boundary", DISTANCE_EXAMPLES, _distance)
    add(
        "pruning-distance",
        "the fewest neurons whose removal changes the prediction",
        PRUNING_DISTANCE_EXAMPLES,
        _pruning_distance,
    )
    add(
        "compare",
        "solvers, encodings and bounds on the same queries, with a report",
        COMPARE_EXAMPLES,
        _compare,
    )
    add("export", "the program of one input and one competing class as a file", EXPORT_EXAMPLES, _export)
    add("import-solution", "check a solution of an exported program", IMPORT_EXAMPLES, _import_solution)
    add("demo", "both questions on shipped handwritten digits, with a picture", DEMO_EXAMPLES, _demo)
    add("attack", "pruning masks that hurt, by attacks", ATTACK_EXAMPLES, _attack)
    add("prune", "remove neurons by a heuristic, and write the smaller network", PRUNE_EXAMPLES, _prune)
    add("train", "train a network to survive pruning, and export it", TRAIN_EXAMPLES, _train)
    add("verify", "whether a property in VNN-LIB holds, one or a list of them", VERIFY_EXAMPLES, _verify)
    add("substitute", "distances in local substitutes of a network", SUBSTITUTE_EXAMPLES, _substitute)
    add("supports", "what queries are taken, as VNN-LIB 2.0 asks", SUPPORTS_EXAMPLES, _supports)
    add("campaign", "whole test sets, days long, nothing lost, and a report", CAMPAIGN_EXAMPLES, _nothing)
    for parts in add_campaign(commands["campaign"], _Parser):
        commands[f"campaign {parts[0]}"] = parts[1]
    add("solvers", "the solvers, whether they are available, or why not", SOLVERS_EXAMPLES, _json)
    return parser, commands


def _nothing(parser: argparse.ArgumentParser) -> None:
    """A command that is nothing by itself: its own commands name the module."""
    parser.set_defaults(module=None)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")


def _info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="ONNX file")
    _json(parser)


def _forced(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep", metavar="LIST", help="neurons that have to stay: 1:3,7 (layer 1's 3 and 7), 1:3,2:0"
    )
    parser.add_argument(
        "--remove",
        metavar="LIST",
        help="neurons that are removed in every mask, likewise; they count against the budget of their layer",
    )


def _margin(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument(
        "--budget",
        required=True,
        metavar="LIST",
        help="neurons that may be removed, an entry a gateable layer: 2,1 or 10%%,-; or named: 2:3, conv1:2 "
        "(channels), total:4 (milpver info)",
    )
    _forced(parser)
    parser.add_argument(
        "--radius", default="0", metavar="R", help="L-inf ball around each input, in the data's units (0)"
    )
    parser.add_argument(
        "--decide", action="store_true", help="stop as soon as the sign of the margin is proven"
    )
    parser.add_argument(
        "--pre-screen",
        default="none",
        metavar="NAME",
        help="with --decide: answer by deviation bounds where they suffice: none or deviation (none)",
    )
    _common(parser)


def _distance(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument(
        "--norm",
        default="linf",
        metavar="NORM",
        help="how distances are measured: linf, l1, or l2 (of backends by scip and gurobi alone) (linf)",
    )
    parser.add_argument(
        "--method", default="direct", metavar="NAME", help="direct minimisation, or bisect on the radius"
    )
    parser.add_argument(
        "--target", metavar="K", help="the distance to this class only (the closest of all classes)"
    )
    parser.add_argument(
        "--remove", metavar="LIST", help="neurons that are removed: 1:3,7 (layer 1's 3 and 7), 1:3,2:0 (none)"
    )
    _common(parser)


def _pruning_distance(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument(
        "--layers", metavar="LIST", help="layers to remove from: 1,2 (all fully connected ones, milpver info)"
    )
    parser.add_argument(
        "--total", action="store_true", help="count removals over these layers together, not layer by layer"
    )
    _forced(parser)
    _common(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument(
        "--question", default="margin", metavar="NAME", help="what is asked: margin or distance (margin)"
    )
    parser.add_argument(
        "--budget",
        metavar="LIST",
        help="margin: neurons that may be removed, see milpver margin",
    )
    _forced(parser)
    parser.add_argument("--radius", metavar="R", help="margin: L-inf ball, in the data's units (0)")
    parser.add_argument(
        "--decide", action="store_true", help="margin: stop as soon as the sign of the margin is proven"
    )
    _data(parser)
    group = parser.add_argument_group("contenders")
    group.add_argument(
        "--solvers",
        required=True,
        metavar="LIST",
        help="separated by commas, see milpver solvers; the others are compared with the first",
    )
    group.add_argument(
        "--encodings", default="fused", metavar="LIST", help="fused, or reference: the papers' (fused)"
    )
    group.add_argument(
        "--bounds",
        default="alpha-crown",
        metavar="LIST",
        help="lp (the tightest, slow), alpha-crown, crown, budget or interval (alpha-crown)",
    )
    group.add_argument(
        "--solver-option",
        action="append",
        default=[],
        metavar="[SOLVER:]KEY=VALUE",
        help="a parameter of one solver's own, or of all; may be given several times",
    )
    group.add_argument("--repeat", default="1", metavar="N", help="runs of each contender on each query (1)")
    _limits(parser.add_argument_group("search"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--report",
        required=True,
        metavar="DIR",
        help="folder for the results; that of the same comparison is continued",
    )
    output.add_argument("--quiet", action="store_true", help="no progress and no notes; the table stays")


def _model_and_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="ONNX file")
    parser.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="inputs with labels: .npz, .csv (label first), or a folder of idx files as MNIST ships them",
    )


def _data(parser: argparse.ArgumentParser) -> None:
    """Which inputs, and how they are read."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--index", metavar="I", help="which inputs: 5 or 1,4,9 or 0:100 (0:20, or all if fewer)"
    )
    data.add_argument(
        "--domain",
        metavar="LO,HI",
        help="range of every input element ([0,1] for idx folders, none elsewhere)",
    )
    data.add_argument("--keys", metavar="X,Y", help="names of inputs and labels in an .npz file (x,y)")
    data.add_argument("--split", default="test", metavar="NAME", help="files of an idx folder: test or train")
    data.add_argument("--scale", metavar="S", help="divide the inputs of an .npz or .csv file by S")
    data.add_argument(
        "--mean", metavar="M", help="the network gets (x - M) / S; one number, or one a channel"
    )
    data.add_argument("--std", metavar="S", help="see --mean; radius, domain and distances stay in x's units")
    data.add_argument(
        "--layout", metavar="NAME", help="where the data has its channels, if elsewhere: nchw or nhwc"
    )


def _limits(search: argparse._ArgumentGroup) -> None:
    """Limits of a search."""
    search.add_argument(
        "--timeout", default="60", metavar="S", help="seconds for one input, all classes (60)"
    )
    search.add_argument(
        "--gap", default="1e-6", metavar="G", help="absolute gap that closes a bracket (1e-6)"
    )
    search.add_argument("--threads", default="1", metavar="N", help="threads (1)")
    search.add_argument("--memory", default="4G", metavar="SIZE", help="memory limit, K, M, G or T (4G)")
    search.add_argument("--seed", default="0", metavar="N", help="random seed (0)")
    search.add_argument(
        "--device", default="auto", metavar="NAME", help="where bounds are computed: auto, cpu or cuda (auto)"
    )


def _program(group: argparse._ArgumentGroup) -> None:
    """What a program is made of."""
    group.add_argument(
        "--encoding", default="fused", metavar="NAME", help="fused, or reference: the papers' (fused)"
    )
    group.add_argument(
        "--bounds",
        default="alpha-crown",
        metavar="NAME",
        help="lp (the tightest, slow), alpha-crown, crown, budget or interval (alpha-crown)",
    )


def _export(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument("out", metavar="OUT", help="file to write: .mps (free format) or .lp")
    parser.add_argument("--budget", required=True, metavar="LIST", help="see milpver margin")
    _forced(parser)
    parser.add_argument("--radius", default="0", metavar="R", help="see milpver margin (0)")
    parser.add_argument(
        "--target", metavar="K", help="the competing class (the one with the smallest lower bound)"
    )
    _data(parser)
    _program(parser.add_argument_group("program"))
    parser.set_defaults(solver="highs", solver_option=[], solver_log=None, cross_check=None, device="auto")
    parser.set_defaults(timeout="60", gap="1e-6", threads="1", memory="4G", seed="0")
    parser.set_defaults(records=None, save_witness=None, quiet=True)


def _import_solution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", metavar="PROGRAM", help="the exported file, its .json beside it")
    parser.add_argument("solution", metavar="SOLUTION", help="what the solver wrote")
    parser.add_argument("--model", metavar="MODEL", help="the ONNX file, where it is no longer in its place")


def _common(parser: argparse.ArgumentParser) -> None:
    """Flags of both questions; defaults are those of ``milpver.query.Options`` (a test compares them)."""
    _data(parser)
    search = parser.add_argument_group("search")
    search.add_argument(
        "--solver", default="auto", metavar="NAME", help="auto, bab or a backend: milpver solvers (auto)"
    )
    search.add_argument(
        "--solver-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the solver's own; may be given several times",
    )
    search.add_argument(
        "--cross-check",
        metavar="NAMES",
        help="solve every program with each of these, such as highs,scip; no verdict where they disagree",
    )
    search.add_argument(
        "--solver-log", metavar="DIR", help="write the solver's logs to DIR, one file a solve"
    )
    _program(search)
    _limits(search)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--records",
        metavar="FILE",
        help="write one JSON line an input, `-` to stdout; a FILE of the same query is continued",
    )
    output.add_argument(
        "--save-witness",
        metavar="DIR",
        help="write each worst case to DIR, for ONNX Runtime; files of these names are replaced",
    )
    output.add_argument("--quiet", action="store_true", help="no progress and no notes; the table stays")


def _verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="MODEL.onnx PROPERTY.vnnlib[.gz], or with --network: QUERY.vnnlib",
    )
    parser.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="the file of a network that a query in VNN-LIB 2.0 declares under this name; again for each one"
        " that is not declared equal to another",
    )
    parser.add_argument(
        "--budget", metavar="LIST", help="the property has to hold under all masks: see milpver margin (none)"
    )
    _forced(parser)
    parser.add_argument("--result", metavar="FILE", help="write the answer to FILE as well")
    batch = parser.add_argument_group("batch")
    batch.add_argument(
        "--instances",
        metavar="CSV",
        help="lines onnx,vnnlib,timeout; paths are relative to the file's folder",
    )
    batch.add_argument(
        "--results", metavar="CSV", help="a line an instance; a file that is there is continued"
    )
    batch.add_argument("--counterexamples", metavar="DIR", help="write the counterexamples of a batch to DIR")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--solver", default="auto", metavar="NAME", help="auto: the native search; or a MILP solver (auto)"
    )
    search.add_argument(
        "--bounds", default="alpha-crown", metavar="NAME", help="lp, alpha-crown, crown, budget or interval"
    )
    search.add_argument(
        "--timeout", default="300", metavar="S", help="seconds in all; of a batch its own count (300)"
    )
    search.add_argument("--threads", default="1", metavar="N", help="threads (1)")
    search.add_argument("--memory", default="4G", metavar="SIZE", help="memory limit, K, M, G or T (4G)")
    search.add_argument("--seed", default="0", metavar="N", help="random seed (0)")
    search.add_argument(
        "--device", default="auto", metavar="NAME", help="where bounds are computed: auto, cpu or cuda (auto)"
    )


def _substitute(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument("--kind", default="lin,act", metavar="LIST", help="con, lin, act (lin,act)")
    parser.add_argument(
        "--ratio", default="0.9", metavar="LIST", help="shares of the ReLUs that are replaced (0.9)"
    )
    parser.add_argument(
        "--exact-delta", action="store_true", help="act: let the MILP solver close delta where bounds do not"
    )
    parser.add_argument("--save-models", metavar="DIR", help="write the substitutes to DIR as ONNX files")
    _common(parser)


def _supports(parser: argparse.ArgumentParser) -> None:
    for name in (
        "onnx-opset-versions",
        "onnx-element-types",
        "onnx-operators",
        "vnnlib-versions",
        "hidden-node-theories",
        "multiple-input-output-theories",
        "multiple-network-theories",
        "multiple-node-comparison-theories",
        "arithmetic-complexity-theories",
        "optimised-disjunctive-reasoning",
        "serialise-assignments",
        "unsat-proofs",
    ):
        parser.add_argument(f"--{name}", action="store_true", help="see VNN-LIB 2.0, section on solvers")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="milpver-demo", metavar="DIR", help="folder for records and picture (milpver-demo)"
    )
    parser.add_argument("--count", default="12", metavar="N", help="number of digits, 1 to 60 (12)")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes; the tables stay")


def _train(parser: argparse.ArgumentParser) -> None:
    need = parser.add_argument_group("what is trained")
    need.add_argument(
        "--arch",
        required=True,
        metavar="A",
        help="784-128-64-32-10: inputs, hidden layers, classes; conv8-conv16-200-10; smallconv",
    )
    need.add_argument("--no-bias", action="store_true", help="layers without biases, as the paper's")
    need.add_argument(
        "--data",
        required=True,
        metavar="D",
        help="training images: .npz, .csv (label first), or a folder of idx files",
    )
    need.add_argument("--test-data", metavar="D", help="test images (of a folder, its own test images)")
    need.add_argument("--save", required=True, metavar="FILE", help="the ONNX file to write")
    data = parser.add_argument_group("data")
    data.add_argument("--keys", metavar="X,Y", help="names of inputs and labels in an .npz file (x,y)")
    data.add_argument("--test-keys", metavar="X,Y", help="the same for --test-data (those of --keys)")
    data.add_argument("--scale", metavar="S", help="divide the inputs of an .npz or .csv file by S")
    data.add_argument(
        "--mean", metavar="M", help="the network starts with (x - M) / S; a number or one a channel"
    )
    data.add_argument("--std", metavar="S", help="see --mean")
    how = parser.add_argument_group("method")
    how.add_argument(
        "--method",
        default="standard",
        metavar="NAME",
        help="standard, robust, sam, targeted-dropout or exact-bound (standard)",
    )
    how.add_argument(
        "--budget", metavar="LIST", help="neurons that may be removed, see milpver margin (none)"
    )
    how.add_argument("--lambda1", metavar="L", help="weight of the hinge (0.3), or of the bound (0.1)")
    how.add_argument("--lambda2", metavar="L", help="weight of the ratio (0.1), or of attacked masks (2)")
    how.add_argument("--epsilon", default="0.1", metavar="E", help="robust: least margin of the ratio (0.1)")
    how.add_argument("--rho", default="0.05", metavar="R", help="sam: radius (0.05)")
    how.add_argument(
        "--targeted", default="0.5", metavar="P", help="targeted-dropout: share of a layer targeted (0.5)"
    )
    how.add_argument(
        "--drop", default="0.5", metavar="P", help="targeted-dropout: probability to be dropped (0.5)"
    )
    how.add_argument("--warmup", default="5", metavar="N", help="epochs before the method's own terms (5)")
    how.add_argument(
        "--ramp", default="10", metavar="N", help="epochs in which they grow to full weight (10)"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--epochs", default="120", metavar="N", help="passes over the images (120)")
    run.add_argument("--batch", default="128", metavar="N", help="images a step (128)")
    run.add_argument("--lr", default="1e-3", metavar="R", help="Adam's learning rate (1e-3)")
    run.add_argument("--weight-decay", default="1e-3", metavar="W", help="of Adam (1e-3)")
    run.add_argument("--schedule", default="cosine", metavar="NAME", help="cosine to 0, or constant (cosine)")
    run.add_argument("--seed", default="0", metavar="N", help="random seed (0)")
    run.add_argument("--threads", default="1", metavar="N", help="threads (1)")
    run.add_argument(
        "--checkpoint", metavar="FILE", help="kept after every epoch; continued where it is there"
    )
    run.add_argument("--log", metavar="FILE", help="write a CSV line an epoch")
    run.add_argument("--quiet", action="store_true", help="no progress and no notes; the result stays")


def _attack(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument(
        "--budget",
        required=True,
        metavar="LIST",
        help="neurons that may be removed, an entry a gateable layer: 2,1 or 10%%,- or 2=3 (milpver info)",
    )
    parser.add_argument(
        "--method",
        default="random,l2,pgd,shared,greedy,swap",
        metavar="LIST",
        help="some of random,l2,pgd,shared,greedy,swap (all)",
    )
    parser.add_argument("--samples", default="1000", metavar="N", help="masks that random draws (1000)")
    parser.add_argument("--steps", default="400", metavar="N", help="steps of pgd and shared (400)")
    _data(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--seed", default="0", metavar="N", help="random seed (0)")
    run.add_argument("--threads", default="1", metavar="N", help="threads (1)")
    run.add_argument(
        "--device", default="auto", metavar="NAME", help="where attacks run: auto, cpu or cuda (auto)"
    )
    run.add_argument(
        "--records", metavar="FILE", help="write one JSON line an input to a new FILE, `-` to stdout"
    )
    run.add_argument("--quiet", action="store_true", help="no notes; the table stays")


def _prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="ONNX file")
    parser.add_argument(
        "--method", default="l1", metavar="NAME", help="l1, l2, taylor, actmean or random (l1)"
    )
    parser.add_argument(
        "--budget", required=True, metavar="LIST", help="neurons to remove, an entry a gateable layer"
    )
    parser.add_argument("--save", required=True, metavar="FILE", help="the ONNX file to write")
    parser.add_argument("--seed", default="0", metavar="N", help="of random (0)")
    data = parser.add_argument_group("data", "for taylor and actmean, and for accuracies")
    data.add_argument("--data", metavar="D", help="inputs with labels, see milpver margin")
    data.add_argument("--index", metavar="I", help="which inputs: 5 or 1,4,9 or 0:100 (all)")
    data.add_argument("--keys", metavar="X,Y", help="names of inputs and labels in an .npz file (x,y)")
    data.add_argument("--split", default="test", metavar="NAME", help="files of an idx folder: test or train")
    data.add_argument("--scale", metavar="S", help="divide the inputs of an .npz or .csv file by S")
    data.add_argument(
        "--mean", metavar="M", help="the network gets (x - M) / S; one number, or one a channel"
    )
    data.add_argument("--std", metavar="S", help="see --mean")
    data.add_argument(
        "--layout", metavar="NAME", help="where the data has its channels, if elsewhere: nchw or nhwc"
    )
