"""Curves in a latent space, seen through a decoder: energy, length, and points at constant decoded speed."""

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, require
from ..core.derivatives import check_decoder, differentiable_kernels
from ..paths.path import Path, even_times
from .tangent import Decoder, decoded


def curve_energy(decoder: Decoder, points: Tensor, *, internal_batch_size: int | None = None) -> Tensor:
    """Discrete energy ½ n Σ_i ‖g(z_{i+1}) − g(z_i)‖² of curves of n segments (paper 3, eq. 2; Shao et al. 2018): (B,).

    In squared output units; at least ½ length², and equal to it at constant decoded speed. Differentiable in points.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape).
    points : Tensor
        (B, T, *latent), T = n + 1 of at least 2, at equal steps of time.
    internal_batch_size : int, optional
        Images decoded at once.

    Raises
    ------
    ValueError
        For bad input, naming the argument, what it got and what it wants; for a decoder whose images depend on each
        other or on chance, or, where the points have a graph, whose derivative is cut.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.curve_energy(lambda z: 3 * z, torch.tensor([[[0.0], [1.0], [2.0]]]))
    tensor([18.])
    """
    _check(decoder, points, internal_batch_size)
    return energy_of(decoder, points, internal_batch_size)


def energy_of(decoder: Decoder, points: Tensor, internal_batch_size: int | None = None) -> Tensor:
    """:func:`curve_energy` of a decoder and points that were checked."""
    steps = decoded_steps(decoder, points, internal_batch_size)
    return steps.square().sum(1) * steps.shape[1] / 2


def curve_length(decoder: Decoder, points: Tensor, *, internal_batch_size: int | None = None) -> Tensor:
    """Length Σ_i ‖g(z_{i+1}) − g(z_i)‖ of the decoded polyline, in output units: (B, T, *latent) -> (B,).

    Arguments and exceptions are those of :func:`curve_energy`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.curve_length(lambda z: 3 * z, torch.tensor([[[0.0], [1.0], [2.0]]]))
    tensor([6.])
    """
    _check(decoder, points, internal_batch_size)
    return decoded_steps(decoder, points, internal_batch_size).sum(1)


def _check(decoder: Decoder, points: Tensor, size: int | None) -> None:
    """Refuse bad curves, and a decoder that has no single image for a latent, or no slope where one is wanted."""
    check_curves(points)
    wanted = torch.is_grad_enabled() and points.requires_grad
    check_decoder(decoder, points[:, [0, -1]].flatten(0, 1), needs="graph" if wanted else "rows", size=size)


def decoded_steps(decoder: Decoder, points: Tensor, internal_batch_size: int | None = None) -> Tensor:
    """‖g(z_{i+1}) − g(z_i)‖ of each segment, (B, T, *latent) -> (B, T − 1), with a graph where the points have one."""
    rows = curves_at_once(points.shape[1], points, internal_batch_size)
    decoder = in_parts(decoder, internal_batch_size)
    with torch.set_grad_enabled(torch.is_grad_enabled() and points.requires_grad):
        return torch.cat([decode_curves(decoder, part).diff(dim=1).norm(dim=2) for part in points.split(rows)])


def decode_curves(decoder: Decoder, points: Tensor) -> Tensor:
    """Images of all points, flat: (B, T, *latent) -> (B, T, D)."""
    with differentiable_kernels():  # energies may be derived twice
        return decoded(decoder, points.flatten(0, 1)).flatten(1).unflatten(0, points.shape[:2])


def in_parts(decoder: Decoder, size: int | None) -> Decoder:
    """The decoder, given at most so many latents at once."""
    if size is None:
        return decoder
    return lambda latents: torch.cat([decoder(part) for part in latents.split(size)])


def check_curves(points: Tensor, name: str = "points") -> None:
    """Refuse what is not a batch of curves of two points or more."""
    check_batch(points, name, min_dim=3)
    require(points.shape[1] > 1, name, f"shape {tuple(points.shape)}", "(B, T, *latent) with T of at least 2")


