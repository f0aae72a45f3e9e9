"""Reports and exports: what they count, that nothing open is robust, and that the page stands alone."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from milpver import campaign
from milpver.campaign import export
from milpver.campaign.figures import Group, figures, groups
from milpver.campaign.plan import Plan
from milpver.campaign.report import write
from milpver.campaign.results import answers, overview, word_of
from milpver.campaign.store import Limited, Result, Store, limits_of, pack
from milpver.errors import DataError, QueryError

if TYPE_CHECKING:
    from tests.campaign.conftest import Field

TEXT = (
    '[[question]]\nkind = "margin"\nbudgets = ["1,0", "2,1"]\nsolvers = ["highs", "bab"]\n'
    '[[question]]\nkind = "distance"\n'
)


def made(key: bytes, status: str, verdict: str | None = None, **more: Any) -> Result:
    """A result; ``more`` are lower, upper, removed, seconds, witness."""
    witness = more.pop("witness", None)
    columns: dict[str, Any] = {
        "status": status, "verdict": verdict, "assurance": None, "lower": None, "upper": None, "target": None,
        "removed": None, "nodes": 3, "seconds": 0.5, "engine": "stub", "message": "",
    }  # fmt: skip
    columns |= more
    record = columns | {"removed": json.loads(columns["removed"] or "null"), "adversarial_label": 1}
    return Result(key, json.dumps(record), columns, "here", None if witness is None else pack(witness))


@pytest.fixture(scope="module")
def told(
    make_field: Callable[[Path], Field], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Plan, Store]]:
    """40 inputs: 5 misclassified; by budget 1,0: 20 robust, 10 vulnerable, 5 timeouts (highs: 10, 10, 15)."""
    field = make_field(tmp_path_factory.mktemp("told"))
    plan = field.plan(TEXT, name="told & done")
    limits = {cell.number: limits_of(cell.description()) for cell in plan.cells}
    with Store.open(plan.spec.store, create=True) as store:
        store.register(plan, {"milpver": "x", "machine": {"cpu": "c"}})
        results: list[tuple[Result, Limited]] = []
        for position, cell, index, _, key, _ in plan.rows():
            place = position % 40
            kind = plan.cells[cell].kind
            slow = plan.cells[cell].options.solver == "highs"
            more: dict[str, Any] = {"seconds": 1.0 + slow}
            if place < 5:
                status, verdict = "misclassified", "unknown" if kind == "margin" else None
            elif kind == "distance":
                status, verdict = "optimal", None
                more |= {"lower": index / 100, "upper": index / 100, "witness": np.full(6, index / 40)}
            elif place < (15 if slow else 25):
                status, verdict = "optimal", "robust"
                more |= {"lower": place / 10, "upper": place / 10, "removed": "[[1,2]]"}
            elif 25 <= place < 35:
                status, verdict = "optimal", "vulnerable"
                more |= {"lower": -1.0, "upper": -1.0, "removed": "[[1,2],[2,4]]"}
            else:
                status, verdict = "timeout", "unknown"
                more |= {"lower": -3.0, "upper": 50.0, "removed": "[[1,7]]"}
            if cell == 3 and place == 39:
                continue  # one that has no answer yet
            results.append((made(key, status, verdict, **more), limits[cell]))
        store.commit(results)
        yield plan, store


def groups_of(store: Store) -> list[Group]:
    return groups(list(answers(store, store.campaign())))


def test_words() -> None:
    assert word_of("timeout", "robust") == "robust"
    assert word_of("timeout", "unknown") == "timeout"
    assert word_of("optimal", "unknown") == "unknown"
    assert word_of("misclassified", "unknown") == "misclassified"
    assert word_of("optimal", None) == "optimal"


def test_how_far_a_campaign_is(told: tuple[Plan, Store]) -> None:
    found = overview(told[1], told[1].campaign())
    assert (found.planned, found.done) == (200, 199)
    assert found.owners == ()
    assert found.left_seconds is None
    assert dict(found.cells[0].words) == {"timeout": 15, "vulnerable": 10, "robust": 10, "misclassified": 5}
    assert [cell.open for cell in found.cells] == [15, 5, 15, 4, 0]
    assert found.cells[0].seconds == 80.0


def test_what_one_solver_proves_counts_for_all(told: tuple[Plan, Store]) -> None:
    first, second, distances = groups_of(told[1])
    for group in (first, second):
        assert group.count("robust") == 20
        assert group.count("vulnerable") == 10
        assert group.count("misclassified") == 5
        assert group.open == 5
        assert group.wrong == ()
        assert int(group.closed.sum()) == 30
    assert second.answered == 40, "the other solver has answered it"
    assert int(distances.closed.sum()) == 35


def test_two_proofs_that_contradict_each_other_count_for_nothing(
    told: tuple[Plan, Store], tmp_path: Path
) -> None:
    plan, store = told
    key = list(plan.rows())[6][4]  # robust by both
    before = store._db.execute("SELECT verdict, lower, upper FROM result WHERE key = ?", (key,)).fetchone()
    change = "UPDATE result SET verdict = ?, lower = ?, upper = ? WHERE key = ?"
    store._db.execute(change, ("vulnerable", -1.0, -1.0, key))
    try:
        first = groups_of(store)[0]
        page = write(tmp_path / "out", store, store.campaign())
    finally:
        store._db.execute(change, (*before, key))
    assert first.wrong == (6,)
    assert first.count("robust") == 19
    assert first.open == 6
    assert "CONTRADICTION" in page.read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a page refers to, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("href", "src", "xlink:href", "srcset")
        ]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "img":
            self.images.append(found)
        if tag == "svg":
            assert found.get("role") == "img"
            assert found.get("aria-labelledby")


@pytest.fixture(scope="module")
def page(told: tuple[Plan, Store], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = write(tmp_path_factory.mktemp("page") / "out", told[1], told[1].campaign())
    return path, path.read_text(encoding="utf-8")


def test_the_page_stands_alone_and_is_accessible(page: tuple[Path, str]) -> None:
    found = Page(page[1])
    assert all(link.startswith(("#", "data:")) for link in found.links), found.links
    assert "http" not in re.sub(r"data:[^\"']*", "", page[1])
    assert len(found.ids) == len(set(found.ids))
    assert all(link[1:] in found.ids for link in found.links if link.startswith("#"))
    assert {"main", "h1", "h2", "nav", "table", "figure", "svg"} <= set(found.tags)
    assert all(image["alt"] for image in found.images)
    assert 'name="viewport"' in page[1]
    assert "@media print" in page[1]
    assert "<script" not in page[1]


def test_the_page_says_what_is_proven_and_what_is_open(page: tuple[Path, str]) -> None:
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<svg.*?</svg>", "", page[1], flags=re.DOTALL))
    assert "Campaign told &amp; done" in text
    assert "199 queries answered of 200 planned: this campaign is not finished." in text
    rows = re.findall(r"<tr><th scope=\"row\">net</th>(.*?)</tr>", page[1])
    cells = [re.sub(r"<[^>]+>", "|", row).strip("|").split("||") for row in rows[:5]]
    head = re.findall(r'<th scope="col">(.*?)</th>', page[1])
    assert "All: data data, encoding fused, bounds alpha-crown." in text
    assert not {"data", "encoding", "bounds"} & set(head[: head.index("total s")])
    at = head.index("verified %") - 1
    assert [row[at : at + 2] for row in cells] == [
        ["25.00", "37.50"], ["50.00", "12.50"], ["25.00", "37.50"], ["50.00", "12.50"], ["–", "–"],
    ]  # fmt: skip
    for words in ("gap 1e-06", "time limit 60 s", "SHA-256", "milpver", "budgets = ["):
        assert words in text
    assert "inputs of shape (6,) are no images" in text
    headings = re.findall(r"<h2 id=\"(.*?)\"", page[1])
    assert headings == [
        "results", "accuracy", "margins", "distances", "masks", "solvers", "time", "neurons", "hardest",
        "settings", "rules",
    ]  # fmt: skip


def test_figures_are_files_too(page: tuple[Path, str]) -> None:
    folder = page[0].parent
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {path.stem for path in folder.glob("*.png")}
    assert {name.partition("-")[0] for name in names} == {
        "accuracy", "margins", "distances", "masks", "cactus", "profile", "scatter", "time",
    }  # fmt: skip
    for path in folder.glob("*.svg"):
        root = ET.fromstring(path.read_text(encoding="utf-8"))
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
        assert root.find("{http://www.w3.org/2000/svg}desc") is not None


def test_what_is_open_is_a_band_above_what_is_proven(told: tuple[Plan, Store]) -> None:
    figure = next(
        f for f in figures(groups_of(told[1]), {"net": {1: 8, 2: 5}}) if f.name.startswith("accuracy")
    )
    (band,) = figure.paint.keywords["bands"]  # type: ignore[attr-defined]  # it is a partial
    np.testing.assert_allclose(band.proven, [50.0, 50.0])
    np.testing.assert_allclose(band.possible, [62.5, 62.5])


def test_hardest_images_are_shown_with_their_twins(field: Field, tmp_path: Path) -> None:
    from tests.nets import random_network  # noqa: PLC0415  only here

    random_network(field.folder / "net.onnx", (16, 6, 3), seed=1)
    rng = np.random.default_rng(0)
    np.savez(
        field.folder / "data.npz", x=rng.uniform(size=(9, 16)).astype(np.float32), y=np.zeros(9, dtype=int)
    )
    text = '[data]\npath = "data.npz"\n[[question]]\nkind = "margin"\nbudgets = ["2"]\n'
    text += '[[question]]\nkind = "distance"\n'
    plan = field.plan(text)
    with Store.open(plan.spec.store, create=True) as store:
        store.register(plan, {})
        for position, cell, index, _, key, _ in plan.rows():
            more: dict[str, Any] = {"lower": 0.1 + index, "upper": 0.1 + index, "removed": "[[1,2],[1,3]]"}
            if plan.cells[cell].kind == "distance":
                more |= {"removed": None, "witness": rng.uniform(size=16)}
            verdict = "robust" if position < 9 else None
            store.commit([(made(key, "optimal", verdict, **more), limits_of(plan.cells[cell].description()))])
        path = write(tmp_path / "out", store, store.campaign())
    (image,) = Page(path.read_text(encoding="utf-8")).images
    assert "index 0, label 0: taken for 1 d_bnd 0.1, budget 2: robust margin 0.1" in (image["alt"] or "")
    assert "index 7" in (image["alt"] or "")
    assert "index 8" not in (image["alt"] or ""), "the hardest eight"
    assert (tmp_path / "out" / "hardest-0.png").read_bytes().startswith(b"\x89PNG")


def test_channels_totals_and_fewest_removals_are_drawn(field: Field, tmp_path: Path) -> None:
    """Budgets that are counted otherwise stand on axes of their own."""
    text = (
        '[[question]]\nkind = "margin"\nbudgets = ["1,0", "2,1", "total:3"]\n'
        '[[question]]\nkind = "margin"\nname = "kept"\nbudgets = ["1,0"]\nkeep = "1:0"\n'
        '[[question]]\nkind = "pruning-distance"\ntotal = true\n'
    )
    plan = field.plan(text)
    with Store.open(plan.spec.store, create=True) as store:
        store.register(plan, {})
        for _, cell, index, _, key, _ in plan.rows():
            more: dict[str, Any] = {"lower": 1.0, "upper": 1.0, "removed": "[[1,2]]"}
            status, verdict = "optimal", "robust"
            if plan.cells[cell].kind == "pruning-distance":
                verdict = ""
                more |= {"lower": 1 + index % 3, "upper": 1 + index % 3}
                if index == 39:
                    status, more = "infeasible", {"lower": 13, "upper": None, "removed": None}
            limits = limits_of(plan.cells[cell].description())
            store.commit([(made(key, status, verdict or None, **more), limits)])
        # As a network with channels would have it.
        store._db.execute(
            'UPDATE network SET layers = replace(layers, \'"number": 2\', \'"number": "conv1"\')'
        )
        first = "SELECT key FROM plan WHERE cell = 0 AND idx = 0"
        store._db.execute(f"UPDATE result SET removed = '[[\"conv1\",4]]' WHERE key = ({first})")
        found = groups_of(store)
        page = write(tmp_path / "out", store, store.campaign()).read_text(encoding="utf-8")
    names = {path.stem for path in (tmp_path / "out").glob("*.svg")}
    assert {"accuracy-data-0", "accuracy-data-0-total", "accuracy-data-0-keep_1_0", "removals-data"} <= names
    shown = figures(found, {"net": {1: 8, "conv1": 5}})
    (curve,) = next(f for f in shown if f.name == "removals-data").paint.keywords["curves"]  # type: ignore[attr-defined]
    assert (curve[0], len(curve[1]), curve[2]) == ("net, total", 39, 40)
    assert "39 of 40, 1 that no removal changes" in page
    masks = next(f for f in shown if f.name.startswith("masks"))
    rows, layers = (masks.paint.keywords[name] for name in ("rows", "layers"))  # type: ignore[attr-defined]
    assert layers == [1, "conv1"]
    assert rows[0][2]["conv1"][4] == pytest.approx(100 / 40)
    assert [row[0] for row in rows] == [
        "budget 1,0", "budget 2,1", "budget total:3", "budget 1,0, keep 1:0", "fewest: total",
    ]  # fmt: skip
    assert "<td>conv1</td><td>4</td>" in page


def test_a_campaign_without_answers_has_a_report(field: Field, tmp_path: Path) -> None:
    plan = field.plan()
    with Store.open(plan.spec.store, create=True) as store:
        store.register(plan, {})
        text = write(tmp_path / "out", store, store.campaign()).read_text(encoding="utf-8")
    assert "0 queries answered of 80 planned" in text
    with pytest.raises(DataError, match="--out"):
        campaign.write_report(plan.spec.path, tmp_path / "no" / "folder")


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def test_the_page_fits_a_phone_in_a_browser(page: tuple[Path, str], tmp_path: Path) -> None:
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no headless browser: none of {', '.join(BROWSERS)} is there")
    probe = tmp_path / "probe.html"
    wide = "document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth"
    probe.write_text(page[1].replace("</body>", f"<script>{wide}</script></body>"), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--window-size=400,800", "--dump-dom", probe.as_uri()],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    widths = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert widths is not None
    assert int(widths[1]) <= int(widths[2])


# -------------------------------------------------------------------------------------------- export


def test_exports_hold_every_query(told: tuple[Plan, Store], tmp_path: Path) -> None:
    path = told[0].spec.path
    for suffix in ("csv", "jsonl", "parquet"):
        if suffix == "parquet":
            pytest.importorskip("pyarrow", reason="an extra: pip install 'milpver[parquet]'")
        assert campaign.write_export(path, tmp_path / f"x.{suffix}") == 200
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(table) == len(lines) == 200
    assert list(table[0]) == list(export.COLUMNS)
    assert (table[6]["parameters"], table[6]["requested_solver"]) == ("budget 1,0", "highs")
    assert (table[6]["status"], float(table[6]["lower"]), table[6]["removed"]) == ("optimal", 0.6, "[[1, 2]]")
    assert (table[159]["answered"], table[159]["status"]) == ("False", "")
    assert lines[159]["answered"] is False
    assert lines[170]["witness"] == [10 / 40] * 6
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # noqa: PLC0415  an extra without types

    found = pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["lower"] for row in found] == [line.get("lower") for line in lines]
    assert found[6]["removed"] == "[[1, 2]]"
    assert list(campaign.rows(path)) == lines


def test_exports_of_other_kinds_are_refused(told: tuple[Plan, Store], tmp_path: Path) -> None:
    path = told[0].spec.path
    with pytest.raises(QueryError, match=r"suffix '.xls'"):
        campaign.write_export(path, tmp_path / "x.xls")
    with pytest.raises(DataError, match="cannot be written"):
        campaign.write_export(path, tmp_path / "no" / "x.csv")
    assert not list(tmp_path.glob(".*.part"))


def test_asking_how_far_it_is_loads_no_torch(told: tuple[Plan, Store]) -> None:
    code = "import sys; from milpver import campaign; campaign.status(sys.argv[1])"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(told[0].spec.path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == "False\n"
