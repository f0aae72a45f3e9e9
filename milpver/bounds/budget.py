"""Budget-aware interval bounds: a row may lose at most s of its gated neurons, the worst ones."""

from __future__ import annotations

from milpver.bounds.interval import Interval

BOUNDING = Interval("budget", aware=True)
