"""Gradient, input × gradient, SmoothGrad and Integrated Gradients: against Captum, closed forms and the axioms."""

import captum.attr
import numpy as np
import pytest
import torch
from helpers import (
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
from torch import nn

import manifold_lib as ml

CAPTUM_RULES = {"left": "riemann_left", "right": "riemann_right", "midpoint": "riemann_middle"}
CAPTUM_RULES["gausslegendre"] = "gausslegendre"
METHODS = ["trapezoid", *CAPTUM_RULES]


def smoothgrad(model, inputs, target=None, **keywords):
    return ml.smoothgrad(model, inputs, target, **{"generator": torch.Generator().manual_seed(5), **keywords})


ALL = {
    "gradient": ml.gradient,
    "input_x_gradient": ml.input_x_gradient,
    "smoothgrad": smoothgrad,
    "integrated_gradients": ml.integrated_gradients,
}
every_attribution = pytest.mark.parametrize("attribution", ALL.values(), ids=ALL.keys())


@pytest.fixture
def full_precision(monkeypatch):
    """Captum rounds its quadrature weights to float32 in all dtypes; let it keep them in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- against Captum ----


@pytest.mark.parametrize("target", [1, torch.tensor([2, 0, 1, 1])])
def test_gradient_equals_captum(target):
    model, inputs = smooth_model(), draw(4, 1, 4, 4, seed=1)
    expected = captum.attr.Saliency(model).attribute(inputs.clone().requires_grad_(), target=target, abs=False)
    close(ml.gradient(model, inputs, target), expected.detach(), 1e-14)


@pytest.mark.parametrize("target", [1, torch.tensor([2, 0, 1, 1])])
def test_input_x_gradient_equals_captum(target):
    model, inputs = smooth_model(), draw(4, 1, 4, 4, seed=1)
    expected = captum.attr.InputXGradient(model).attribute(inputs.clone().requires_grad_(), target=target)
    close(ml.input_x_gradient(model, inputs, target), expected.detach(), 1e-14)


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


@pytest.mark.parametrize("n_samples", [1, 7])
def test_smoothgrad_equals_captums_noise_tunnel_on_the_same_noise(n_samples, monkeypatch):
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    seen = []

    def spy(points):
        if torch.is_grad_enabled() and points.requires_grad:
            seen.append(points.detach())
        return model(points)

    keywords = {"n_samples": n_samples, "stdevs": 0.3, "internal_batch_size": 1000}
    smoothgrad(spy, inputs[:1], 1, **keywords)
    noise = torch.cat(seen) - inputs[:1]
    assert len(noise) == n_samples
    monkeypatch.setattr(torch, "normal", lambda mean, sd: noise.repeat(3, 1, 1, 1))
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    expected = tunnel.attribute(
        inputs, nt_type="smoothgrad", nt_samples=n_samples, stdevs=0.3, target=torch.tensor([1, 0, 2]), abs=False
    )
    close(smoothgrad(model, inputs, torch.tensor([1, 0, 2]), **keywords), expected.detach(), 1e-12)


# --- closed forms and axioms ----


def test_gradient_of_a_quadratic_model_is_its_closed_form():
    model, inputs = Quadratic(5), draw(4, 5, seed=1)
    close(ml.gradient(model, inputs, 1), model.gradient(inputs, 1), 1e-13)
    close(ml.input_x_gradient(model, inputs, 1), inputs * model.gradient(inputs, 1), 1e-13)


def test_smoothgrad_of_a_linear_model_is_its_gradient():
    weights, inputs = draw(3, 5), draw(2, 5, seed=1)
    found = smoothgrad(lambda x: x @ weights.T, inputs, 1, stdevs=2.0)
    close(found, weights[1].expand(2, 5), 1e-13)


def test_smoothgrad_without_noise_is_the_gradient():
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    close(smoothgrad(model, inputs, 1, stdevs=0.0), ml.gradient(model, inputs, 1), 1e-14)


def test_smoothgrad_is_a_signed_mean():
    """f = Σx³/3 has gradient x², whose mean under N(0, s²) noise is x² + s²; f = Σx² has 2x, mean 2x of either sign."""
    inputs = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    cubic = smoothgrad(lambda x: x.pow(3).sum(1) / 3, inputs, n_samples=20_000, stdevs=0.5)
    assert (cubic - (inputs**2 + 0.25)).abs().max() < 0.03
    square = smoothgrad(lambda x: x.pow(2).sum(1), inputs, n_samples=20_000, stdevs=0.5)
    assert (square - 2 * inputs).abs().max() < 0.03


def test_smoothgrad_shares_its_noise_between_the_images():
    inputs = draw(1, 6, seed=1)
    found = smoothgrad(lambda x: x.pow(3).sum(1), inputs.expand(5, 6).contiguous(), stdevs=1.0)
    assert torch.equal(found, found[:1].expand(5, 6))


def test_smoothgrad_keeps_the_class_of_the_clean_image():
    model, inputs = smooth_model(n_classes=5, seed=3), draw(8, 1, 4, 4, seed=1)
    predicted = model(inputs).argmax(1)
    assert torch.equal(smoothgrad(model, inputs, stdevs=5.0), smoothgrad(model, inputs, predicted, stdevs=5.0))


def test_smoothgrad_depends_on_its_generator_only():
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    first = smoothgrad(model, inputs, 1, stdevs=1.0)
    state = torch.random.get_rng_state()
    assert torch.equal(smoothgrad(model, inputs, 1, stdevs=1.0), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = smoothgrad(model, inputs, 1, stdevs=1.0, generator=torch.Generator().manual_seed(6))
    assert not torch.allclose(other, first)


def test_smoothgrad_works_without_a_generator():
    found = ml.smoothgrad(smooth_model(), draw(3, 1, 4, 4, seed=1), 1)
    assert torch.isfinite(found).all()


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


@every_attribution
def test_an_input_without_effect_gets_nothing(attribution):
    model = smooth_model((4,))
    inputs = draw(3, 5, seed=1)
    assert torch.equal(attribution(lambda x: model(x[:, :4]), inputs, 1)[:, 4], torch.zeros(3, dtype=torch.float64))


@every_attribution
def test_attributions_are_linear_in_the_model(attribution):
    first, second, inputs = smooth_model(seed=1), smooth_model(seed=2), draw(3, 1, 4, 4, seed=1)
    both = attribution(lambda x: 2 * first(x) - 3 * second(x), inputs, 1)
    close(both, 2 * attribution(first, inputs, 1) - 3 * attribution(second, inputs, 1), 1e-12)


@every_attribution
def test_a_constant_added_to_the_scores_changes_nothing(attribution):
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    close(attribution(lambda x: model(x) + 7, inputs, 1), attribution(model, inputs, 1), 1e-12)


# --- targets ----


@every_attribution
def test_without_a_target_the_predicted_class_is_explained(attribution):
    model, inputs = smooth_model(n_classes=5, seed=3), draw(8, 1, 4, 4, seed=1)
    predicted = model(inputs).argmax(1)
    assert len(predicted.unique()) > 1
    assert torch.equal(attribution(model, inputs), attribution(model, inputs, predicted))


@every_attribution
def test_a_target_for_each_image_equals_one_call_for_each(attribution):
    model, inputs, targets = smooth_model(), draw(4, 1, 4, 4, seed=1), [2, 0, 1, 1]
    singles = [attribution(model, image[None], target) for image, target in zip(inputs, targets, strict=True)]
    close(attribution(model, inputs, torch.tensor(targets)), torch.cat(singles), 1e-13)


@every_attribution
def test_one_target_stands_for_all(attribution):
    model, inputs = smooth_model(), draw(4, 1, 4, 4, seed=1)
    assert torch.equal(attribution(model, inputs, 2), attribution(model, inputs, torch.full((4,), 2)))


@every_attribution
def test_a_model_with_one_score_needs_no_target(attribution):
    model, inputs = Quadratic(4, None), draw(3, 4, seed=1)
    close(attribution(model, inputs), attribution(lambda x: model(x)[:, None], inputs, 0), 1e-13)


@every_attribution
def test_a_target_for_a_model_with_one_score_is_refused(attribution):
    with pytest.raises(ValueError, match="target"):
        attribution(Quadratic(4, None), draw(3, 4, seed=1), 0)


@every_attribution
def test_a_target_in_floating_point_is_refused(attribution):
    with pytest.raises(ValueError, match=r"target.*float64"):
        attribution(smooth_model(), draw(2, 1, 4, 4), torch.tensor([0.0, 1.0], dtype=torch.float64))


# --- chunks and batches ----


@every_attribution
def test_every_chunk_size_gives_the_same_result(attribution):
    model, inputs = smooth_model(), draw(3, 1, 4, 4, seed=1)
    keywords = {smoothgrad: {"n_samples": 4, "stdevs": 1.0}, ml.integrated_gradients: {"n_steps": 4}}.get(
        attribution, {}
    )
    expected = attribution(model, inputs, 1, **keywords)
    for size in range(1, 14):
        close(attribution(model, inputs, 1, internal_batch_size=size, **keywords), expected, 1e-12)


@every_attribution
@pytest.mark.parametrize("target", [None, 1])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_model_never_sees_more_points_than_asked_for(attribution, size, target):
    counting = Counting(smooth_model())
    attribution(counting, draw(7, 1, 4, 4, seed=1), target, internal_batch_size=size)
    assert counting.largest <= size


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_convergence_delta_respects_the_chunk_too(size):
    counting = Counting(smooth_model())
    ml.integrated_gradients(
        counting, draw(7, 1, 4, 4, seed=1), n_steps=3, internal_batch_size=size, return_convergence_delta=True
    )
    assert counting.largest <= size


@every_attribution
def test_no_attribution_depends_on_its_batch_or_order(attribution):
    model, inputs = smooth_model(n_classes=5, seed=3), draw(6, 1, 4, 4, seed=1)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    whole = attribution(model, inputs)
    close(attribution(model, inputs[order]), whole[order], 1e-12)
    close(torch.cat([attribution(model, image[None]) for image in inputs]), whole, 1e-12)


@pytest.mark.parametrize(
    ("attribution", "rows"), [(ml.gradient, 4), (smoothgrad, 4 * 25), (ml.integrated_gradients, 200)]
)
def test_the_number_of_gradients_is_that_of_the_points(attribution, rows):
    counting = Counting(smooth_model())
    attribution(counting, draw(4, 1, 4, 4, seed=1), 1, internal_batch_size=64)
    assert rows <= counting.gradient_rows <= rows + 6


# --- manners ----


@every_attribution
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_and_shape_are_kept(attribution, dtype):
    found = attribution(smooth_model(dtype=dtype), draw(2, 1, 4, 4, dtype=dtype), 1)
    assert found.dtype == dtype and found.shape == (2, 1, 4, 4) and torch.isfinite(found).all()
    assert not found.requires_grad


@every_attribution
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 4, 4), (2, 2, 2, 2)])
def test_inputs_of_any_rank_are_welcome(attribution, shape):
    assert attribution(smooth_model(shape), draw(2, *shape), 1).shape == (2, *shape)


@every_attribution
@pytest.mark.parametrize("target", [None, 1])
def test_the_model_and_the_inputs_come_out_as_they_went_in(attribution, target, capfd):
    model = conv_model().to(memory_format=torch.channels_last)
    inputs = draw(3, 2, 8, 8, dtype=torch.float32).to(memory_format=torch.channels_last)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[6].weight.requires_grad_(False)
    with untouched(model, inputs), no_warning():
        attribution(model, inputs, target)
    assert capfd.readouterr() == ("", "")


@every_attribution
def test_inputs_that_collect_gradients_collect_none(attribution):
    inputs = draw(3, 1, 4, 4, seed=1)
    leaf = inputs.clone().requires_grad_()
    model = smooth_model()
    with untouched(model, leaf):
        found = attribution(model, leaf, 1)
    assert leaf.grad is None and not found.requires_grad
    assert torch.equal(found, attribution(model, inputs, 1))


@every_attribution
def test_a_model_in_channels_last_gives_the_same_values(attribution):
    model, inputs = conv_model().double(), draw(3, 2, 8, 8)
    expected = attribution(model, inputs, 1)
    model.to(memory_format=torch.channels_last)
    found = attribution(model, inputs.to(memory_format=torch.channels_last), 1)
    close(found, expected, 1e-12)


@every_attribution
def test_hooks_of_the_user_stay_and_run(attribution):
    model, calls = smooth_model(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    with untouched(model):
        attribution(model, draw(2, 1, 4, 4), 1)
    assert calls


@every_attribution
@pytest.mark.parametrize("target", [None, 1])
def test_train_mode_is_used_as_found_with_one_warning_and_buffers_restored(attribution, target):
    model, inputs = conv_model().train(), draw(3, 2, 8, 8, dtype=torch.float32)
    with untouched(model, inputs), one_warning():
        attribution(model, inputs, target)
    assert int(model[1].num_batches_tracked) == 0


def test_only_the_layers_that_care_count_as_train_mode():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU()).double().train()
    with no_warning():
        ml.gradient(model, draw(2, 1, 4, 4), 1)


@every_attribution
def test_a_nan_gradient_makes_only_that_image_nan_with_one_warning(attribution):
    inputs = draw(3, 4, seed=1)
    inputs[1] = 0
    if attribution is smoothgrad:  # noise leaves the point where the gradient is NaN
        attribution = lambda *args: smoothgrad(*args, stdevs=0.0)  # noqa: E731
    with one_warning():
        found = attribution(root_model, inputs, 0)
    assert torch.isnan(found[1]).all() and torch.isfinite(found[[0, 2]]).all()
    close(found[[0, 2]], attribution(root_model, inputs[[0, 2]], 0), 1e-13)


@every_attribution
def test_it_works_where_gradients_are_switched_off(attribution):
    model, inputs = smooth_model().requires_grad_(False), draw(2, 1, 4, 4, seed=1)
    expected = attribution(model, inputs, 1)
    with torch.no_grad():
        assert torch.equal(attribution(model, inputs, 1), expected)
        assert not torch.is_grad_enabled()


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


@every_attribution
def test_gradcheck_through_the_attribution(attribution):
    model, inputs = smooth_model((3,)), draw(2, 3, seed=1).requires_grad_()
    more = {"n_steps": 3} if attribution is ml.integrated_gradients else {}
    assert torch.autograd.gradcheck(lambda x: attribution(model, x, 1, create_graph=True, **more), inputs)


@pytest.mark.parametrize("multiply", [True, False])
def test_gradcheck_through_inputs_and_baselines(multiply):
    model = smooth_model((3,))
    points = draw(2, 3, seed=1).requires_grad_(), draw(2, 3, seed=2).requires_grad_()

    def attribution(x, b):
        more = {"baselines": b, "n_steps": 3, "multiply_by_inputs": multiply, "create_graph": True}
        return ml.integrated_gradients(model, x, 1, **more)

    assert torch.autograd.gradcheck(attribution, points)
