"""The solver of geodesics: descent of the energy of many latent curves, preconditioned by an approximate Hessian."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.derivatives import jvp
from .curves import decode_curves
from .tangent import Decoder, decoded, jacobians

# Jacobians along a curve for its Hessian, linear in between: more cost more than the passes they save.
MOST_JACOBIANS = 6


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

    ``iterations`` (b,) counts the passes so far; they go on to ``max_iter`` in total.
    """
    if not knots.shape[1]:
        return base, iterations, torch.ones_like(iterations, dtype=torch.bool)
    offset = base.new_zeros(len(base), knots.shape[1], base[0, 0].numel())
    precondition = Preconditioner(decoder, base, knots, metric)
    energy, gradient = energy_and_gradient(decoder, base, knots, offset)
    iterations = iterations + 1
    direction = -precondition(gradient, slice(None))
    decrement = -_dot(gradient, direction)
    slope, step = -decrement, torch.full_like(energy, first_step)
    renewed, quiet = iterations.clone(), torch.zeros_like(iterations)
    # what is left of the energy of a curve between equal ends is the rounding of its images
    with torch.no_grad():
        size = decode_curves(decoder, base[:, :1]).square().sum((1, 2))
    rounding = (torch.finfo(base.dtype).eps * len(knots)) ** 2 * size
    converged, stuck = decrement <= tolerance * energy + rounding, torch.zeros_like(quiet, dtype=torch.bool)
    damped = stuck.clone()
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
        caught = rejected[step[rejected] < 2.0**-12]  # of the step that the Hessian proposes
        stuck[caught[damped[caught]]] = True
        caught = caught[~damped[caught]]
        if len(caught):  # along a latent that changes no image here, and more than that a little further on
            precondition.damp(caught)
            direction[caught] = -precondition(gradient[caught], caught)
            decrement[caught] = -_dot(gradient[caught], direction[caught])
            slope[caught], step[caught], damped[caught] = -decrement[caught], 1.0, True
        taken = rows[accepted]
        if not len(taken):
            continue
        new_energy, new_gradient, a = new_energy[accepted], new_gradient[accepted], a[accepted]
        along = _dot(new_gradient, direction[taken])
        ahead = slope[taken] / (slope[taken] - along)  # where the slope is zero, in steps
        step[taken] = a * torch.where(along > slope[taken], ahead, 2.0).clamp(0.5, 2.0)
        due = iterations[taken] - renewed[taken] >= 12
        if precondition.worth_renewing and due.any():
            moved = taken[due]
            precondition.factor[moved] = precondition.hessian(_curve(base[moved], knots, trial[accepted][due]))
            renewed[moved] = iterations[moved]
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
    """Energies (b,) and their gradients in the knots (b, m, K): one decode of all points and one backward pass."""
    n_steps = base.shape[1] - 1
    with torch.enable_grad():
        curve = _curve(base, knots, offset).requires_grad_()
        images = decode_curves(decoder, curve)
        steps = images.detach().diff(dim=1)
        # the gradient is −n J(z_i)ᵀ (g(z_{i+1}) − 2 g(z_i) + g(z_{i−1})) (paper 3, eq. 3); zero rows of the knots
        # multiply that of the ends, which do not move
        pull = n_steps * torch.cat([-steps[:, :1], -steps.diff(dim=1), steps[:, -1:]], 1)
        (slopes,) = torch.autograd.grad(images, curve, pull)
    return steps.square().sum((1, 2)) * n_steps / 2, knots.T @ slopes.flatten(2)


def _curve(base: Tensor, knots: Tensor, offset: Tensor) -> Tensor:
    """The points of the curves whose knots have moved; the ends, where ``knots`` is zero, are those of ``base``."""
    return base + (knots @ offset).unflatten(2, base.shape[2:])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


class Preconditioner:
    """An approximate inverse Hessian of ½ n Σ ‖g(z_{i+1}) − g(z_i)‖² in the knots of some curves.

    Without a ``metric`` it is the Gauss–Newton Hessian, from Jacobians along the curve, renewed as the curve moves.
    With one, M, it is K ⊗ M: the second difference in time, K, makes the number of iterations independent of n.
    ``curves`` are (b, n + 1, *latent), ``knots`` (n + 1, m).
    """

    def __init__(self, decoder: Decoder, curves: Tensor, knots: Tensor, metric: Tensor | None) -> None:
        # with two segments of the curve between knots, every second point is enough
        self.decoder, self.every = decoder, slice(None, None, 2 if len(knots) == 2 * knots.shape[1] + 3 else 1)
        self.knots = knots[self.every]
        self.worth_renewing = metric is None
        self.factor = self.hessian(curves) if metric is None else metric
        if metric is not None:
            difference = self.knots.diff(dim=0)
            self.smoothing = torch.linalg.inv(len(difference) * difference.T @ difference)

    def hessian(self, curves: Tensor) -> Tensor:
        """The factor of the Gauss–Newton Hessian where these curves are."""
        return gauss_newton(self.decoder, curves[:, self.every], self.knots)

    def damp(self, rows: Tensor) -> None:
        """Let every latent of these rows resist as the mean one does, also on finer curves, which share the metric."""
        factor = self.factor[rows]
        if factor.ndim > 1:
            matrices = factor @ factor.mT
            mean = matrices.diagonal(dim1=1, dim2=2).mean(1)[:, None].expand(factor.shape[:2])
            self.factor[rows] = torch.linalg.cholesky(matrices + torch.diag_embed(mean))

    def __call__(self, gradient: Tensor, rows: Tensor | slice) -> Tensor:
        """The preconditioned gradient of these rows: (b, m, K)."""
        if self.worth_renewing:
            return torch.cholesky_solve(gradient.flatten(1)[:, :, None], self.factor[rows]).view_as(gradient)
        smoothed = self.smoothing @ gradient
        if self.factor.ndim == 1:
            return smoothed / self.factor[rows, None, None]
        return torch.cholesky_solve(smoothed.mT, self.factor[rows]).mT


