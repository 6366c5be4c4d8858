"""Descent of paths in input space under the metric of the model: all images in lock-step, each on its own."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..core.scorer import Scorer
from .path import column, even_times, polyline
from .quadrature import rule

# slope(points, rows): ‖∇f‖² and ∇²f ∇f at points of the paths of those rows
Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# points (B, T, D), energies (B,), iterations (B,), whether it converged (B,)
Relaxed = tuple[Tensor, Tensor, Tensor, Tensor]


def slope_turns(
    scorer: Scorer, shape: torch.Size, points: Tensor, rows: Tensor, *, turn: bool = True
) -> tuple[Tensor, Tensor]:
    """‖∇f‖² and half its derivative ∇²f ∇f (zeros without ``turn``) on some paths: (n, T, D) -> (n, T), (n, T, D)."""
    flat, owners = points.flatten(0, 1).unflatten(1, shape), rows.repeat_interleave(points.shape[1])
    squares, turns = [], []
    for part, own in zip(flat.split(scorer.size), owners.split(scorer.size), strict=True):
        part = part.detach().requires_grad_()
        with torch.enable_grad():
            gradient = scorer.gradient(part, own, create_graph=turn)
            square, derivative = gradient.flatten(1).square().sum(1), None
            if turn and gradient.requires_grad:  # else the score is linear
                (derivative,) = torch.autograd.grad(square.sum() / 2, part, allow_unused=True)
        squares.append(square.detach())
        turns.append(torch.zeros_like(part) if derivative is None else derivative)
    return torch.cat(squares).view(points.shape[:2]), torch.cat(turns).reshape(points.shape)


def floors(squares: Tensor) -> Tensor:
    """ε of each path from ‖∇f‖²: (0.01 · median ‖∇f‖)², at least (0.0001 · max ‖∇f‖)²: (B, T) -> (B,)."""
    norms = squares.sqrt().nan_to_num(nan=0.0, posinf=0.0)
    least = (1e-4 * norms.amax(1)).clamp_min(1e-12)
    return torch.maximum(0.01 * norms.median(1).values, least).square()


def uneven(squares: Tensor) -> Tensor:
    """Whether ‖∇f‖ changes along each path: (B,)."""
    return ((squares - squares[:, :1]).abs() > 1e-4 * squares.amax(1, keepdim=True)).any(1)


def relax_curves(slope: Slope, points: Tensor, epsilon: Tensor, passes: Iterable[int]) -> Relaxed:
    """Minimise the energy ½ n Σ_i c_i ‖Δγ_i‖² of each path, c_i the mean of ‖∇f‖² + ε on its segment; the ends stay.

    Newton steps for the stiffness n Dᵀ diag(c) D of a string. A path whose energy does not fall tries a smaller step in
    the next pass. Every fifth pass spreads the points so that c_i ‖Δγ_i‖² is even. A path has converged when a Newton
    step, or ten passes (at a kink of the gradient), would lower its energy by less than a thousandth.
    """
    points, n = points.clone(), points.shape[1] - 1
    everything = torch.arange(len(points), device=points.device)
    energy, gradient, metric = curve_energy_and_gradient(slope, points, everything, epsilon)
    step, iterations = torch.ones_like(energy), torch.zeros(len(points), dtype=torch.int64, device=points.device)
    flat, lost = torch.zeros_like(iterations, dtype=torch.bool), ~torch.isfinite(energy)
    earlier, quiet = energy.clone(), torch.zeros_like(iterations)
    difference = torch.eye(n + 1, dtype=points.dtype, device=points.device).diff(dim=0)[:, 1:-1]
    for iteration in passes:
        rows = (~flat & ~lost & (quiet < 10)).nonzero().squeeze(1)
        if not len(rows) or n < 2:
            break
        spread = iteration % 5 == 4
        if spread:
            trial, least_fall = respaced(points[rows], metric[rows]), torch.zeros_like(energy[rows])
        else:
            # a flat segment counts as at least a tenth of the mean, or its points would jump
            stiff = torch.maximum(metric[rows], 0.1 * metric[rows].mean(1, keepdim=True))
            stiffness = n * torch.einsum("is,bi,it->bst", difference, stiff, difference)
            direction = -torch.linalg.solve(stiffness, gradient[rows, 1:-1])
            fall = -(gradient[rows, 1:-1] * direction).sum((1, 2))
            flat[rows] = fall <= 1e-3 * energy[rows]
            trial, least_fall = points[rows], 1e-4 * step[rows] * fall
            trial[:, 1:-1] += column(step[rows], direction) * direction
        new_energy, new_gradient, new_metric = curve_energy_and_gradient(slope, trial, rows, epsilon[rows])
        better = new_energy < energy[rows] - least_fall
        if not spread:
            step[rows] = torch.where(better, 1.5 * step[rows], 0.4 * step[rows]).clamp(2.0**-10, 1)
        taken = rows[better]
        points[taken], energy[taken] = trial[better], new_energy[better]
        gradient[taken], metric[taken] = new_gradient[better], new_metric[better]
        fell = energy[rows] < (1 - 1e-3) * earlier[rows]
        earlier[rows[fell]] = energy[rows[fell]]
        quiet[rows] = torch.where(fell, 0, quiet[rows] + 1)
        iterations[rows] += 1
    return points, energy, iterations, flat | (quiet >= 10) | (n < 2)


def curve_energy_and_gradient(
    slope: Slope, points: Tensor, rows: Tensor, epsilon: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies (B,), their gradients in the points (B, T, D), and the mean metric of each segment (B, T − 1)."""
    n = points.shape[1] - 1
    # with one node, a long segment would jump over a steep place unseen
    times, weights = rule("gausslegendre", 2, points)
    chords = points.diff(dim=1)
    inner = points[:, :-1, None] + times[:, None] * chords[:, :, None]
    squares, turns = slope(inner.flatten(1, 2), rows)
    squares, turns = squares.unflatten(1, (n, 2)), turns.unflatten(1, (n, 2))
    metric = squares @ weights + epsilon[:, None]
    lengths = chords.square().sum(2)
    pull = n * metric[:, :, None] * chords
    push = n * lengths[:, :, None, None] * weights[:, None] * turns
    gradient = torch.zeros_like(points)
    gradient[:, :-1] += (push * (1 - times[:, None])).sum(2) - pull
    gradient[:, 1:] += (push * times[:, None]).sum(2) + pull
    return (metric * lengths).sum(1) * n / 2, gradient, metric


