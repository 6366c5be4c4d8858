"""The line integral: closed forms, completeness, evaluation counts, memory, independence of batch and chunk."""

import math

import numpy as np
import pytest
import torch
from helpers import (
    PROBES,
    Counting,
    Quadratic,
    close,
    conv_model,
    draw,
    no_warning,
    one_warning,
    root_model,
    smooth_model,
    untouched,
)
from scipy.integrate import quad
from torch.autograd import gradcheck

import manifold_lib as ml

METHODS = ["trapezoid", "left", "right", "midpoint", "gausslegendre"]
CHORDS = ["trapezoid", "left", "right", "midpoint"]


def scores(model, points, target):
    return model(points).gather(1, torch.full((len(points), 1), target))[:, 0]


def wavy_path(inputs, baselines):
    """From baselines to inputs, with a bump across that vanishes at both ends."""
    bump = draw(*inputs.shape[1:], seed=9)

    def at(rows, t):
        s = t.view(-1, *(1,) * (inputs.ndim - 1))
        start, end = baselines[rows], inputs[rows]
        return start + s * (end - start) + torch.sin(math.pi * s) * bump

    return ml.Path(at, end=inputs)


def arc(radius=1.0, start=0.2, sweep=1.3):
    """Circle arcs (B = 2) of two radii."""
    radii = torch.tensor([radius, 2 * radius], dtype=torch.float64)

    def at(rows, t):
        angle = start + sweep * t
        return radii[rows, None] * torch.stack([angle.cos(), angle.sin()], 1)

    return ml.Path(at), radii, start, start + sweep


def product(inputs):
    """f = x·y, as scores (B,)."""
    return inputs[:, 0] * inputs[:, 1]


# --- closed forms ----


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


@pytest.mark.parametrize("sweep", [1.3, 2 * math.pi, -2.0])
def test_circle_arc_has_its_known_line_integral(sweep):
    path, radii, first, last = arc(sweep=sweep)
    found = ml.integrate(product, path, method="gausslegendre", n_steps=40)
    half, sine = (last - first) / 2, (math.sin(2 * last) - math.sin(2 * first)) / 4
    expected = torch.stack([(-half + sine) * radii**2, (half + sine) * radii**2], 1)
    close(found, expected, 1e-11)


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


@pytest.mark.parametrize("curved", [False, True])
def test_gausslegendre_equals_adaptive_quadrature(curved):
    model, inputs, baselines = smooth_model((3,)), draw(2, 3, seed=1), draw(2, 3, seed=2)
    path = wavy_path(inputs, baselines) if curved else ml.straight_path(inputs, baselines)
    found = ml.integrate(model, path, 2, method="gausslegendre", n_steps=40)
    bump = draw(3, seed=9).numpy() * curved

    def integrand(s, row, coordinate):
        start, end = baselines[row].numpy(), inputs[row].numpy()
        point = torch.tensor(start + s * (end - start) + np.sin(np.pi * s) * bump)[None].requires_grad_()
        velocity = end - start + np.pi * np.cos(np.pi * s) * bump
        (gradient,) = torch.autograd.grad(model(point)[0, 2], point)
        return float(gradient[0, coordinate] * velocity[coordinate])

    expected = [[quad(integrand, 0, 1, args=(row, c), epsabs=1e-12)[0] for c in range(3)] for row in range(2)]
    close(found, torch.tensor(expected, dtype=torch.float64), 1e-9)


# --- completeness, reversal, rules on a polyline ----


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize(
    ("method", "tolerance"),
    [("gausslegendre", 1e-9), ("trapezoid", 1e-4), ("midpoint", 1e-4), ("left", 0.05), ("right", 0.05)],
)
def test_attributions_sum_to_the_difference_of_the_scores(method, tolerance, curved):
    model, inputs, baselines = smooth_model(), draw(4, 1, 4, 4, seed=1), draw(4, 1, 4, 4, seed=2)
    path = wavy_path(inputs, baselines) if curved else ml.straight_path(inputs, baselines)
    found = ml.integrate(model, path, 1, method=method, n_steps=200 if method != "gausslegendre" else 50)
    close(found.flatten(1).sum(1), scores(model, inputs, 1) - scores(model, baselines, 1), tolerance)


