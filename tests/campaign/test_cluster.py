"""A Dask cluster as the workers: real worker processes, one of them killed in the middle, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from milpver.campaign.cluster import DaskPool
from milpver.errors import QueryError

if TYPE_CHECKING:
    from tests.campaign.conftest import Field

pytest.importorskip("distributed", reason="Dask is an extra: pip install 'milpver[distributed]'")

#: In a process of its own: Dask leaves threads and warnings behind that are no affair of the other tests.
CODE = """
import json, os, signal, sys
from pathlib import Path
import dask
from distributed import LocalCluster
from milpver.campaign.plan import make_plan
from milpver.campaign.runner import run_plan
from milpver.campaign.spec import read_spec
from milpver.campaign.store import Store

class Killer:
    def __init__(self, cluster):
        self.cluster, self.count, self.killed, self.warnings = cluster, 0, [], []
    def begin(self, total, words): pass
    def tick(self): pass
    def warn(self, text): self.warnings.append(text)
    def advance(self, word, seconds):
        self.count += 1
        if self.count == 10:
            worker = self.cluster.workers[0].process.pid
            os.kill(worker, signal.SIGKILL)
            self.killed.append(worker)

if __name__ == "__main__":
    dask.config.set({"distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": 1})
    plan = make_plan(read_spec(Path(sys.argv[1])))
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster, Store.open(plan.spec.store, create=True) as store:
        killer = Killer(cluster)
        outcome = run_plan(plan, store, scheduler=cluster.scheduler_address, observer=killer)
    print(json.dumps([outcome.answered, outcome.left, len(killer.killed), killer.warnings]))
"""


def test_a_lost_worker_loses_nothing(field: Field, tmp_path: Path) -> None:
    spec = field.spec(
        '[data]\npath = "data.npz"\nindex = "0:60"\n'
        '[[question]]\nkind = "margin"\nbudgets = ["2,1"]\nsolvers = ["highs"]\n'
    )
    script = tmp_path / "cluster.py"
    script.write_text(CODE, encoding="utf-8")
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, str(script), str(spec)],
        check=False,
        capture_output=True,
        text=True,
        cwd=root,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    answered, left, killed, warnings = json.loads(done.stdout.splitlines()[-1])
    assert (answered, left, killed, warnings) == (60, 0, 1, [])
    rows = field.rows(field.folder / "c.sqlite", ("r.status", "r.upper"))
    assert [row[0] for row in rows.values()].count("misclassified") == 1
    assert {row[0] for row in rows.values()} == {"optimal", "misclassified"}


def test_an_address_where_nothing_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milpver.campaign.cluster._PATIENCE", 0.5)
    with pytest.raises(
        QueryError, match=r"--scheduler tcp://127.0.0.1:9: .*; needed: the address of a running"
    ):
        DaskPool("tcp://127.0.0.1:9", {})
    with pytest.raises(QueryError, match="--scheduler nonsense"):
        DaskPool("nonsense", {})
