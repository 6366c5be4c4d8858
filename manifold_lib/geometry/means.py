"""Means on a decoder's manifold: the latent from which the squared geodesic distances to others are least."""

import warnings
from typing import Any

import torch
from torch import Tensor

from ..core.checks import AttributionWarning, check_batch, check_count, check_positive, check_precise, require, warn_of
from ..core.derivatives import check_decoder
from .curves import decode_curves, in_parts
from .geodesics import geodesic
from .tangent import Decoder, jacobians, least_squares


def karcher_mean(
    decoder: Decoder,
    latents: Tensor,
    weights: Tensor | None = None,
    *,
    n_steps: int = 32,
    max_iter: int = 50,
    tolerance: float = 1e-4,
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
    options: dict[str, Any] = {"n_steps": n_steps, "tolerance": 1e-6, "internal_batch_size": internal_batch_size}
    with torch.inference_mode(False), torch.no_grad():
        latents, shares = latents.detach().clone(), shares.clone()
        flat = latents.flatten(1)
        of, to = shares.nonzero(as_tuple=True)
        weight, goals = shares[of, to], latents[to]

        def solved(means: Tensor, pairs: Tensor, init: str | Tensor = "line") -> tuple[Tensor, Tensor, Tensor]:
            """Geodesics of some pairs, the mean squared distances of their means (M,), and where these fall."""
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AttributionWarning)  # until the means are there
                found = geodesic(decoder, means[of[pairs]], goals[pairs], init=init, **options)
            some, share = of[pairs], weight[pairs]
            spread = flat.new_zeros(len(means)).index_add_(0, some, share * found.length.square())
            # a geodesic leaves the surface at right angles only, so its first segment, projected, is its velocity
            first = n_steps * decode_curves(decode, found.points[:, :2]).diff(dim=1)[:, 0]
            pull = first.new_zeros(len(means), first.shape[1]).index_add_(0, some, share[:, None] * first)
            return found.points, spread, pull

        decode = in_parts(decoder, internal_batch_size)
        every = torch.arange(len(of), device=of.device)
        means = (shares @ flat).view(-1, *latents.shape[1:])
        nearest = latents[torch.cdist(means.flatten(1), flat).masked_fill(shares == 0, torch.inf).argmin(1)]
        points, spread, pull = solved(means, every)
        others = solved(nearest, every)
        better = others[1] < spread
        means, spread, pull = (
            torch.where(_column(better, own), other, own)
            for own, other in ((means, nearest), (spread, others[1]), (pull, others[2]))
        )
        points = torch.where(_column(better[of], points), others[0], points)
        reach, done = torch.ones_like(spread), torch.zeros_like(spread, dtype=torch.bool)
        for _ in range(max_iter):
            slopes = jacobians(decoder, means, internal_batch_size)
            step = least_squares(slopes, pull)
            done = torch.einsum("bdk,bk->bd", slopes, step).norm(dim=1) <= tolerance * spread.sqrt()
            due = ~done & (reach > 1e-4)
            if not due.any():
                break
            pairs = every[due[of]]
            step = (reach * due)[:, None] * step
            ahead = means + step.view_as(means)
            fade = torch.linspace(1, 0, n_steps + 1, dtype=means.dtype, device=means.device)[:, None]
            moved = points[pairs] + (fade * step[of[pairs], None]).view_as(points[pairs])
            moved[:, 0] = ahead[of[pairs]]
            new_points, new_spread, new_pull = solved(ahead, pairs, moved)
            nearer = due & (new_spread <= spread * (1 + 1e-7))
            reach = torch.where(nearer, (2 * reach).clamp_max(1), torch.where(due, reach / 2, reach))
            kept = nearer[of[pairs]]
            points[pairs[kept]] = new_points[kept]
            means[nearer], spread[nearer], pull[nearer] = ahead[nearer], new_spread[nearer], new_pull[nearer]
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
    weights = weights / weights.amax(1, keepdim=True).clamp_min(torch.finfo(latents.dtype).tiny)
    met = bool(torch.isfinite(weights).all() and (weights >= 0).all() and (weights.sum(1) > 0).all())
    require(met, "weights", "negative, infinite or no weight", "0 or more, and one above 0 for each mean")
    return weights / weights.sum(1, keepdim=True)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))
