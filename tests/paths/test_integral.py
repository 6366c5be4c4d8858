"""The integral along any path: what it sums to, what it takes, its derivatives, bridges; every method is one."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    PROBES,
    Counting,
    CurvedVAE,
    Quadratic,
    arc,
    close,
    conv_model,
    draw,
    no_warning,
    one_warning,
    product,
    root_model,
    seeded,
    smooth_model,
    untouched,
    wavy_path,
)
from scipy.integrate import quad
from torch import Tensor, nn
from torch.autograd import gradcheck

import manifold_lib as ml
from manifold_lib import attribution
from manifold_lib.core.scorer import scoring
from manifold_lib.paths.integral import bridge
from manifold_lib.paths.path import joined, line
from manifold_lib.paths.refine import share_of

METHODS = ["trapezoid", "left", "right", "midpoint", "gausslegendre"]


def scores(model, points, target):
    return model(points).gather(1, torch.full((len(points), 1), target))[:, 0]


# --- closed forms ----


@pytest.mark.parametrize("sweep", [1.3, 2 * math.pi, -2.0])
def test_circle_arc_has_its_known_line_integral(sweep):
    path, radii, first, last = arc(sweep=sweep)
    found = ml.integrate(product, path, method="gausslegendre", n_steps=40)
    half, sine = (last - first) / 2, (math.sin(2 * last) - math.sin(2 * first)) / 4
    expected = torch.stack([(-half + sine) * radii**2, (half + sine) * radii**2], 1)
    close(found, expected, 1e-11)


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


@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
def test_second_order_goes_through_convolutions_in_either_order_of_memory(pool):
    layers = (nn.Conv2d(1, 6, 3), nn.Softplus(), pool(2), nn.Flatten(), nn.Linear(6 * 49, 3))
    model, inputs = seeded(nn.Sequential(*layers)).eval(), draw(4, 1, 16, 16, dtype=torch.float32)

    def slope(one: nn.Module, dtype: torch.dtype) -> Tensor:
        start = torch.zeros_like(inputs, dtype=dtype).requires_grad_()
        path = ml.straight_path(inputs.to(dtype), start)
        objective = ml.integrate(one, path, 1, n_steps=64, create_graph=True).square().sum()
        return torch.autograd.grad(objective, start)[0].double()

    found = slope(model, torch.float32)
    torch.testing.assert_close(found, slope(model.double(), torch.float64), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_without_create_graph_the_result_keeps_no_graph(method):
    inputs = draw(2, 1, 4, 4, seed=1).requires_grad_()
    for path in (ml.straight_path(inputs, torch.zeros_like(inputs)), torch.stack([inputs * 0, inputs], 1)):
        found = ml.integrate(smooth_model(), path, 1, method=method, n_steps=3)
        assert not found.requires_grad and found.grad_fn is None
    assert inputs.grad is None


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


# --- paths of several parts, and bridges ----


def change_on(model: Callable[[Tensor], Tensor], path: ml.Path) -> Tensor:
    rows = torch.arange(len(path.end))
    start, end = (path.at(rows, torch.full((len(rows),), t).double()) for t in (0.0, 1.0))
    return (model(end) - model(start)).detach()


@pytest.mark.parametrize("method", METHODS)
def test_each_part_is_integrated_on_its_own(method):
    """A curve between two straight lines is the sum of the three, the lines by the rule of bridges."""
    model, corners = Quadratic(3, None), draw(4, 2, 3, seed=1)
    curve = wavy_path(corners[2], corners[1])
    path = joined((line(corners[0], corners[1]), curve, line(corners[2], corners[3])), (1.0, 98.0, 1.0))
    found = ml.integrate(model, path, method=method, n_steps=9)
    parts = ml.integrate(model, curve, method=method, n_steps=9)
    for a, b in ((0, 1), (2, 3)):
        middle = (corners[a] + corners[b]) / 2
        parts = parts + model.gradient(middle) * (corners[b] - corners[a])
    close(found, parts, 1e-12)
    close(ml.integrate(model, path, method=method, n_steps=9, create_graph=True).detach(), parts, 1e-12)


def test_a_bridge_over_a_smooth_score_takes_sixteen_gradients():
    counted, inputs, baselines = Counting(Quadratic(4, None)), draw(5, 4, seed=1), draw(5, 4, seed=2)
    path = ml.straight_path(inputs, baselines)
    with scoring(counted, inputs, internal_batch_size=7) as scorer:
        counted.calls.clear()
        found = bridge(scorer, path, share_of(scorer.change(inputs, baselines)))
    close(found, (inputs - baselines) * counted.model.gradient((inputs + baselines) / 2), 1e-12)
    assert counted.gradient_rows == 5 * 16 and counted.largest <= 7


def kink(x: Tensor) -> Tensor:
    """A steep kink that the lines below cross at different places."""
    return 100 * torch.relu(x[:, 0] + x[:, 1] - 0.37) + x[:, 0] * x[:, 1]


def test_a_bridge_over_a_kink_gets_up_to_256_nodes():
    inputs = torch.tensor([[1.0, 1.0], [0.3, 0.2], [0.1, 0.1], [3.0, -1.0]], dtype=torch.float64)
    counted = Counting(kink)
    with scoring(counted, inputs, internal_batch_size=50) as scorer:
        allowed = share_of(scorer.change(inputs, 0 * inputs))
        counted.calls.clear()
        found = bridge(scorer, ml.straight_path(inputs), allowed)
        rows = counted.gradient_rows
    # a kink lies between two of 256 nodes, whose weights are π / 512 at most
    sure = math.pi / 512 * 100 * inputs.sum(1).abs()
    assert ((found.sum(1) - change_on(kink, ml.straight_path(inputs))).abs() <= torch.maximum(allowed, sure)).all()
    crude = ml.integrate(kink, ml.straight_path(inputs), method="gausslegendre", n_steps=16)
    assert ((crude.sum(1) - change_on(kink, ml.straight_path(inputs))).abs() > allowed)[[0, 3]].all()
    assert 4 * 16 < rows <= 4 * (16 + 64 + 256) and counted.largest <= 50
    # a line that ends before the kink is exact at once
    close(found[2], inputs[2] * inputs[2].flip(0) / 2, 1e-12)


def test_a_bridge_over_a_jump_ends_and_no_image_depends_on_the_others():
    def jump(x: Tensor) -> Tensor:
        return x.sum(1) + 5.0 * (x.sum(1) > 0.7)

    inputs = draw(6, 3, seed=1).abs()
    inputs[2] = 0.01
    inputs[4, 0] = math.nan
    counted = Counting(jump)

    def run(rows: list[int]) -> Tensor:
        some = inputs[rows]
        with scoring(counted, torch.nan_to_num(some)) as scorer:
            path = line(torch.zeros_like(some), some)
            return bridge(scorer, path, share_of(scorer.change(torch.nan_to_num(some), 0 * torch.nan_to_num(some))))

    whole = run([0, 1, 2, 3, 4, 5])
    assert whole[4].isnan().all() and whole[[0, 1, 2, 3, 5]].isfinite().all()
    for i in (0, 1, 2, 3, 5):
        close(run([i]), whole[i : i + 1], 1e-12)
    counted.calls.clear()
    run([0])
    assert counted.gradient_rows <= 16 + 64 + 256 + PROBES


def test_a_bridge_with_a_graph_can_be_differentiated():
    model, inputs = smooth_model((3,)), draw(2, 3, seed=1).requires_grad_()
    with scoring(model, inputs.detach(), 1) as scorer:
        assert gradcheck(lambda x: bridge(scorer, ml.straight_path(x), None), inputs)


# --- what a path brings ----


def test_a_path_that_brings_its_integral_is_asked_for_it_and_nothing_else():
    inputs, asked = draw(3, 4), []

    def integral(scorer, method, create_graph):
        asked.append((scorer.batch, method, create_graph))
        return None if create_graph else 7 * torch.ones_like(inputs)

    path = dataclasses.replace(ml.straight_path(inputs), integral=integral)
    model = smooth_model((4,))
    found, info = ml.integrate(model, path, 1, return_info=True)
    assert found.eq(7).all() and asked == [(3, "trapezoid", False)]
    assert info.n_gradients is None and info.converged is None
    close(info.delta, 28 - (model(inputs) - model(0 * inputs))[:, 1].detach(), 1e-12)
    # a number of steps or a tolerance asks for another integral, and so does a graph
    plain = ml.straight_path(inputs)
    for more in ({"n_steps": 5}, {"tolerance": 1e-2}):
        close(ml.integrate(model, path, 1, **more), ml.integrate(model, plain, 1, **more), 1e-13)
    wanted = ml.integrate(model, plain, 1, create_graph=True)
    close(ml.integrate(model, path, 1, create_graph=True).detach(), wanted.detach(), 1e-13)


def test_a_path_that_was_guided_by_another_score_is_a_polyline_like_any_other():
    first, second, inputs = smooth_model(seed=1), smooth_model(seed=2), draw(3, 1, 4, 4)
    path = ml.guided_path(first, inputs, 1, n_steps=12)
    points = path.sample(12)
    for model, target in ((second, 1), (first, 2)):
        found, info = ml.integrate(model, path, target, return_info=True)
        close(found, ml.integrate(model, points, target), 1e-12)
        assert info.n_gradients is not None and info.n_gradients.tolist() == [13] * 3
    finely = ml.integrate(first, path, 1, n_steps=48)
    close(finely, ml.integrate(first, points, 1, n_steps=48), 1e-12)
    assert ml.integrate(first, path, 1, create_graph=True).requires_grad


def test_fixed_rules_have_info_too():
    model, inputs = smooth_model(), draw(3, 1, 4, 4)
    for method, count in (("trapezoid", 11), ("midpoint", 10), ("gausslegendre", 10), ("left", 10)):
        found, info = ml.integrate(model, ml.straight_path(inputs), 1, method=method, n_steps=10, return_info=True)
        change = (model(inputs) - model(0 * inputs))[:, 1].detach()
        close(info.delta, found.flatten(1).sum(1) - change, 1e-9)
        assert info.n_gradients.tolist() == [count] * 3 and info.converged is None


@pytest.mark.parametrize("which", ["enhanced", "ma_gig"])
def test_the_gradients_of_all_parts_are_counted_or_none(which):
    counted, vae, inputs = Counting(smooth_model()), CurvedVAE(), draw(4, 1, 4, 4)
    build = {
        "enhanced": lambda: ml.enhanced_path(inputs, vae=vae),
        "ma_gig": lambda: ml.ma_gig_path(counted, inputs, 1, vae=vae, n_steps=30),
    }
    path = build[which]()
    counted.calls.clear()
    info = ml.integrate(counted, path, 1, return_info=True)[1]
    assert info.n_gradients is None or abs(int(info.n_gradients.sum()) - counted.gradient_rows) <= PROBES


def test_a_number_of_steps_counts_for_the_parts_too():
    model, vae, inputs = smooth_model(), CurvedVAE(), draw(4, 1, 4, 4)
    path = ml.ma_gig_path(model, inputs, 1, vae=vae, n_steps=10)
    bare = ml.ma_gig_path(model, inputs, 1, vae=vae, n_steps=10, bridge=False)
    moved = ml.integrate(model, path, 1, n_steps=200) - ml.integrate(model, path, 1)
    wanted = ml.integrate(model, bare, 1, n_steps=200) - ml.integrate(model, bare, 1)
    close(moved, wanted, 1e-6)


# --- every path method is the integral along the path of its builder ----

INPUTS, BASELINES, NODES = draw(5, 1, 4, 4, seed=1), draw(5, 1, 4, 4, seed=2), 1.5 * draw(9, 1, 4, 4, seed=3)
CONDITION, CLASSES, VAE = draw(5, 3, seed=4), torch.tensor([0, 1, 2, 1, 0]), CurvedVAE()
BASIS = torch.linalg.qr(draw(5, 16, 3, seed=5))[0]


class Conditional(nn.Module):
    """Smooth scores of an image and a vector that goes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.head = nn.Linear(16, 8), nn.Linear(3, 8), nn.Linear(8, 3)
        seeded(self).double()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x.flatten(1)) + self.gate(condition)))


