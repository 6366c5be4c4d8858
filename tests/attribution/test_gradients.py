"""Gradient, input × gradient, SmoothGrad and expected gradients: against Captum, closed forms and the axioms.

What these and Integrated Gradients have in common is asked of all of them here.
"""

import captum.attr
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


def smoothgrad(model, inputs, target=None, **keywords):
    return ml.smoothgrad(model, inputs, target, **{"generator": torch.Generator().manual_seed(5), **keywords})


ALL = {
    "gradient": ml.gradient,
    "input_x_gradient": ml.input_x_gradient,
    "smoothgrad": smoothgrad,
    "integrated_gradients": ml.integrated_gradients,
}
every_attribution = pytest.mark.parametrize("attribution", ALL.values(), ids=ALL.keys())


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


@every_attribution
def test_gradcheck_through_the_attribution(attribution):
    model, inputs = smooth_model((3,)), draw(2, 3, seed=1).requires_grad_()
    more = {"n_steps": 3} if attribution is ml.integrated_gradients else {}
    assert torch.autograd.gradcheck(lambda x: attribution(model, x, 1, create_graph=True, **more), inputs)


# --- expected gradients ----


def test_one_reference_gives_integrated_gradients_in_the_limit():
    model, inputs, reference = smooth_model(), draw(3, 1, 4, 4), draw(1, 1, 4, 4, seed=5)
    generator = torch.Generator().manual_seed(0)
    found = ml.expected_gradients(model, inputs, references=reference, n_samples=20_000, generator=generator)
    close(found, ml.integrated_gradients(model, inputs, baselines=reference), 0.03)


def test_a_linear_model_is_exact_up_to_the_references_drawn():
    weights = draw(3, 16)
    model = lambda x: x.flatten(1) @ weights.T  # noqa: E731
    inputs, references = draw(4, 1, 4, 4), draw(6, 1, 4, 4, seed=3)
    generator = torch.Generator().manual_seed(0)
    found, delta = ml.expected_gradients(
        model, inputs, 1, references=references, n_samples=50, generator=generator, return_convergence_delta=True
    )
    drawn = torch.randint(6, (50,), generator=torch.Generator().manual_seed(0))
    expected = (inputs - references[drawn].mean(0)) * weights[1].view(1, 4, 4)
    close(found, expected, 1e-12)
    assert delta.abs().max() < 1e-12


def test_samples_are_shared_by_the_images_and_counted():
    counting, inputs, references = Counting(smooth_model()), draw(4, 1, 4, 4), draw(6, 1, 4, 4, seed=3)

    def run(x, **more):
        generator = torch.Generator().manual_seed(0)
        return ml.expected_gradients(counting, x, 0, references=references, n_samples=9, generator=generator, **more)

    whole = run(inputs)
    counting.calls.clear()
    close(run(inputs, internal_batch_size=5), whole, 1e-12)
    assert counting.gradient_rows == 36 and counting.largest <= 5
    close(run(inputs[2:3]), whole[2:3], 1e-12)


def test_references_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"references.*\(6, 1, 4, 5\)"):
        ml.expected_gradients(smooth_model(), draw(2, 1, 4, 4), references=draw(6, 1, 4, 5))
