"""Tangential baselines: the theory as exact tests (T1 to T5 of the spec), constraints, starts, independence."""

import math

import pytest
import torch
from helpers import close, draw, seeded, smooth_model, untouched
from torch import nn

import manifold_lib as ml

D, K = 16, 3
ADAM = {"n_starts": 1, "max_iter": 10, "solver": "gradient"}


def network(activation, seed=0):
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(D, 24), activation(), nn.Linear(24, 3)).double(), seed)


def problem(n=6, seed=0):
    inputs = draw(n, 1, 4, 4, seed=seed).sigmoid()
    return inputs, torch.linalg.qr(draw(n, D, K, seed=seed + 1))[0]


def fraction(model, inputs, baselines, basis, n_steps=64):
    return ml.tangent_fraction(ml.integrated_gradients(model, inputs, baselines=baselines, n_steps=n_steps), basis)


def seed():
    return torch.Generator().manual_seed(0)


# --- the theory ---


def test_t2_a_linear_model_has_an_affine_space_of_tangent_baselines():
    inputs, basis = problem()
    weights = draw(D, seed=3)
    model = lambda x: x.flatten(1) @ weights  # noqa: E731
    tangent = torch.einsum("bdk,bk->bd", basis, draw(6, K, seed=4))
    baselines = inputs - (tangent / weights).view_as(inputs)
    for n_steps in (1, 7):
        found = fraction(model, inputs, baselines, basis, n_steps)
        close(found, torch.ones(6).double(), 1e-12)


@pytest.mark.parametrize(("activation", "eps"), [(nn.ReLU, 1e-6), (nn.Softplus, 1e-5)])
def test_t3_a_baseline_close_to_the_input_is_tangent_for_any_subspace(activation, eps):
    model, (inputs, basis) = network(activation), problem()
    for layer in (model[1], model[3]):
        layer.weight.data.abs_()  # no slope is near zero, which the theorem divides by
    slopes = ml.gradient(model, inputs)
    direction = basis[:, :, 0].view_as(inputs) / slopes
    gaps = [(1 - fraction(model, inputs, inputs - e * direction, basis)).abs().max().item() for e in (eps, 10 * eps)]
    assert gaps[0] < 1e-6
    if activation is nn.Softplus:
        assert 30 < gaps[1] / gaps[0] < 300, "of second order"


def test_t4_the_gradient_is_orthogonal_to_the_displacement():
    """For constant h the fraction does not depend on the length of x − a."""
    model, (inputs, basis) = network(nn.ReLU), problem()
    baselines = draw(6, 1, 4, 4, seed=9).requires_grad_()
    average = ml.integrated_gradients(model, inputs, baselines=baselines.detach(), multiply_by_inputs=False)
    value = ml.tangent_fraction((inputs - baselines) * average, basis)
    (slope,) = torch.autograd.grad(value.sum(), baselines)
    inner = (slope * (inputs - baselines)).flatten(1).sum(1)
    assert inner.abs().max() < 1e-12


def test_t5_on_a_relu_network_both_forms_take_the_same_steps():
    model, (inputs, basis) = network(nn.ReLU), problem()
    forms = [
        ml.tangential_baseline(
            model, inputs, basis=basis, n_starts=1, max_iter=40, solver="gradient", stop_gradient=stop
        )
        for stop in (True, False, None)
    ]
    for other in forms[1:]:
        close(other.baselines, forms[0].baselines, 1e-9)
        close(other.history, forms[0].history, 1e-9)


def test_on_a_smooth_network_the_full_form_follows_the_gradient():
    """It differs from the other, and is the one found when none is asked for."""
    model, (inputs, basis) = network(nn.Softplus), problem()
    stop, full, auto = (
        ml.tangential_baseline(
            model, inputs, basis=basis, n_starts=1, max_iter=10, solver="gradient", stop_gradient=form
        ).history
        for form in (True, False, None)
    )
    assert (stop - full).abs().max() > 1e-6
    close(auto, full, 1e-12)


# --- the search ---


