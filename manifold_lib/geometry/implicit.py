"""How a geodesic moves with its ends: the derivative of a curve of least energy, by the implicit function theorem.

At the minimum the slope of the energy in the inner points z is zero, ∂E/∂z(z, ends) = 0, so that
dz / d(ends) = −H⁻¹ ∂²E / ∂z ∂(ends) with the Hessian H = ∂²E/∂z². Backwards this is one linear system in H.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .curves import curves_at_once, decode_curves, knot_basis, spline_points
from .solver import Preconditioner, mean_metric
from .tangent import Decoder

# The residual of the linear system at which it is solved, relative, and the most iterations.
TOLERANCE, MOST = 1e-5, 60


def follow_ends(decoder: Decoder, points: Tensor, start: Tensor, end: Tensor, n_seen: int) -> Tensor:
    """The points of solved geodesics, with a graph that leads to their ends.

    ``points`` (B, T, *latent) are those that :func:`manifold_lib.geodesic` found between ``start`` and ``end``
    (B, *latent), by the energy of ``n_seen`` segments. The derivative is that of the minimum near ``points`` with every
    point free, exact as far as they have converged. It is derived once, not twice.
    """
    return _Follow.apply(points, start, end, decoder, n_seen)


class _Follow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, start: Tensor, end: Tensor, decoder: Decoder, n_seen: int) -> Tensor:
        ctx.save_for_backward(points)
        ctx.decoder, ctx.n_seen = decoder, n_seen
        return points.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        (points,) = ctx.saved_tensors
        size = curves_at_once(ctx.n_seen + 1, points, None)
        parts = zip(points.split(size), pull.split(size), strict=True)
        ends = torch.cat([_pulled_to_ends(ctx.decoder, *part, ctx.n_seen) for part in parts])
        return None, ends[:, 0], ends[:, 1], None, None


def _pulled_to_ends(decoder: Decoder, points: Tensor, pull: Tensor, n_seen: int) -> Tensor:
    """The gradient of Σ pull · points in both ends: (b, T, *latent) twice -> (b, 2, *latent)."""
    n_steps, shape = points.shape[1] - 1, points.shape[2:]
    times = torch.linspace(0, 1, n_seen + 1, dtype=points.dtype, device=points.device).expand(len(points), -1)
    with torch.enable_grad():
        flat = points.flatten(2).clone().requires_grad_()
        curve = spline_points(flat, times).unflatten(2, shape)
        energy = decode_curves(decoder, curve).diff(dim=1).square().sum() * n_seen / 2
        (slope,) = torch.autograd.grad(energy, flat, create_graph=True)

    def curvature(inner: Tensor) -> Tensor:
        """∂²E/∂z∂(all points), times a change of the inner points."""
        return torch.autograd.grad(slope, flat, F.pad(inner, (0, 0, 1, 1)), retain_graph=True)[0]

    curve, knots = curve.detach(), knot_basis(n_seen, n_steps - 1, points)
    precondition = Preconditioner(decoder, curve, knots, mean_metric(decoder, curve, n_steps))
    pull = pull.flatten(2)
    inner = _solve(curvature, precondition, pull[:, 1:-1])
    return (pull - curvature(inner))[:, [0, -1]].unflatten(2, shape)


def _solve(curvature: Callable[[Tensor], Tensor], precondition: Preconditioner, wanted: Tensor) -> Tensor:
    """H⁻¹ ``wanted`` by preconditioned conjugate gradients, all curves at once: (b, m, K) -> (b, m, K).

    A curve stops at the tolerance, after ``MOST`` iterations, or where H bends downwards, as it may where the geodesic
    has not converged.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2), keepdim=True)

    found, rest = torch.zeros_like(wanted), wanted.clone()
    pulled = precondition(rest, slice(None))
    direction, size = pulled, dot(rest, pulled)
    goal = TOLERANCE**2 * size
    for _ in range(MOST):
        bent = curvature(direction)[:, 1:-1]
        along = dot(direction, bent)
        going = (size > goal) & (along > 0)
        if not going.any():
            break
        step = torch.where(going, size / along, 0.0)
        found, rest = found + step * direction, rest - step * bent
        pulled = precondition(rest, slice(None))
        new = dot(rest, pulled)
        direction = torch.where(going, pulled + new / size * direction, direction)
        size = torch.where(going, new, size)
    return found
