"""What is built and installed: `milpver` alone, with plug-ins and networks inside; and how make sets up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

import pytest
from packaging.requirements import Requirement

LINKED = ("encodings", "solvers", "onnx_models")
SHIPPED = (".py", ".onnx", ".npz", ".md")
TOP_FILES = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "PERFORMANCE.md", "README.md", "LICENSE", ".gitignore"),
    *("MANIFEST.in", "Makefile", "constraints.txt", "pyproject.toml", "setup.cfg"),
)
FOLDERS = ("milpver", *LINKED, "bench", "docs", "tests", ".ci")


Done: TypeAlias = "subprocess.CompletedProcess[str]"


def run(command: list[str], cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    """Run a command to its end, keeping what it prints."""
    return subprocess.run(command, cwd=cwd, env=env, check=False, capture_output=True, text=True)


def build(kind: str, source: Path, out: Path) -> Path:
    """Build `wheel` or `sdist` with the installed setuptools, so that no index is asked."""
    options = ["--no-isolation", f"--{kind}", "--outdir", str(out)]
    done = run([sys.executable, "-m", "build", *options, str(source)], source)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    """Every file of a wheel but its RECORD."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}


@pytest.fixture(scope="session")
def checkout(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree to build in, symlinks kept; building leaves folders behind."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in TOP_FILES:
        shutil.copy(repo_root / name, copy)
    for name in filter(lambda name: (repo_root / name).is_dir(), FOLDERS):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repo_root / name, copy / name, symlinks=True, ignore=ignored)
    return copy


@pytest.fixture(scope="session")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the tree."""
    return build("wheel", checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        if hasattr(tarfile, "data_filter"):  # not in 3.11.0 to 3.11.3
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)
    (top,) = folder.iterdir()
    return top


def test_the_wheel_holds_milpver_alone(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in contents(wheel)}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"milpver", info}
    assert contents(wheel)[f"{info}/top_level.txt"].split() == [b"milpver"]
    points = contents(wheel)[f"{info}/entry_points.txt"].decode().split("\n")
    assert points[:2] == ["[console_scripts]", "milpver = milpver.cli:main"]


def test_the_wheel_holds_every_module_and_network(wheel: Path, repo_root: Path) -> None:
    wanted = {"milpver/py.typed"}
    for path in (repo_root / "milpver").rglob("*.py"):
        wanted.add(path.relative_to(repo_root).as_posix())
    for name in LINKED:
        kept = [path for path in (repo_root / name).iterdir() if path.suffix in SHIPPED]
        wanted |= {f"milpver/{name}/{path.name}" for path in kept}
    assert {name for name in contents(wheel) if name.startswith("milpver/")} == wanted


def test_the_wheel_of_the_sdist_is_the_same(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    assert contents(build("wheel", unpacked, tmp_path)) == contents(wheel)


def test_without_symlinks_the_wheel_is_the_same(wheel: Path, checkout: Path, tmp_path: Path) -> None:
    """Where git cannot link it writes files that hold the target."""
    copy = tmp_path / "copy"
    shutil.copytree(checkout, copy, symlinks=True, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    for name in LINKED:
        (copy / "milpver" / name).unlink()
        (copy / "milpver" / name).write_text(f"../{name}")
    assert contents(build("wheel", copy, tmp_path / "out")) == contents(wheel)


def test_the_sdist_holds_what_development_needs(unpacked: Path, repo_root: Path) -> None:
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert {*TOP_FILES, ".ci/run"} <= files
    for folder in ("tests", "bench", *LINKED):
        kept = {path.relative_to(repo_root).as_posix() for path in (repo_root / folder).rglob("*.py")}
        assert kept <= files
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]


def test_an_installed_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked as pip unpacks it; the dependencies come from this environment."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import importlib.resources, milpver, milpver.cli, milpver.registry\n"
        "models = importlib.resources.files('milpver.onnx_models')\n"
        "print(milpver.__file__, models / 'digits_fc.onnx', sep='\\n')\n"
        "assert (models / 'digits_fc.onnx').is_file()\n"
        "assert 'highs' in milpver.registry.names('solvers')\n"
        "milpver.registry.load('solvers', 'highs')\n"
    )
    done = run([sys.executable, "-c", code], tmp_path, os.environ | {"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(site) for line in done.stdout.splitlines())


def pins(repo_root: Path) -> dict[str, Requirement]:
    """constraints.txt: name -> pin."""
    lines = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {requirement.name: requirement for requirement in found}


def test_constraints_hold_on_any_machine(repo_root: Path) -> None:
    """Exact public versions: no address, no local version such as +cpu, no marker."""
    for requirement in pins(repo_root).values():
        assert requirement.url is None
        assert requirement.marker is None
        assert re.fullmatch(r"==[0-9][0-9.]*(post[0-9]+)?", str(requirement.specifier)), requirement


def test_constraints_pin_all_dependencies(repo_root: Path) -> None:
    """Everything that `milpver[dev]` brings in here, followed through the installed packages."""
    waiting = [Requirement("milpver[dev,train]")]
    seen = {"milpver"}
    while waiting:
        requirement = waiting.pop()
        for text in metadata.requires(requirement.name) or []:
            needed = Requirement(text)
            extras = requirement.extras or {""}
            name = re.sub(r"[-_.]+", "-", needed.name).lower()
            wanted = needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras)
            if wanted and name not in seen:
                seen.add(name)
                waiting.append(needed)
    # What torch's CUDA builds add (nvidia-*, triton) torch pins itself, to the very version.
    missing = {n for n in seen - set(pins(repo_root)) if not n.startswith(("nvidia", "cuda", "triton"))}
    assert missing == {"milpver"}


def make(folder: Path, *arguments: str) -> Done:
    """Run make in a folder, without the variables of a make that runs the tests."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PYTHON", "VENV", "PIP_ARGS")
    return run(["make", *arguments], folder, {k: v for k, v in os.environ.items() if k not in outer})


