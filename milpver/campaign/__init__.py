"""Campaigns: networks x data x questions x solvers, answered for days if need be, nothing lost.

    from milpver import campaign

    campaign.run("campaign.toml")              # as often as it takes: what is done is not done again
    campaign.status("campaign.toml").done
    campaign.write_report("campaign.toml", "report")
    for row in campaign.rows("campaign.toml"):
        ...

Each function takes the campaign file, or the store that it names. The library prints nothing; ``observer`` is
told how far a run is. Parts are imported when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milpver.campaign.results import Overview
    from milpver.campaign.runner import Observer, Outcome

__all__ = ["located", "rows", "run", "status", "write_export", "write_report"]

_SQLITE = b"SQLite format 3\0"


def run(
    path: str | Path,
    *,
    store: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    retry: str = "",
    timeout: float | None = None,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Answer what a campaign has no answer for yet.

    Args:
        path: the campaign file.
        store: the SQLite file, in place of the one that the campaign file names.
        workers: processes on this machine, in place of what the campaign file says.
        scheduler: address of a Dask scheduler whose workers answer instead.
        retry: results to find again, such as ``"timeout,error"``.
        timeout: seconds for each of these, in place of the campaign file's.
        observer: told how far it is.
        should_stop: asked now and then; True ends the run, keeping what is done.

    Raises:
        SpecError: the campaign file has mistakes; all of them are named.
        MilpverError: the store, the scheduler or a worker cannot be used.
    """
    from milpver.campaign.plan import make_plan  # noqa: PLC0415  as the docstring says
    from milpver.campaign.runner import parse_retry, run_plan  # noqa: PLC0415  as above
    from milpver.campaign.spec import read_spec  # noqa: PLC0415  as above
    from milpver.campaign.store import Store  # noqa: PLC0415  as above

    again = parse_retry(retry) if retry else frozenset()
    plan = make_plan(read_spec(Path(path)))
    with Store.open(Path(store) if store is not None else plan.spec.store, create=True, check=True) as opened:
        return run_plan(
            plan,
            opened,
            workers=workers,
            scheduler=scheduler,
            retry=again,
            timeout=timeout,
            observer=observer,
            should_stop=should_stop,
        )


def status(path: str | Path, *, store: str | Path | None = None, name: str | None = None) -> Overview:
    """See how far a campaign is, while it runs or not.

    Args:
        path: the campaign file, or the store.
        store: the SQLite file, in place of the one that the campaign file names.
        name: of the campaign, where the store holds several; the one that ran last where None.

    Raises:
        RecordError: there is no such store or campaign.
    """
    from milpver.campaign.results import overview  # noqa: PLC0415  as above
    from milpver.campaign.store import Store  # noqa: PLC0415  as above

    file, called = located(path, store, name)
    with Store.open(file) as opened:
        return overview(opened, opened.campaign(called))


def rows(
    path: str | Path, *, store: str | Path | None = None, name: str | None = None
) -> Iterator[dict[str, Any]]:
    """Every planned query with its answer, as dictionaries; see ``milpver.campaign.results.exported``.

    Raises:
        RecordError: there is no such store or campaign.
    """
    from milpver.campaign.results import exported  # noqa: PLC0415  as above
    from milpver.campaign.store import Store  # noqa: PLC0415  as above

    file, called = located(path, store, name)
    with Store.open(file) as opened:
        yield from exported(opened, opened.campaign(called))


def write_export(
    path: str | Path, out: str | Path, *, store: str | Path | None = None, name: str | None = None
) -> int:
    """Write all results to a ``.csv``, ``.jsonl`` or ``.parquet`` file; the number of rows.

    Raises:
        MilpverError: there is no such store or campaign, or the file cannot be written.
    """
    from milpver.campaign import export  # noqa: PLC0415  as above

    return export.write(Path(out), rows(path, store=store, name=name))


def write_report(
    path: str | Path, out: str | Path, *, store: str | Path | None = None, name: str | None = None
) -> Path:
    """Write ``report.html`` and its figures into a folder; the page's path.

    Raises:
        MilpverError: there is no such store or campaign, or the folder cannot be written.
    """
    from milpver.campaign.report import write  # noqa: PLC0415  as above
    from milpver.campaign.store import Store  # noqa: PLC0415  as above

    file, called = located(path, store, name)
    with Store.open(file) as opened:
        return write(Path(out), opened, opened.campaign(called))


def located(path: str | Path, store: str | Path | None, name: str | None) -> tuple[Path, str | None]:
    """The store that a campaign file names, or that is one itself, and the campaign's name.

    Raises:
        QueryError: the campaign file cannot be read.
    """
    given = Path(path)
    try:
        with given.open("rb") as stream:
            is_store = stream.read(len(_SQLITE)) == _SQLITE
    except OSError:
        is_store = False
    if is_store:
        return given, name
    from milpver.campaign.spec import read_spec  # noqa: PLC0415  as above

    spec = read_spec(given)
    return (spec.store if store is None else Path(store)), name or spec.name