@pytest.mark.parametrize(
    ("method", "mirror"),
    [*((m, m) for m in ("trapezoid", "midpoint", "gausslegendre")), ("left", "right"), ("right", "left")],
)
def test_a_reversed_path_gives_the_negative(method, mirror):
    model, inputs, baselines = smooth_model(), draw(3, 1, 4, 4, seed=1), draw(3, 1, 4, 4, seed=2)
    path = wavy_path(inputs, baselines)
    back = ml.Path(lambda rows, t: path.at(rows, 1 - t), end=baselines)
    forth = ml.integrate(model, path, 0, method=method, n_steps=9)
    close(ml.integrate(model, back, 0, method=mirror, n_steps=9), -forth, 1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_a_closed_path_sums_to_zero(method):
    model, corner = smooth_model((2,)), draw(1, 4, 2)
    loop = torch.cat([corner, corner[:, :1]], 1)
    found = ml.integrate(model, loop, 1, method=method, n_steps=400 if method in ("left", "right") else 200)
    assert found.sum().abs() < (0.05 if method in ("left", "right") else 1e-3)


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


def test_the_default_number_of_steps_is_50_for_a_path_and_the_own_segments_for_a_polyline():
    model, inputs = smooth_model(), draw(2, 1, 4, 4, seed=1)
    path, points = wavy_path(inputs, torch.zeros_like(inputs)), draw(2, 6, 1, 4, 4, seed=4)
    assert torch.equal(ml.integrate(model, path, 0), ml.integrate(model, path, 0, method="trapezoid", n_steps=50))
    counting = Counting(model)
    ml.integrate(counting, points, 0)
    assert 12 <= counting.gradient_rows <= 12 + PROBES


# --- the path object ----


@pytest.mark.parametrize("method", METHODS)
def test_a_bare_path_works(method):
    model, inputs = smooth_model((3,)), draw(4, 3, seed=1)
    bare = ml.Path(lambda rows, t: t[:, None] ** 2 * inputs[rows])
    found = ml.integrate(model, bare, method=method, n_steps=8)
    close(found, ml.integrate(model, ml.Path(bare.at, end=inputs), method=method, n_steps=8), 1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_a_path_is_asked_for_rows_and_times_of_one_length_within_the_unit_interval(method):
    inputs = draw(3, 2, seed=1)
    asked = []

    def at(rows, t):
        if not isinstance(rows, slice):
            assert rows.dtype == torch.int64 and rows.ndim == t.ndim == 1 and len(rows) == len(t)
            assert int(rows.min()) >= 0 and int(rows.max()) < 3
            asked.append(t.detach())
        return t[:, None] * inputs[rows]

    ml.integrate(smooth_model((2,)), ml.Path(at, end=inputs), 0, method=method, n_steps=6, internal_batch_size=4)
    times = torch.cat(asked)
    assert times.min() >= 0 and times.max() <= 1


def test_a_straight_path_runs_from_the_baselines_to_the_inputs():
    inputs, baselines = draw(3, 2, 2, seed=1), draw(3, 2, 2, seed=2)
    path, rows = ml.straight_path(inputs, baselines), torch.tensor([2, 0, 1, 2])
    t = torch.tensor([0.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    share = t[:, None, None]
    close(path.at(rows, t), (1 - share) * baselines[rows] + share * inputs[rows], 1e-15)


def test_gradients_given_with_a_path_replace_those_of_the_model():
    model, inputs = Quadratic(3), draw(2, 3, seed=1)
    at = ml.straight_path(inputs, torch.zeros_like(inputs)).at
    calls = []

    def gradients(rows, t):
        calls.append(len(rows))
        return model.gradient(at(rows, t), 1)

    counting = Counting(model)
    found = ml.integrate(counting, ml.Path(at, gradients=gradients, end=inputs), 1, n_steps=6)
    close(found, ml.integrate(model, ml.Path(at, end=inputs), 1, n_steps=6), 1e-13)
    assert sum(calls) >= 14 and counting.gradient_rows <= PROBES


@pytest.mark.parametrize("method", ["trapezoid", "gausslegendre"])
def test_without_a_target_the_class_predicted_at_the_end_is_kept_along_the_path(method):
    model = smooth_model(n_classes=5, seed=3)
    inputs, baselines = draw(16, 1, 4, 4, seed=1), draw(16, 1, 4, 4, seed=2)
    predicted = model(inputs).argmax(1)
    assert (predicted != model(baselines).argmax(1)).any()
    path = ml.straight_path(inputs, baselines)
    found = ml.integrate(model, path, method=method, n_steps=5)
    assert torch.equal(found, ml.integrate(model, path, predicted, method=method, n_steps=5))


def test_a_target_for_each_image_equals_one_call_for_each():
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    path, zeros = ml.straight_path(inputs, torch.zeros_like(inputs)), torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    found = ml.integrate(model, path, torch.tensor([2, 0, 1]), n_steps=5)
    singles = [
        ml.integrate(model, ml.straight_path(image[None], zeros), target, n_steps=5)
        for image, target in zip(inputs, [2, 0, 1], strict=True)
    ]
    close(found, torch.cat(singles), 1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_one_score_needs_no_target(method):
    model, inputs = Quadratic(4, None), draw(3, 4, seed=1)
    path = ml.straight_path(inputs, torch.zeros_like(inputs))
    twin = ml.integrate(lambda x: model(x)[:, None], path, 0, method=method, n_steps=6)
    close(ml.integrate(model, path, method=method, n_steps=6), twin, 1e-14)


# --- derivatives of the integral ----


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_through_a_polyline(method):
    model, points = smooth_model((3,)), draw(2, 3, 3, seed=1).requires_grad_()
    assert gradcheck(lambda p: ml.integrate(model, p, 1, method=method, n_steps=3, create_graph=True), points)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_through_a_straight_path(method):
    model = smooth_model((3,))
    inputs, baselines = draw(2, 3, seed=1).requires_grad_(), draw(2, 3, seed=2).requires_grad_()

    def attribution(x, b):
        return ml.integrate(model, ml.straight_path(x, b), 1, method=method, n_steps=3, create_graph=True)

    assert gradcheck(attribution, (inputs, baselines))


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_through_a_curved_path_and_its_parameters(method):
    model, ends = smooth_model((3,)), draw(2, 3, seed=1)
    bump = draw(3, seed=2).requires_grad_()

    def attribution(b):
        path = ml.Path(lambda rows, t: t[:, None] * ends[rows] + torch.sin(3 * t)[:, None] * b, end=ends)
        return ml.integrate(model, path, 1, method=method, n_steps=3, create_graph=True)

    assert gradcheck(attribution, bump)


@pytest.mark.parametrize("method", ["trapezoid", "gausslegendre"])
def test_create_graph_changes_no_value(method):
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    path = wavy_path(inputs, torch.zeros_like(inputs))
    with_graph = ml.integrate(model, path, 1, method=method, n_steps=5, create_graph=True)
    close(with_graph.detach(), ml.integrate(model, path, 1, method=method, n_steps=5), 1e-14)


@pytest.mark.parametrize("method", METHODS)
def test_without_create_graph_the_result_keeps_no_graph(method):
    inputs = draw(2, 1, 4, 4, seed=1).requires_grad_()
    for path in (ml.straight_path(inputs, torch.zeros_like(inputs)), torch.stack([inputs * 0, inputs], 1)):
        found = ml.integrate(smooth_model(), path, 1, method=method, n_steps=3)
        assert not found.requires_grad and found.grad_fn is None
    assert inputs.grad is None


# --- chunks, counts, memory ----


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


def test_no_attribution_depends_on_its_batch_or_order():
    model, inputs, baselines = smooth_model(), draw(6, 1, 4, 4, seed=1), draw(6, 1, 4, 4, seed=2)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    for method in METHODS:
        whole = ml.integrate(model, wavy_path(inputs, baselines), 1, method=method, n_steps=5)
        mixed = ml.integrate(model, wavy_path(inputs[order], baselines[order]), 1, method=method, n_steps=5)
        close(mixed, whole[order], 1e-12)
        alone = [
            ml.integrate(model, wavy_path(inputs[i : i + 1], baselines[i : i + 1]), 1, method=method, n_steps=5)
            for i in range(6)
        ]
        close(torch.cat(alone), whole, 1e-12)


# --- manners ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_the_dtype_is_kept(method, dtype):
    model, inputs = smooth_model(dtype=dtype), draw(2, 1, 4, 4, dtype=dtype)
    for path in (ml.straight_path(inputs, inputs * 0), torch.stack([inputs * 0, inputs], 1)):
        found = ml.integrate(model, path, 1, method=method, n_steps=4)
        assert found.dtype == dtype and found.shape == inputs.shape and torch.isfinite(found).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_model_and_the_tensors_come_out_as_they_went_in(method, capfd):
    model = conv_model().to(memory_format=torch.channels_last)
    inputs = draw(3, 2, 8, 8, dtype=torch.float32).to(memory_format=torch.channels_last)
    baselines = torch.zeros_like(inputs)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    with untouched(model, inputs, baselines), no_warning():
        ml.integrate(model, ml.straight_path(inputs, baselines), method=method, n_steps=4)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", METHODS)
def test_train_mode_is_used_as_found_with_one_warning_and_buffers_restored(method):
    model, inputs = conv_model().train(), draw(3, 2, 8, 8, dtype=torch.float32)
    with untouched(model, inputs), one_warning():
        ml.integrate(model, ml.straight_path(inputs, torch.zeros_like(inputs)), method=method, n_steps=4)


def test_buffers_are_restored_when_the_model_fails():
    model, inputs = conv_model().train(), draw(3, 2, 8, 8, dtype=torch.float32)
    calls = []

    def fail_late(module, arguments):
        calls.append(1)
        if len(calls) > 3:
            raise KeyError("user code")

    hook = model.register_forward_pre_hook(fail_late)
    with untouched(model, inputs), pytest.warns(RuntimeWarning), pytest.raises(KeyError):
        ml.integrate(model, ml.straight_path(inputs, inputs * 0), 1, n_steps=40, internal_batch_size=2)
    hook.remove()


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_gradient_makes_only_that_image_nan_with_one_warning(method):
    inputs = draw(3, 4, seed=1)
    inputs[1] = 0
    path = ml.straight_path(inputs, inputs * 0.5)
    with one_warning():
        found = ml.integrate(root_model, path, 0, method=method, n_steps=5)
    assert torch.isnan(found[1]).all() and torch.isfinite(found[[0, 2]]).all()
    clean = ml.straight_path(inputs[[0, 2]], inputs[[0, 2]] * 0.5)
    close(found[[0, 2]], ml.integrate(root_model, clean, 0, method=method, n_steps=5), 1e-13)


def test_it_works_where_gradients_are_switched_off():
    model, inputs = smooth_model(), draw(2, 1, 4, 4, seed=1)
    for path in (wavy_path(inputs, inputs * 0), ml.straight_path(inputs, inputs * 0)):
        for method in METHODS:
            expected = ml.integrate(model, path, 1, method=method, n_steps=4)
            with torch.no_grad():
                assert torch.equal(ml.integrate(model, path, 1, method=method, n_steps=4), expected)


def test_it_works_on_a_frozen_model():
    model, inputs = smooth_model(), draw(2, 1, 4, 4, seed=1)
    path = ml.straight_path(inputs, inputs * 0)
    expected = ml.integrate(model, path, 1, n_steps=4)
    assert torch.equal(ml.integrate(model.requires_grad_(False), path, 1, n_steps=4), expected)