def fake_python(folder: Path, version: str, *, fails_on: str) -> Path:
    """An interpreter that tells a version, and fails on code that holds a word."""
    script = folder / "python"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = -V ] && echo "Python {version}" && exit 0\n'
        f'case "$2" in *{fails_on}*) exit 1;; esac\nexit 0\n'
    )
    script.chmod(0o755)
    return script


def one_line(done: Done) -> str:
    """The one line that a failed make printed."""
    assert done.returncode != 0
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def bare(repo_root: Path, tmp_path: Path) -> Path:
    """A checkout with what the set-up looks at, and no environment."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "constraints.txt"):
        shutil.copy(repo_root / name, folder)
    (folder / "milpver").mkdir()
    for name in LINKED:
        (folder / name).mkdir()
        (folder / "milpver" / name).symlink_to(Path("..") / name)
    return folder


@pytest.mark.parametrize("target", ["venv", "demo", "test", "check"])
def test_make_says_that_python_is_missing(bare: Path, target: str) -> None:
    line = one_line(make(bare, "PYTHON=no-such-python", target))
    assert "no-such-python does not run: install python >= 3.11 with venv and pip" in line


def test_make_says_that_python_is_too_old(bare: Path, tmp_path: Path) -> None:
    python = fake_python(tmp_path, "3.10.4", fails_on="version_info")
    line = one_line(make(bare, f"PYTHON={python}", "test"))
    assert "is Python 3.10.4, milpver needs python >= 3.11: install it" in line


def test_make_says_that_venv_or_pip_is_missing(bare: Path, tmp_path: Path) -> None:
    python = fake_python(tmp_path, "3.11.2", fails_on="ensurepip")
    line = one_line(make(bare, f"PYTHON={python}", "test"))
    assert "has no venv or no pip: install them (Debian, Ubuntu: apt install python3-venv)" in line


def test_make_says_that_symlinks_are_missing(bare: Path) -> None:
    for name in LINKED:
        (bare / "milpver" / name).unlink()
        (bare / "milpver" / name).write_text(f"../{name}")  # what git writes where it cannot link
    line = one_line(make(bare, f"PYTHON={sys.executable}", "test"))
    assert "not symbolic links here: git config core.symlinks true" in line
    assert "pip install ." in line


def test_make_installs_once(bare: Path, tmp_path: Path) -> None:
    """The second run does nothing; a changed setup.cfg or a moved folder installs again."""
    venv = tmp_path / "environment"
    (venv / "bin").mkdir(parents=True)
    log = tmp_path / "log"
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = pip ] && echo "$@" >> {log}\nexit 0\n')
    python.chmod(0o755)
    variables = (f"VENV={venv}", "PIP_ARGS=--no-index")
    for _ in range(2):
        assert make(bare, *variables).returncode == 0
        assert log.read_text().splitlines() == ["-m pip install --no-index -c constraints.txt -e .[dev]"]
    os.utime(bare / "setup.cfg", (4e9, 4e9))
    assert make(bare, *variables).returncode == 0
    assert len(log.read_text().splitlines()) == 2
    os.utime(bare / "setup.cfg", (1e9, 1e9))
    moved = bare.rename(tmp_path / "moved")
    assert make(moved, *variables).returncode == 0
    assert len(log.read_text().splitlines()) == 3


def test_make_removes_what_a_former_build_left(bare: Path) -> None:
    stale = bare / "build" / "lib" / "milpver" / "renamed.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert make(bare, "clean").returncode == 0
    assert not stale.exists()


def test_continuous_integration_runs_the_test_command(repo_root: Path) -> None:
    script = repo_root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert commands == ["set -eu", 'cd "$(dirname "$0")/.."', "make test"]
