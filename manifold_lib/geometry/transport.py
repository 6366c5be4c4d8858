"""Parallel transport along curves of latents, in the metric of a decoder."""

import torch
from torch import Tensor

from ..core.checks import check_count, check_like, check_precise, require
from ..core.derivatives import check_decoder
from .curves import check_curves, spline_points
from .tangent import Decoder, jacobians

# Segments on which a curve is seen at least; the error falls with their square.
_LEAST_STEPS = 256


def parallel_transport(
    decoder: Decoder,
    curve: Tensor,
    vectors: Tensor,
    *,
    n_steps: int | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Vectors at the start of each curve, carried to its end without turning in the surface: (B, *latent).

    From each point to the next, the tangent vector is projected onto the next tangent space of the decoded manifold.
    Of the projection the orthogonal part is taken, so that lengths and angles in the metric are kept exactly.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape).
    curve : Tensor
        (B, T, *latent), T of at least 2, points of a smooth curve at equal steps of time. Between them it is a cubic
        spline.
    vectors : Tensor
        (B, *latent), latent velocities at ``curve[:, 0]``; what expands to that, too.
    n_steps : int, optional
        Segments, by default T − 1, but 256 at least.
    internal_batch_size : int, optional
        As for :func:`decoder_jacobian`.

    Raises
    ------
    ValueError
        As for :func:`decoder_jacobian`; for what is no batch of curves, and for half precision.

    Examples
    --------
    Around the pole of a sphere at 60 degrees from it, a vector comes back turned by half a turn:

    >>> import math, torch, manifold_lib as ml
    >>> def sphere(z):
    ...     ring = z[:, 0].sin()
    ...     return torch.stack([ring * z[:, 1].cos(), ring * z[:, 1].sin(), z[:, 0].cos()], 1)
    >>> around = torch.linspace(0, 2 * math.pi, 65, dtype=torch.float64)
    >>> curve = torch.stack([torch.full_like(around, math.pi / 3), around], 1)[None]
    >>> south = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    >>> ml.parallel_transport(sphere, curve, south).round(decimals=2)[0, 0].item()
    -1.0
    """
    check_curves(curve, "curve")
    check_precise(curve, "curve")
    vectors = check_like(vectors, curve[:, 0], "vectors", "the points of the curve")
    n_points = max(curve.shape[1] - 1, _LEAST_STEPS) if n_steps is None else check_count(n_steps, "n_steps")
    check_decoder(decoder, curve[:, 0], size=internal_batch_size)
    with torch.inference_mode(False), torch.no_grad():
        curve = curve.detach().clone()
        times = torch.linspace(0, 1, n_points + 1, dtype=curve.dtype, device=curve.device)
        points = spline_points(curve, times.expand(len(curve), -1))
        points[:, 0], points[:, -1] = curve[:, 0], curve[:, -1]
        before, inside, largest = None, vectors, torch.zeros_like(vectors.flatten(1)[:, :1])
        for place in points.unbind(1):
            slopes = jacobians(decoder, place, internal_batch_size)
            finite = torch.isfinite(slopes).flatten(1).all(1)
            require(finite.all(), "decoder", "NaN or infinity along the curve", "a smooth decoder where it leads")
            # J = Q Σ Wᵀ; where a singular value is zero, a column of Q says nothing
            q, values, w = torch.linalg.svd(slopes, full_matrices=False)
            largest = torch.maximum(largest, values[:, :1])
            known = values > max(1e-6, 32 * torch.finfo(curve.dtype).eps) * largest
            q = q * known[:, None, :]
            if before is None:
                inside = values * torch.einsum("bkl,bl->bk", w, vectors.flatten(1))
            else:
                u, _, v = torch.linalg.svd(q.mT @ before)
                inside = torch.einsum("bkl,blm,bm->bk", u, v, inside)  # the rotation next to the projection
            before = q
        inside = torch.where(known, inside / values.where(known, 1), 0)
        return torch.einsum("bkl,bk->bl", w, inside).view_as(vectors)
