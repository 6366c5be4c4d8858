"""Geodesic IG by energy: the laws of a line integral, the paths, the sign, and what is refused."""

import warnings

import pytest
import torch
from helpers import Counting, Quadratic, draw, seeded, smooth_model, untouched
from torch import nn

import manifold_lib as ml


def plane_model(seed=0, n_classes=2):
    net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, n_classes), nn.LogSoftmax(1))
    return seeded(net, seed).double()


def hill(x):
    """A steep hill on the straight way from (−1, 0) to (1, 0), and gentle slopes around it."""
    return 3 * torch.exp(-8 * (x[:, 0] ** 2 + (x[:, 1] - 0.05) ** 2)) + 0.2 * x[:, 0]


ENDS = torch.tensor([[-1.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)


def change(model, inputs, target, baselines=0.0):
    return (model(inputs) - model(torch.zeros_like(inputs) + baselines))[:, target]


@pytest.mark.parametrize("options", [{}, {"energy": "potential"}, {"energy": "potential", "sign": -1}, {"max_iter": 0}])
def test_the_sum_is_the_change_of_the_score(options):
    model, inputs = plane_model(), draw(9, 2, seed=1)
    maps, delta = ml.energy_ig(model, inputs, 1, baselines=-0.5, return_convergence_delta=True, **options)
    assert (delta.abs() <= 5e-3 * change(model, inputs, 1, -0.5).abs().clamp_min(0.05)).all()
    torch.testing.assert_close(maps.sum(1) - delta, change(model, inputs, 1, -0.5))


@pytest.mark.parametrize("energy", ["curve", "potential"])
def test_a_linear_score_gets_w_times_the_displacement(energy):
    model = seeded(nn.Linear(3, 2, bias=False)).double()
    inputs, baselines = draw(5, 3, seed=1), draw(5, 3, seed=2)
    maps = ml.energy_ig(model, inputs, 0, baselines=baselines, energy=energy)
    torch.testing.assert_close(maps, model.weight[0] * (inputs - baselines))


@pytest.mark.parametrize("options", [{"beta": 0.0, "energy": "potential"}, {"max_iter": 0}, {"n_steps": 1}])
def test_where_nothing_moves_the_path_it_is_integrated_gradients(options):
    model, inputs = plane_model(), draw(5, 2, seed=1)
    path = ml.energy_path(model, inputs, 1, **options)
    t = torch.linspace(0, 1, path.points.shape[1], dtype=torch.float64)[:, None]
    torch.testing.assert_close(path.points, t * inputs[:, None])
    maps = ml.energy_ig(model, inputs, 1, **options)
    torch.testing.assert_close(maps, ml.integrated_gradients(model, inputs, 1, n_steps=64), atol=2e-3, rtol=2e-3)


def test_the_curve_goes_round_the_hill_and_is_shorter_than_the_line():
    start, end = ENDS
    line = ml.energy_path(hill, end, baselines=start, max_iter=0)
    bent = ml.energy_path(hill, end, baselines=start, max_iter=150)
    assert bent.converged.all() and bent.energy < 0.5 * line.energy and bent.length < 0.7 * line.length
    # at constant speed the energy is half the squared length
    torch.testing.assert_close(bent.energy, bent.length.square() / 2, rtol=0.02, atol=0)
    assert torch.equal(bent.points[:, 0], start) and torch.equal(bent.points[:, -1], end)
    # nothing is shorter than |Δf|
    assert bent.length > (hill(end) - hill(start)).abs()


def test_the_curve_is_the_shortest_path_of_a_fine_graph():
    ticks = torch.linspace(-1.5, 1.5, 61, dtype=torch.float64)
    start, end = ENDS
    bent = ml.energy_path(hill, end, baselines=start, max_iter=150)
    paths = ml.geodesic_paths(hill, end, baselines=start, nodes=torch.cartesian_prod(ticks, ticks), n_neighbors=24)
    assert 0.9 < bent.length / paths.length < 1.1


@pytest.mark.parametrize("seed", range(3))
def test_the_sign_decides_whether_a_path_keeps_from_steep_places_or_seeks_them(seed):
    """D6: as printed and released the energy rewards large gradients."""
    small, inputs = plane_model(seed), 2 * draw(12, 2, seed=seed + 1)

    def model(x):
        return 20 * small(x)

    def steepness(points):
        target = torch.ones(points.shape[:2].numel(), dtype=torch.int64)
        return ml.gradient(model, points.flatten(0, 1), target).norm(dim=1).view(points.shape[:2]).mean()

    options = {"energy": "potential", "beta": 1.0, "n_steps": 30}
    line = steepness(ml.energy_path(model, inputs, 1, max_iter=0, **options).points)
    away = steepness(ml.energy_path(model, inputs, 1, sign=1, **options).points)
    towards = steepness(ml.energy_path(model, inputs, 1, sign=-1, **options).points)
    assert away < 0.95 * line < line < towards / 1.02


def test_a_pixel_equal_to_the_baseline_need_not_get_zero():
    start, end = ENDS
    maps = ml.energy_ig(hill, end, baselines=start, max_iter=150)
    assert end[0, 1] == start[0, 1] and maps[0, 1].abs() > 0.01
    assert ml.integrated_gradients(hill, end, baselines=start)[0, 1] == 0
    assert ml.energy_ig(hill, end, baselines=start, published=True, energy="potential")[0, 1] == 0


@pytest.mark.parametrize("energy", ["curve", "potential"])
def test_nothing_depends_on_the_batch_or_on_an_earlier_call(energy):
    model, inputs = plane_model(), draw(6, 2, seed=1)
    whole = ml.energy_ig(model, inputs, baselines=-0.5, energy=energy)
    assert torch.equal(ml.energy_ig(model, inputs, baselines=-0.5, energy=energy), whole)
    for i in range(len(inputs)):
        alone = ml.energy_ig(model, inputs[[i]], baselines=-0.5, energy=energy)
        torch.testing.assert_close(alone, whole[[i]], atol=1e-6, rtol=1e-6)
    small = ml.energy_ig(model, inputs, baselines=-0.5, energy=energy, internal_batch_size=31)
    torch.testing.assert_close(small, whole, atol=1e-6, rtol=1e-6)
    order = [3, 1, 5, 0, 2, 4]
    torch.testing.assert_close(ml.energy_ig(model, inputs[order], baselines=-0.5, energy=energy), whole[order])


def test_relu_is_refused_where_the_path_needs_what_it_does_not_have():
    relu = seeded(nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 2))).double()
    inputs = draw(6, 2, seed=1)
    with pytest.raises(ValueError, match=r"model: its second derivative is zero"):
        ml.energy_ig(relu, inputs, 1)
    with pytest.raises(ValueError, match="softplus"):
        ml.energy_path(relu, inputs, 1, energy="potential")
    ml.energy_ig(nn.Sequential(relu, nn.LogSoftmax(1)), inputs, 1)


