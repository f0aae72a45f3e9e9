"""A process in place of the one that answers instances; a property's file name says what it does."""

from __future__ import annotations

import os
import signal
import sys
import time

from milpver.campaign.frames import receive, send
from milpver.cli import verify


def main() -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    send(sys.stdout.buffer, "ready")
    while (message := receive(sys.stdin.buffer)) is not None:
        files, _ = message
        if not isinstance(files, verify.Files):
            raise TypeError(f"{files!r} is no instance")
        match files.query.stem:
            case "hang":
                time.sleep(3600)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
        send(sys.stdout.buffer, ("unsat", f"process {os.getpid()}", ""))


if __name__ == "__main__":
    main()
