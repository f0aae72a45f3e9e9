"""alpha-CROWN: CROWN with slopes and budget multipliers optimised by projected gradient ascent."""

from __future__ import annotations

from milpver.bounds.crown import Crown

BOUNDING = Crown("alpha-crown", steps=8, row_steps=20)
