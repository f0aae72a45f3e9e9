"""The flags of ``milpver campaign`` and its commands; like the parser's, they stay texts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

__all__ = ["CAMPAIGN_EXAMPLES", "add_campaign"]

CAMPAIGN_EXAMPLES = """\
A campaign file (TOML) names networks, data and questions; answers are kept in a SQLite
file, each on the disk as soon as it is there. Ctrl-C, a crash or a power cut cost what
was running at most. Several processes may run the same campaign at once.

examples:
  milpver campaign init digits.toml        # a commented file that runs as it is
  milpver campaign run digits.toml         # again, to go on after a stop
  milpver campaign status digits.toml
  milpver campaign report digits.toml --out report"""

INIT_EXAMPLES = """\
Without --model and --data, the shipped digit network and its test images are copied
beside the file.

example:
  milpver campaign init mine.toml --model model.onnx --data mnist/"""

RUN_EXAMPLES = """\
What has an answer is not asked again, unless the network, the input or an option has
changed. Results that a time limit or an error ended come again with --retry.

examples:
  milpver campaign run digits.toml --workers 4
  milpver campaign run digits.toml --retry timeout,error --timeout 600
  milpver campaign run digits.toml --scheduler tcp://127.0.0.1:8786"""

RESUME_EXAMPLES = """\
Like `milpver campaign run`, but only where the campaign has been run before.

example:
  milpver campaign resume digits.toml"""

STATUS_EXAMPLES = """\
Works while the campaign runs, and when it does not.

examples:
  milpver campaign status digits.toml
  milpver campaign status digits.sqlite --json"""

REPORT_EXAMPLES = """\
DIR gets report.html, which stands alone, and its figures as SVG and PNG. Queries
without an answer are left out, and counted.

example:
  milpver campaign report digits.toml --out digits-report"""

EXPORT_EXAMPLES = """\
The suffix says which kind: .csv, .jsonl or .parquet.

example:
  milpver campaign export digits.toml digits.csv"""

Add = Callable[[argparse.ArgumentParser], None]


def add_campaign(
    parser: argparse.ArgumentParser, kind: type[argparse.ArgumentParser]
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Add the commands of ``milpver campaign``; their names and parsers."""
    added = parser.add_subparsers(dest="action", metavar="COMMAND", title="commands", parser_class=kind)
    for name, summary, examples, flags in (
        ("init", "write a commented campaign file", INIT_EXAMPLES, _init),
        ("run", "answer what has no answer yet", RUN_EXAMPLES, _run),
        ("status", "how far a campaign is", STATUS_EXAMPLES, _status),
        ("resume", "go on with a campaign that was stopped", RESUME_EXAMPLES, _run),
        ("report", "figures and tables of a campaign, in one HTML file", REPORT_EXAMPLES, _report),
        ("export", "a campaign's results as csv, jsonl or parquet", EXPORT_EXAMPLES, _export),
    ):
        command = added.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(module="milpver.cli.campaign")
        flags(command)
        yield name, command


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="campaign.toml", help="what to write (campaign.toml)"
    )
    parser.add_argument("--model", metavar="M", help="the network to ask about")
    parser.add_argument("--data", metavar="D", help="its test set: .npz, .csv or a folder of idx files")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="campaign file")
    _store(parser)
    parser.add_argument("--workers", metavar="N", help="processes on this machine (what SPEC says)")
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="a Dask scheduler whose workers answer instead"
    )
    parser.add_argument(
        "--retry", metavar="LIST", help="find these results again: timeout, memory, error, unavailable"
    )
    parser.add_argument("--timeout", metavar="S", help="with --retry: seconds for each of these queries")
    parser.add_argument("--quiet", action="store_true", help="no progress and no notes; the summary stays")


def _status(parser: argparse.ArgumentParser) -> None:
    _where(parser)
    parser.add_argument("--json", action="store_true", help="print JSON in place of text")


def _report(parser: argparse.ArgumentParser) -> None:
    _where(parser)
    parser.add_argument("--out", metavar="DIR", help="folder for the report (NAME-report)")


def _export(parser: argparse.ArgumentParser) -> None:
    _where(parser)
    parser.add_argument(
        "out", metavar="OUT", help="file to write: .csv, .jsonl or .parquet; replaced if there"
    )


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="campaign file, or its store")
    _store(parser)
    parser.add_argument(
        "--name", metavar="NAME", help="the campaign, where a store holds several (the latest)"
    )


def _store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="FILE", help="the SQLite file (what SPEC says, or beside it)")
