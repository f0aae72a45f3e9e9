"""What a store holds of a campaign, read as columns: how far it is, and what its answers are.

Everything is streamed from the store cell by cell; of a result only the columns asked for are read.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milpver.campaign.owners import Owner, is_gone
from milpver.campaign.store import CampaignRow, Store
from milpver.linear import Float
from milpver.verdict import Answer, Status

__all__ = [
    "Answers",
    "CellState",
    "Overview",
    "answers",
    "exported",
    "overview",
    "parameters_text",
    "word_of",
]

#: Seconds over which the rate of a campaign is taken.
_RECENT = 600.0


def word_of(status: str, verdict: str | None) -> str:
    """How a query ended, in one word: the sign where it is proven, else why the run ended."""
    if verdict in (Answer.ROBUST, Answer.VULNERABLE):
        return str(verdict)
    if verdict is not None and status in (Status.OPTIMAL, Status.DECIDED):
        return str(Answer.UNKNOWN)
    return str(status)


def parameters_text(cell: Mapping[str, Any]) -> str:
    """The parameters of a cell for people: ``budget 2,1, radius 0.01``; usual ones are left out."""
    raw = cell["raw"]
    shown = [
        name if value is True else f"{name} {value}"
        for name, value in raw.items()
        if name == "budget" or value not in (0.0, "linf", "direct", None)
    ]
    return ", ".join(shown)


# ------------------------------------------------------------------------------------------- how far


@dataclass(frozen=True, slots=True)
class CellState:
    """How far a cell is.

    Attributes:
        cell: its description.
        planned: number of queries.
        words: how those that are answered ended.
        open: of these, those that a limit, an error or a missing solver ended.
        seconds: of work.
    """

    cell: Mapping[str, Any]
    planned: int
    words: Mapping[str, int]
    open: int
    seconds: float

    @property
    def done(self) -> int:
        """Number of answers."""
        return sum(self.words.values())


@dataclass(frozen=True, slots=True)
class Overview:
    """How far a campaign is.

    Attributes:
        campaign: which.
        cells: in order.
        owners: the processes at work, and how many queries each has claimed.
        last: when the latest answer was committed, seconds since the epoch, or None.
        rate: answers a second in the last minutes, 0 where nothing runs.
    """

    campaign: CampaignRow
    cells: tuple[CellState, ...]
    owners: tuple[tuple[Owner, int], ...]
    last: float | None
    rate: float

    @property
    def planned(self) -> int:
        """Number of queries."""
        return sum(each.planned for each in self.cells)

    @property
    def done(self) -> int:
        """Number of answers."""
        return sum(each.done for each in self.cells)

    @property
    def left_seconds(self) -> float | None:
        """About how long it takes until all is answered, or None where nothing runs."""
        return (self.planned - self.done) / self.rate if self.rate > 0 else None


def overview(store: Store, campaign: CampaignRow) -> Overview:
    """See how far a campaign is."""
    cells = store.cells(campaign)
    words: list[Counter[str]] = [Counter() for _ in cells]
    planned, seconds, unfinished = [0] * len(cells), [0.0] * len(cells), [0] * len(cells)
    now = time.time()
    last: float | None = None
    recent, first = 0, now
    for cell, status, verdict, spent, finished, at in store.rows(
        campaign, ("p.cell", "r.status", "r.verdict", "r.seconds", "r.finished", "r.at")
    ):
        planned[cell] += 1
        if status is None:
            continue
        words[cell][word_of(status, verdict)] += 1
        seconds[cell] += spent
        unfinished[cell] += not finished
        last = at if last is None else max(last, at)
        if at > now - _RECENT:
            recent, first = recent + 1, min(first, at)
    claims = store.claims()
    owners = tuple((each, claims.get(each.id, 0)) for each in store.owners() if not is_gone(each, now))
    rate = recent / max(1.0, now - first) if owners else 0.0
    states = tuple(
        CellState(cell, planned[k], words[k], unfinished[k], seconds[k]) for k, cell in enumerate(cells)
    )
    return Overview(campaign, states, owners, last, rate)


# ------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The answers of one cell, an entry a query; NaN, "" and 0 where there is none.

    Attributes:
        number, cell: which cell.
        indices, labels: int64 [n].
        inputs: hashes.
        ids: int64 [n], numbers of the results, -1 where there is none.
        words: see ``word_of``; "" where there is no answer.
        finished: bool [n].
        lower, upper, seconds: float64 [n].
        solvers: how many results each engine gave (``bounds``, ``bab``, ``highs``, ...).
        removed: (layer, neuron) pairs -> number of worst masks that hold them; ``masks`` of them in all. A
            layer is a number, or ``conv1`` for channels of a convolution.
        masks: worst masks that are counted: those of closed brackets, and of proven vulnerable inputs.
    """

    number: int
    cell: Mapping[str, Any]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    inputs: tuple[bytes, ...]
    ids: NDArray[np.int64]
    words: NDArray[np.str_]
    finished: NDArray[np.bool_]
    lower: Float
    upper: Float
    seconds: Float
    solvers: Mapping[str, int]
    removed: Mapping[tuple[int | str, int], int]
    masks: int


