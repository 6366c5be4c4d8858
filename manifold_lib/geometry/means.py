"""Means on a decoder's manifold: the latent from which the squared geodesic distances to others are least."""

import warnings

import torch
from torch import Tensor

from ..core.checks import AttributionWarning, check_batch, check_count, check_positive, check_precise, require, warn_of
from ..core.derivatives import check_decoder
from .curves import decode_curves
from .geodesics import Geodesic, geodesic
from .tangent import Decoder, jacobians


def karcher_mean(
    decoder: Decoder,
    latents: Tensor,
    weights: Tensor | None = None,
    *,
    n_steps: int = 32,
    max_iter: int = 50,
    tolerance: float = 1e-5,
    internal_batch_size: int | None = None,
) -> Tensor:
    """The latent m of least Σ_i w_i d(m, z_i)², d the geodesic distance (Karcher 1977): (*latent).

    Descent from the mean of the latents, or the latent nearest to that if it is better. All geodesics of all means are
    solved together, each from its curve of the step before. The result is a local minimum, the only one if all latents
    lie close enough together.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape).
    latents : Tensor
        (N, *latent).
    weights : Tensor, optional
        (N,) of at least 0; or (M, N) for M means at once, such as the clusters of k-means, which gives (M, *latent).
        A latent without weight costs nothing.
    n_steps : int
        Segments of the geodesics.
    max_iter : int
        Steps of the descent. Means that need more are counted in one warning.
    tolerance : float
        A mean has converged when its next step is shorter than this share of the distance to its latents.
    internal_batch_size : int, optional
        As for :func:`geodesic`.

    Raises
    ------
    ValueError
        As for :func:`geodesic`; for weights that are negative, all zero, or do not fit.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.karcher_mean(lambda z: torch.cat([z, 2 * z], 1), torch.tensor([[0.0], [1.0], [5.0]]))
    tensor([2.])
    """
    check_precise(check_batch(latents, "latents"), "latents")
    check_count(n_steps, "n_steps")
    check_count(max_iter, "max_iter")
    check_positive(tolerance, "tolerance")
    shares = _shares(weights, latents)
    check_decoder(decoder, latents, needs="graph", size=internal_batch_size)
    latents = latents.detach()
    of, to = shares.nonzero(as_tuple=True)
    weight, goals = shares[of, to], latents[to]

    def solved(means: Tensor, init: str | Tensor = "line") -> tuple[Geodesic, Tensor]:
        """Geodesics to all latents, and the mean squared distances (M,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttributionWarning)
            options = {"n_steps": n_steps, "tolerance": 1e-6, "internal_batch_size": internal_batch_size}
            found = geodesic(decoder, means[of], goals, init=init, **options)
        return found, latents.new_zeros(len(means)).index_add_(0, of, weight * found.length.square())

    with torch.inference_mode(False), torch.no_grad():
        flat = latents.flatten(1)
        means = (shares @ flat).view(-1, *latents.shape[1:])
        apart = torch.cdist(means.flatten(1), flat).masked_fill(shares == 0, torch.inf)
        found, spread = solved(means)
        others, other = solved(latents[apart.argmin(1)])
        better = other < spread
        means = torch.where(_column(better, means), latents[apart.argmin(1)], means)
        spread = torch.where(better, other, spread)
        points = torch.where(_column(better[of], found.points), others.points, found.points)
        length = torch.ones_like(spread)
        direction, size = _direction(decoder, means, points, of, weight)
        done = size <= tolerance * spread.sqrt()
        for _ in range(max_iter):
            if done.all():
                break
            step = _column(torch.where(done, 0, length), means) * direction
            ahead = means + step
            fade = torch.linspace(1, 0, n_steps + 1, dtype=means.dtype, device=means.device)
            moved = points + torch.einsum("t,p...->pt...", fade, step[of])
            moved[:, -1] = goals
            found, new = solved(ahead, moved)
            accepted = new <= spread * (1 + 1e-7)
            length = torch.where(accepted, (2 * length).clamp_max(1), length / 2)
            means = torch.where(_column(accepted, means), ahead, means)
            points = torch.where(_column(accepted[of], points), found.points, points)
            spread = torch.where(accepted, new, spread)
            direction, size = _direction(decoder, means, points, of, weight)
            done = done | (size <= tolerance * spread.sqrt()) | (length < 1e-4)
    warn_of("karcher_mean", ~done, f"means had not converged after {max_iter} steps")
    return means if weights is not None and weights.ndim == 2 else means[0]


def _shares(weights: Tensor | None, latents: Tensor) -> Tensor:
    """Weights of each mean, which sum to 1: (M, N)."""
    if weights is None:
        return latents.new_full((1, len(latents)), 1 / len(latents))
    got = f"{weights.dtype} {tuple(weights.shape)}" if isinstance(weights, Tensor) else type(weights).__name__
    met = isinstance(weights, Tensor) and weights.ndim in (1, 2) and weights.shape[-1] == len(latents)
    require(met and weights.numel() > 0, "weights", got, f"({len(latents)},) or (M, {len(latents)})")
    weights = weights.to(latents).reshape(-1, len(latents))
    met = bool(torch.isfinite(weights).all() and (weights >= 0).all() and (weights.sum(1) > 0).all())
    require(met, "weights", "negative, infinite or no weight", "0 or more, and one above 0 for each mean")
    return weights / weights.sum(1, keepdim=True)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))


def _direction(decoder: Decoder, means: Tensor, points: Tensor, of: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Where the mean squared distance falls, the weighted mean of the logarithms, and its length in the metric.

    The first segment of a geodesic leaves the surface only at right angles, so its projection is the velocity.
    """
    first = decode_curves(decoder, points[:, :2]).diff(dim=1)[:, 0] * (points.shape[1] - 1)
    pulled = first.new_zeros(len(means), first.shape[1]).index_add_(0, of, weight[:, None] * first)
    jacobian = jacobians(decoder, means)
    direction = torch.linalg.lstsq(jacobian, pulled[:, :, None]).solution
    return direction.view_as(means), (jacobian @ direction).flatten(1).norm(dim=1)
