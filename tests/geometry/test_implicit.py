"""The derivative of a geodesic in its ends: closed forms, finite differences of solved curves, and what bounds it."""

from __future__ import annotations

import functools

import pytest
import torch
from decoders import image_decoder, pair, sphere, torus
from helpers import draw
from torch import Tensor

import manifold_lib as ml

SOLVED = {"max_iter": 400, "tolerance": 1e-12, "create_graph": True}


def slopes(function, point: Tensor, step: float = 1e-4) -> Tensor:
    """Central differences of a scalar function."""
    found = torch.zeros_like(point).flatten()
    for i in range(point.numel()):
        change = torch.zeros_like(found)
        change[i] = step
        change = change.view_as(point)
        found[i] = (function(point + change) - function(point - change)) / (2 * step)
    return found.view_as(point)


def test_the_geodesic_of_a_linear_decoder_moves_as_the_line() -> None:
    matrix = draw(7, 3, seed=0).double()
    start, end = draw(2, 3, seed=1).double().requires_grad_(), draw(2, 3, seed=2).double().requires_grad_()
    pull = draw(2, 9, 3, seed=3).double()
    points = ml.geodesic(lambda z: z @ matrix.T, start, end, n_steps=8, create_graph=True).points
    found = torch.autograd.grad((points * pull).sum(), (start, end))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[None, :, None]
    for one, wanted in zip(found, (((1 - t) * pull).sum(1), (t * pull).sum(1)), strict=True):
        assert (one - wanted).abs().max() < 1e-4


def test_the_middle_of_a_great_circle_moves_as_its_closed_form() -> None:
    start, end = pair((1.2, 0.1), (0.9, 1.4))
    end.requires_grad_()
    middle = sphere(ml.geodesic(sphere, start, end, n_steps=32, **SOLVED).points[:, 16])
    halfway = (sphere(start) + sphere(end)) / (sphere(start) + sphere(end)).norm()
    for i in range(3):
        found, wanted = (torch.autograd.grad(m[0, i], end, retain_graph=True)[0] for m in (middle, halfway))
        assert (found - wanted).abs().max() < 2e-3


@pytest.mark.parametrize("n_steps", [8, 32])
@pytest.mark.parametrize(
    ("decoder", "ends"),
    [(torus, pair((0.0, 0.2), (1.3, 1.0))), (image_decoder(), (draw(2, 4, seed=4), draw(2, 4, seed=5)))],
    ids=["torus", "images"],
)
def test_finite_differences_of_solved_curves(decoder, ends: tuple[Tensor, Tensor], n_steps: int) -> None:
    start, end = (one.double() for one in ends)
    solve = functools.partial(ml.geodesic, decoder, n_steps=n_steps, **SOLVED)
    pull = draw(len(start), n_steps + 1, start.shape[1], seed=6).double()
    leaves = start.clone().requires_grad_(), end.clone().requires_grad_()
    found = torch.autograd.grad((solve(*leaves).points * pull).sum(), leaves)
    wanted = (
        slopes(lambda s: (solve(s, end).points * pull).sum(), start),
        slopes(lambda e: (solve(start, e).points * pull).sum(), end),
    )
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 1e-2 * other.norm()


def test_one_start_for_all_gathers_the_derivatives_of_all() -> None:
    start, end = draw(1, 4, seed=4).double().requires_grad_(), draw(3, 4, seed=5).double()
    solve = functools.partial(ml.geodesic, image_decoder(), n_steps=8, **SOLVED)
    (whole,) = torch.autograd.grad(solve(start, end).points.square().sum(), start)
    parts = [torch.autograd.grad(solve(start, one[None]).points.square().sum(), start)[0] for one in end]
    assert (whole - sum(parts)).norm() < 1e-6 * whole.norm()


def test_the_points_have_a_graph_where_it_is_wanted_and_the_ends_have_one() -> None:
    start, end = pair((1.2, 0.1), (0.9, 1.4))
    assert not ml.geodesic(sphere, start, end, create_graph=True).points.requires_grad
    assert not ml.geodesic(sphere, start.requires_grad_(), end).points.requires_grad
    with torch.no_grad():
        assert not ml.geodesic(sphere, start, end, create_graph=True).points.requires_grad


def test_energy_and_length_have_no_graph_and_the_ends_keep_their_values() -> None:
    start, end = pair((1.2, 0.1), (0.9, 1.4))
    found = ml.geodesic(sphere, start, end.requires_grad_(), create_graph=True)
    assert found.points.requires_grad and not found.energy.requires_grad and not found.length.requires_grad
    assert torch.equal(found.points[:, -1], end)


@pytest.mark.filterwarnings("ignore:geodesic")
def test_a_curve_that_has_not_converged_still_has_a_finite_derivative() -> None:
    start, end = draw(2, 4, seed=4).double(), draw(2, 4, seed=5).double().requires_grad_()
    points = ml.geodesic(image_decoder(), start, end, max_iter=1, create_graph=True).points
    (found,) = torch.autograd.grad(points.square().sum(), end)
    assert torch.isfinite(found).all()


def test_many_latents_use_the_mean_metric_and_give_the_same() -> None:
    """A linear map of 32 latents, whose preconditioner is no Gauss–Newton matrix."""
    matrix = draw(40, 32, seed=0).double()
    start, end = draw(1, 32, seed=1).double(), draw(1, 32, seed=2).double().requires_grad_()
    points = ml.geodesic(lambda z: z @ matrix.T, start, end, n_steps=70, create_graph=True).points
    (found,) = torch.autograd.grad(points[:, 35].sum(), end)
    assert (found - 0.5).abs().max() < 1e-2


def test_without_a_pass_the_points_follow_the_line() -> None:
    start, end = draw(2, 4, seed=4), draw(2, 4, seed=5).requires_grad_()
    points = ml.geodesic(image_decoder(), start, end, n_steps=4, max_iter=0, create_graph=True).points
    (found,) = torch.autograd.grad(points[:, 1].sum(), end)
    assert (found - 0.25).abs().max() < 1e-6
