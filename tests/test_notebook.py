"""The notebook in docs/ runs from beginning to end, and holds no output that could grow stale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="the notebook is run with nbclient: pip install '.[dev]'")
pytest.importorskip("ipykernel", reason="the notebook needs a kernel: pip install '.[dev]'")

#: In a process of its own: the kernel's client leaves threads and warnings behind.
CODE = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbformat.validate(notebook)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(scope="module")
def notebook(repo_root: Path) -> Path:
    return repo_root / "docs" / "quickstart.ipynb"


def test_it_is_kept_without_output(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 7
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_it_runs_from_beginning_to_end(notebook: Path, tmp_path: Path, repo_root: Path) -> None:
    done = tmp_path / "done.ipynb"
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}
    run = subprocess.run(
        [sys.executable, "-c", CODE, str(notebook), str(done)],
        check=False, capture_output=True, text=True, cwd=repo_root, env=environment, timeout=400,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    cells = [
        cell for cell in json.loads(done.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    said = ["".join(text for output in cell["outputs"] for text in output.get("text", ())) for cell in cells]
    assert said[1].startswith("robust: margin in [")
    assert "optimal" in said[2]
    assert said[3] == "90 queries answered, 0 left\n"
    assert said[4].startswith("0 answered, 90 there before\n")
    assert "report.html" in said[6]
    assert any("image/png" in output.get("data", {}) for output in cells[5]["outputs"])