def curves_at_once(n_points: int, like: Tensor, internal_batch_size: int | None) -> int:
    """How many curves of so many points to decode at once."""
    if internal_batch_size is None:
        internal_batch_size = 8192 if like.device.type == "cuda" else 256  # more would leave a CPU's cache
    return max(check_count(internal_batch_size, "internal_batch_size") // n_points, 1)


def resample(decoder: Decoder, points: Tensor, n_steps: int, *, internal_batch_size: int | None = None) -> Tensor:
    """Points of the same curves at constant decoded speed: (B, n_steps + 1, *latent), n_steps segments each.

    The curve through the given points, at equal steps of time, is a cubic spline. The ends are exact.
    Other arguments and exceptions are those of :func:`curve_energy`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.resample(lambda z: 3 * z, torch.tensor([[[0.0], [4.0]]]), 4).flatten()
    tensor([0., 1., 2., 3., 4.])
    """
    check_count(n_steps, "n_steps")
    _check(decoder, points, internal_batch_size)
    # lengths between the given points are known after a first resampling only
    return even_points(decoder, points, n_steps, n_corrections=2, internal_batch_size=internal_batch_size)


def even_points(
    decoder: Decoder, points: Tensor, n_steps: int, *, n_corrections: int = 0, internal_batch_size: int | None = None
) -> Tensor:
    """:func:`resample` by the arc lengths of the given points, corrected so many times, with one decode each."""
    steps = decoded_steps(decoder, points, internal_batch_size)
    times = torch.linspace(0, 1, points.shape[1], device=points.device, dtype=points.dtype).expand(points.shape[:2])
    for _ in range(n_corrections):
        times = even_times(times, steps, max(n_steps, points.shape[1] - 1))
        steps = decoded_steps(decoder, spline_points(points, times), internal_batch_size)
    found = spline_points(points, even_times(times, steps, n_steps))
    found[:, 0], found[:, -1] = points[:, 0], points[:, -1]
    return found


def spline_path(points: Tensor) -> Path:
    """The path in latents whose points at equal steps of time are given: (B, T, *latent)."""
    check_curves(points)
    return Path(lambda rows, t: spline_points(points[rows], t[:, None]).squeeze(1), end=points[:, -1])


def spline_points(points: Tensor, times: Tensor) -> Tensor:
    """Cubic splines through points at equal steps of time: (B, T, *latent) at times (B, N) -> (B, N, *latent)."""
    n_edges, flat = points.shape[1] - 1, points.flatten(2)
    slopes = torch.einsum("ts,bsd->btd", _slopes(n_edges).to(flat), flat)
    position = times * n_edges
    edge = position.detach().floor().long().clamp(0, n_edges - 1)
    u = (position - edge)[..., None]
    pick = edge[..., None].expand(-1, -1, flat.shape[2])
    start, stop = flat.gather(1, pick), flat.gather(1, pick + 1)
    leaving, arriving = slopes.gather(1, pick), slopes.gather(1, pick + 1)
    # Hermite form, with time in units of a segment
    found = start + u * leaving + u**2 * (3 * (stop - start) - 2 * leaving - arriving)
    found = found + u**3 * (2 * (start - stop) + leaving + arriving)
    return found.unflatten(2, points.shape[2:])


def _slopes(n_edges: int) -> Tensor:
    """The matrix (T, T) from values at equal steps to the slopes of their cubic spline, per segment."""
    from scipy.interpolate import CubicSpline  # here, since it takes seconds to import

    times = np.arange(n_edges + 1)  # through three points the spline is a parabola, through two a line
    return torch.from_numpy(CubicSpline(times, np.eye(n_edges + 1), bc_type="not-a-knot")(times, 1))


def knot_basis(n_steps: int, n_knots: int | None, like: Tensor) -> Tensor:
    """How the points follow the knots, (n_steps + 1, m): the identity, or cubic splines that are 0 at both ends."""
    if n_knots is None or n_knots >= n_steps - 1:
        return torch.eye(n_steps + 1, dtype=like.dtype, device=like.device)[:, 1:-1]
    values = torch.eye(n_knots + 2, dtype=like.dtype, device=like.device)[1:-1]
    times = torch.linspace(0, 1, n_steps + 1, dtype=like.dtype, device=like.device).expand(n_knots, -1)
    knots = spline_points(values[:, :, None], times)[:, :, 0].T.contiguous()
    knots[[0, -1]] = 0
    return knots


def line_between(start: Tensor, end: Tensor, n_steps: int) -> Tensor:
    """Points on straight lines, ends included: (B, *latent) twice -> (B, n_steps + 1, *latent)."""
    t = torch.linspace(0, 1, n_steps + 1, dtype=start.dtype, device=start.device).view(-1, *(1,) * (start.ndim - 1))
    line = start[:, None] + t * (end - start)[:, None]
    line[:, -1] = end
    return line


def of_less_energy(decoder: Decoder, points: Tensor, others: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Of each two curves the one of less energy, and that; ``energy`` (B,) is that of the others."""
    found = energy_of(decoder, points)
    better = found < energy
    return torch.where(better.view(-1, *(1,) * (points.ndim - 1)), points, others), torch.where(better, found, energy)
