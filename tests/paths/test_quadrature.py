"""Quadrature along a path: rules in closed form, counts, chunks and memory."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import PROBES, Counting, Quadratic, arc, close, conv_model, draw, product, smooth_model, wavy_path
from hypothesis import given, strategies as st

import manifold_lib as ml
from manifold_lib.core.scorer import scoring
from manifold_lib.paths import quadrature

METHODS = list(quadrature.RULES)
CHORDS = ["trapezoid", "left", "right", "midpoint"]


# --- rules ----


@given(method=st.sampled_from(METHODS), n=st.integers(1, 300))
def test_a_rule_has_nodes_in_the_unit_interval_and_weights_that_sum_to_one(method: str, n: int) -> None:
    nodes, weights = quadrature.rule(method, n, torch.ones(1, dtype=torch.float64))
    assert len(nodes) == len(weights) == quadrature.count_nodes(method, n)
    assert nodes.min() >= 0 and nodes.max() <= 1 and (nodes.diff() > 0).all() and (weights > 0).all()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    # exact for t (but for the rules of first order), and Gauss and Legendre's to degree 2 n - 1
    shift = {"left": -0.5 / n, "right": 0.5 / n}.get(method, 0.0)
    assert float(weights @ nodes) == pytest.approx(0.5 + shift, abs=1e-12)
    if method == "gausslegendre":
        degree = min(2 * n - 1, 40)
        assert float(weights @ nodes**degree) == pytest.approx(1 / (degree + 1), abs=1e-12)


def test_a_rule_on_equal_parts_of_the_interval() -> None:
    nodes, weights = quadrature.repeated(*quadrature.rule("gausslegendre", 3, torch.ones(1).double()), 4)
    for degree in range(6):
        assert float(weights @ nodes**degree) == pytest.approx(1 / (degree + 1), abs=1e-13)
    assert (nodes.diff() > 0).all()


def test_nodes_are_counted_on_the_edges_that_a_path_has() -> None:
    assert [quadrature.count_nodes(method, 7) for method in METHODS] == [8, 7, 7, 7, 7]
    assert [quadrature.count_nodes(method, 7, 3) for method in METHODS] == [10, 9, 9, 9, 9]


@given(n_rows=st.integers(1, 9), n_columns=st.integers(1, 9), size=st.integers(1, 100))
def test_every_pair_comes_once_and_in_order(n_rows: int, n_columns: int, size: int) -> None:
    parts = list(quadrature.pairs(n_rows, n_columns, size, torch.device("cpu")))
    assert all(len(rows) == len(columns) <= size for rows, columns in parts)
    found = [pair for rows, columns in parts for pair in zip(rows.tolist(), columns.tolist(), strict=True)]
    assert found == [(row, column) for row in range(n_rows) for column in range(n_columns)]


@pytest.mark.parametrize(("dtype", "wider"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_sums_of_half_precision_are_single(dtype: torch.dtype, wider: torch.dtype) -> None:
    total = quadrature.empty_sum(torch.ones(2, 3, dtype=dtype, requires_grad=True))
    assert total.dtype == wider and not total.any() and not total.requires_grad


@pytest.mark.parametrize("size", [1, 4, 100])
def test_sums_of_gradients_hold_each_image_to_its_own_points(size: int) -> None:
    model, weights = Quadratic(3), draw(5, seed=3)
    points, inputs = draw(4, 5, 3, seed=1), draw(4, 3, seed=2)
    with scoring(model, inputs, 1, internal_batch_size=size) as scorer:
        found = quadrature.summed_gradients(scorer, lambda rows, index: points[rows, index], weights, inputs)
        close(found, torch.einsum("t,bti->bi", weights, model.gradient(points, 1)), 1e-13)
        nodes = torch.linspace(0, 1, 5, dtype=torch.float64)
        average = quadrature.mean_gradient(scorer, ml.straight_path(inputs), nodes, weights)
        on_line = model.gradient(nodes[None, :, None] * inputs[:, None], 1)
        close(average, torch.einsum("t,bti->bi", weights, on_line), 1e-13)


# --- sums in closed form ----


@pytest.mark.parametrize("n_steps", [1, 2, 7])
@pytest.mark.parametrize("method", METHODS)
def test_linear_model_is_exact_for_every_rule(method, n_steps):
    weights = draw(3, 5)
    inputs, baselines = draw(4, 5, seed=1), draw(4, 5, seed=2)
    path = ml.straight_path(inputs, baselines)
    found = ml.integrate(lambda x: x @ weights.T, path, 1, method=method, n_steps=n_steps)
    close(found, weights[1] * (inputs - baselines), 1e-13)


@pytest.mark.parametrize("n_steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("method", "node"), [("trapezoid", 0.0), ("midpoint", 0.0), ("gausslegendre", 0.0), ("left", -0.5), ("right", 0.5)]
)
def test_quadratic_model_has_the_closed_form_of_each_rule(method, node, n_steps):
    model = Quadratic(5)
    inputs, baselines = draw(4, 5, seed=1), draw(4, 5, seed=2)
    found = ml.integrate(model, ml.straight_path(inputs, baselines), 1, method=method, n_steps=n_steps)
    middle = baselines + (0.5 + node / n_steps) * (inputs - baselines)
    close(found, (inputs - baselines) * model.gradient(middle, 1), 1e-13)


@pytest.mark.parametrize("method", ["trapezoid", "midpoint"])
def test_second_order_rules_gain_four_times_when_the_steps_double_on_a_curve(method):
    path, *_ = arc()
    exact = ml.integrate(product, path, method="gausslegendre", n_steps=40)
    errors = [(ml.integrate(product, path, method=method, n_steps=n) - exact).abs().max() for n in (20, 40, 80)]
    assert 3.7 < errors[0] / errors[1] < 4.3
    assert 3.7 < errors[1] / errors[2] < 4.3


@pytest.mark.parametrize("method", ["left", "right"])
def test_first_order_rules_gain_two_times_when_the_steps_double(method):
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    path = ml.straight_path(inputs, torch.zeros_like(inputs))
    exact = ml.integrate(model, path, 0, method="gausslegendre", n_steps=60)
    errors = [(ml.integrate(model, path, 0, method=method, n_steps=n) - exact).abs().max() for n in (40, 80)]
    assert 1.8 < errors[0] / errors[1] < 2.2


def test_gausslegendre_with_n_nodes_is_exact_to_degree_2n_minus_1():
    inputs = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    path = ml.straight_path(inputs, torch.zeros_like(inputs))
    for degree in range(1, 9):  # the gradient has degree - 1
        nodes = math.ceil(degree / 2)
        found = ml.integrate(lambda x, d=degree: x[:, 0] ** d, path, method="gausslegendre", n_steps=nodes)
        close(found, inputs**degree, 1e-13)


@pytest.mark.parametrize("method", CHORDS)
def test_a_polyline_is_the_weighted_sum_over_its_own_segments(method):
    model, points = Quadratic(3), draw(2, 5, 3, seed=3)
    first, last = points[:, :-1], points[:, 1:]
    gradients = {
        "trapezoid": (model.gradient(first) + model.gradient(last)) / 2,
        "left": model.gradient(first),
        "right": model.gradient(last),
        "midpoint": model.gradient((first + last) / 2),
    }
    expected = (gradients[method] * (last - first)).sum(1)
    close(ml.integrate(model, points, 0, method=method), expected, 1e-13)
    close(ml.integrate(model, points, 0, method=method, n_steps=4), expected, 1e-13)
    close(ml.integrate(model, points, 0, method=method, n_steps=2), expected, 1e-13)


@pytest.mark.parametrize("method", CHORDS)
@pytest.mark.parametrize("n_steps", [4, 5, 7, 9, 12])
def test_more_steps_subdivide_each_edge_of_a_polyline_equally_and_keep_its_corners(n_steps, method):
    model, points = smooth_model((3,)), draw(2, 4, 3, seed=3)
    parts = math.ceil(n_steps / 3)
    share = torch.arange(parts, dtype=torch.float64) / parts
    fine = [
        a + s * (b - a) for a, b in zip(points[:, :-1].unbind(1), points[:, 1:].unbind(1), strict=True) for s in share
    ]
    explicit = torch.stack([*fine, points[:, -1]], 1)
    expected = ml.integrate(model, explicit, 0, method=method)
    close(ml.integrate(model, points, 0, method=method, n_steps=n_steps), expected, 1e-12)


def test_a_polyline_with_uneven_edges_and_with_repeated_points_stays_exact():
    weights = draw(5)
    points = draw(2, 4, 5, seed=1)
    points = torch.cat([points, points[:, -1:], points[:, -1:] * 1.0001], 1)
    for method in METHODS:
        found = ml.integrate(lambda x: x @ weights, points, method=method, n_steps=23)
        close(found, weights * (points[:, -1] - points[:, 0]), 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_two_point_polyline_equals_the_straight_path(method):
    model, inputs, baselines = smooth_model(), draw(3, 1, 4, 4, seed=1), draw(3, 1, 4, 4, seed=2)
    line = torch.stack([baselines, inputs], 1)
    expected = ml.integrate(model, ml.straight_path(inputs, baselines), 1, method=method, n_steps=6)
    close(ml.integrate(model, line, 1, method=method, n_steps=6), expected, 1e-12)


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_chunk_size_gives_the_same_result(method, curved):
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    path = (wavy_path if curved else ml.straight_path)(inputs, draw(3, 1, 4, 4, seed=2))
    expected = ml.integrate(model, path, 1, method=method, n_steps=4)
    for size in range(1, 17):
        found = ml.integrate(model, path, 1, method=method, n_steps=4, internal_batch_size=size)
        close(found, expected, 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_chunk_size_gives_the_same_result_on_a_polyline(method):
    model, points = smooth_model((3,)), draw(3, 4, 3, seed=1)
    expected = ml.integrate(model, points, 1, method=method, n_steps=6)
    for size in range(1, 23):
        close(ml.integrate(model, points, 1, method=method, n_steps=6, internal_batch_size=size), expected, 1e-12)


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("size", [None, 1, 3, 1000])
@pytest.mark.parametrize(("method", "extra"), [("trapezoid", 1), *((m, 0) for m in METHODS[1:])])
def test_the_number_of_gradients_is_that_of_the_nodes(method, extra, size, curved):
    inputs, counting = draw(4, 1, 4, 4, seed=1), Counting(smooth_model())
    path = (wavy_path if curved else ml.straight_path)(inputs, torch.zeros_like(inputs))
    ml.integrate(counting, path, 1, method=method, n_steps=7, internal_batch_size=size)
    nodes = 4 * (7 + extra)
    assert nodes <= counting.gradient_rows <= nodes + PROBES


@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_the_model_never_sees_more_points_than_asked_for(method, size, target):
    inputs = draw(7, 1, 4, 4, seed=1)
    for path in (
        wavy_path(inputs, inputs * 0),
        ml.straight_path(inputs, inputs * 0),
        torch.stack([inputs * 0, inputs], 1),
    ):
        counting = Counting(smooth_model())
        ml.integrate(counting, path, target, method=method, n_steps=6, internal_batch_size=size)
        assert counting.largest <= size


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_batch_times_the_steps(method):
    largest, inputs = [], draw(64, 3, 16, 16, dtype=torch.float32)
    for n_steps in (10, 40, 160):
        asked = []
        base = ml.straight_path(inputs, torch.zeros_like(inputs))
        path = ml.Path(lambda rows, t, base=base, asked=asked: asked.append(len(t)) or base.at(rows, t), end=inputs)
        counting = Counting(conv_model(channels=3))
        ml.integrate(counting, path, 1, method=method, n_steps=n_steps, internal_batch_size=50)
        largest.append((counting.largest, max(asked)))
    assert max(rows for rows, _ in largest) <= 50
    assert max(points for _, points in largest) <= 2 * 64 + 50
