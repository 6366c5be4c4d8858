"""Guided IG: the released algorithm, loop by loop, bounds, ties, anchors, completeness, independence of the batch."""

import math

import numpy as np
import pytest
import saliency.core as saliency
import torch
from helpers import Counting, close, draw, seeded, smooth_model, untouched
from torch import nn

import manifold_lib as ml

SETTINGS = [(0.25, 0.02, 40), (0.1, 1.0, 40), (0.25, 0.0, 20), (1.0, 0.3, 10), (0.5, 0.1, 60), (0.05, 1.0, 60)]


@pytest.fixture
def released(monkeypatch):
    """The released loop; NumPy no longer knows one of its keywords."""
    quantile = np.quantile

    def patched(values, q, interpolation="linear", **options):
        return quantile(values, q, **({"method": interpolation} | options))

    monkeypatch.setattr(np, "quantile", patched)

    def run(model, inputs, baselines, target, n_steps, fraction, max_dist):
        def call(points, call_model_args=None, expected_keys=None):
            x = torch.tensor(points).requires_grad_()
            scores = model(x)[:, call_model_args["target"]]
            return {saliency.INPUT_OUTPUT_GRADIENTS: torch.autograd.grad(scores.sum(), x)[0].numpy()}

        maps = [
            saliency.GuidedIG().GetMask(
                x.numpy(), call, {"target": int(c)}, x_steps=n_steps, fraction=fraction, max_dist=max_dist, x_baseline=b
            )
            for x, b, c in zip(inputs, baselines.numpy(), target, strict=True)
        ]
        return torch.from_numpy(np.stack(maps))

    return run


def relu_model(dead=slice(5, 12)):
    """A network with pixels of no effect and pixels of equal effect, so that gradients tie."""
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3)).double())
    with torch.no_grad():
        model[1].weight[:, dead] = 0
        model[1].weight[:, 20:24] = model[1].weight[:, 20:21]
    return model


def images(n=5):
    inputs = draw(n, 1, 6, 6, seed=1).abs()
    inputs[:, :, :2] = 0  # equal to the baseline
    inputs[-1] = 0
    return inputs


@pytest.mark.parametrize(("fraction", "max_dist", "n_steps"), SETTINGS)
@pytest.mark.parametrize("make", [relu_model, lambda: smooth_model((1, 6, 6))], ids=["ReLU, ties", "tanh"])
def test_the_left_rule_equals_the_released_loop(released, make, fraction, max_dist, n_steps):
    model, inputs = make(), images()
    baselines = torch.zeros_like(inputs)
    baselines[1] = draw(1, 6, 6, seed=2)
    target = model(inputs).argmax(1)
    expected = released(model, inputs, baselines, target, n_steps, fraction, max_dist)
    found = ml.guided_ig(
        model, inputs, baselines=baselines, n_steps=n_steps, fraction=fraction, max_dist=max_dist, method="left"
    )
    close(found, expected, 1e-12)


def test_ties_may_overflow_a_group():
    """With every gradient equal, all coordinates are one group and move in step: the straight line."""
    model = lambda x: x.flatten(1).sum(1)  # noqa: E731
    inputs = images()
    path = ml.guided_path(model, inputs, n_steps=8, fraction=0.1, max_dist=1.0)
    rows = torch.arange(len(inputs))
    for i in range(9):
        t = torch.full((len(inputs),), i / 8, dtype=torch.float64)
        close(path.at(rows, t), inputs * i / 8, 1e-12)


def test_no_distance_is_integrated_gradients():
    model, inputs = smooth_model((1, 6, 6)), images(3)
    close(
        ml.guided_ig(model, inputs, max_dist=0.0, n_steps=20),
        ml.integrated_gradients(model, inputs, n_steps=20, method="trapezoid"),
        1e-12,
    )


@pytest.mark.parametrize(("fraction", "max_dist"), [(0.25, 0.02), (0.1, 1.0), (0.3, 0.2)])
def test_the_path_keeps_its_budget_and_its_band(fraction, max_dist):
    model, inputs = smooth_model((1, 6, 6)), images(4)[:3]
    n_steps = 25
    path = ml.guided_path(model, inputs, n_steps=n_steps, fraction=fraction, max_dist=max_dist)
    rows = torch.arange(3)
    moving = inputs.flatten(1) != 0
    for i in range(n_steps + 1):
        x = path.at(rows, torch.full((3,), i / n_steps, dtype=torch.float64)).flatten(1)
        share = x.abs().sum(1) / inputs.flatten(1).abs().sum(1)
        close(share, torch.full((3,), i / n_steps, dtype=torch.float64), 1e-12)
        progress = (x / inputs.flatten(1))[moving]
        assert (progress > i / n_steps - max_dist - 1e-12).all() and (progress < i / n_steps + max_dist + 1e-12).all()


