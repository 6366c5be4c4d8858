"""Integrated Gradients: against Captum, completeness, the path-averaged gradient, and a tolerance for steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import captum.attr
import numpy as np
import pytest
import torch
from helpers import Counting, Quadratic, close, draw, seeded, smooth_model
from torch import nn

import manifold_lib as ml

CAPTUM_RULES = {"left": "riemann_left", "right": "riemann_right", "midpoint": "riemann_middle"}
CAPTUM_RULES["gausslegendre"] = "gausslegendre"
METHODS = ["trapezoid", *CAPTUM_RULES]


@pytest.fixture
def full_precision(monkeypatch):
    """Captum rounds its quadrature weights to float32 in all dtypes; let it keep them in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("multiply", [True, False])
@pytest.mark.parametrize("n_steps", [2, 5, 50])
@pytest.mark.parametrize("method", CAPTUM_RULES)
def test_integrated_gradients_equals_captum_with_as_many_nodes(method, n_steps, multiply, full_precision):
    model, inputs, baselines = smooth_model(), draw(4, 1, 4, 4, seed=1), draw(4, 1, 4, 4, seed=2)
    target = torch.tensor([2, 0, 1, 1])
    oracle = captum.attr.IntegratedGradients(model, multiply_by_inputs=multiply)
    expected = oracle.attribute(inputs, baselines, target, n_steps=n_steps, method=CAPTUM_RULES[method])
    found = ml.integrated_gradients(
        model, inputs, target, baselines=baselines, n_steps=n_steps, method=method, multiply_by_inputs=multiply
    )
    close(found, expected.detach(), 1e-10)


def test_the_defaults_are_those_of_captum(full_precision):
    model, inputs = smooth_model(), draw(4, 1, 4, 4, seed=1)
    expected = captum.attr.IntegratedGradients(model).attribute(inputs, target=model(inputs).argmax(1))
    close(ml.integrated_gradients(model, inputs), expected.detach(), 1e-10)


def test_integrated_gradients_equals_captum_in_float32_as_released():
    model, inputs = smooth_model(dtype=torch.float32), draw(4, 1, 4, 4, seed=1, dtype=torch.float32)
    expected = captum.attr.IntegratedGradients(model).attribute(inputs, target=1)
    close(ml.integrated_gradients(model, inputs, 1), expected.detach(), 1e-5)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_the_trapezoid_of_captum_falls_short_by_one_nth_and_ours_does_not(n, full_precision):
    weights, inputs = draw(3, 5), draw(2, 5, seed=1)

    def model(x):
        return x @ weights.T

    captums = captum.attr.IntegratedGradients(model).attribute(inputs, target=1, n_steps=n, method="riemann_trapezoid")
    close(captums, (1 - 1 / n) * weights[1] * inputs, 1e-12)
    ours = ml.integrated_gradients(model, inputs, 1, n_steps=n - 1, method="trapezoid")
    close(ours, weights[1] * inputs, 1e-13)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_our_trapezoid_is_captums_at_the_same_nodes_with_weights_that_sum_to_one(n, full_precision):
    model, inputs = smooth_model(), draw(4, 1, 4, 4, seed=1)
    oracle = captum.attr.IntegratedGradients(model)
    expected = oracle.attribute(inputs, target=1, n_steps=n, method="riemann_trapezoid") / (1 - 1 / n)
    close(ml.integrated_gradients(model, inputs, 1, n_steps=n - 1, method="trapezoid"), expected.detach(), 1e-10)


def pooled(channels: int = 1) -> nn.Module:
    layers = (nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU())
    return seeded(nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 4))).eval()


def wide() -> nn.Module:
    layers = (nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    return seeded(nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))).eval()


@pytest.mark.parametrize("make", [ml.lenet, pooled, wide], ids=["LeNet", "narrow", "5 x 5"])
@pytest.mark.parametrize("n_images", [1, 64])
def test_pooled_models_keep_captums_float32_to_the_last_digits(make: Callable[[], nn.Module], n_images: int) -> None:
    """In another order, windows that nearly tie would give their gradient to other pixels: 1e-5 and more."""
    size = 32 if make is ml.lenet else 16
    for seed in range(2 if make is ml.lenet else 8):
        model = seeded(make(), seed).eval()
        inputs = torch.rand(n_images, 1, size, size, generator=torch.Generator().manual_seed(seed))
        oracle = captum.attr.IntegratedGradients(model)
        expected = oracle.attribute(inputs, target=1, n_steps=20, internal_batch_size=max(64, n_images))
        found = ml.integrated_gradients(model, inputs, 1, n_steps=20)
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * float(expected.abs().max()))
        along = ml.integrate(model, ml.straight_path(inputs, 0.0), 1, n_steps=20, method="gausslegendre")
        torch.testing.assert_close(along, found, rtol=0, atol=3e-6 * float(expected.abs().max()))


# --- closed forms and completeness ----


@pytest.mark.parametrize("form", ["none", "number", "one", "each"])
def test_every_form_of_baselines_means_the_same(form):
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    value = 0.0 if form == "none" else 0.3
    zeros = torch.full_like(inputs, value)
    forms = {"none": None, "number": value, "one": zeros[:1], "each": zeros}
    expected = ml.integrated_gradients(model, inputs, 1, baselines=zeros)
    assert torch.equal(ml.integrated_gradients(model, inputs, 1, baselines=forms[form]), expected)


