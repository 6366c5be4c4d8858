"""Descent of paths under the model's metric: derivatives against autograd, closed forms, blocks that change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Counting, Quadratic, close, draw, seeded, smooth_model
from torch import Tensor, nn

from manifold_lib.core.scorer import Scorer
from manifold_lib.paths import relax


def slope_of(model, shape, size=1000, target=None):
    """The slope of paths whose classes are given, or come in the place of their rows."""

    def slope(points, rows):
        if target is None:
            return relax.slope_turns(scorer_of(model, rows, size), torch.Size(shape), points, torch.arange(len(rows)))
        return relax.slope_turns(scorer_of(model, target, size), torch.Size(shape), points, rows)

    return slope


def scorer_of(model, target, size):
    scorer = Scorer(model, len(target), size=size)
    scorer.classes, scorer.highest = target, int(target.max())
    return scorer


def test_slopes_and_their_turns_in_closed_form():
    model = Quadratic(4)
    points = draw(3, 5, 4)
    squares, turns = slope_of(model, (4,), 7)(points, torch.ones(3, dtype=torch.int64))
    gradient = model.gradient(points, 1)
    torch.testing.assert_close(squares, gradient.square().sum(2))
    torch.testing.assert_close(turns, gradient @ model.matrices[1])


def test_the_gradient_of_the_curve_energy_is_that_of_autograd():
    layers = nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 2), nn.LogSoftmax(1)
    model, points = seeded(nn.Sequential(*layers)).double(), draw(3, 7, 2)
    target, epsilon = torch.tensor([0, 1, 0]), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    energy, gradient, metric = relax.curve_energy_and_gradient(slope_of(model, (2,)), points, target, epsilon)
    curve = points.clone().requires_grad_()
    times, weights = relax.rule("gausslegendre", 2, points)
    inner = curve[:, :-1, None] + times[:, None] * curve.diff(dim=1)[:, :, None]
    scores = model(inner.flatten(0, 2)).gather(1, target.repeat_interleave(12)[:, None]).sum()
    slopes = torch.autograd.grad(scores, inner, create_graph=True)[0]
    wanted_metric = slopes.square().sum(3) @ weights + epsilon[:, None]
    wanted = 3 * (wanted_metric * curve.diff(dim=1).square().sum(2)).sum(1)
    torch.testing.assert_close(energy, wanted.detach())
    torch.testing.assert_close(metric, wanted_metric.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), curve)[0])


def test_respacing_keeps_the_polyline_and_evens_the_costs():
    points = draw(4, 9, 3)
    metric = draw(4, 8, seed=1).square() + 0.1
    found = relax.respaced(points, torch.ones_like(metric))
    assert torch.equal(found[:, [0, -1]], points[:, [0, -1]])
    straight = points[:, :1] + torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] ** 2 * (
        points[:, -1:] - points[:, :1]
    )
    even = relax.respaced(straight, torch.ones_like(metric)).diff(dim=1).norm(dim=2)
    torch.testing.assert_close(even, even.mean(1, keepdim=True).expand_as(even))


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_slopes_go_some_points_at_a_time_and_without_a_turn_in_first_order(size: int) -> None:
    counted, points = Counting(smooth_model((4,))), draw(3, 5, 4)
    target = torch.tensor([0, 2, 1])
    squares, turns = slope_of(counted, (4,), size)(points, target)
    assert counted.largest <= size
    whole = slope_of(counted, (4,))(points, target)
    close(squares, whole[0], 1e-13)
    close(turns, whole[1], 1e-13)
    scorer = scorer_of(counted, target, size)
    first, none = relax.slope_turns(scorer, torch.Size((4,)), points, torch.arange(3), turn=False)
    close(first, squares, 1e-13)
    assert not none.any()


def test_floors_are_a_hundredth_of_the_median_gradient_and_no_less_than_a_share_of_the_largest() -> None:
    norms = torch.tensor(
        [[1.0, 2.0, 3.0], [0.0, 0.0, 1000.0], [0.0, 0.0, 0.0], [math.nan, 4.0, 4.0]], dtype=torch.float64
    )
    wanted = torch.tensor([0.02, 0.1, 1e-12, 0.04], dtype=torch.float64).square()
    close(relax.floors(norms.square()), wanted, 1e-12)


def test_a_gradient_that_stays_is_told_from_one_that_changes() -> None:
    squares = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.1], [5.0, 5.0 + 1e-9, 5.0]])
    assert relax.uneven(squares).tolist() == [False, True, False]


def flat(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient of length 2 everywhere."""
    return torch.full(points.shape[:2], 4.0, dtype=points.dtype), torch.zeros_like(points)


def test_where_the_metric_is_even_a_curve_is_pulled_straight() -> None:
    points = draw(3, 9, 4)
    found, energy, _, converged = relax.relax_curves(flat, points, torch.full((3,), 0.5).double(), range(100))
    ends = points[:, -1] - points[:, 0]
    line = points[:, :1] + torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * ends[:, None]
    close(found, line, 0.05)
    close(energy, 4.5 * ends.square().sum(1) / 2, 2e-3)
    assert converged.all() and torch.equal(found[:, [0, -1]], points[:, [0, -1]])


def test_energies_never_rise_and_no_path_knows_of_another() -> None:
    model, epsilon = smooth_model((3,)), torch.full((4,), 0.01).double()
    points, target = 2 * draw(4, 7, 3), torch.tensor([0, 1, 2, 1])
    whole = relax.relax_curves(slope_of(model, (3,), target=target), points, epsilon, range(30))
    before = relax.curve_energy_and_gradient(slope_of(model, (3,), target=target), points, torch.arange(4), epsilon)[0]
    assert (whole[1] <= before).all()
    for i in range(4):
        own = slope_of(model, (3,), target=target[i : i + 1])
        alone = relax.relax_curves(own, points[i : i + 1], epsilon[:1], range(30))
        for part, all_parts in zip(alone, whole, strict=True):
            close(part.double(), all_parts[i : i + 1].double(), 1e-9)


@pytest.mark.parametrize(("beta", "moves"), [(0.2, False), (0.8, True)])
@pytest.mark.parametrize("free_ends", [False, True])
def test_a_point_leaves_its_place_only_where_the_pull_is_above_one(beta: float, moves: bool, free_ends: bool) -> None:
    """f = x² has ‖∇f‖ = 2 |x|: with 2 β above 1 all points go to 0, else none does; held ends stay."""

    def square(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return 4 * points.square().sum(2), 4 * points

    points = torch.linspace(0.2, 1, 12, dtype=torch.float64).view(1, 12, 1).repeat(2, 1, 1)
    options = {"beta": beta, "sign": 1, "free_ends": free_ends}
    found, energy, iterations, converged = relax.relax_potential(square, points, range(400), **options)
    assert converged.all() and (iterations > 0).all()
    if moves:
        assert found[:, 1:-1].abs().max() < 0.02
        close(energy, 2 * beta * found[:, :, 0].abs().sum(1) + (found - points)[:, :, 0].abs().sum(1), 1e-6)
        assert torch.equal(found[:, [0, -1]], points[:, [0, -1]]), "held, or worth 101 times as much"
    else:
        assert torch.equal(found, points)
