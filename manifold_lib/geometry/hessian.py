"""Preconditioners of the latent curve energy: what its Hessian is for a decoder that is straight between steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.scorer import jvp
from .tangent import Decoder, decoder_jacobian

# With more latents than these a Jacobian at each point, or at a few points, costs more than the passes it saves.
_MOST_FOR_ALL_POINTS, _MOST_FOR_SOME = 16, 128
_LARGEST_HESSIAN = 2048
# Shares of the mean diagonal. Where the metric is a mean over the curve, weak directions are known less well.
_RIDGE, _RIDGE_OF_MEAN = 1e-3, 3e-3
# At most this share of an entry's own: a latent in small units must not be frozen. Below the other it moves nothing.
_MOST_RIDGE, _DEAD = 0.3, 1e-11


class Preconditioner:
    """An approximate inverse Hessian of ½ n Σ ‖g(z_{i+1}) − g(z_i)‖² in the knots of some curves.

    With few latents the Gauss–Newton Hessian, from the Jacobian at each point, worth renewing as the curve moves. With
    more, K ⊗ M: the second difference in time, which makes the number of iterations independent of that of the points,
    and the mean JᵀJ of a few points; with many latents M is its mean stretch, one number.

    Parameters
    ----------
    curves : Tensor
        (b, n + 1, *latent).
    knots : Tensor
        (n + 1, m), how the points follow the knots.
    metric : Tensor, optional
        M as :func:`mean_metric` or :func:`mean_stretch` gives it, where the latents are too many for Gauss–Newton.
    """

    def __init__(self, decoder: Decoder, curves: Tensor, knots: Tensor, metric: Tensor | None = None) -> None:
        # of a curve with two segments a knot every second point will do
        self.decoder, self.every = decoder, slice(None, None, 2 if len(knots) == 2 * knots.shape[1] + 3 else 1)
        self.knots = knots[self.every]
        self.worth_renewing = metric is None
        if metric is None:
            self.factor = gauss_newton(decoder, curves[:, self.every], self.knots)
            return
        difference = self.knots.diff(dim=0)
        self.smoothing = torch.linalg.inv(len(difference) * difference.T @ difference)
        self.factor = metric

    def renew(self, rows: Tensor, curves: Tensor) -> None:
        """Take the Hessian of these rows at where they are now."""
        self.factor[rows] = gauss_newton(self.decoder, curves[:, self.every], self.knots)

    def __call__(self, gradient: Tensor, rows: Tensor) -> Tensor:
        """The preconditioned gradient of these rows: (b, m, K)."""
        if self.worth_renewing:
            return torch.cholesky_solve(gradient.flatten(1)[:, :, None], self.factor[rows]).view_as(gradient)
        smoothed = self.smoothing @ gradient
        if self.factor.ndim == 1:
            return smoothed / self.factor[rows, None, None]
        return torch.cholesky_solve(smoothed.mT, self.factor[rows]).mT


def gauss_newton(decoder: Decoder, curves: Tensor, knots: Tensor) -> Tensor:
    """Cholesky factor of n Σ_i (J_{i+1} δ_{i+1} − J_i δ_i)², block-tridiagonal in the points: (b, m·K, m·K)."""
    n_curves, n_points = curves.shape[:2]
    jacobians = decoder_jacobian(decoder, curves.flatten(0, 1)).unflatten(0, (n_curves, n_points))
    same = torch.einsum("bidk,bidl->bikl", jacobians, jacobians)
    mixed = torch.einsum("bidk,bidl->bikl", jacobians[:, :-1], jacobians[:, 1:])
    twice = torch.cat([same[:, :1], 2 * same[:, 1:-1], same[:, -1:]], 1)
    hessian = torch.einsum("im,ip,bikl->bmkpl", knots, knots, twice)
    across = torch.einsum("im,ip,bikl->bmkpl", knots[:-1], knots[1:], mixed)
    hessian = (n_points - 1) * (hessian - across - across.permute(0, 3, 4, 1, 2))
    return _factor(hessian.flatten(1, 2).flatten(2, 3), _RIDGE)


def mean_metric(decoder: Decoder, curves: Tensor, n_steps: int, *, stretch_only: bool = False) -> Tensor | None:
    """Cholesky factor of the mean JᵀJ at a few points of each curve (b, K, K), or its mean stretch (b,).

    None for so few latents, and segments of the finest curve, that the Jacobians of all points are worth their cost.
    """
    n_latents = curves[0, 0].numel()
    if n_latents <= _MOST_FOR_ALL_POINTS and n_latents * n_steps <= _LARGEST_HESSIAN:
        return None
    if stretch_only or n_latents > _MOST_FOR_SOME:
        return mean_stretch(decoder, curves)
    metric = curves.new_zeros(len(curves), n_latents, n_latents)
    points = _some_points(curves)
    for point in points:
        jacobian = decoder_jacobian(decoder, curves[:, point])
        metric += jacobian.mT @ jacobian / len(points)
    return _factor(metric, _RIDGE_OF_MEAN)


def mean_stretch(decoder: Decoder, curves: Tensor) -> Tensor:
    """The mean of tr JᵀJ / K at a few points of each curve: (b,).

    From one random direction, the same for all curves and points: a curve and its reverse are alike.
    """
    stretch, points = curves.new_zeros(len(curves)), _some_points(curves)
    probe = torch.randn(curves[:1, 0].shape, generator=torch.Generator().manual_seed(0))
    probe = probe.to(curves).expand_as(curves[:, 0])
    for point in points:
        pushed = jvp(decoder, curves[:, point].clone(), probe)[1].flatten(1)
        stretch += pushed.square().sum(1) / (len(points) * probe[0].numel())
    return torch.nan_to_num(stretch).clamp_min(_least(stretch))


def _some_points(curves: Tensor) -> list[int]:
    """Both ends and the middle, or the two points about it: the same from either end."""
    last = curves.shape[1] - 1
    return sorted({0, last // 2, last - last // 2, last})


def _least(values: Tensor) -> float:
    """A floor for squares, whose own root and inverse are ordinary numbers."""
    return torch.finfo(values.dtype).tiny ** 0.5


def _factor(matrices: Tensor, ridge: float) -> Tensor:
    """Cholesky factor with a ridge; a Jacobian that is not finite counts as zero, so that it harms its curve only."""
    matrices = torch.nan_to_num(matrices, posinf=0.0, neginf=0.0)
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True).clamp_min(_least(matrices))
    added = torch.minimum(ridge * mean, _MOST_RIDGE * diagonal).clamp_min(_DEAD * mean)
    return torch.linalg.cholesky(matrices + torch.diag_embed(added))
