"""A worker that waits in place of answering, for tests of what is around workers.

``python stub_worker.py SECONDS LOG [CRASH]``: a query takes SECONDS and gets an answer that its key decides.
LOG gets a line when an answer is sent: key, process, time. CRASH is ``INDEX:SIGNAL``: there the worker
kills itself; ``INDEX:exit`` ends it with exit code 3, ``INDEX:hang`` has it say nothing any more.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from milpver.campaign.answering import Batch
from milpver.campaign.frames import receive, send
from milpver.campaign.store import Result


def answer(batch: Batch, place: int, seconds: float) -> Result:
    """A closed bracket that the key decides."""
    key = batch.keys[place]
    margin = key[0] / 16 - 4
    record = {
        "index": batch.indices[place],
        "status": "optimal",
        "message": "",
        "predicted": batch.labels[place],
    }
    columns = {
        "status": "optimal",
        "verdict": "robust" if margin > 0 else "vulnerable",
        "assurance": "rounded",
        "lower": margin,
        "upper": margin,
        "target": 0,
        "removed": json.dumps([[1, key[1] % 4]]),
        "nodes": key[2],
        "seconds": seconds,
        "engine": "stub",
        "message": "",
    }
    return Result(key, json.dumps(record | columns), columns, "stub", None)


def main(seconds: float, log: Path, crash: str) -> None:
    """Answer until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    index, _, how = crash.partition(":")
    stop = threading.Event()
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    batches: list[Batch] = []
    wake = threading.Condition()

    def listen() -> None:
        while (message := receive(incoming)) is not None:
            if message[0] == "stop":
                stop.set()
            elif message[0] == "batch":
                with wake:
                    batches.append(message[1])
                    wake.notify()
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    send(outgoing, ("ready", os.getpid()))
    while True:
        with wake:
            wake.wait_for(lambda: bool(batches))
            batch = batches.pop(0)
        began = time.monotonic()
        for place, key in enumerate(batch.keys):
            if stop.is_set():
                break
            if index and batch.indices[place] == int(index):
                if how == "exit":
                    sys.stderr.write("something broke\n")
                    sys.stderr.flush()
                    os._exit(3)
                if how == "hang":
                    time.sleep(3600)
                os.kill(os.getpid(), getattr(signal, how))
            time.sleep(seconds)
            with log.open("a", encoding="ascii") as stream:
                stream.write(f"{key.hex()} {os.getpid()} {time.time()}\n")
            send(outgoing, ("results", (batch.number, [answer(batch, place, seconds)])))
        send(outgoing, ("end", (batch.number, time.monotonic() - began)))


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