def gauss_newton(decoder: Decoder, curves: Tensor, knots: Tensor) -> Tensor:
    """Cholesky factor of n Σ_i (J_{i+1} δ_{i+1} − J_i δ_i)², block-tridiagonal in the points: (b, m·K, m·K)."""
    n_points = curves.shape[1]
    few = _at_times(curves, min(n_points, MOST_JACOBIANS))
    slopes = jacobians(decoder, few.flatten(0, 1)).unflatten(0, few.shape[:2])
    slopes = _at_times(slopes, n_points)
    same = torch.einsum("bidk,bidl->bikl", slopes, slopes)
    mixed = torch.einsum("bidk,bidl->bikl", slopes[:, :-1], slopes[:, 1:])
    twice = torch.cat([same[:, :1], 2 * same[:, 1:-1], same[:, -1:]], 1)
    hessian = torch.einsum("im,ip,bikl->bmkpl", knots, knots, twice)
    across = torch.einsum("im,ip,bikl->bmkpl", knots[:-1], knots[1:], mixed)
    hessian = (n_points - 1) * (hessian - across - across.permute(0, 3, 4, 1, 2))
    return _factor(hessian.flatten(1, 2).flatten(2, 3), 1e-3)


def _at_times(values: Tensor, n_points: int) -> Tensor:
    """Values at equal steps of time (b, T, *), linear in between: (b, n_points, *)."""
    if values.shape[1] == n_points:
        return values
    flat = F.interpolate(values.flatten(2).mT, n_points, mode="linear", align_corners=True)
    return flat.mT.unflatten(2, values.shape[2:])


def mean_metric(decoder: Decoder, curves: Tensor, n_steps: int, *, stretch_only: bool = False) -> Tensor | None:
    """Cholesky factor of the mean JᵀJ at a few points of each curve (b, K, K), its mean stretch (b,), or None.

    None stands for the Gauss–Newton Hessian. With more latents than 16 its Jacobians cost more than the passes they
    save; with more than 128 those at a few points do. ``n_steps`` are the segments of the finest curve.
    """
    n_latents = curves[0, 0].numel()
    if n_latents <= 16 and n_latents * n_steps <= 2048:
        return None
    if stretch_only or n_latents > 128:
        return mean_stretch(decoder, curves)
    metric = curves.new_zeros(len(curves), n_latents, n_latents)
    points = _some_points(curves)
    for point in points:
        jacobian = jacobians(decoder, curves[:, point])
        metric += jacobian.mT @ jacobian / len(points)
    return _factor(metric, 3e-3)  # a mean over the curve knows weak directions less well


def mean_stretch(decoder: Decoder, curves: Tensor) -> Tensor:
    """The mean of tr JᵀJ / K at a few points of each curve, (b,), estimated along one random direction."""
    stretch, points = curves.new_zeros(len(curves)), _some_points(curves)
    # the same direction for all curves and points: a curve and its reverse are alike
    probe = torch.randn(curves[:1, 0].shape, generator=torch.Generator().manual_seed(0))
    probe = probe.to(curves).expand_as(curves[:, 0])
    for point in points:
        pushed = jvp(lambda z: decoded(decoder, z), curves[:, point], probe)[1].flatten(1)
        stretch += pushed.square().sum(1) / (len(points) * probe[0].numel())
    return torch.nan_to_num(stretch).clamp_min(_least(stretch))


def _some_points(curves: Tensor) -> list[int]:
    """The two points nearest to a third of the way from either end: the same from both."""
    last = curves.shape[1] - 1
    return sorted({(last + 1) // 3, last - (last + 1) // 3})


def _least(values: Tensor) -> float:
    """A floor for squares, whose own root and inverse are ordinary numbers."""
    return torch.finfo(values.dtype).tiny ** 0.5


def _factor(matrices: Tensor, ridge: float) -> Tensor:
    """Cholesky factor with a ridge, a share of the mean diagonal; what is not finite counts as zero.

    A latent in small units must still move, so the ridge is at most 0.3 of its diagonal entry; a latent of less than
    1e-11 of the mean diagonal changes nothing.
    """
    matrices = torch.nan_to_num(matrices, posinf=0.0, neginf=0.0)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True).clamp_min(_least(matrices))
    added = torch.minimum(ridge * mean, 0.3 * diagonal).clamp_min(1e-11 * mean)
    return torch.linalg.cholesky(matrices + torch.diag_embed(added))