_COLUMNS = (
    "p.cell", "p.idx", "p.label", "p.input", "r.id", "r.status", "r.verdict", "r.finished", "r.lower",
    "r.upper", "r.seconds", "r.engine", "r.removed",
)  # fmt: skip


def answers(store: Store, campaign: CampaignRow) -> Iterator[Answers]:
    """Answers cell by cell, in order."""
    cells = store.cells(campaign)
    rows: list[tuple[Any, ...]] = []
    current = -1
    for row in store.rows(campaign, _COLUMNS):
        if row[0] != current and rows:
            yield _answers(cells[current], rows)
            rows = []
        current = row[0]
        rows.append(row)
    if rows:
        yield _answers(cells[current], rows)


def _answers(cell: Mapping[str, Any], rows: Sequence[tuple[Any, ...]]) -> Answers:
    _, indices, labels, inputs, ids, status, verdicts, finished, lower, upper, seconds, engines, masks = zip(
        *rows, strict=True
    )
    words = ["" if s is None else word_of(s, v) for s, v in zip(status, verdicts, strict=True)]
    removed: Counter[tuple[int | str, int]] = Counter()
    counted = 0
    for word, state, mask in zip(words, status, masks, strict=True):
        if mask is not None and (word == Answer.VULNERABLE or state == Status.OPTIMAL):
            counted += 1
            if mask != "[]":
                removed.update((layer, neuron) for layer, neuron in json.loads(mask))
    return Answers(
        number=rows[0][0],
        cell=cell,
        indices=np.array(indices, dtype=np.int64),
        labels=np.array(labels, dtype=np.int64),
        inputs=tuple(inputs),
        ids=np.array([-1 if each is None else each for each in ids], dtype=np.int64),
        words=np.array(words),
        finished=np.array([bool(each) for each in finished], dtype=np.bool_),
        lower=_floats(lower),
        upper=_floats(upper),
        seconds=np.nan_to_num(_floats(seconds)),
        solvers=Counter(each for each in engines if each is not None),
        removed=removed,
        masks=counted,
    )


def _floats(values: Sequence[float | None]) -> Float:
    return np.array([np.nan if each is None else each for each in values], dtype=np.float64)


# ---------------------------------------------------------------------------------------- everything


def exported(store: Store, campaign: CampaignRow) -> Iterator[dict[str, Any]]:
    """Every planned query with all that is known, one dictionary each, streamed.

    What the campaign asked stands first (``campaign``, ``network``, ``data``, ``name``, ``kind``, ``index``,
    ``label``, ...), then what was answered; ``answered`` says whether there is a result. A witness's input is
    a list of numbers, or None where it is the query's own input.
    """
    cells = store.cells(campaign)
    columns = ("p.cell", "p.idx", "p.label", "r.id", "r.host", "r.at", "r.attempt")
    for number, index, label, result, host, at, attempt in store.rows(campaign, columns):
        cell = cells[number]
        row: dict[str, Any] = {
            "campaign": campaign.name,
            "network": cell["network"],
            "data": cell["data"],
            "name": cell["question"],
            "kind": cell["kind"],
            "parameters": parameters_text(cell),
            "requested_solver": cell["solver"],
            "encoding": cell["encoding"],
            "bounds": cell["bounds"],
            "index": index,
            "label": label,
            "answered": result is not None,
        }
        if result is not None:
            record, witness = store.record(result)
            shown = None if witness is None else witness.tolist()
            row |= {name: value for name, value in record.items() if name not in row}
            row |= {"witness": shown, "host": host, "at": at, "attempt": attempt}
        yield row
