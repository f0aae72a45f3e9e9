"""``python -m milpver``: the same as the command ``milpver``."""

from __future__ import annotations

import sys

from milpver.cli import main

if __name__ == "__main__":
    sys.exit(main())
