"""The exception tree: what a user did that cannot be worked with.

Every message says what was found, what is needed and how to mend it, in one line; the constructor asks
for all three so that none can be forgotten. The command line prints the message and exits with 2.
A defect of milpver itself is never one of these.
"""

from __future__ import annotations

__all__ = [
    "DataError",
    "MilpverError",
    "ModelError",
    "PluginError",
    "QueryError",
    "RecordError",
    "SolverUnavailableError",
]


class MilpverError(Exception):
    """Base of all errors that a user can mend.

    Args:
        found: what is there, with its name and value.
        needed: what has to be there instead.
        fix: what to do about it.
    """

    def __init__(self, found: str, *, needed: str, fix: str) -> None:
        super().__init__(found, needed, fix)
        self.found = found
        self.needed = needed
        self.fix = fix

    def __str__(self) -> str:
        return " ".join(f"{self.found}; needed: {self.needed}; fix: {self.fix}".split())

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.found, self.needed, self.fix))


def _rebuild(kind: type[MilpverError], found: str, needed: str, fix: str) -> MilpverError:
    """Unpickle an error: its constructor takes keywords, which pickle does not pass by itself."""
    return kind(found, needed=needed, fix=fix)


class ModelError(MilpverError):
    """The network file cannot be read, holds NaN or infinity, or uses what the IR does not have."""


class DataError(MilpverError):
    """The data file cannot be read, or its shapes, labels or values do not fit the network."""


class QueryError(MilpverError):
    """The question makes no sense for this network: budget, radius, domain, label, option values."""


class RecordError(MilpverError):
    """A record file that answers another query, is damaged, or is in use by another process."""


class PluginError(MilpverError):
    """A plug-in name that nothing answers to, or a plug-in that was imported from the wrong place."""


class SolverUnavailableError(MilpverError):
    """A solver that is not installed, not licensed, or whose licence is too small for this program."""
