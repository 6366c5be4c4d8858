"""Geodesics of the pullback metric JᵀJ of a decoder: batched curves of least energy between latents.

The energy of a discrete curve needs one decode of its points, and its gradient one backward pass; the metric itself
is never integrated. The solver is preconditioned (:mod:`manifold_lib.geometry.solver`), so that the number of
iterations depends neither on the number of points nor on the scale of the latents, and a linear decoder needs none.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_like, check_positive
from ..core.modules import check_mode
from ..core.progress import progress_bar
from .curves import (
    curve_energy,
    curves_at_once,
    decoded_steps,
    in_parts,
    knot_basis,
    line_between,
    of_less_energy,
    resample,
    resample_once,
)
from .solver import descend, mean_metric, mean_stretch
from .tangent import Decoder

# Segments of the coarsest curve. Fewer bend too little to be worth a level of their own.
COARSEST = 4


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

    Never of more energy than the straight line. Curves that have not converged are counted in one warning.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape); its Jacobian gives the metric JᵀJ. Other metrics are other maps: stack the
        decoder and a multiple of the classifier's scores to count the classifier in.
    start, end : Tensor
        (B, *latent), the ends, kept exactly. ``end`` may also be (1, *latent) or a number.
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
    progress : bool
        Show a bar over the curves.

    Raises
    ------
    ValueError
        For bad input, half precision, a decoder in train mode, without a derivative, or whose images of the straight
        line are not finite.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> sphere = lambda z: torch.stack([z[:, 0].sin() * z[:, 1].cos(), z[:, 0].sin() * z[:, 1].sin(), z[:, 0].cos()], 1)
    >>> ml.geodesic(sphere, torch.tensor([[0.5, 0.0]]), torch.tensor([[0.7, 2.2]]), n_steps=32).length.round(decimals=3)
    tensor([1.0590])
    """
    check_batch(start, "start")
    if start.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"start: got {start.dtype}, wants float32 or float64, in which the steps of a curve are told")
    end = check_like(end, start, "end", "start")
    check_count(n_steps, "n_steps")
    check_count(max_iter, "max_iter", least=0)
    check_positive(tolerance, "tolerance")
    if n_knots is not None:
        check_count(n_knots, "n_knots")
    check_mode(decoder)
    with torch.inference_mode(False):
        # copies, since tensors made in inference mode take part in no graph
        start, end = start.detach().clone(), end.detach().clone()
        size = curves_at_once(_n_seen(n_steps) + 1, start, internal_batch_size)
        decode = in_parts(decoder, internal_batch_size)
        bar = progress_bar(range(0, len(start), size), show=progress, desc="geodesic")
        found = [
            _solve(decode, start[i : i + size], end[i : i + size], n_steps, max_iter, tolerance, n_knots) for i in bar
        ]
        points, iterations, converged = (torch.cat(part) for part in zip(*found, strict=True))
        steps = decoded_steps(decode, points)
    if not converged.all() and max_iter:
        n_open = int((~converged).sum())
        message = f"geodesic: {n_open} of {len(converged)} curves had not converged after {max_iter} iterations"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return Geodesic(points, steps.square().sum(1) * n_steps / 2, steps.sum(1), iterations, converged)


def _n_seen(n_steps: int) -> int:
    """Segments on which the energy of a curve is taken."""
    return 2 * n_steps if n_steps < 32 else n_steps


def _solve(
    decoder: Decoder, start: Tensor, end: Tensor, n_steps: int, max_iter: int, tolerance: float, n_knots: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, iterations and convergence of a few curves."""
    line = line_between(start, end, n_steps)
    bad = ~torch.isfinite(curve_energy(decoder, line))
    if bad.any():
        rows = bad.nonzero().flatten().tolist()[:8]
        raise ValueError(f"decoder: got NaN or infinity on the straight line of curves {rows}, wants finite images")
    iterations = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    if not max_iter:
        return line, iterations, torch.zeros_like(iterations, dtype=torch.bool)
    metric, knots = mean_stretch(decoder, line), knot_basis(n_steps, n_knots, line)
    if max_iter < 2 * COARSEST:  # too few passes for levels and Jacobians
        # without Jacobians the full first step raised the energy of every pair of latents that we tried, a tenth of it
        # that of few
        return descend(decoder, line, knots, max_iter, tolerance, iterations, metric, 1 / 16)
    # one pass, with a strict tolerance, finds the curves that are geodesics from the start
    points, iterations, converged = descend(decoder, line, knots, 1, 1e-3 * tolerance, iterations, metric)
    rows = (~converged).nonzero().squeeze(1)
    if len(rows):
        bent = _by_levels(decoder, start[rows], end[rows], n_steps, max_iter, tolerance, n_knots, iterations[rows])
        points[rows], iterations[rows], converged[rows] = bent
    return points, iterations, converged


def _by_levels(
    decoder: Decoder,
    start: Tensor,
    end: Tensor,
    n_steps: int,
    max_iter: int,
    tolerance: float,
    n_knots: int | None,
    iterations: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, iterations and convergence, coarse to fine."""
    line = points = line_between(start, end, n_steps)
    levels = [n_steps]
    while levels[0] >= 2 * COARSEST and 3 * len(levels) < max_iter:
        levels.insert(0, levels[0] // 2)
    metric, converged = None, None
    for index, level in enumerate(levels):
        straight = line_between(start, end, _n_seen(level))
        if index:
            points = of_less_energy(decoder, resample_once(decoder, points, _n_seen(level)), straight)
        else:
            points = straight
        if index <= 1:
            # the metric along a coarse solution is nearer to that of the geodesic than along the straight line
            metric = mean_metric(decoder, points, n_steps, stretch_only=index == 0 and len(levels) > 1)
        last = level == n_steps
        # coarse curves, whose passes are cheap, get most of them: level l of L ends at the share √(l / L)
        budget = max_iter if last else int(max_iter * ((index + 1) / len(levels)) ** 0.5)
        knots = knot_basis(_n_seen(level), level - 1 if n_knots is None else n_knots, points)
        goal = tolerance if last else 10 * tolerance
        points, iterations, converged = descend(decoder, points, knots, budget, goal, iterations, metric)
    assert converged is not None
    every = (points.shape[1] - 1) // n_steps
    points = of_less_energy(decoder, resample(decoder, points, n_steps), points[:, ::every])
    return of_less_energy(decoder, points, line), iterations, converged
