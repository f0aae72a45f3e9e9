"""A campaign with stub workers as a process of its own: ``python stub_campaign.py SPEC SECONDS LOG [CRASH]``.

Prints the outcome as JSON. Ctrl-C stops it as it stops ``milpver campaign run``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from milpver.campaign.plan import make_plan
from milpver.campaign.runner import run_plan
from milpver.campaign.spec import read_spec
from milpver.campaign.store import Store
from milpver.cli.interrupts import Interrupts

STUB = Path(__file__).with_name("stub_worker.py")


def main(spec: Path, words: list[str]) -> None:
    """Run it."""
    plan = make_plan(read_spec(spec))
    with Interrupts() as interrupts, Store.open(plan.spec.store, create=True, check=True) as store:
        outcome = run_plan(
            plan, store, command=[sys.executable, str(STUB), *words], should_stop=lambda: interrupts.asked
        )
    sys.stdout.write(json.dumps(asdict(outcome) | {"left": outcome.left}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