@pytest.mark.parametrize("method", ["left", "right", "trapezoid"])
def test_it_is_complete_as_steps_grow(method):
    model, inputs = smooth_model((1, 6, 6)), images(4)
    errors = [
        ml.guided_ig(model, inputs, n_steps=n, method=method, return_convergence_delta=True)[1].abs().max().item()
        for n in (25, 100, 400)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < (1e-2 if method != "trapezoid" else 1e-4)


def test_the_trapezoid_is_the_integral_of_its_path():
    model, inputs = smooth_model((1, 6, 6)), images(3)
    counting = Counting(model)
    path = ml.guided_path(counting, inputs, 1, n_steps=12)
    assert counting.gradient_rows <= 2, "a look at the model: its nodes are found when they are needed"
    counting.calls.clear()
    found, info = ml.integrate(counting, path, 1, return_info=True)
    assert 3 * 13 <= counting.gradient_rows <= 3 * 25, "a gradient a node, and at most a halving a step"
    assert torch.equal(found, ml.guided_ig(model, inputs, 1, n_steps=12))
    assert info.n_gradients is None and info.converged is None
    # between its nodes, and for another class, it is a polyline like any other
    exact = ml.integrate(
        model,
        ml.polyline(torch.stack([path.at(torch.arange(3), torch.full((3,), i / 12.0).double()) for i in range(13)], 1)),
        1,
        n_steps=48,
    )
    close(ml.integrate(model, path, 1, n_steps=48), exact, 1e-8)
    other = ml.integrate(model, path, 2, n_steps=12)
    change = model(inputs)[:, 2] - model(0 * inputs)[:, 2]
    close(other.flatten(1).sum(1), change, 1e-3)


def test_anchors_are_passed():
    model, inputs = smooth_model((1, 6, 6)), images(3)
    whole = ml.guided_ig(model, inputs, n_steps=30, anchors=2, fraction=0.1)
    pieces = sum(
        ml.guided_ig(
            model,
            inputs * (i + 1) / 3,
            model(inputs).argmax(1),
            baselines=inputs * i / 3,
            n_steps=10,
            fraction=0.1,
            max_dist=1.0,
        )
        for i in range(3)
    )
    close(whole, pieces, 1e-6)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_an_image_does_not_depend_on_its_batch(size):
    model, inputs = smooth_model((1, 6, 6)), images(5)
    whole = ml.guided_ig(model, inputs, n_steps=20, internal_batch_size=size)
    one = torch.cat([ml.guided_ig(model, inputs[i : i + 1], n_steps=20) for i in range(5)])
    close(whole, one, 1e-12)
    order = torch.tensor([3, 0, 4, 1, 2])
    close(ml.guided_ig(model, inputs[order], n_steps=20), whole[order], 1e-12)


def test_one_gradient_a_step_and_one_more_for_the_trapezoid():
    counting, inputs = Counting(smooth_model((1, 6, 6))), images(3)
    for method, extra in (("left", 0), ("trapezoid", 1), ("right", 1)):
        counting.calls.clear()
        ml.guided_ig(counting, inputs, 0, n_steps=10, method=method, internal_batch_size=3)
        assert counting.gradient_rows == 3 * (10 + extra)
        assert counting.largest <= 3


def test_the_model_is_left_as_found():
    model, inputs = smooth_model((1, 6, 6)), images(3)
    with untouched(model, inputs):
        ml.guided_ig(model, inputs, n_steps=5)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_that_is_nan_harms_its_image_only():
    model = lambda x: (x * torch.where(x == x[:, :, :1, :1], 1, x.sqrt() ** 2)).flatten(1).sum(1)  # noqa: E731
    inputs = images(3) + 0.1
    clean = ml.guided_ig(model, inputs, baselines=0.05, n_steps=5)
    baselines = torch.full_like(inputs, 0.05)
    baselines[1, 0, 3, 3] = -1.0
    found = ml.guided_ig(model, inputs, baselines=baselines, n_steps=5)
    assert found[1].isnan().any()
    close(found[[0, 2]], clean[[0, 2]], 1e-12)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("fraction", value) for value in (0, -0.1, 1.1, math.nan, "half", True)),
        *(("max_dist", value) for value in (-0.1, 1.1, math.nan, None)),
        *(("anchors", value) for value in (-1, 1.5)),
        *(("method", value) for value in ("midpoint", "gausslegendre", "")),
    ],
)
def test_bad_settings_are_refused(argument, value):
    with pytest.raises(ValueError, match=argument):
        ml.guided_ig(smooth_model((1, 6, 6)), images(2), **{argument: value})
