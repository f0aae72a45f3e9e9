"""Pruning by heuristics, and networks that are really smaller for it."""
