"""The distance to a decoder's manifold: the nearest decoded image, by Levenberg–Marquardt from some starts."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_positive, check_precise
from ..core.derivatives import check_decoder
from .tangent import Decoder, decoded, jacobians


class Nearest(NamedTuple):
    """The best of all starts for each point.

    Attributes
    ----------
    latents : Tensor
        (B, *latent), those of the nearest decoded image found.
    distance : Tensor
        (B,), ‖g(z) − x‖₂ in units of the points.
    converged : Tensor
        (B,) bool, whether the last step shortened the distance by less than the tolerance, or could not.

    Examples
    --------
    >>> found = nearest_on_manifold(lambda z: z[:, [0, 0]], torch.tensor([[1.0, 3.0]]), torch.zeros(1, 1, 1))
    >>> found.latents.round(decimals=2), found.converged
    (tensor([[2.]]), tensor([True]))
    """

    latents: Tensor
    distance: Tensor
    converged: Tensor


def nearest_on_manifold(
    decoder: Decoder,
    points: Tensor,
    starts: Tensor,
    *,
    max_iter: int = 50,
    tolerance: float = 1e-4,
    internal_batch_size: int | None = None,
) -> Nearest:
    """min_z ‖g(z) − x‖₂ for each point, from each of its starts, all of them in lock-step.

    Each start leads to a local minimum: the distance is an upper bound, and more starts make it tighter. For latents
    of up to some hundred dimensions, since each step takes the decoder's Jacobian.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape).
    points, starts : Tensor
        (B, *shape) and (B, S, *latent).
    max_iter : int
        Steps of each search.
    tolerance : float
        A search ends when a step shortens its distance by less than this share.
    internal_batch_size : int, optional
        Searches per pass; by default as many as have four million entries in their Jacobians.

    Raises
    ------
    ValueError
        As for :func:`decoder_jacobian`, and for half precision.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> decoder = lambda z: torch.cat([z, 0 * z], 1)
    >>> ml.nearest_on_manifold(decoder, torch.tensor([[3.0, 4.0]]), torch.zeros(1, 1, 1)).distance
    tensor([4.])
    """
    check_precise(check_batch(points, "points"), "points")
    check_batch(starts, "starts", min_dim=3)
    check_count(max_iter, "max_iter")
    check_positive(tolerance, "tolerance")
    if len(starts) != len(points) or (starts.dtype, starts.device) != (points.dtype, points.device):
        got, wants = ((tuple(t.shape), t.dtype, str(t.device)) for t in (starts, points))
        raise ValueError(f"starts: got {got}, wants (B, S, *latent) for points {wants}")
    check_decoder(decoder, starts.flatten(0, 1), size=internal_batch_size)
    n_starts, latents = starts.shape[1], starts.flatten(0, 1).clone()
    size = max(2**22 // (points[0].numel() * latents[0].numel()), 1)
    if internal_batch_size is not None:
        size = check_count(internal_batch_size, "internal_batch_size")
    distance, converged = (latents.new_empty(len(latents), dtype=kind) for kind in (latents.dtype, torch.bool))
    with torch.no_grad():
        for rows in torch.arange(len(latents), device=points.device).split(size):
            goals = points[rows // n_starts].flatten(1)
            found = _descend(decoder, goals, latents[rows], max_iter, tolerance)
            latents[rows], distance[rows], converged[rows] = found
    best = distance.nan_to_num(nan=torch.inf).view(-1, n_starts).argmin(1)
    chosen = torch.arange(len(points), device=points.device) * n_starts + best
    return Nearest(latents[chosen], distance[chosen], converged[chosen])


def _descend(
    decoder: Decoder, goals: Tensor, latents: Tensor, max_iter: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, distances (N,) and whether they have converged; searches that have are left alone."""
    images = decoded(decoder, latents).flatten(1)
    if images.shape != goals.shape:
        raise ValueError(f"decoder: got output of {images.shape[1]} entries, wants {goals.shape[1]} like points")
    distance = (goals - images).norm(dim=1)
    damping, growth = torch.full_like(distance, 1e-2), torch.full_like(distance, 2.0)
    converged = distance == 0
    done, flat = converged.clone(), torch.zeros_like(converged)
    for _ in range(max_iter):
        rows = (~done).nonzero()[:, 0]
        if not len(rows):
            break
        here, goal = latents[rows], goals[rows]
        jacobian = jacobians(decoder, here)
        normal = jacobian.mT @ jacobian
        diagonal = normal.diagonal(dim1=1, dim2=2)
        # latents that the image does not depend on would leave the system singular
        stiff = damping[rows, None] * (diagonal + 1e-6 * diagonal.amax(1, keepdim=True))
        wanted = jacobian.mT @ (goal - images[rows])[:, :, None]
        # at a minimum the residual is normal to the manifold: its share along the manifold is small
        slope = wanted.norm(dim=(1, 2)) / (jacobian.norm(dim=(1, 2)) * distance[rows])
        rounding = 100 * torch.finfo(goal.dtype).eps * goal.norm(dim=1)
        flat[rows] = (slope < 1e-3) | (distance[rows] < rounding)
        step = torch.linalg.solve_ex(normal + torch.diag_embed(stiff), wanted).result[:, :, 0]
        tried = here + step.view_as(here)
        image = decoded(decoder, tried).flatten(1)
        found = (goal - image).norm(dim=1)
        better = found < distance[rows]
        # the decrease found, over the one promised, sets the damping, which falls to a third at most (Nielsen 1999);
        # with fixed factors every other step fails where the manifold bends between point and image
        promised = (step * (stiff * step + wanted[:, :, 0])).sum(1)
        ratio = ((distance[rows] ** 2 - found**2) / promised).clamp(0, 2)
        eased = (1 - (2 * ratio - 1) ** 3).clamp_min(1 / 3)
        converged[rows] = better & (distance[rows] - found < tolerance * distance[rows])
        latents[rows] = torch.where(better.view(-1, *(1,) * (here.ndim - 1)), tried, here)
        images[rows] = torch.where(better[:, None], image, images[rows])
        distance[rows] = torch.where(better, found, distance[rows])
        damping[rows] *= torch.where(better, eased, growth[rows])
        growth[rows] = torch.where(better, 2.0, 2 * growth[rows])
        # no step helps: at a minimum, to rounding, or where the decoder has no slope or no value
        stuck = damping > 1e8
        converged |= stuck & flat
        done = converged | stuck
    return latents, distance, converged