@pytest.mark.parametrize("solver", ["projection", "gradient"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Softplus])
def test_it_aligns_and_reports_what_it_did(activation, solver):
    model, (inputs, basis) = network(activation), problem()
    found = ml.tangential_baseline(model, inputs, basis=basis, solver=solver, generator=seed())
    close(found.tangent_fraction, fraction(model, inputs, found.baselines, basis), 1e-9)
    assert found.tangent_fraction.mean() > 0.95
    assert found.history.shape == (201, 6) and found.converged.dtype == torch.bool
    start = fraction(model, inputs, torch.zeros_like(inputs), basis)
    assert (found.tangent_fraction >= start - 1e-3).all(), "never below the first start"
    attributions, delta = ml.integrated_gradients(
        model, inputs, baselines=found.baselines, n_steps=200, return_convergence_delta=True
    )
    assert (delta.abs() < 1e-2 * attributions.flatten(1).abs().sum(1)).all()


def test_more_starts_never_hurt():
    model, (inputs, basis) = network(nn.Softplus), problem()
    one, three = (
        ml.tangential_baseline(model, inputs, basis=basis, n_starts=n, max_iter=15, generator=seed()).tangent_fraction
        for n in (1, 3)
    )
    assert (three >= one - 1e-9).all() and (three > one + 1e-6).any()


def test_the_box_is_kept():
    model, (inputs, basis) = network(nn.Softplus), problem()
    found = ml.tangential_baseline(model, inputs, basis=basis, constraint="box", clamp=(0.1, 0.8), generator=seed())
    free = ml.tangential_baseline(model, inputs, basis=basis, generator=seed())
    assert found.baselines.min() >= 0.1 and found.baselines.max() <= 0.8
    assert free.baselines.min() < 0 or free.baselines.max() > 1


@pytest.mark.parametrize("c", [0.5, 1.0])
def test_the_explained_change_is_kept(c):
    model, (inputs, basis) = network(nn.Softplus), problem()
    found = ml.tangential_baseline(model, inputs, basis=basis, constraint="change", c=c, generator=seed())
    scores = [model(x).gather(1, model(inputs).argmax(1)[:, None])[:, 0] for x in (inputs, found.baselines, 0 * inputs)]
    kept, wanted = scores[0] - scores[1], c * (scores[0] - scores[2])
    assert (kept >= wanted - 1e-5).all()
    start = fraction(model, inputs, torch.zeros_like(inputs), basis)
    assert found.tangent_fraction.mean() > start.mean() + 0.1


def test_on_the_manifold():
    class Decoder:
        weights = draw(2, D, seed=11)
        encode = staticmethod(lambda x: x.flatten(1)[:, :2])
        decode = staticmethod(lambda z: torch.tanh(z @ Decoder.weights).view(-1, 1, 4, 4))

    model, (inputs, basis) = network(nn.Softplus), problem()
    found = ml.tangential_baseline(model, inputs, basis=basis, constraint="manifold", vae=Decoder(), generator=seed())
    latents = torch.atanh(found.baselines.flatten(1).clamp(-1 + 1e-12, 1 - 1e-12)) @ torch.linalg.pinv(Decoder.weights)
    close(Decoder.decode(latents), found.baselines, 1e-5)
    assert found.tangent_fraction.mean() > fraction(model, inputs, torch.zeros_like(inputs), basis).mean()


@pytest.mark.parametrize("size", [1, 20, 1000])
def test_an_image_does_not_depend_on_its_batch(size):
    model, (inputs, basis) = network(nn.ReLU), problem()
    settings = {"max_iter": 20, "n_starts": 2}
    whole = ml.tangential_baseline(
        model, inputs, basis=basis, generator=seed(), internal_batch_size=size, **settings
    ).baselines
    for i in range(6):
        rows = slice(i, i + 1)
        one = ml.tangential_baseline(model, inputs[rows], basis=basis[rows], generator=seed(), **settings)
        close(one.baselines, whole[rows], 1e-9)


def test_tangential_ig_is_ig_from_the_baseline_found():
    model, (inputs, basis) = network(nn.ReLU), problem()
    found = ml.tangential_baseline(model, inputs, 1, basis=basis, max_iter=20, generator=seed())
    attributions = ml.tangential_ig(model, inputs, 1, basis=basis, max_iter=20, generator=seed())
    close(attributions, ml.integrated_gradients(model, inputs, 1, baselines=found.baselines), 1e-12)


def test_the_model_is_left_as_found():
    model, (inputs, basis) = network(nn.Softplus), problem()
    with untouched(model, inputs, basis):
        ml.tangential_baseline(model, inputs, basis=basis, max_iter=3)


