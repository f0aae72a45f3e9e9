from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from milpver import registry
from milpver.errors import PluginError

PLAIN = "SOLVER = 'the plain one'\n"
FACTORY = """
from milpver.registry import Factory

class Driver(Factory):
    def known_arguments(self):
        return ("cbc", "glpk")

    def with_argument(self, argument):
        return ("driven", argument)

SOLVER = Driver()
"""
OPTIONAL_ARGUMENT = """
class Solver:
    def with_argument(self, argument):
        return ("with", argument)

SOLVER = Solver()
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of plug-ins named `shelf.solvers`, found as kind "solvers"."""
    folder = tmp_path / "shelf" / "solvers"
    folder.mkdir(parents=True)
    (tmp_path / "shelf" / "__init__.py").write_text("", encoding="utf-8")
    for name, text in {
        "plain.py": PLAIN,
        "two_words.py": "SOLVER = 'two'\n",
        "driver.py": FACTORY,
        "flexible.py": OPTIONAL_ARGUMENT,
        "empty.py": "",
        "broken.py": "raise RuntimeError('imported')\n",
        "_helper.py": "raise RuntimeError('imported')\n",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = registry.Kind("shelf.solvers", "SOLVER", "solver")
    monkeypatch.setattr(registry, "KINDS", {"solvers": kind})
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] in {"shelf", "outside"}]:
        del sys.modules[name]


def add_entry_points(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    group = registry.KINDS["solvers"].group
    found = [EntryPoint(name.replace("__", "-"), value, group) for name, value in points.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in found if p.group == group])


@pytest.mark.usefixtures("plugins")
def test_names_are_file_names_and_nothing_is_imported() -> None:
    assert registry.names("solvers") == ("broken", "driver", "empty", "flexible", "plain", "two-words")
    assert not [name for name in sys.modules if name.startswith("shelf.solvers")]


@pytest.mark.usefixtures("plugins")
def test_load_imports_and_returns_the_conventional_object() -> None:
    assert registry.load("solvers", "plain") == "the plain one"
    assert "shelf.solvers.two_words" not in sys.modules
    assert registry.load("solvers", "two-words") == "two"
    assert registry.load("solvers", "two_words") == "two"


@pytest.mark.usefixtures("plugins")
def test_unknown_name_lists_all_and_names_the_nearest() -> None:
    with pytest.raises(PluginError) as caught:
        registry.load("solvers", "plian")
    assert "broken, driver, empty, flexible, plain, two-words" in str(caught.value)
    assert "did you mean plain?" in str(caught.value)
    with pytest.raises(PluginError, match="choose one of"):
        registry.load("solvers", "zzz")


@pytest.mark.usefixtures("plugins")
def test_an_underscored_file_is_no_plugin() -> None:
    for name in ("_helper", "-helper", "", "."):
        with pytest.raises(PluginError, match="needed: one of"):
            registry.load("solvers", name)


@pytest.mark.usefixtures("plugins")
def test_a_factory_needs_an_argument_and_gets_it() -> None:
    assert registry.load("solvers", "driver:cbc") == ("driven", "cbc")
    assert registry.load("solvers", "driver:a:b") == ("driven", "a:b")
    assert registry.variants("solvers", "driver") == ("driver:cbc", "driver:glpk")
    with pytest.raises(PluginError, match="driver:cbc, driver:glpk"):
        registry.load("solvers", "driver")


@pytest.mark.usefixtures("plugins")
def test_an_argument_may_be_optional_or_not_wanted() -> None:
    assert registry.load("solvers", "flexible:x") == ("with", "x")
    assert registry.load("solvers", "flexible") is not None
    assert registry.variants("solvers", "flexible") == ("flexible",)
    with pytest.raises(PluginError, match="takes no argument"):
        registry.load("solvers", "plain:cbc")


@pytest.mark.usefixtures("plugins")
def test_a_file_without_the_object_is_named() -> None:
    with pytest.raises(PluginError, match=r"empty\.py has no SOLVER"):
        registry.load("solvers", "empty")


@pytest.mark.usefixtures("plugins")
def test_a_defect_in_a_plugin_of_ours_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="imported"):
        registry.load("solvers", "broken")


def test_the_same_file_imported_under_the_short_name_is_refused(
    plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(plugins.parent))
    importlib.invalidate_caches()
    short = importlib.import_module("solvers.plain")
    try:
        with pytest.raises(PluginError, match=r"import shelf\.solvers\.plain") as caught:
            registry.load("solvers", "plain")
        assert "was imported as solvers.plain" in str(caught.value)
        assert registry.load("solvers", "two-words") == "two"
    finally:
        del sys.modules["solvers.plain"], sys.modules["solvers"]
    assert registry.load("solvers", "plain") == short.SOLVER


def test_an_unrelated_module_of_the_short_name_is_no_matter(
    plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "elsewhere.py"
    other.write_text("", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("solvers.plain", other)
    assert spec is not None
    monkeypatch.setitem(sys.modules, "solvers.plain", importlib.util.module_from_spec(spec))
    assert plugins.is_dir()
    assert registry.load("solvers", "plain") == "the plain one"


def test_third_party_plugins_come_from_entry_points(
    plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plugins.is_dir()
    (tmp_path / "outside.py").write_text("SOLVER = 'from outside'\nOTHER = 'chosen'\n", encoding="utf-8")
    add_entry_points(monkeypatch, mine="outside", my__other="outside:OTHER", gone="not_there_at_all:X")
    assert {"mine", "my-other", "gone", "plain"} <= set(registry.names("solvers"))
    assert "outside" not in sys.modules
    assert registry.load("solvers", "mine") == "from outside"
    assert registry.load("solvers", "my-other") == "chosen"
    with pytest.raises(PluginError, match="fails on import: ModuleNotFoundError"):
        registry.load("solvers", "gone")


@pytest.mark.usefixtures("plugins")
def test_a_name_taken_twice_is_an_error_for_that_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    add_entry_points(monkeypatch, plain="outside", two_words="outside:OTHER")
    for name in ("plain", "two-words"):
        with pytest.raises(PluginError, match="2 times"):
            registry.load("solvers", name)
    assert registry.load("solvers", "flexible:x") == ("with", "x")


def test_the_real_plugins_are_found_without_importing_them() -> None:
    code = (
        "import sys; from milpver import registry\n"
        "assert 'highs' in registry.names('solvers'), registry.names('solvers')\n"
        "for kind in registry.KINDS: registry.names(kind)\n"
        "heavy = {'highspy', 'torch', 'numpy', 'scipy', 'onnx', 'gurobipy', 'pyscipopt'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", sorted(registry.KINDS))
def test_every_plugin_of_the_tree_keeps_to_the_convention(kind: str) -> None:
    for name in registry.names(kind):
        for variant in registry.variants(kind, name):
            assert registry.load(kind, variant) is not None


def test_near_ignores_case_and_says_so_where_nothing_is_near() -> None:
    assert registry.near("TIMELIMIT", ["TimeLimit", "Threads"]) == "did you mean TimeLimit?"
    assert registry.near("qqq", ["b", "a"]) == "choose one of a, b"
    assert registry.near("qqq", []) == "there is none to choose from"


def test_a_name_is_checked_without_importing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_import_in_tree", lambda _: pytest.fail("imported"))
    registry.check("solvers", "highs")
    registry.check("solvers", "pyomo:cbc")
    with pytest.raises(PluginError, match=r"one of auto, .*did you mean auto\?"):
        registry.check("solvers", "autoo", also=("auto",))
