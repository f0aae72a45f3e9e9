"""The layout: folders without __init__.py, committed symlinks, every package listed, nothing stale."""

from __future__ import annotations

import configparser
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LINKED = ("encodings", "solvers", "onnx_models")


def listed_packages(root: Path) -> set[str]:
    """The packages that setup.cfg lists."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    return set(config["options"]["packages"].split())


def source_packages(root: Path) -> set[str]:
    """Every folder that holds Python files under milpver/ or one of the linked folders, as a package name."""
    trees = {"milpver": root / "milpver"} | {f"milpver.{name}": root / name for name in LINKED}
    found = set()
    for package, tree in trees.items():
        for file in tree.rglob("*.py"):  # does not follow the links
            parts = file.relative_to(tree).parent.parts
            # Symlinks are listed under the folder they point to, wherever rglob follows them.
            if "__pycache__" not in parts and not (package == "milpver" and parts[:1] and parts[0] in LINKED):
                found.add(".".join((package, *parts)))
    return found


@pytest.mark.parametrize("folder", [*LINKED, "tests/encodings", "tests/solvers"])
def test_no_init_file(repo_root: Path, folder: str) -> None:
    """encodings/__init__.py at the root would shadow the standard library and keep Python from starting."""
    assert not (repo_root / folder / "__init__.py").exists()


def test_tests_are_no_packages(repo_root: Path) -> None:
    assert list((repo_root / "tests").rglob("__init__.py")) == []


def test_python_starts_with_the_root_on_its_path(repo_root: Path) -> None:
    environment = os.environ | {"PYTHONPATH": "."}
    command = [sys.executable, "-c", "import encodings; print(encodings.__file__)"]
    done = subprocess.run(
        command, cwd=repo_root, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).resolve().is_relative_to(repo_root / "encodings")


def test_symlinks_are_committed_as_symlinks(repo_root: Path) -> None:
    if shutil.which("git") is None or not (repo_root / ".git").exists():
        pytest.skip("not a git checkout")
    paths = [f"milpver/{name}" for name in LINKED]
    listing = subprocess.run(
        ["git", "ls-files", "-s", *paths], cwd=repo_root, check=True, capture_output=True, text=True
    ).stdout
    modes = {line.split("\t")[1]: line.split()[0] for line in listing.splitlines()}
    assert modes == dict.fromkeys(paths, "120000")
    for name in LINKED:
        assert (repo_root / "milpver" / name).resolve() == repo_root / name


def test_every_package_is_listed_and_exists(repo_root: Path) -> None:
    assert listed_packages(repo_root) == source_packages(repo_root)


@pytest.mark.parametrize("name", LINKED)
def test_linked_packages_import(name: str) -> None:
    package = importlib.import_module(f"milpver.{name}")
    assert list(package.__path__)


def test_no_stale_modules_in_build_lib(repo_root: Path) -> None:
    """setuptools never deletes from build/lib; what is left there goes into the next wheel."""
    built = repo_root / "build" / "lib" / "milpver"
    stale = []
    for file in built.rglob("*.py"):
        path = file.relative_to(built)
        source = repo_root / path if path.parts[0] in LINKED else repo_root / "milpver" / path
        if not source.exists():
            stale.append(str(path))
    assert stale == [], "run `make clean`"