@pytest.mark.parametrize("baseline", [None, 0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_integrated_gradients_times_input_is_complete_and_reports_its_error(method, baseline):
    """T9, first half."""
    model, inputs = smooth_model(), draw(4, 1, 4, 4, seed=1)
    keywords = {"baselines": baseline, "n_steps": 50, "method": method}
    found, delta = ml.integrated_gradients(model, inputs, 1, return_convergence_delta=True, **keywords)
    assert torch.equal(found, ml.integrated_gradients(model, inputs, 1, **keywords))
    change = model(inputs)[:, 1] - model(torch.full_like(inputs, baseline or 0))[:, 1]
    assert delta.shape == (4,) and not delta.requires_grad
    assert (delta - (found.flatten(1).sum(1) - change)).abs().max() < 1e-12
    assert delta.abs().max() < {"left": 0.2, "right": 0.2, "gausslegendre": 1e-9}.get(method, 1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_path_averaged_gradient_is_not_complete_but_is_once_multiplied(method):
    """T9, second half."""
    model, inputs, baselines = smooth_model(), draw(4, 1, 4, 4, seed=1), draw(4, 1, 4, 4, seed=2)
    keywords = {"baselines": baselines, "method": method}
    mean = ml.integrated_gradients(model, inputs, 1, multiply_by_inputs=False, **keywords)
    change = (model(inputs) - model(baselines))[:, 1]
    assert ((mean.flatten(1).sum(1) - change).abs() > 0.01).any()
    close((inputs - baselines) * mean, ml.integrated_gradients(model, inputs, 1, **keywords), 1e-12)


def test_the_path_averaged_gradient_is_defined_where_input_and_baseline_agree():
    model, inputs = Quadratic(5), draw(3, 5, seed=1)
    baselines = draw(3, 5, seed=2)
    baselines[:, :2] = inputs[:, :2]
    mean = ml.integrated_gradients(model, inputs, 1, baselines=baselines, multiply_by_inputs=False)
    close(mean, model.gradient((inputs + baselines) / 2, 1), 1e-12)


def test_the_convergence_delta_of_the_averaged_gradient_is_finite_and_of_its_shape():
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    found, delta = ml.integrated_gradients(model, inputs, 1, multiply_by_inputs=False, return_convergence_delta=True)
    assert found.shape == inputs.shape and delta.shape == (3,) and torch.isfinite(delta).all()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_convergence_delta_respects_the_chunk_too(size):
    counting = Counting(smooth_model())
    ml.integrated_gradients(
        counting, draw(7, 1, 4, 4, seed=1), n_steps=3, internal_batch_size=size, return_convergence_delta=True
    )
    assert counting.largest <= size


def test_integrated_gradients_needs_no_more_than_a_straight_path_and_the_integrator():
    model, inputs, baselines = smooth_model(), draw(3, 1, 4, 4, seed=1), draw(3, 1, 4, 4, seed=2)
    for method in METHODS:
        expected = ml.integrate(model, ml.straight_path(inputs, baselines), 1, method=method, n_steps=9)
        found = ml.integrated_gradients(model, inputs, 1, baselines=baselines, n_steps=9, method=method)
        close(found, expected, 1e-13)


def test_a_thousand_nodes_of_gauss_legendre_stay_exact():
    weights = draw(4)
    inputs = draw(2, 4, seed=1)
    found = ml.integrated_gradients(lambda x: (x @ weights) ** 3, inputs, n_steps=1000)
    expected = weights * inputs * ((inputs @ weights) ** 2)[:, None]
    close(found, expected, 1e-12)
    assert np.isclose(float(found.sum()), float(((inputs @ weights) ** 3).sum()))


@pytest.mark.parametrize("multiply", [True, False])
def test_gradcheck_through_inputs_and_baselines(multiply):
    model = smooth_model((3,))
    points = draw(2, 3, seed=1).requires_grad_(), draw(2, 3, seed=2).requires_grad_()

    def attribution(x, b):
        more = {"baselines": b, "n_steps": 3, "multiply_by_inputs": multiply, "create_graph": True}
        return ml.integrated_gradients(model, x, 1, **more)

    assert torch.autograd.gradcheck(attribution, points)


# --- as many steps as an image needs ----


def relu_model(seed=0):
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3)).double(), seed)


@pytest.mark.parametrize("multiply", [True, False])
def test_integrated_gradients_with_a_tolerance(multiply):
    model, inputs = relu_model(), draw(5, 1, 4, 4, seed=3)
    found, delta = ml.integrated_gradients(
        model, inputs, tolerance=1e-4, multiply_by_inputs=multiply, return_convergence_delta=True
    )
    reference = ml.integrated_gradients(model, inputs, n_steps=8192, method="midpoint", multiply_by_inputs=multiply)
    close(found, reference, 2e-3)
    assert delta.abs().max() < 1e-4 * 5


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, "small", True])
def test_a_bad_tolerance_is_refused(value):
    with pytest.raises(ValueError, match="tolerance"):
        ml.integrated_gradients(smooth_model(), draw(2, 1, 4, 4), tolerance=value)


@pytest.mark.parametrize("options", [{"method": "left"}, {"create_graph": True}])
def test_what_a_tolerance_cannot_be_combined_with(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ml.integrated_gradients(smooth_model(), draw(2, 1, 4, 4), tolerance=0.1, **options)
