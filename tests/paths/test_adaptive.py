"""The adaptive integral: its tolerance, its counts, its warning, and the map it gives."""

import math

import pytest
import torch
from helpers import (
    PROBES,
    Counting,
    CurvedVAE,
    Quadratic,
    close,
    draw,
    no_warning,
    one_warning,
    seeded,
    smooth_model,
    untouched,
)
from torch import nn

import manifold_lib as ml
from manifold_lib.paths import refine
from manifold_lib.reproduction import zoo


def relu_model(seed=0):
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 3)).double(), seed)


def change(model, inputs, target):
    scores = model(inputs) - model(0 * inputs)
    return scores.gather(1, target[:, None])[:, 0].detach()


@pytest.mark.parametrize("make", [relu_model, lambda: smooth_model()], ids=["ReLU", "tanh"])
@pytest.mark.parametrize("tolerance", [0.05, 0.01, 0.001])
def test_every_image_is_complete_to_the_tolerance(make, tolerance):
    model, inputs = make(), draw(8, 1, 4, 4, seed=3)
    target = model(inputs).argmax(1)
    with no_warning():
        found, info = ml.integrate(model, ml.straight_path(inputs), tolerance=tolerance, return_info=True)
    scores = model(inputs)
    spread = (scores.amax(1) - scores.amin(1)).detach()
    bound = tolerance * torch.maximum(change(model, inputs, target).abs(), 0.05 * spread)
    assert info.converged.all() and (info.delta.abs() <= bound * (1 + 1e-9)).all()
    close(info.delta, found.flatten(1).sum(1) - change(model, inputs, target), 1e-9)
    reference = ml.integrate(model, ml.straight_path(inputs), method="midpoint", n_steps=8192)
    assert ((found - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).max() < 6 * tolerance


def test_it_takes_more_gradients_where_the_image_needs_more():
    model = lambda x: torch.relu(x.flatten(1).sum(1) - 0.37).pow(2)  # noqa: E731
    inputs = torch.tensor([[0.05] * 4, [1.0] * 4, [20.0] * 4], dtype=torch.float64)
    info = ml.integrate(model, ml.straight_path(inputs), tolerance=1e-5, return_info=True)[1]
    first = refine.FIRST + 1
    assert info.n_gradients[0] == first, "flat: the first segments suffice"
    assert info.n_gradients[1] > first


def test_the_counts_are_the_gradients_taken():
    counting, inputs = Counting(relu_model()), draw(6, 1, 4, 4, seed=3)
    info = ml.integrate(counting, ml.straight_path(inputs), 1, tolerance=0.003, return_info=True)[1]
    assert 0 <= counting.gradient_rows - int(info.n_gradients.sum()) <= 6, "a few points to size the chunk"


def test_halving_calls_the_path_and_not_the_chord():
    """Points of the half circle, all of them: on a chord they would be inside."""
    seen = []

    def model(x):
        seen.append(x.detach().norm(dim=1))
        return torch.sin(3 * x[:, 0]) * x[:, 1]

    at = lambda rows, t: torch.stack([(math.pi * t).cos(), (math.pi * t).sin()], 1).expand(len(rows), 2)  # noqa: E731
    path = ml.Path(at, end=torch.tensor([[-1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64))
    found, info = ml.integrate(model, path, tolerance=2e-3, return_info=True)
    assert info.converged.all() and (info.n_gradients > 19).all()
    met = torch.cat(seen[3:])  # after the three passes of a trial at noise
    close(met, torch.ones(len(met)).double(), 1e-12)
    close(found, ml.integrate(model, path, n_steps=4096), 1e-2)


def test_a_polyline_keeps_its_corners():
    model = smooth_model((2,))
    corners = draw(3, 4, 2, seed=5)
    found = ml.integrate(model, corners, 1, tolerance=1e-4)
    close(found, ml.integrate(model, corners, 1, n_steps=3000), 1e-3)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_image_does_not_depend_on_its_batch(size):
    model, inputs = relu_model(), draw(7, 1, 4, 4, seed=3)
    whole, info = ml.integrate(
        model, ml.straight_path(inputs), tolerance=0.002, internal_batch_size=size, return_info=True
    )
    for i in range(7):
        one, own = ml.integrate(model, ml.straight_path(inputs[i : i + 1]), tolerance=0.002, return_info=True)
        close(whole[i : i + 1], one, 1e-10)
        assert own.n_gradients == info.n_gradients[i]


def test_what_does_not_converge_is_counted_in_one_warning():
    model, inputs = relu_model(), draw(4, 1, 4, 4, seed=3)
    with one_warning():
        info = ml.integrate(model, ml.straight_path(inputs), tolerance=1e-9, n_steps=40, return_info=True)[1]
    assert not info.converged.any() and (info.n_gradients <= 90).all()


def test_a_jump_of_the_score_ends_and_is_not_converged():
    jump = lambda x: x.flatten(1).sum(1) + (x.flatten(1).sum(1) > 1.3).double() * 5  # noqa: E731
    with one_warning():
        found, info = ml.integrate(jump, ml.straight_path(torch.ones(1, 4).double()), tolerance=0.01, return_info=True)
    assert not info.converged.any() and found.isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_nan_harms_its_image_only():
    model = lambda x: x.flatten(1).pow(2).sum(1).sqrt()  # noqa: E731
    inputs, baselines = torch.ones(3, 4).double(), torch.zeros(3, 4).double()
    baselines[[0, 2]] = 0.1  # the root has no gradient at 0
    found, info = ml.integrate(model, ml.straight_path(inputs, baselines), tolerance=0.01, return_info=True)
    assert found[1].isnan().all() and info.converged.tolist() == [True, False, True]
    close(found[[0, 2]].sum(1), torch.tensor([1.8, 1.8]).double(), 1e-2)


def test_the_model_is_left_as_found():
    model, inputs = smooth_model(), draw(3, 1, 4, 4)
    with untouched(model, inputs):
        ml.integrate(model, ml.straight_path(inputs), tolerance=0.01)


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, "small", True])
def test_a_bad_tolerance_is_refused(value):
    with pytest.raises(ValueError, match="tolerance"):
        ml.integrate(smooth_model(), ml.straight_path(draw(2, 1, 4, 4)), tolerance=value)


def test_what_a_tolerance_cannot_be_combined_with():
    path = ml.straight_path(draw(2, 1, 4, 4))
    with pytest.raises(ValueError, match="method"):
        ml.integrate(smooth_model(), path, tolerance=0.1, method="left")
    with pytest.raises(ValueError, match="create_graph"):
        ml.integrate(smooth_model(), path, tolerance=0.1, create_graph=True)


@pytest.mark.parametrize("most", [20, 40, 41])
@pytest.mark.filterwarnings("ignore:integrate")
def test_no_image_has_more_segments_than_asked_for(most):
    model, inputs = smooth_model(), 3 * draw(4, 1, 4, 4)
    _, info = ml.integrate(model, ml.straight_path(inputs), 1, tolerance=1e-12, n_steps=most, return_info=True)
    assert (info.n_gradients <= most + 1).all() and (info.n_gradients > most // 2).all()


def test_points_in_memory_are_those_of_some_images():
    model, inputs, most, held = smooth_model(), draw(64, 1, 4, 4), 0, []

    def at(rows, t):
        held.append(rows)
        return inputs[rows] * t.view(-1, 1, 1, 1)

    ml.integrate(model, ml.Path(at, end=inputs), 1, tolerance=1e-3, internal_batch_size=38)
    for rows in held:
        most = max(most, len(rows.unique()))
    assert most <= 2


def test_on_digits_it_takes_fewer_gradients_than_the_midpoint_rule_and_its_map_is_as_exact():
    """64 generated digits under the zoo's LeNet, to 1 %; the map of 8 of them against a fine rule."""
    model, inputs = zoo.load("lenet-mnist32"), zoo.samples("mnist32", 64, seed=5).inputs
    target = model(inputs).argmax(1)
    found, info = ml.integrate(model, ml.straight_path(inputs), target, tolerance=0.01, return_info=True)
    mean = info.n_gradients.double().mean().item()
    more = {"method": "midpoint", "n_steps": math.floor(mean / 0.75), "return_info": True}
    delta = ml.integrate(model, ml.straight_path(inputs), target, **more)[1].delta
    assert info.converged.all() and (delta.abs() > 0.01 * change(model, inputs, target).abs()).any()

    path, few = ml.straight_path(inputs[:8]), target[:8]
    reference = ml.integrate(model, path, few, method="midpoint", n_steps=512)
    fixed = ml.integrate(model, path, few, method="gausslegendre", n_steps=round(mean))
    gap, fixed_gap = (
        ((maps - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).median()
        for maps in (found[:8], fixed)
    )
    assert gap <= 0.02 and gap <= fixed_gap


def test_a_path_with_gradients_of_its_own_needs_none_of_the_model():
    model, inputs = Quadratic(3), draw(2, 3, seed=1)
    at, counting = ml.straight_path(inputs).at, Counting(model)
    path = ml.Path(at, gradients=lambda rows, t: model.gradient(at(rows, t), 1), end=inputs)
    found = ml.integrate(counting, path, 1, tolerance=1e-3)
    close(found, ml.integrate(model, ml.straight_path(inputs), 1, tolerance=1e-3), 1e-12)
    assert counting.gradient_rows <= PROBES


@pytest.mark.filterwarnings("ignore:energy_path")
def test_a_path_that_bends_where_the_score_does_is_refined_there():
    """A path found by energy, a guided one and one with bridges: each to the tolerance, whatever they bring."""
    model, inputs, vae = smooth_model(), draw(3, 1, 4, 4), CurvedVAE()
    scores = model(inputs).detach()
    bound = 1e-3 * torch.maximum((scores - model(0 * inputs))[:, 1].abs(), 0.05 * (scores.amax(1) - scores.amin(1)))
    for path in (
        ml.energy_path(model, inputs, 1, n_steps=6, max_iter=5),
        ml.guided_path(model, inputs, 1, n_steps=9),
        ml.enhanced_path(inputs, vae=vae),
        ml.ma_gig_path(model, inputs, 1, vae=vae, n_steps=7),
    ):
        _, info = ml.integrate(model, path, 1, tolerance=1e-3, return_info=True)
        assert info.converged.all() and (info.delta.abs() <= bound * (1 + 1e-9)).all()


def test_a_masked_class_does_not_end_the_refinement():
    model = smooth_model((2,))

    def masked(x):
        return torch.cat([20 * model(x), torch.full((len(x), 1), -torch.inf, dtype=x.dtype)], 1)

    path = ml.straight_path(draw(3, 2, seed=1))
    usual, info = ml.integrate(lambda x: 20 * model(x), path, 1, tolerance=1e-3, return_info=True)
    found, other = ml.integrate(masked, path, 1, tolerance=1e-3, return_info=True)
    assert (other.n_gradients >= 13).all() and other.delta.abs().max() < 10 * info.delta.abs().max() + 1e-3
    torch.testing.assert_close(found, usual, atol=1e-2, rtol=1e-2)