MODEL = Conditional().eval()
SEARCH: dict[str, Any] = {"basis": BASIS, "max_iter": 3, "n_starts": 1}


def tangential_path(model: Any, inputs: Tensor, target: Tensor, **given: Any) -> ml.Path:
    return ml.straight_path(inputs, ml.tangential_baseline(model, inputs, target, **SEARCH, **given).baselines)


def of_model(builder: Callable[..., ml.Path], **more: Any) -> Callable[..., ml.Path]:
    return lambda *where, **given: builder(*where, baselines=BASELINES, **more, **given)


def of_vae(builder: Callable[..., ml.Path], **more: Any) -> Callable[..., ml.Path]:
    return lambda model, inputs, target, **_: builder(inputs, baselines=BASELINES, vae=VAE, **more)


# name -> method, its own options, its builder, options of the integral
PAIRS: dict[str, tuple[Callable[..., Tensor], dict, Callable[..., ml.Path], dict]] = {}
for _rule in ("gausslegendre", "trapezoid", "midpoint"):
    _options = {"method": _rule, "n_steps": 9}
    PAIRS[f"straight, {_rule}"] = (
        *(ml.integrated_gradients, {"baselines": BASELINES, **_options}),
        *(lambda model, inputs, target, **_: ml.straight_path(inputs, BASELINES), _options),
    )
    PAIRS[f"enhanced, {_rule}"] = (
        *(ml.enhanced_ig, {"baselines": BASELINES, "vae": VAE, **_options}),
        *(of_vae(ml.enhanced_path), _options),
    )
