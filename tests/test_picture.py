"""The picture of worst cases, read back from its PNG: what is drawn where, and the same every time."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from matplotlib import image as reader
from numpy.typing import NDArray

from milpver.picture import KEPT, REMOVED, Panel, draw


def panel(k: int, *, removed: tuple[tuple[int, int], ...] | None, twin: bool = True) -> Panel:
    image = np.random.default_rng(k).uniform(size=(8, 8))
    return Panel(
        title=f"digit {k}\nindex {k}",
        image=image,
        widths=(48, 24),
        removed=removed,
        mask_title="worst removal: robust\nmargin 1.234, against 5",
        adversarial=np.clip(image + 0.1, 0, 1) if twin else None,
        adversarial_title="taken for 5\nd_bnd 0.1000" if twin else "no adversarial digit",
    )


PANELS = [panel(k, removed=((1, k), (2, 3))) for k in range(3)]


def pixels(content: bytes) -> NDArray[np.int64]:
    drawn: Any = reader.imread(io.BytesIO(content))
    return np.asarray(np.rint(drawn[..., :3] * 255), dtype=np.int64)


def count(content: bytes, colour: str) -> int:
    wanted = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return int((np.abs(pixels(content) - wanted).max(axis=-1) <= 1).sum())


def test_a_png_of_the_size_that_the_panels_need() -> None:
    sizes = {}
    for number in (1, 2, 3, 12):
        content = draw([PANELS[k % 3] for k in range(number)], "heading")
        assert content.startswith(b"\x89PNG")
        sizes[number] = struct.unpack(">II", content[16:24])
        assert pixels(content).std() > 20
    assert sizes[2][0] == pytest.approx(2 * sizes[1][0], abs=1)
    assert sizes[2][1] == sizes[1][1] < sizes[3][1] < sizes[12][1]
    assert 1000 <= sizes[12][0] <= 2000


def test_the_same_panels_give_the_same_file() -> None:
    assert draw(PANELS, "heading") == draw(PANELS, "heading")
    assert draw(PANELS, "heading") != draw(PANELS[:2], "heading")


def test_removed_neurons_have_a_colour_of_their_own() -> None:
    none, one, two = (draw([panel(1, removed=gone)], "") for gone in (None, ((1, 4),), ((1, 4), (2, 23))))
    assert count(none, REMOVED) == 0
    assert count(one, REMOVED) > 30
    assert count(two, REMOVED) == pytest.approx(2 * count(one, REMOVED), rel=0.3)
    assert count(none, KEPT) > count(one, KEPT) > count(two, KEPT) > 0


def test_an_input_without_adversarial_leaves_its_place_empty() -> None:
    content = draw([panel(1, removed=((1, 4),), twin=False)], "")
    right = pixels(content)[:, int(pixels(content).shape[1] * 0.78) :]
    assert (right == 255).all()


def test_the_images_are_there_with_their_grey_values() -> None:
    flat = Panel("", np.full((8, 8), 0.5), (4,), (), "", np.full((8, 8), 0.25), "")
    content = draw([flat], "")
    assert count(content, "#808080") + count(content, "#7f7f7f") > 5000
    assert count(content, "#404040") + count(content, "#3f3f3f") > 5000


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="no panels"):
        draw([], "")