def test_a_start_at_the_input_does_no_harm():
    model, (inputs, basis) = network(nn.ReLU), problem()
    inputs[0] = 0  # the first start is the input itself: nothing to explain
    found = ml.tangential_baseline(model, inputs, basis=basis, max_iter=20, generator=seed())
    assert found.baselines.isfinite().all() and found.tangent_fraction[0] > 0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("constraint", "sphere"),
        ("constraint", ""),
        *(("c", value) for value in (0, -1, 1.5, math.nan)),
        *(("learning_rate", value) for value in (0, -1, math.inf)),
        ("solver", "newton"),
        ("clamp", (1.0, 0.0)),
        ("vae", object()),
    ],
)
def test_bad_settings_are_refused(argument, value):
    inputs, basis = problem()
    with pytest.raises(ValueError, match=argument):
        ml.tangential_baseline(smooth_model(), inputs, basis=basis, max_iter=1, **{argument: value})


def test_projections_stay_at_a_fixed_point_of_a_linear_model():
    """Of a linear model the affine space x − diag(w)⁻¹ T_x is reached, and not left."""
    inputs, basis = problem()
    weights = draw(D, seed=3)
    weights = weights.sign() * (0.5 + weights.abs())
    model = lambda x: x.flatten(1) @ weights  # noqa: E731
    found = ml.tangential_baseline(model, inputs, basis=basis, n_starts=1, max_iter=200)
    assert found.tangent_fraction.min() >= 0.99 and found.converged.all()
    with pytest.raises(ValueError, match="solver"):
        ml.tangential_baseline(model, inputs, basis=basis, constraint="change", solver="projection")


def test_the_manifold_needs_a_vae_and_the_basis_must_fit():
    inputs, basis = problem()
    with pytest.raises(ValueError, match="vae"):
        ml.tangential_baseline(smooth_model(), inputs, basis=basis, constraint="manifold")
    with pytest.raises(ValueError, match="basis"):
        ml.tangential_baseline(smooth_model(), inputs, basis=basis[:, :-1])


def test_the_box_is_kept_by_starts_that_win():
    model, (inputs, basis) = network(nn.ReLU), problem(20)
    for clamp in ((0.3, 0.6), (-0.5, -0.1)):
        found = ml.tangential_baseline(
            model, inputs, basis=basis, constraint="box", clamp=clamp, max_iter=1, n_starts=1
        )
        assert found.baselines.min() >= clamp[0] and found.baselines.max() <= clamp[1]


@pytest.mark.parametrize("solver", ["projection", "gradient"])
def test_the_search_keeps_no_graph(solver):
    model, (inputs, basis) = network(nn.Tanh), problem()
    found = ml.tangential_baseline(model, inputs.requires_grad_(), basis=basis, solver=solver, max_iter=3)
    assert not any(part.requires_grad for part in found)


@pytest.mark.filterwarnings("ignore:tangential_baseline")
def test_what_kind_of_network_it_is_does_not_depend_on_the_first_image():
    """At zero a tanh network without biases has no second derivative, and looks piecewise linear."""
    model, (inputs, basis) = network(nn.Tanh), problem()
    for layer in (model[1], model[3]):
        layer.bias.data.zero_()
    inputs[0] = 0
    order = torch.arange(6).flip(0)
    found = ml.tangential_baseline(model, inputs, 1, basis=basis, **ADAM).baselines
    turned = ml.tangential_baseline(model, inputs[order], 1, basis=basis[order], **ADAM).baselines
    close(turned[order], found, 1e-10)


def test_tangential_ig_tells_how_complete_it_is():
    model, (inputs, basis) = network(nn.Tanh), problem()
    options = {"basis": basis, "max_iter": 5, "n_starts": 1}
    maps, delta = ml.tangential_ig(model, inputs, 1, return_convergence_delta=True, **options)
    baselines = ml.tangential_baseline(model, inputs, 1, **options).baselines
    change = (model(inputs) - model(baselines))[:, 1]
    close(delta, maps.flatten(1).sum(1) - change, 1e-12)
    assert delta.abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:tangent_fraction")
def test_a_basis_with_nan_is_warned_of():
    model, (inputs, basis) = network(nn.Tanh), problem()
    basis[2] = math.nan
    with pytest.warns(RuntimeWarning, match="tangential_baseline: 1 of 6"):
        found = ml.tangential_baseline(model, inputs, 1, basis=basis, max_iter=3, n_starts=1)
    assert found.tangent_fraction.isnan().tolist() == [False, False, True, False, False, False]
