"""Geodesics of the pullback metric JᵀJ of a decoder: batched curves of least energy between latents.

The energy of a discrete curve needs one decode of its points, and its gradient one backward pass; the metric itself
is never integrated. The descent is preconditioned (:mod:`manifold_lib.hessian`), so that the number of iterations
depends neither on the number of points nor on the scale of the latents, and a linear decoder needs none.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from . import runtime
from .checks import check_batch, check_count, check_like, check_positive
from .curves import (
    curve_energy,
    curves_at_once,
    decode_curves,
    decoded_steps,
    knot_basis,
    line_between,
    of_less_energy,
    resample,
)
from .hessian import Preconditioner, mean_metric, mean_stretch
from .tangent import Decoder, check_mode

_COARSEST = 4
_RENEWAL = 12  # iterations after which the Hessian is taken anew
_SMALLEST_STEP = 2.0**-12
# The images of a coarser curve can jump over what lies between them: its energy is taken on twice the points.
_FINE = 32
_COARSE_SHARE = 0.5  # level l of L ends at the share (l / L)^0.5 of the passes: coarse curves leave little to do
# Without Jacobians the full step raised the energy of every pair of latents we tried, a tenth of it that of few.
_CAREFUL = 1 / 16


class Geodesic(NamedTuple):
    """Curves of least energy.

    points : (B, T, *latent), T = n_steps + 1, at constant decoded speed as far as it has converged.
    energy : (B,), ½ n Σ ‖g(z_{i+1}) − g(z_i)‖².
    length : (B,), Σ ‖g(z_{i+1}) − g(z_i)‖.
    iterations : (B,) int64, passes through the decoder and back, those on coarser curves included.
    converged : (B,) bool.
    """

    points: Tensor
    energy: Tensor
    length: Tensor
    iterations: Tensor
    converged: Tensor


def geodesic(
    decoder: Decoder,
    start: Tensor,
    end: Tensor,
    *,
    n_steps: int = 16,
    max_iter: int = 40,
    tolerance: float = 1e-4,
    n_knots: int | None = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> Geodesic:
    """Curves of least energy between latents, solved coarse to fine, all in lock-step (paper 3, eq. 1 and 2).

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape); its Jacobian gives the metric JᵀJ. Other metrics are other maps: stack the
        decoder and a multiple of the classifier's scores to count the classifier in.
    start, end : Tensor
        (B, *latent), the ends, kept exactly.
    n_steps : int
        Segments of the curve. Below 32 the energy is taken on twice as many, since the images of a coarse curve can
        jump over what lies between them.
    max_iter : int
        Passes through the decoder and back, over all levels. 0 gives the straight line.
    tolerance : float
        A curve stops when the energy that the model of the preconditioner promises to save, or each of its last three
        savings, is below this share of the energy.
    n_knots : int, optional
        A cubic spline with this many inner knots instead of a curve whose every point moves.
    internal_batch_size : int, optional
        Images decoded at once.

    Returns
    -------
    Geodesic
        Never of more energy than the straight line.
    """
    check_batch(start, "start")
    check_like(end, start, "end", "start")
    check_count(n_steps, "n_steps")
    check_count(max_iter, "max_iter", least=0)
    check_positive(tolerance, "tolerance")
    if n_knots is not None:
        check_count(n_knots, "n_knots")
    check_mode(decoder)
    start, end = start.detach(), end.detach()
    size = curves_at_once(line_between(start[:1], end[:1], n_steps), internal_batch_size)
    bar = runtime.progress_bar(range(0, len(start), size), show=progress, desc="geodesic")
    found = [
        _solve(decoder, start[i : i + size], end[i : i + size], n_steps, max_iter, tolerance, n_knots) for i in bar
    ]
    points, iterations, converged = (torch.cat(part) for part in zip(*found, strict=True))
    if not converged.all() and max_iter:
        n_open = int((~converged).sum())
        message = f"geodesic: {n_open} of {len(converged)} curves had not converged after {max_iter} iterations"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    steps = decoded_steps(decoder, points, internal_batch_size)
    return Geodesic(points, steps.square().sum(1) * n_steps / 2, steps.sum(1), iterations, converged)


def _solve(
    decoder: Decoder, start: Tensor, end: Tensor, n_steps: int, max_iter: int, tolerance: float, n_knots: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, iterations and convergence of a few curves, level by level."""
    line = line_between(start, end, n_steps)
    _check_finite(decoder, line)
    iterations = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    if not max_iter:
        return line, iterations, torch.zeros_like(iterations, dtype=torch.bool)
    if max_iter < 2 * _COARSEST:  # so few passes pay neither for levels nor for Jacobians
        metric, knots = mean_stretch(decoder, line), knot_basis(n_steps, n_knots, line)
        return _descend(decoder, line, knots, max_iter, tolerance, iterations, metric, _CAREFUL)
    levels = [n_steps]
    while levels[0] >= 2 * _COARSEST:
        levels.insert(0, levels[0] // 2)
    points, metric, converged = line, None, None
    for index, level in enumerate(levels):
        n_seen = 2 * level if level < _FINE else level
        straight = line_between(start, end, n_seen)
        points = straight if index == 0 else of_less_energy(decoder, resample(decoder, points, n_seen), straight)
        if index <= 1:
            # a coarse solution says more of the metric on the way than the straight line does
            metric = mean_metric(decoder, points, stretch_only=index == 0 and len(levels) > 1)
        last = level == n_steps
        budget = max_iter if last else int(max_iter * ((index + 1) / len(levels)) ** _COARSE_SHARE)
        knots = knot_basis(n_seen, level - 1 if n_knots is None else n_knots, points)
        goal = tolerance if last else 10 * tolerance
        points, iterations, converged = _descend(decoder, points, knots, budget, goal, iterations, metric)
    assert converged is not None
    points = of_less_energy(decoder, resample(decoder, points, n_steps), points[:, :: points.shape[1] // n_steps])
    return of_less_energy(decoder, points, line), iterations, converged


def _descend(
    decoder: Decoder,
    base: Tensor,
    knots: Tensor,
    max_iter: int,
    tolerance: float,
    iterations: Tensor,
    metric: Tensor | None,
    first_step: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Preconditioned conjugate gradients on the energy; a rejected curve retries a smaller step in the next pass.

    ``max_iter`` bounds the total that ``iterations`` begins with.
    """
    n_curves, m = len(base), knots.shape[1]
    iterations = iterations.clone()
    offset = base.new_zeros(n_curves, m, base[0, 0].numel())
    if not m or not max_iter:
        return base, iterations, torch.full((n_curves,), not m, device=base.device)
    precondition = Preconditioner(decoder, base, knots, metric)
    everything = torch.arange(n_curves, device=base.device)
    energy, gradient = _energy_and_gradient(decoder, base, knots, offset)
    iterations += 1
    direction = -precondition(gradient, everything)
    decrement = -_dot(gradient, direction)
    slope, step = -decrement, torch.full_like(energy, first_step)
    renewal = iterations + _RENEWAL
    quiet = torch.zeros_like(iterations)
    # of a curve that goes nowhere, only the rounding of its images is left
    with torch.no_grad():
        size = decode_curves(decoder, base[:, :1]).square().sum((1, 2))
    rounding = (torch.finfo(base.dtype).eps * len(knots)) ** 2 * size
    converged, stuck = decrement <= tolerance * energy + rounding, torch.zeros_like(quiet, dtype=torch.bool)
    while True:
        rows = (~converged & ~stuck & (iterations < max_iter)).nonzero().squeeze(1)
        if not len(rows):
            return _curve(base, knots, offset), iterations, converged
        a, slope_here = step[rows], slope[rows]
        trial = offset[rows] + a[:, None, None] * direction[rows]
        new_energy, new_gradient = _energy_and_gradient(decoder, base[rows], knots, trial)
        iterations[rows] += 1
        accepted = new_energy <= energy[rows] + 1e-4 * a * slope_here
        rejected = rows[~accepted]
        # the minimum of the parabola through what is known
        fitted = -slope_here * a**2 / (2 * (new_energy - energy[rows] - slope_here * a))
        smaller = torch.nan_to_num(fitted, nan=0.0).clamp(0.1 * a, 0.5 * a)
        step[rejected] = smaller[~accepted]
        stuck[rejected] = step[rejected] < _SMALLEST_STEP
        taken = rows[accepted]
        if not len(taken):
            continue
        new_energy, new_gradient, a = new_energy[accepted], new_gradient[accepted], a[accepted]
        along = _dot(new_gradient, direction[taken])
        ahead = slope[taken] / (slope[taken] - along)  # where the slope vanishes, in steps
        step[taken] = a * torch.where(along > slope[taken], ahead, 2.0).clamp(0.5, 2.0)
        due = (iterations[taken] >= renewal[taken]).nonzero().squeeze(1)
        if precondition.worth_renewing and len(due):
            precondition.renew(taken[due], _curve(base[taken[due]], knots, trial[accepted][due]))
            renewal[taken[due]] = iterations[taken[due]] + _RENEWAL
        pulled = precondition(new_gradient, taken)
        conjugate = (_dot(new_gradient, pulled) - _dot(gradient[taken], pulled)) / decrement[taken]
        towards = -pulled + conjugate.clamp_min(0)[:, None, None] * direction[taken]
        downhill = _dot(new_gradient, towards)
        decrement[taken] = _dot(new_gradient, pulled)
        restart = downhill > -0.1 * decrement[taken]
        direction[taken] = torch.where(restart[:, None, None], -pulled, towards)
        slope[taken] = torch.where(restart, -decrement[taken], downhill)
        quiet[taken] = torch.where(energy[taken] - new_energy < tolerance * energy[taken], quiet[taken] + 1, 0)
        offset[taken], energy[taken], gradient[taken] = trial[accepted], new_energy, new_gradient
        converged[taken] = (decrement[taken] <= tolerance * new_energy + rounding[taken]) | (quiet[taken] >= 3)


def _energy_and_gradient(decoder: Decoder, base: Tensor, knots: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (b,) and their gradients in the knots (b, m, K): one decode of all points and one backward pass.

    The gradient at a point is −n J(z_i)ᵀ (g(z_{i+1}) − 2 g(z_i) + g(z_{i−1})) (paper 3, eq. 3).
    """
    n_steps = base.shape[1] - 1
    with torch.enable_grad():
        curve = _curve(base, knots, offset).requires_grad_()
        images = decode_curves(decoder, curve)
        steps = images.detach().diff(dim=1)
        # ends do not move: what reaches them is multiplied by the zero rows of the knots
        pull = n_steps * torch.cat([-steps[:, :1], -steps.diff(dim=1), steps[:, -1:]], 1)
        (slopes,) = torch.autograd.grad(images, curve, pull)
    return steps.square().sum((1, 2)) * n_steps / 2, knots.T @ slopes.flatten(2)


def _curve(base: Tensor, knots: Tensor, offset: Tensor) -> Tensor:
    """The points of the curves whose knots have moved; the ends, where ``knots`` is zero, are those of ``base``."""
    return base + (knots @ offset).unflatten(2, base.shape[2:])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _check_finite(decoder: Decoder, points: Tensor) -> None:
    bad = ~torch.isfinite(curve_energy(decoder, points))
    if bad.any():
        raise ValueError(
            f"decoder: got NaN or infinity on the straight line of curves {bad.nonzero().flatten().tolist()[:8]}, "
            "wants finite images"
        )
