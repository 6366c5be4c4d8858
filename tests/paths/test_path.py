"""Paths: straight lines, polylines, paths one after the other, and samples at equal steps of t or of length."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from helpers import close, draw
from hypothesis import given, strategies as st
from torch import Tensor

import manifold_lib as ml
from manifold_lib.core.derivatives import jvp
from manifold_lib.paths.path import column, decoded_path, even_times, joined, line, path_starts


def arcs(speed: Callable[[Tensor], Tensor], sweep: float = 3.0) -> ml.Path:
    """Circle arcs of two radii, gone along at any speed: the angle tells the length."""
    radii = torch.tensor([1.0, 3.0], dtype=torch.float64)

    def at(rows: Tensor, t: Tensor) -> Tensor:
        angle = sweep * speed(t)
        return radii[rows, None] * torch.stack([angle.cos(), angle.sin()], 1)

    return ml.Path(at, end=at(torch.arange(2), torch.ones(2, dtype=torch.float64)))


def at_length(corners: Tensor, n: int) -> Tensor:
    """Points of polylines (B, T, d) at n equal steps of their length, in closed form."""
    steps = corners.diff(dim=1).norm(dim=2)
    length = torch.cat([torch.zeros(len(corners), 1, dtype=torch.float64), steps.cumsum(1)], 1)
    wanted = torch.linspace(0, 1, n + 1, dtype=torch.float64) * length[:, -1:]
    edge = (torch.searchsorted(length, wanted.contiguous(), right=True) - 1).clamp(0, steps.shape[1] - 1)
    share = (wanted - length.gather(1, edge)) / steps.gather(1, edge).clamp_min(1e-300)
    rows = torch.arange(len(corners))[:, None]
    return corners[rows, edge] + share[:, :, None] * (corners[rows, edge + 1] - corners[rows, edge])


# --- straight lines and polylines ----


def test_a_straight_path_runs_from_the_baselines_to_the_inputs() -> None:
    inputs, baselines = draw(3, 2, 2, seed=1), draw(3, 2, 2, seed=2)
    path, rows = ml.straight_path(inputs, baselines), torch.tensor([2, 0, 1, 2])
    t = torch.tensor([0.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    share = t[:, None, None]
    close(path.at(rows, t), (1 - share) * baselines[rows] + share * inputs[rows], 1e-15)
    close(path.at(slice(None), torch.ones(1)), inputs, 1e-15)
    assert path.displacement is not None and torch.equal(path.displacement, inputs - baselines)


def test_a_line_is_a_straight_path_that_checks_nothing() -> None:
    broken = torch.full((2, 3), math.nan)
    assert line(torch.zeros(2, 3), broken).at(torch.tensor([0]), torch.ones(1)).isnan().all()
    with pytest.raises(ValueError, match="inputs: got NaN"):
        ml.straight_path(broken)


def test_a_polyline_takes_equal_times_for_its_edges() -> None:
    points = draw(3, 5, 2, seed=1)
    path = ml.polyline(points)
    rows = torch.arange(3).repeat_interleave(5)
    close(path.at(rows, (torch.arange(5).double() / 4).repeat(3)).view(3, 5, 2), points, 1e-15)
    close(path.at(slice(None), torch.full((3,), 0.375).double()), (points[:, 1] + points[:, 2]) / 2, 1e-15)
    assert path.n_edges == 4 and torch.equal(path.end, points[:, -1])


@pytest.mark.parametrize("points", [draw(2, 1, 3), draw(2, 3), draw(0, 4, 3)])
def test_what_is_no_batch_of_curves_is_refused(points: Tensor) -> None:
    with pytest.raises(ValueError, match=r"path: got shape .*wants"):
        ml.polyline(points)


def test_times_are_shaped_and_typed_like_the_points_that_they_multiply() -> None:
    assert column(torch.ones(4).double(), torch.ones(2, 3, 5)).shape == (4, 1, 1)
    assert column(torch.ones(4).double(), torch.ones(2, 3, 5)).dtype == torch.float32


# --- one path after the other ----


def test_joined_paths_take_their_shares_of_the_unit_interval() -> None:
    a, b, c, d = draw(4, 3, 2, seed=1)
    whole = joined((line(a, b), ml.polyline(torch.stack([b, d, c], 1)), line(c, d)), (1.0, 2.0, 1.0))
    rows = torch.tensor([1, 0, 2, 1, 0, 2, 1])
    t = torch.tensor([0.125, 0.25, 0.375, 0.5, 0.75, 0.875, 1.0], dtype=torch.float64)
    wanted = torch.stack(
        [(a[1] + b[1]) / 2, b[0], (b[2] + d[2]) / 2, d[1], c[0], (c[2] + d[2]) / 2, d[1]],
    )
    close(whole.at(rows, t), wanted, 1e-14)
    assert torch.equal(whole.end, d) and len(whole.parts) == 3


@given(times=st.lists(st.floats(0, 1), min_size=1, max_size=9), weights=st.tuples(*[st.floats(0.01, 99)] * 3))
def test_joined_paths_agree_with_their_parts_wherever_they_are_asked(times: list[float], weights: tuple) -> None:
    corners = draw(2, 4, 3, seed=2)
    parts = tuple(line(corners[:, i], corners[:, i + 1]) for i in range(3))
    t, rows = torch.tensor(times, dtype=torch.float64), torch.arange(len(times)) % 2
    found = joined(parts, weights).at(rows, t)
    bounds = torch.tensor(weights, dtype=torch.float64).cumsum(0) / sum(weights)
    for point, time, row in zip(found, times, rows, strict=True):
        index = min(int((bounds < time).sum()), 2)
        low = float(bounds[index - 1]) if index else 0.0
        share = min(max((time - low) / (float(bounds[index]) - low), 0.0), 1.0)
        close(point, corners[row, index] + share * (corners[row, index + 1] - corners[row, index]), 1e-9)


def test_joined_paths_have_velocities() -> None:
    corners = draw(1, 3, 2)
    path = joined((line(corners[:, 0], corners[:, 1]), line(corners[:, 1], corners[:, 2])), (1.0, 3.0))
    rows, t = torch.tensor([0, 0]), torch.tensor([0.1, 0.7], dtype=torch.float64)
    _, velocity = jvp(lambda s: path.at(rows, s), t, torch.ones_like(t))
    close(velocity, corners[0].diff(dim=0) * torch.tensor([[4.0], [4 / 3]], dtype=torch.float64), 1e-12)


def test_a_decoded_path_is_decoded_some_points_at_a_time() -> None:
    sizes = []

    def decode(latents: Tensor) -> Tensor:
        sizes.append(len(latents))
        return torch.tanh(latents @ draw(2, 5, seed=3))

    latents = ml.straight_path(draw(7, 2, seed=1), draw(7, 2, seed=2))
    path = decoded_path(decode, latents, 3)
    assert latents.end is not None
    close(path.end, torch.tanh(latents.end @ draw(2, 5, seed=3)), 1e-15)
    starts = path_starts(path, 3)
    close(starts, torch.tanh(draw(7, 2, seed=2) @ draw(2, 5, seed=3)), 1e-15)
    assert max(sizes) == 3


# --- samples ----


@pytest.mark.parametrize("n", [1, 3, 50])
def test_equal_steps_of_t_are_the_path_at_these_times(n: int) -> None:
    path = arcs(lambda t: t**3)
    rows = torch.arange(2).repeat_interleave(n + 1)
    wanted = path.at(rows, torch.linspace(0, 1, n + 1, dtype=torch.float64).repeat(2)).view(2, n + 1, 2)
    assert torch.equal(path.sample(n), wanted)


@pytest.mark.parametrize("n", [1, 2, 7, 50, 64, 65, 200])
@pytest.mark.parametrize(
    "speed",
    [lambda t: t, lambda t: t**2, lambda t: 1 - (1 - t) ** 3, lambda t: t**5, lambda t: torch.sin(1.5 * t)],
    ids=["even", "speeding up", "slowing down", "resting first", "sine"],
)
def test_equal_steps_of_length_on_a_curve(speed: Callable[[Tensor], Tensor], n: int) -> None:
    points = arcs(speed).sample(n, by="length")
    angles = torch.atan2(points[..., 1], points[..., 0])
    steps = angles.diff(dim=1)
    assert ((steps / steps.mean(1, keepdim=True) - 1).abs() < 1e-3).all()


@pytest.mark.parametrize("n", [1, 10, 300])
def test_equal_steps_of_length_on_joined_lines(n: int) -> None:
    """Bridges of a hundredth of [0, 1] each that are as long as the rest."""
    a, b, c, d = (torch.tensor([[x, 2 * x]], dtype=torch.float64) for x in (0.0, 1.0, 2.0, 3.0))
    path = joined((line(a, b), line(b, c), line(c, d)), (1.0, 98.0, 1.0))
    steps = path.sample(n, by="length").diff(dim=1).norm(dim=2)
    close(steps, torch.full((1, n), 3 * 5**0.5 / n, dtype=torch.float64), 1e-12)


@given(n=st.integers(1, 120), weights=st.tuples(*[st.floats(0.01, 99)] * 3), seed=st.integers(0, 10**6))
def test_equal_steps_of_length_cut_no_corner_between_joined_paths(n: int, weights: tuple, seed: int) -> None:
    corners = draw(2, 6, 3, seed=seed)
    middle = ml.polyline(corners[:, 1:5])
    path = joined((line(corners[:, 0], corners[:, 1]), middle, line(corners[:, 4], corners[:, 5])), weights)
    step = corners.diff(dim=1).norm(dim=2).sum(1)[:, None, None] / n
    assert ((path.sample(n, by="length") - at_length(corners, n)).abs() < 1e-9 * step).all()


@pytest.mark.parametrize("n", [3, 50])
def test_equal_steps_of_length_on_a_curve_between_lines(n: int) -> None:
    """Half circles that begin and end with a right angle: sharp corners at a hundredth of [0, 1]."""
    curve, rows = arcs(lambda t: (t + t**2) / 2, math.pi), torch.arange(2)
    start = curve.at(rows, torch.zeros(2).double())
    path = joined((line(start * 2, start), curve, line(curve.end, curve.end * 2)), (1.0, 98.0, 1.0))
    lengths = torch.tensor([1.0, 3.0]).double() * (2 + math.pi)
    wanted = torch.linspace(0, 1, n + 1).double() * lengths[:, None]
    radii = torch.tensor([1.0, 3.0]).double()[:, None]
    angle = ((wanted - radii) / radii).clamp(0, math.pi)
    away = radii + (radii - wanted).clamp_min(0) + (wanted - lengths[:, None] + radii).clamp_min(0)
    points = away[:, :, None] * torch.stack([angle.cos(), angle.sin()], 2)
    assert ((path.sample(n, by="length") - points).norm(dim=2) < 1e-2 * lengths[:, None] / n).all()


POLYLINES = st.tuples(st.integers(2, 40), st.integers(1, 5), st.integers(0, 10**6))


@given(shape=POLYLINES, n=st.integers(1, 120))
def test_equal_steps_of_length_on_a_polyline_are_those_of_the_closed_form(shape: tuple, n: int) -> None:
    """Its corners are where its edges end, which is known: nothing but rounding is left."""
    n_points, d, seed = shape
    corners = draw(2, n_points, d, seed=seed)
    step = corners.diff(dim=1).norm(dim=2).sum(1)[:, None, None] / n
    assert ((ml.polyline(corners).sample(n, by="length") - at_length(corners, n)).abs() < 1e-3 * step).all()


@given(shape=POLYLINES, n=st.integers(1, 120), by=st.sampled_from(["t", "length"]))
def test_samples_of_a_polyline_lie_on_it_in_order_from_end_to_end(shape: tuple, n: int, by: str) -> None:
    n_points, d, seed = shape
    corners = draw(2, n_points, d, seed=seed)
    points = ml.polyline(corners).sample(n, by=by)
    assert points.shape == (2, n + 1, d)
    close(points[:, 0], corners[:, 0], 1e-15)
    close(points[:, -1], corners[:, -1], 1e-15)
    start, step = corners[:, None, :-1], corners.diff(dim=1)[:, None]
    share = (((points[:, :, None] - start) * step).sum(3) / step.square().sum(3)).clamp(0, 1)
    away = (points[:, :, None] - start - share[..., None] * step).norm(dim=3)
    assert (away.amin(2) < 1e-9).all()
    chords = points.diff(dim=1).norm(dim=2).sum(1)
    assert (chords <= corners.diff(dim=1).norm(dim=2).sum(1) * (1 + 1e-9)).all(), "no way is gone twice"


@pytest.mark.parametrize("by", ["t", "length"])
def test_the_ends_are_exact_to_the_last_bit(by: str) -> None:
    starts, ends = draw(20, 7, seed=1), draw(20, 7, seed=2)
    for path in (ml.straight_path(ends, starts), ml.polyline(torch.stack([starts, draw(20, 7), ends], 1))):
        points = path.sample(5, by=by)
        assert torch.equal(points[:, 0], starts) and torch.equal(points[:, -1], ends)


def test_a_curve_that_breaks_off_is_seen_to() -> None:
    def at(rows: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] > 0.4, math.nan, t[:, None] * draw(2, 3)[rows])

    assert ml.Path(at, end=draw(2, 3)).sample(9, by="length")[:, -1].isnan().all()


@pytest.mark.parametrize("by", ["t", "length"])
def test_a_sample_asks_for_a_bounded_number_of_points_and_keeps_no_graph(by: str) -> None:
    inputs, asked = draw(9, 3).requires_grad_(), []

    def at(rows: Tensor, t: Tensor) -> Tensor:
        asked.append(len(t))
        return t[:, None] ** 2 * inputs[rows]

    path = ml.Path(at, end=inputs)
    few = path.sample(40, by=by, internal_batch_size=10)
    assert max(asked) <= 10 and not few.requires_grad
    close(few, path.sample(40, by=by, internal_batch_size=10**6), 1e-14)


def test_a_path_without_an_end_can_be_sampled() -> None:
    inputs = draw(3, 2)
    bare = ml.Path(lambda rows, t: t[:, None].double() * inputs[rows])
    close(bare.sample(4), ml.straight_path(inputs).sample(4), 1e-15)


def test_no_curve_depends_on_the_others_and_one_that_rests_or_breaks_harms_none() -> None:
    corners = draw(4, 6, 3)
    corners[1] = corners[1, :1]  # stays where it is
    path = ml.polyline(corners)

    def at(rows: Tensor, t: Tensor) -> Tensor:
        return torch.where((rows == 2)[:, None] & (t > 0.4)[:, None], math.nan, path.at(rows, t))

    whole = ml.Path(at, end=corners[:, -1], n_edges=5).sample(9, by="length")
    assert torch.equal(whole[1], corners[1, :1].expand(10, 3))
    assert whole[[0, 1, 3]].isfinite().all()
    for i in (0, 1, 3):
        close(whole[i : i + 1], ml.polyline(corners[i : i + 1]).sample(9, by="length"), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_sample_keeps_the_precision(dtype: torch.dtype) -> None:
    path = ml.straight_path(draw(2, 3, dtype=dtype))
    assert path.sample(3).dtype == path.sample(3, by="length").dtype == dtype


@pytest.mark.parametrize(("n", "by", "name"), [(0, "t", "n"), (2.5, "t", "n"), (3, "arc", "by"), (3, "", "by")])
def test_bad_samples_are_refused(n: int, by: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: got"):
        ml.straight_path(draw(2, 3)).sample(n, by=by)


@given(
    steps=st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 10)), min_size=1, max_size=12),
    n=st.integers(1, 20),
)
def test_even_times_divide_the_length_that_they_are_given(steps: list[float], n: int) -> None:
    given_steps = torch.tensor([steps], dtype=torch.float64)
    length = torch.cat([torch.zeros(1, 1).double(), given_steps.cumsum(1)], 1)
    times = torch.linspace(0, 1, len(steps) + 1, dtype=torch.float64)[None]
    found = even_times(times, given_steps, n)
    assert found.shape == (1, n + 1) and (found.diff(dim=1) >= 0).all() and 0 <= found.min() <= found.max() <= 1
    if not length[0, -1]:
        close(found, torch.linspace(0, 1, n + 1, dtype=torch.float64)[None], 1e-15)
        return
    # back from times to lengths
    place = found * len(steps)
    edge = place.floor().long().clamp_max(len(steps) - 1)
    reached = length.gather(1, edge) + (place - edge) * given_steps.gather(1, edge)
    close(reached, torch.linspace(0, 1, n + 1, dtype=torch.float64) * length[:, -1:], 1e-9)