PAIRS["straight, tolerance"] = (
    *(ml.integrated_gradients, {"baselines": BASELINES, "tolerance": 1e-3}),
    *(lambda model, inputs, target, **_: ml.straight_path(inputs, BASELINES), {"tolerance": 1e-3}),
)
PAIRS["tangential"] = (
    *(ml.tangential_ig, {**SEARCH, "n_ig_steps": 7}),
    *(tangential_path, {"method": "gausslegendre", "n_steps": 7}),
)
PAIRS["blur"] = (
    *(ml.blur_ig, {"sigma": 1.5}),
    *(lambda model, inputs, target, **_: ml.blur_path(inputs, sigma=1.5), {}),
)
for _name, _options in {
    "guided": {"n_steps": 12},
    "guided, free": {"n_steps": 12, "max_dist": 1.0, "fraction": 0.1},
    "guided, anchors": {"n_steps": 12, "anchors": 2},
}.items():
    for _rule in ("trapezoid", "left", "right"):
        PAIRS[f"{_name}, {_rule}"] = (
            *(ml.guided_ig, {"baselines": BASELINES, "method": _rule, **_options}),
            *(of_model(ml.guided_path, **_options), {"method": _rule}),
        )
for _bridge in (True, False):
    _options = {"n_steps": 4, "max_iter": 3, "bridge": _bridge}
    PAIRS[f"manifold, bridge {_bridge}"] = (
        *(ml.manifold_ig, {"baselines": BASELINES, "vae": VAE, **_options}),
        *(of_vae(ml.manifold_path, **_options), {"n_steps": 4}),
    )
    PAIRS[f"enhanced, bridge {_bridge}"] = (
        *(ml.enhanced_ig, {"baselines": BASELINES, "vae": VAE, "bridge": _bridge}),
        *(of_vae(ml.enhanced_path, bridge=_bridge), {}),
    )
    for _published in (True, False):
        _options = {"vae": VAE, "n_steps": 9, "bridge": _bridge, "published": _published, "fraction": 0.3}
        PAIRS[f"ma_gig, bridge {_bridge}, published {_published}"] = (
            *(ml.ma_gig, {"baselines": BASELINES, **_options}),
            *(of_model(ml.ma_gig_path, **_options), {}),
        )