def test_inputs_equal_to_their_baselines_and_flat_scores_get_zeros():
    model, inputs = plane_model(), draw(4, 2, seed=1)
    assert ml.energy_ig(model, inputs, 1, baselines=inputs).eq(0).all()
    assert ml.energy_ig(lambda x: 0 * x, inputs, 0).eq(0).all()


def test_nan_harms_its_image_only():
    base = plane_model()

    def model(x):
        return base(x) * torch.where(x[:, :1] > 3, torch.nan, 1.0)

    inputs = torch.tensor([[0.5, 0.5], [5.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="1 of 3 images have NaN") as caught:
        maps = ml.energy_ig(model, inputs, 1)
    assert len(caught) == 1 and maps[1].isnan().all()
    torch.testing.assert_close(maps[[0, 2]], ml.energy_ig(base, inputs[[0, 2]], 1))


def test_paths_that_have_not_converged_are_counted_in_one_warning():
    start, end = ENDS
    with pytest.warns(RuntimeWarning, match="1 of 1 paths had not converged after 2 iterations") as caught:
        ml.energy_ig(hill, end, baselines=start, max_iter=2)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ml.energy_ig(hill, end, baselines=start, max_iter=0)


def test_the_model_is_left_as_it_was_and_memory_is_bounded():
    model, inputs = smooth_model((1, 4, 4)), draw(3, 1, 4, 4, seed=1)
    with untouched(model, inputs), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ml.energy_ig(model, inputs, n_steps=10, max_iter=5, return_convergence_delta=True)
    counted = Counting(model)
    ml.energy_ig(counted, inputs, n_steps=10, max_iter=50, internal_batch_size=13)
    assert counted.largest <= 13


@pytest.mark.parametrize("sign", [0, 2, -1.5, True, "minus"])
def test_a_sign_is_one_or_minus_one(sign):
    with pytest.raises(ValueError, match="sign: got"):
        ml.energy_ig(plane_model(), draw(2, 2), sign=sign)


def test_along_the_gradient_flow_nothing_cancels():
    """What is left of the axiom's theorem: γ' = λ ∇f with λ of one sign gives A_i = ∫ λ (∂_i f)² of one sign."""
    model = Quadratic(3, None, seed=4)
    points = [draw(5, 3, seed=1)]
    for _ in range(400):
        points.append(points[-1] + 0.002 * model.gradient(points[-1]))
    path = torch.stack(points, 1)
    maps = ml.integrate(model, path)
    assert (maps >= 0).all()
    gap = ml.cancellation_ratio(model, path[:, -1], maps, baselines=path[:, 0], reduction="none")
    assert gap.abs().max() < 1e-4 * maps.sum(1).max()


def test_in_one_dimension_nothing_cancels_even_on_a_path_that_turns_back():
    model = lambda x: torch.sin(x[:, 0])  # noqa: E731
    path = torch.tensor([0.0, 0.4, 0.2, 0.9], dtype=torch.float64).view(1, 4, 1)
    maps = ml.integrate(model, path, n_steps=3000)
    torch.testing.assert_close(maps.abs().sum(), torch.tensor(0.9, dtype=torch.float64).sin(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"max_iter": 0}, {"n_steps": 1}, {"energy": "potential", "beta": 0.0}])
def test_relu_will_do_where_the_path_stays_straight_anyway(options):
    relu = seeded(nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 2))).double()
    inputs = draw(6, 2, seed=1)
    maps = ml.energy_ig(relu, inputs, 1, **options)
    torch.testing.assert_close(maps.sum(1), change(relu, inputs, 1), atol=1e-2, rtol=1e-2)


