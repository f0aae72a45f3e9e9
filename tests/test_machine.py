"""What a process takes of the machine."""

from __future__ import annotations

import subprocess
import sys

from milpver.machine import host

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
