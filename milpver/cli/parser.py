"""The commands' flags, and how a command line is read.

Values stay texts here: the commands turn them into numbers and say in one line what is wrong with them. The
modules of the commands are named, not imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

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
  milpver margin model.onnx --data test.csv --scale 255 --budget 2=3 --records out.jsonl"""

DISTANCE_EXAMPLES = """\
The distance is that of the closest input, in the data's units, at which another
class reaches the label's score (a tie counts). Ctrl-C ends a run and keeps what is
done; the same command with the same --records FILE goes on from there.

examples:
  milpver distance model.onnx --data test.npz --domain 0,1
  milpver distance model.onnx --data mnist/ --index 0:100 --records out.jsonl --quiet
  milpver distance model.onnx --data test.npz --target 3 --save-witness witnesses"""

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

SOLVERS_EXAMPLES = """\
example:
  milpver solvers --json"""


class UsageError(Exception):
    """A command line that cannot be read; the message is one line."""


class _Parser(argparse.ArgumentParser):
    """Reports mistakes by an exception, with names that come near."""

    def error(self, message: str) -> NoReturn:
        """See argparse; never prints, never exits."""
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
    command = next((commands[word] for word in words if word in commands), parser)
    _refuse_unknown(words, parser, command)
    arguments = parser.parse_args(_joined(words, command))
    if arguments.version:
        arguments.module = "milpver.cli.version"
    elif arguments.command is None:
        raise UsageError(f"no command; choose one of {', '.join(commands)}; see `milpver --help`")
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
        "compare",
        "solvers, encodings and bounds on the same queries, with a report",
        COMPARE_EXAMPLES,
        _compare,
    )
    add("export", "the program of one input and one competing class as a file", EXPORT_EXAMPLES, _export)
    add("import-solution", "check a solution of an exported program", IMPORT_EXAMPLES, _import_solution)
    add("demo", "both questions on shipped handwritten digits, with a picture", DEMO_EXAMPLES, _demo)
    add("solvers", "the solvers, whether they are available, or why not", SOLVERS_EXAMPLES, _json)
    return parser, commands


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")


def _info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="ONNX file")
    _json(parser)


def _margin(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument(
        "--budget",
        required=True,
        metavar="LIST",
        help="neurons that may be removed, an entry a gateable layer: 2,1 or 10%%,- or 2=3 (milpver info)",
    )
    parser.add_argument(
        "--radius", default="0", metavar="R", help="L-inf ball around each input, in the data's units (0)"
    )
    parser.add_argument(
        "--decide", action="store_true", help="stop as soon as the sign of the margin is proven"
    )
    _common(parser)


def _distance(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument("--norm", default="linf", metavar="NORM", help="how distances are measured: linf")
    parser.add_argument(
        "--method", default="direct", metavar="NAME", help="direct minimisation, or bisect on the radius"
    )
    parser.add_argument(
        "--target", metavar="K", help="the distance to this class only (the closest of all classes)"
    )
    _common(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument(
        "--question", default="margin", metavar="NAME", help="what is asked: margin or distance (margin)"
    )
    parser.add_argument(
        "--budget",
        metavar="LIST",
        help="margin: neurons that may be removed, an entry a gateable layer: 2,1 or 10%%,- or 2=3",
    )
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
        help="alpha-crown (the tightest), crown, budget or interval (alpha-crown)",
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
        help="alpha-crown (the tightest), crown, budget or interval (alpha-crown)",
    )


def _export(parser: argparse.ArgumentParser) -> None:
    _model_and_data(parser)
    parser.add_argument("out", metavar="OUT", help="file to write: .mps (free format) or .lp")
    parser.add_argument("--budget", required=True, metavar="LIST", help="see milpver margin")
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
        "--solver", default="highs", metavar="NAME", help="MILP solver, see milpver solvers (highs)"
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


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="milpver-demo", metavar="DIR", help="folder for records and picture (milpver-demo)"
    )
    parser.add_argument("--count", default="12", metavar="N", help="number of digits, 1 to 60 (12)")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes; the tables stay")
