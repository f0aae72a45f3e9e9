"""The report: the numbers it shows, figures that mean what they say, a page that stands alone."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Sheet
from matplotlib.image import imread

from milpver import drawing
from milpver.compare import short_names, summarise
from milpver.errors import DataError
from milpver.report import COLUMNS, cells, draw, figures, lanes, markdown, page, text, write

KEYS = ["highs/fused/crown", "scip/fused/crown", "gurobi/fused/crown"]
TIMES = {"highs": (1.0, 2.0, 4.0, 10.0), "scip": (2.0, 1.0, 20.0, 10.0), "gurobi": (0.5, 1.0, 1.0, 3.0)}
LIMIT = 10.0


def _records(**other: Any) -> list[dict[str, Any]]:
    """Four queries; a time from the limit on is a timeout."""
    found = []
    for index in range(4):
        for k, key in enumerate(KEYS):
            seconds = TIMES[key.split("/")[0]][index]
            found.append(
                {
                    "job": 3 * index + k,
                    "contender": key,
                    "compared": KEYS,
                    "index": index,
                    "repeat": 0,
                    "label": 1,
                    "predicted": 1,
                    "status": "optimal" if seconds < LIMIT else "timeout",
                    "verdict": "unknown",
                    "lower": 0.25 if seconds < LIMIT else 0.1,
                    "upper": 0.25,
                    "seconds": seconds,
                    "timeout": LIMIT,
                    "solver": key.split("/")[0],
                    "solver_version": "1",
                    "nodes": 5,
                    "message": "",
                }
                | other
            )
    return found


def _drawn(records: list[dict[str, Any]]) -> tuple[Any, ...]:
    summary = summarise(records)
    names = short_names(KEYS)
    return summary, names, figures(lanes(records, summary, names))


def _axes(name: str) -> Any:
    """The axes that a figure is painted into."""
    _, _, made = _drawn(_records())
    (figure,) = [each for each in made if each.name == name]
    axes = Sheet().add_axes((0.1, 0.1, 0.8, 0.8))
    figure.paint(axes)
    return axes


# ---------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.0, "0"), (0.12345, "0.123"), (59.96, "60"), (1234.5, "1234"), (12, "12")],
)
def test_numbers_have_three_digits(value: float | None, shown: str) -> None:
    assert text(value) == shown


def test_the_markdown_table_holds_the_counts() -> None:
    summary, names, _ = _drawn(_records())
    lines = markdown(summary, names).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert table[0] == ["contender", *COLUMNS]
    by_name = {row[0]: dict(zip(COLUMNS, row[1:], strict=True)) for row in table[1:]}
    assert (by_name["highs"]["solved"], by_name["highs"]["timeouts"]) == ("3", "1")
    assert by_name["highs"]["median s"] == "3"
    assert by_name["highs"]["mean s"] == "≥ 4.25"
    assert by_name["highs"]["PAR-2 s"] == "6.75"
    assert by_name["scip"]["median s"] == "≥ 6"
    assert by_name["gurobi"]["mean s"] == "1.38"
    assert by_name["gurobi"]["speed-up"] == text((2.0 * 2.0 * 4.0 * (10 / 3)) ** 0.25)
    assert any("4 queries" in line for line in lines)


def test_a_median_at_the_limit_is_marked() -> None:
    found = _records(status="timeout", lower=0.0)
    row = summarise(found).rows[0]
    assert cells(row)[COLUMNS.index("median s")] == "≥ 10"


def test_wrong_answers_are_listed() -> None:
    found = _records()
    found[1] |= {"lower": 3.0, "upper": 3.0}
    summary, names, _ = _drawn(found)
    assert "WRONG: scip on index 0" in markdown(summary, names)
    assert '<p class="wrong">WRONG: scip' in page(found, summary, names, [], {}, "", 12)


# --------------------------------------------------------------------------------------------- figures


def test_there_is_a_figure_for_each_kind_and_pair() -> None:
    _, _, made = _drawn(_records())
    assert [each.name for each in made] == [
        "cactus", "profile", "scatter-highs-scip", "scatter-highs-gurobi", "scatter-scip-gurobi",
    ]  # fmt: skip
    assert all(each.caption.endswith(".") for each in made)


def test_the_cactus_plot_shows_sorted_times_of_solved_runs() -> None:
    axes = _axes("cactus")
    shown = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert shown["highs (3)"] == [[1, 1.0], [2, 2.0], [3, 4.0]]
    assert shown["scip (2)"] == [[1, 1.0], [2, 2.0]]
    assert shown["gurobi (4)"] == [[1, 0.5], [2, 1.0], [3, 1.0], [4, 3.0]]
    assert axes.get_ylabel() == "time of a run [s]"
    assert axes.get_xlabel() == "runs solved (of 4)"


def test_the_profile_is_that_of_dolan_and_more() -> None:
    axes = _axes("profile")
    lines = {line.get_label(): line for line in axes.lines}
    fastest = np.min([TIMES[name] for name in TIMES], axis=0)
    for name, line in lines.items():
        x, y = line.get_xdata(), line.get_ydata()
        for tau in (1.0, 1.3, 1.99, 2.0, 2.01, 3.9, 4.0):
            held = [t < LIMIT and t / best <= tau for t, best in zip(TIMES[name], fastest, strict=True)]
            at = y[np.searchsorted(x, tau, side="right") - 1]
            assert at == pytest.approx(100 * sum(held) / 4), (name, tau)
    assert "[%]" in axes.get_ylabel()
    assert "[1]" in axes.get_xlabel()


def test_the_scatter_plot_keeps_solved_and_unsolved_apart() -> None:
    axes = _axes("scatter-highs-scip")
    solved, unsolved = (line for line in axes.lines if line.get_marker() in ("o", "D"))
    assert solved.get_xydata().tolist() == [[1.0, 2.0], [2.0, 1.0]]
    assert unsolved.get_xydata().tolist() == [[4.0, 10.0], [10.0, 10.0]]
    assert unsolved.get_markerfacecolor() == "white"
    assert axes.get_xlabel() == "time of highs [s]"
    assert axes.get_ylabel() == "time of scip [s]"


def test_contenders_can_be_told_apart_without_colours() -> None:
    looks = [drawing.look(k) for k in range(16)]
    plain = [(look["marker"], str(look["linestyle"]), look["markerfacecolor"] == "white") for look in looks]
    assert len(set(plain)) == 16
    assert len({look["marker"] for look in looks[:8]}) == 8


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_figure_is_the_same_each_time(kind: str) -> None:
    _, _, made = _drawn(_records())
    first = draw(made[0], kind=kind)
    draw(made[1], kind=kind)
    _, _, again = _drawn(_records()[::-1])
    assert draw(again[0], kind=kind) == first


def test_svg_files_are_xml_with_title_description_and_nothing_outside() -> None:
    _, _, made = _drawn(_records())
    for figure in made:
        svg = draw(figure, kind="svg").decode("utf-8")
        root = ET.fromstring(svg)
        space = "{http://www.w3.org/2000/svg}"
        title, description = root.find(f"{space}title"), root.find(f"{space}desc")
        assert title is not None
        assert description is not None
        assert title.text == figure.title
        assert description.text == figure.caption
        assert root.get("role") == "img"
        outside = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
        assert "http" not in outside
        assert "DOCTYPE" not in svg
        names = re.findall(r'\bid="([^"]+)"', svg)
        assert len(names) == len(set(names))
        referred = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
        assert referred
        assert set(referred) <= set(names)


def test_png_files_are_pictures_of_their_size() -> None:
    _, _, made = _drawn(_records())
    image = imread(io.BytesIO(draw(made[0], kind="png")))
    assert image.shape[1] == round(made[0].size[0] * 150)
    assert image[..., :3].min() < 0.2
    assert image[0, 0, :3].min() == 1.0


def test_runs_that_not_all_have_done_are_left_out_of_the_figures() -> None:
    found = _records()[:-1]
    summary = summarise(found)
    assert lanes(found, summary, short_names(KEYS)).times.shape == (3, 3)


def test_an_unavailable_contender_is_in_the_table_and_in_no_figure() -> None:
    found = [
        each | {"status": "unavailable", "lower": None, "upper": None, "solver_version": ""}
        if "scip" in each["contender"]
        else each
        for each in _records()
    ]
    summary, names, made = _drawn(found)
    assert summary.rows[1].unavailable == 4
    assert [each.name for each in made] == ["cactus", "profile", "scatter-highs-gurobi"]
    assert cells(summary.rows[1])[7:] == ("–",) * 6
    nobody = [each | {"status": "unavailable", "lower": None, "upper": None} for each in _records()]
    summary, names, made = _drawn(nobody)
    assert made == ()
    assert "Nothing ran" in page(nobody, summary, names, [], {}, "x", 12)


def test_a_run_that_nobody_solved_and_a_single_contender_are_drawn() -> None:
    _, _, made = _drawn(_records(status="timeout", lower=0.0))
    for figure in made:
        assert draw(figure, kind="png").startswith(b"\x89PNG")
    one = [each | {"compared": KEYS[:1]} for each in _records() if each["contender"] == KEYS[0]]
    summary = summarise(one)
    alone = figures(lanes(one, summary, short_names(KEYS[:1])))
    assert [each.name for each in alone] == ["cactus", "profile"]


def test_names_that_fall_together_get_different_files() -> None:
    taken: set[str] = set()
    assert [drawing.free_name("a", taken) for _ in range(3)] == ["a", "a_1", "a_2"]


# ------------------------------------------------------------------------------------------- the page


class _Page(HTMLParser):
    """What matters of a page: nesting, references, names, texts of tables."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.data: list[str] = []
        self._table = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = dict(attrs).get("id") or str(len(self.tables))
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[self._table][-1][-1] += data


