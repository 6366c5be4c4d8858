"""Preconditioned descent of the energy of latent curves, all in lock-step."""

from __future__ import annotations

import torch
from torch import Tensor

from .curves import decode_curves
from .hessian import Preconditioner
from .tangent import Decoder

_RENEWAL = 12  # iterations after which the Hessian is taken anew
_SMALLEST_STEP = 2.0**-12


def descend(
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
    energy, gradient = energy_and_gradient(decoder, base, knots, offset)
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
        new_energy, new_gradient = energy_and_gradient(decoder, base[rows], knots, trial)
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


def energy_and_gradient(decoder: Decoder, base: Tensor, knots: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Energies (b,) and their gradients in the knots (b, m, K): one decode of all points and one backward pass.

    The gradient at a point is −n J(z_i)ᵀ (g(z_{i+1}) − 2 g(z_i) + g(z_{i−1})) (paper 3, eq. 3).
    """
    n_steps = base.shape[1] - 1
    with torch.enable_grad():
        curve = _curve(base, knots, offset).requires_grad_()
        images = decode_curves(decoder, curve)
        if not images.requires_grad:
            raise ValueError("decoder: its output does not depend on the latents differentiably")
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