def test_the_potential_of_the_line_is_that_of_its_gradients():
    model, inputs = plane_model(), draw(4, 2, seed=1)
    path = ml.energy_path(model, inputs, 1, energy="potential", beta=0.3, max_iter=0)
    points = path.points.flatten(0, 1)
    slopes = ml.gradient(model, points, torch.ones(len(points), dtype=torch.int64)).norm(dim=1).view(4, -1)
    torch.testing.assert_close(path.energy, 0.3 * slopes.sum(1))
    steep = ml.energy_path(lambda x: 30 * model(x), inputs, 1, energy="potential", beta=1.0, max_iter=1)
    assert (steep.points != path.points).any(), "the first step is judged"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(ValueError, match=r"inputs: got torch\.b?float16"):
        ml.energy_ig(plane_model().to(dtype), draw(2, 2).to(dtype), 1)


def test_images_are_relaxed_in_blocks_that_change_nothing():
    model, inputs = smooth_model((1, 4, 4)), draw(7, 1, 4, 4, seed=1)
    whole = ml.energy_path(model, inputs, 1, n_steps=8, max_iter=20)
    blocks = ml.energy_path(model, inputs, 1, n_steps=8, max_iter=20, internal_batch_size=16)
    for name in ("points", "energy", "length", "iterations", "converged"):
        torch.testing.assert_close(getattr(whole, name), getattr(blocks, name))


def test_an_image_that_cannot_move_keeps_its_line_and_counts_as_not_converged():
    def model(x):
        return torch.relu(x[:, 0] - 0.3) + torch.relu(x[:, 1]).square()

    stuck, free = torch.tensor([[1.0, -1.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    with pytest.raises(ValueError, match="second derivative is zero"):
        ml.energy_path(model, stuck, n_steps=8)
    with pytest.warns(RuntimeWarning, match="1 of 2 paths had not converged"):
        found = ml.energy_path(model, torch.cat([stuck, free]), n_steps=8)
    assert found.converged.tolist() == [False, True]
    way = torch.linspace(0, 1, 9).double()[:, None] * stuck
    off = found.points[0] - (found.points[0] @ stuck.T) / 2 * stuck  # what is off the line
    assert off.abs().max() < 1e-9 and torch.equal(found.points[0, [0, -1]], way[[0, -1]])


def test_more_segments_than_the_refinement_begins_with_are_refined_too():
    def model(x):
        return torch.tanh(3e4 * (x - 0.3)).sum(1)

    inputs = torch.rand(3, 2, generator=torch.Generator().manual_seed(0)).double() + 0.5
    _, delta = ml.energy_ig(model, inputs, n_steps=1100, max_iter=0, return_convergence_delta=True)
    assert delta.abs().max() < 0.1
