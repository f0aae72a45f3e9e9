"""What the tests of campaigns share: a small network with data, specs about it, and stub workers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from milpver.campaign.plan import Plan, make_plan
from milpver.campaign.runner import Outcome, run_plan
from milpver.campaign.spec import read_spec
from milpver.campaign.store import Store
from tests.nets import random_network

HERE = Path(__file__).resolve().parent

Rows: TypeAlias = "dict[int, tuple[Any, ...]]"


@dataclass(frozen=True)
class Field:
    """A folder with a network of 6-8-5-3 neurons and 400 inputs in [0, 1], and what can be run on it.

    Attributes:
        folder: with ``net.onnx`` and ``data.npz``.
        log: what stub workers write.
    """

    folder: Path
    log: Path

    def spec(self, text: str = "", **campaign: Any) -> Path:
        """Write a spec: 40 inputs, budgets (1,0), (2,1), unless ``text`` holds other tables."""
        lines = "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in campaign.items())
        if "[[network]]" not in text:
            text += '\n[[network]]\npath = "net.onnx"\n'
        if "[data]" not in text:
            text += '\n[data]\npath = "data.npz"\nindex = "0:40"\n'
        if "[[question]]" not in text:
            text += '\n[[question]]\nkind = "margin"\nbudgets = ["1,0", "2,1"]\nsolvers = ["bab"]\n'
        path = self.folder / "c.toml"
        path.write_text(f"[campaign]\n{lines}{text}", encoding="utf-8")
        return path

    def plan(self, text: str = "", **campaign: Any) -> Plan:
        """The plan of such a spec."""
        return make_plan(read_spec(self.spec(text, **campaign)))

    def stub(self, seconds: float = 0.0, crash: str = "") -> list[str]:
        """A command that starts a stub worker."""
        return [sys.executable, str(HERE / "stub_worker.py"), str(seconds), str(self.log), crash]

    def run(self, plan: Plan, seconds: float = 0.0, crash: str = "", **options: Any) -> Outcome:
        """Run a plan with stub workers in this process."""
        with Store.open(plan.spec.store, create=True) as store:
            return run_plan(plan, store, command=self.stub(seconds, crash), **options)

    def start(self, spec: Path, seconds: float, crash: str = "") -> subprocess.Popen[str]:
        """Start a campaign with stub workers as a process of its own."""
        command = [sys.executable, str(HERE / "stub_campaign.py"), str(spec), str(seconds), str(self.log)]
        return subprocess.Popen(
            [*command, crash],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parent.parent,
        )

    def rows(self, store: Path, columns: tuple[str, ...] = ("r.status", "r.lower", "r.upper")) -> Rows:
        """What answers each planned query, by position."""
        with Store.open(store) as opened:
            found = opened.rows(opened.campaign(), ("p.position", *columns))
            return {row[0]: row[1:] for row in found}

    def answered(self) -> list[str]:
        """Keys of the answers that stub workers sent, in order."""
        return [line.split()[0] for line in self.lines()]

    def lines(self) -> list[str]:
        """Lines of the stub workers' log."""
        return self.log.read_text(encoding="ascii").splitlines() if self.log.exists() else []


@pytest.fixture(scope="session")
def make_field() -> Callable[[Path], Field]:
    """Set up a folder."""
    return _field


@pytest.fixture
def field(tmp_path: Path) -> Field:
    return _field(tmp_path)


def _field(tmp_path: Path) -> Field:
    rng = np.random.default_rng(4)
    network = random_network(tmp_path / "net.onnx", (6, 8, 5, 3), seed=2)
    x = rng.uniform(size=(400, 6)).astype(np.float32)
    y = network.graph.evaluate(x.astype(np.float64)).argmax(axis=1)
    y[5] = (y[5] + 1) % 3  # one that is misclassified
    np.savez(tmp_path / "data.npz", x=x, y=y, domain=np.array([0.0, 1.0]))
    return Field(tmp_path, tmp_path / "answered.log")


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait for something, for 30 s at most."""
    import time  # noqa: PLC0415  only here

    def wait(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not holds():
            assert time.monotonic() < end, "it did not happen within 30 s"
            time.sleep(0.02)

    return wait
