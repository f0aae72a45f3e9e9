"""What all tests share: the folders they read, one thread each, reproducible hypothesis runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before numpy and torch are loaded, which read these once; child processes inherit them.
# One thread: results do not depend on the machine's cores, and tests may run side by side.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

# No deadline: the first example pays for imports. The same examples every time, unless new ones are asked for
# with `--hypothesis-profile explore`.
settings.register_profile("milpver", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("milpver")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name parameters that are bytes by their argument and not by their content.

    Names have to be the same in every process that runs a share of the tests, whatever made the bytes.
    """
    return argname if isinstance(val, bytes) else None


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the checkout, or of an unpacked source distribution."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The benchmark data: folder `data` of MILPVER_SHARED, or else of `shared` beside the checkout."""
    folder = Path(os.environ.get("MILPVER_SHARED") or ROOT.parent / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"no benchmark data in {folder} (set MILPVER_SHARED to the folder that holds data/)")
    return folder
