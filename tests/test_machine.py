"""What a process takes of the machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from milpver.machine import host
from tests.nets import network_of

_COUNTS = """
import numpy, scipy.linalg, torch
from threadpoolctl import threadpool_info
from milpver.machine import keep_to_threads
for count in (1, 2):
    keep_to_threads(count)
    pools = {each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"}
    print(torch.get_num_threads(), *pools)
"""


def test_the_host_is_described() -> None:
    facts = host()
    assert facts["cores"] >= 1
    assert all(facts[name] for name in ("cpu", "system", "python"))


def test_torch_and_linear_algebra_keep_to_the_threads_they_are_given() -> None:
    done = subprocess.run([sys.executable, "-c", _COUNTS], capture_output=True, text=True, check=True)
    first, second = (line.split() for line in done.stdout.splitlines())
    assert set(first) == {"1"}
    assert second[0] == "2"
    assert set(second[1:]) <= {"1", "2"}  # one where there is one core


_INSIDE = """
import os, sys
os.environ.update(OPENBLAS_NUM_THREADS="2", OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
import numpy, scipy.linalg
from threadpoolctl import threadpool_info
from milpver.machine import numpy_threads
def pools():
    return sorted({each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"})
before = pools()
with numpy_threads(1):
    print(pools() == [1])
print(pools() == before, "torch" in sys.modules)
"""


def test_linear_algebra_keeps_to_the_threads_of_a_question() -> None:
    """Without torch, and only as long as it lasts."""
    done = subprocess.run([sys.executable, "-c", _INSIDE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "False"]


_ASKED = """
import os, sys
os.environ.update(OPENBLAS_NUM_THREADS="2", OMP_NUM_THREADS="2", MKL_NUM_THREADS="2")
from pathlib import Path
from threadpoolctl import threadpool_info
from milpver.counterexample import verify_property
from milpver.onnx_import import load_network
from milpver.properties.vnnlib1 import PROPERTY_FORMAT
from milpver.query import Options
seen = set()
def look():
    seen.update(each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas")
    return False
text = "(declare-const X_0 Real)(declare-const Y_0 Real)(assert (>= X_0 0))(assert (<= X_0 1))"
text += "(assert (<= Y_0 -9))"
asked = PROPERTY_FORMAT.read(text, Path("made.vnnlib"))
options = Options(solver="auto", threads=2)
answer = verify_property(load_network(Path(sys.argv[1])), asked, options=options, should_stop=look)
print(answer.outcome, *seen)
"""


def test_properties_take_one_thread_of_numpy(tmp_path: Path) -> None:
    """Whatever torch and solvers get: more of them wait for each other's small products."""
    network_of(tmp_path / "net.onnx", [np.ones((3, 1)), np.ones((1, 3))], None)
    script = [sys.executable, "-c", _ASKED, str(tmp_path / "net.onnx")]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["unsat", "1"]
