"""Attacks: candidates for witnesses. What they find is an upper bound once it has been replayed."""