def respaced(points: Tensor, metric: Tensor) -> Tensor:
    """Points of the same polylines whose segments are equally long under the metric that each segment had."""
    costs = metric.sqrt() * points.diff(dim=1).norm(dim=2)
    size, n_points = points.shape[:2]
    equal = torch.linspace(0, 1, n_points, dtype=points.dtype, device=points.device).expand(size, -1)
    times = even_times(equal, costs, n_points - 1)
    rows = torch.arange(size, device=points.device).repeat_interleave(n_points)
    found = polyline(points).at(rows, times.flatten()).view_as(points)
    found[:, 0], found[:, -1] = points[:, 0], points[:, -1]
    return found


def relax_potential(
    slope: Slope, points: Tensor, passes: Iterable[int], *, beta: float, sign: int, free_ends: bool
) -> Relaxed:
    """Minimise Σ_i ‖γ_i − γ⁰_i‖ + sign · β ‖∇f(γ_i)‖ of each path from its start γ⁰, by Adam (paper 4, section 3.2, 7).

    With free ends, as published, 100 Σ ‖γ_i − γ⁰_i‖ over the first and last tenth of the points is added. Each point
    moves on its own, and its best place is kept. A path has converged when 25 passes lowered its energy by less than a
    10,000th.
    """
    first, points = points, points.clone()
    pull = torch.ones_like(points[0, :, 0])
    if free_ends:
        n_held = max(len(pull) // 10, 1)
        pull[:n_held] += 100
        pull[-n_held:] += 100
    squares, turns = slope(points, torch.arange(len(points), device=points.device))
    best, best_energy = points.clone(), sign * beta * squares.sqrt()
    earlier, quiet = best_energy.sum(1), torch.zeros(len(points), dtype=torch.int64, device=points.device)
    iterations = quiet.clone()
    optimizer = torch.optim.Adam([points], lr=0.01)
    tiny = torch.finfo(points.dtype).tiny
    for _ in passes:
        rows = ((quiet < 25) & torch.isfinite(earlier)).nonzero().squeeze(1)
        if not len(rows):
            break
        offset = points[rows] - first[rows]
        distances, norms = offset.norm(dim=2), squares[rows].sqrt()
        gradient = (pull / distances.clamp_min(tiny))[:, :, None] * offset
        gradient += sign * beta * turns[rows] / norms.clamp_min(tiny)[:, :, None]
        if not free_ends:
            gradient[:, [0, -1]] = 0
        points.grad = torch.zeros_like(points).index_copy(0, rows, gradient)
        optimizer.step()  # paths that have converged drift on, unread
        squares[rows], turns[rows] = slope(points[rows], rows)
        energy = pull * (points[rows] - first[rows]).norm(dim=2) + sign * beta * squares[rows].sqrt()
        better = energy < best_energy[rows]
        best[rows] = torch.where(better[:, :, None], points[rows], best[rows])
        best_energy[rows] = torch.where(better, energy, best_energy[rows])
        total = best_energy[rows].sum(1)
        progress = earlier[rows] - total > 1e-4 * total.abs()
        earlier[rows] = torch.where(progress, total, earlier[rows])
        quiet[rows] = torch.where(progress, 0, quiet[rows] + 1)
        iterations[rows] += 1
    return best, best_energy.sum(1), iterations, quiet >= 25