for _metric in ("conformal", "rank1", "euclidean"):
    for _space in (None, VAE):
        _options = {"nodes": NODES, "n_neighbors": 3, "n_nodes": 4, "metric": _metric, "space": _space}
        PAIRS[f"geodesic, {_metric}, latent {_space is not None}"] = (
            *(ml.geodesic_ig, {"baselines": BASELINES, **_options}),
            *(of_model(ml.geodesic_paths, **_options), {}),
        )
for _energy in ("curve", "potential"):
    _options = {"n_steps": 5, "max_iter": 4, "energy": _energy}
    PAIRS[f"energy, {_energy}"] = (
        *(ml.energy_ig, {"baselines": BASELINES, **_options}),
        *(of_model(ml.energy_path, **_options), {}),
    )


@pytest.mark.filterwarnings("ignore:energy_path", "ignore:geodesic_ig", "ignore:geodesic:")
@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("name", PAIRS)
def test_a_method_is_the_integral_along_the_path_of_its_builder(name, size):
    method, own, builder, options = PAIRS[name]
    given = {"additional_forward_args": CONDITION, "internal_batch_size": size}
    found = method(MODEL, INPUTS, CLASSES, **own, **given)
    path = builder(MODEL, INPUTS, CLASSES, **given)
    assert isinstance(path, ml.Path) and path.end is not None
    close(ml.integrate(MODEL, path, CLASSES, **options, **given), found, 1e-12)
    # a place on it is that of its samples
    points = path.sample(6)
    assert points.shape == (5, 7, 1, 4, 4) and points.isfinite().all()
    close(points[:, -1], path.end, 1e-12)


def calls_in(function: ast.FunctionDef) -> set[str]:
    return {
        node.func.id for node in ast.walk(function) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def test_every_path_method_calls_the_one_integrator():
    """Read off the source: a path method has no sum of its own."""
    methods, folder = {}, Path(inspect.getfile(attribution)).parent
    for module in folder.glob("*.py"):
        for node in ast.parse(module.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                methods[node.name] = node
    paths = {name.split("(")[0] for name in dir(ml) if name.endswith("_ig")} | {"integrated_gradients", "ma_gig"}
    assert {method.__name__ for method, *_ in PAIRS.values()} == paths, "each has its builder above"
    decorated = {
        name
        for name, node in methods.items()
        if any(isinstance(mark, ast.Name) and mark.id == "path_method" for mark in node.decorator_list)
    }
    # Expected Gradients draws its points at random, along no path
    for name in (paths | decorated) - {"expected_gradients"}:
        assert "integrate" in calls_in(methods[name]), name