def _read(source: str) -> _Page:
    found = _Page()
    found.feed(source)
    found.close()
    assert found.open == []
    return found


def test_the_page_stands_alone_and_says_what_was_run(tmp_path: Path) -> None:
    facts = {"model": "net<1>.onnx", "machine": "a & b", "seed": "7"}
    command = "milpver compare 'a b.onnx' --data <d>"
    write(tmp_path, _records(), facts, command, planned=14)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = _read(source)
    assert "http" not in source
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    for tag, given in found.tags:
        for name in ("src", "href", "xlink:href"):
            assert name not in given or str(given[name]).startswith("#"), (tag, given)
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    svgs = [given for tag, given in found.tags if tag == "svg"]
    names = [str(given["id"]) for _, given in found.tags if "id" in given]
    assert len(names) == len(set(names))
    assert len(svgs) == 5
    for given in svgs:
        assert given["role"] == "img"
        assert set(str(given["aria-labelledby"]).split()) <= set(names)
    assert sum(tag == "figcaption" for tag, _ in found.tags) == 5
    assert any(given.get("name") == "viewport" for tag, given in found.tags if tag == "meta")
    shown = "".join(found.data)
    for value in (*facts.values(), command, "12 runs of 14 planned: this comparison is not finished"):
        assert value in shown
    assert "@media print" in source


