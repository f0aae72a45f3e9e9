"""Points that attain minima over balls, and what balls add, are those of linear programs and of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milpver.bounds._norm_ball import ball_multiplier
from milpver.norm import closest_steps, lengths
from milpver.search._region import Balls, Boxes, lowest_by_torch, reach_of
from milpver.search._region_kernel import gains, multiplier

NORMS = st.sampled_from(["l1", "l2"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), NORMS, st.integers(1, 40), st.booleans())
def test_compiled_loops_and_torch_agree(seed: int, norm: str, inputs: int, even: bool) -> None:
    """On entries that are 0, equal, and without room as well."""
    rng = np.random.default_rng(seed)
    c = torch.tensor(rng.normal(size=(4, 1, inputs)) * rng.choice([0.0, 1.0, 1.0], size=(4, 1, inputs)))
    c = c.round() if even else c
    down, up = (torch.tensor(rng.uniform(0, 1, inputs) * rng.integers(0, 2, inputs)) for _ in "12")
    centre, radius = torch.tensor(rng.uniform(0, 1, inputs)), torch.tensor(rng.uniform(0.01, 3.0, 4))
    size, room = c.abs(), torch.where(c > 0, down, up)

    def gained(found: torch.Tensor, radii: torch.Tensor) -> torch.Tensor:
        wide = found.unsqueeze(2) * (room if norm == "l2" else 1.0)
        kept = torch.minimum(size, wide)
        dual = kept.amax(dim=2) if norm == "l1" else kept.norm(dim=2)
        return ((kept * room).sum(dim=2) - radii * dual).clamp(min=0.0)

    plain = gained(ball_multiplier(norm, size, room, radius.unsqueeze(1)), radius.unsqueeze(1))
    quick = gained(multiplier(norm, size, room, radius.unsqueeze(1)), radius.unsqueeze(1))
    assert torch.allclose(plain, quick, rtol=1e-7, atol=1e-9)
    # The point attains what the multiplier proves: no duality gap.
    balls = Balls(norm, centre.float(), down.float(), up.float(), radius.float())
    step = (balls.lowest(c.float()) - centre.float()).double()
    assert np.all(lengths(norm, step[:, 0].numpy()) <= radius.numpy() * (1 + 1e-4) + 1e-5)
    assert bool(torch.all((-step <= down + 1e-6) & (step <= up + 1e-6)))
    box = torch.where(c > 0, -down, up)
    assert torch.allclose((c * step).sum(dim=2), (c * box).sum(dim=2) + plain, atol=2e-4)
    radii = radius.float().unsqueeze(1)
    other = lowest_by_torch(norm, c.float(), balls.centre, balls.down, balls.up, radii)
    value = (c * (other - balls.centre).double()).sum(dim=2)
    assert torch.allclose(value, (c * step).sum(dim=2), atol=2e-4)
    kept = balls.pick(torch.tensor([2]))
    assert torch.equal(kept.lowest(c[2:3].float()), balls.lowest(c.float())[2:3])
    whole = float(radius[0])
    found = gains(norm, c[:, 0], down, up, whole)
    same = torch.full((4, 1), whole, dtype=torch.float64)
    exact = gained(ball_multiplier(norm, size, room, same), same)[:, 0]
    assert bool(torch.all(found <= exact + 1e-12))
    assert torch.allclose(found, exact, rtol=1e-7, atol=1e-9)


def test_boxes_are_lowest_at_their_corners() -> None:
    low, high = torch.zeros(2, 3), torch.ones(2, 3)
    boxes = Boxes.of(low, high)
    c = torch.tensor([[[1.0, -1.0, 2.0]], [[-1.0, 3.0, -2.0]]])
    assert boxes.lowest(c).tolist() == [[[0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]]]
    assert boxes.pick(torch.tensor([1])).lowest(c[1:]).tolist() == [[[1.0, 0.0, 1.0]]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), NORMS, st.integers(1, 12))
def test_functions_reach_zero_where_they_say(seed: int, norm: str, inputs: int) -> None:
    rng = np.random.default_rng(seed)
    x0, slope = rng.uniform(0, 1, inputs), rng.normal(size=(5, inputs))
    value = rng.uniform(-0.2, 2.0, 5)
    reach = reach_of(norm, x0, slope, value, np.zeros(inputs), np.ones(inputs))
    at = value + (slope * (reach.points - x0)).sum(axis=1)
    for k in range(5):
        if value[k] <= 0:
            assert reach.radius[k] == 0.0
        elif np.isinf(reach.radius[k]):
            assert at[k] > 0
            assert np.minimum(slope[k] * -x0, slope[k] * (1 - x0)).sum() == pytest.approx(at[k] - value[k])
        else:
            assert at[k] == pytest.approx(0.0, abs=1e-9)
            assert reach.radius[k] == pytest.approx(float(lengths(norm, reach.points[k] - x0)))
            # The rate is that of a slightly higher function's minimum.
            less = closest_steps(norm, x0, slope[k : k + 1], value[k : k + 1] - 1e-7, x0 * 0, x0 * 0 + 1)[0]
            slower = float(reach.radius[k] - lengths(norm, less - x0))
            assert reach.rate[k] * slower == pytest.approx(1e-7, rel=0.1, abs=1e-10)