def test_the_results_of_the_page_are_those_of_the_records(tmp_path: Path) -> None:
    summary = write(tmp_path, _records(), {}, "", planned=12)
    found = _read((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert found.tables["results"][0] == ["contender", *COLUMNS]
    for shown, row in zip(found.tables["results"][1:], summary.rows, strict=True):
        assert tuple(shown[1:]) == cells(row)
    assert found.tables["queries"][0] == [
        "index", "label", "lower", "upper", "highs [s]", "scip [s]", "gurobi [s]",
    ]  # fmt: skip
    assert found.tables["queries"][3] == ["2", "1", "0.25", "0.25", "4", "timeout", "1"]


def test_files_are_the_same_each_time_and_old_pairs_go(tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    for folder in (once, twice):
        folder.mkdir()
        (folder / "scatter-old-pair.svg").write_text("old")
        (folder / "notes.txt").write_text("mine")
        write(folder, _records(), {"model": "m"}, "c", planned=12)
    files = sorted(path.name for path in once.iterdir())
    assert files == sorted(
        ["notes.txt", "report.html", "table.md"]
        + [
            f"{name}.{kind}"
            for kind in ("svg", "png")
            for name in (
                "cactus", "profile", "scatter-highs-scip", "scatter-highs-gurobi", "scatter-scip-gurobi",
            )
        ]
    )  # fmt: skip
    assert all((once / name).read_bytes() == (twice / name).read_bytes() for name in files)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written.*--report"):
        write(tmp_path / "nowhere", _records(), {}, "", planned=12)


def test_matplotlib_keeps_its_settings() -> None:
    import matplotlib as mpl  # noqa: PLC0415  its settings are the point

    before = dict(mpl.rcParams)
    _, _, made = _drawn(_records())
    draw(made[0], kind="svg")
    assert dict(mpl.rcParams) == before
