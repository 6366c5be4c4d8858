"""Where the search for a geodesic starts: along the codes of data, on a given curve, or on bent ones.

A solver finds the nearest local minimum of the energy. Other starts find others.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_like, require
from ..paths.graph import nearest_nodes, neighbour_edges, shortest_paths_of
from ..paths.path import even_times, polyline
from .curves import check_curves, decoded_steps, line_between, spline_points
from .tangent import Decoder

# Nearest codes that each code is joined to, and segments in which the length of an edge is measured.
_NEIGHBORS, _SEGMENTS = 10, 4


def along_codes(
    decoder: Decoder, data: Tensor, start: Tensor, end: Tensor, n_steps: int, internal_batch_size: int | None = None
) -> Tensor:
    """Shortest paths between latents through codes of data, at constant decoded speed: (B, n_steps + 1, *latent).

    ``data`` (N, *latent) are joined to their nearest, ``start`` and ``end`` (B, *latent) to those nearest to them. An
    edge is as long as its decoded image, so that paths avoid what a straight line crosses.
    """
    data, n_curves, ends = data.detach(), len(start), torch.cat([start, end])
    flat, kept = np.unique(data.flatten(1).cpu().double().numpy(), axis=0, return_index=True)
    every, n_nodes = torch.cat([data[torch.from_numpy(kept).to(data.device)], ends]), len(flat)
    nearest, _ = nearest_nodes(flat, ends.flatten(1).cpu().double().numpy(), _NEIGHBORS)
    own = n_nodes + np.arange(2 * n_curves)
    joints = np.stack([nearest, np.broadcast_to(own[:, None], nearest.shape)], 2).reshape(-1, 2)
    edges = np.concatenate([neighbour_edges(flat, _NEIGHBORS), joints])
    lines = line_between(every[edges[:, 0]], every[edges[:, 1]], _SEGMENTS)
    costs = decoded_steps(decoder, lines, internal_batch_size).sum(1).cpu().double().numpy()
    found = shortest_paths_of(len(every), n_nodes, edges, costs, own[:n_curves], own[n_curves:])
    corners = every[torch.from_numpy(found).to(ends.device)]
    # a short path stays at its end, and edges of no length take no time
    steps = decoded_steps(decoder, corners, internal_batch_size)
    times = torch.linspace(0, 1, corners.shape[1], dtype=steps.dtype, device=steps.device).expand(n_curves, -1)
    times = even_times(times, steps, n_steps)
    rows = torch.arange(n_curves, device=ends.device).repeat_interleave(n_steps + 1)
    points = polyline(corners).at(rows, times.flatten()).unflatten(0, (n_curves, n_steps + 1))
    points[:, 0], points[:, -1] = start, end
    return points


def bent(line: Tensor, share: float) -> Tensor:
    """Curves with the ends of straight ones, bent to one side by a share of their length: (B, T, *latent).

    The side is the same random direction for all curves, so that none depends on its batch.
    """
    side = torch.randn(line[0, 0].shape, generator=torch.Generator().manual_seed(1)).to(line)
    across = (line[:, -1] - line[:, 0]).flatten(1)
    aside = side.flatten() - across * ((across @ side.flatten()) / across.square().sum(1).clamp_min(1e-30))[:, None]
    lost = aside.norm(dim=1, keepdim=True) <= 1e-4 * side.norm()  # with one latent there is no other side
    aside = torch.where(lost, 0, aside) * (across.norm(dim=1) / aside.norm(dim=1).clamp_min(1e-30))[:, None]
    wave = (math.pi * torch.linspace(0, 1, line.shape[1], dtype=line.dtype, device=line.device)).sin()
    wave[-1] = 0
    return line + share * torch.einsum("t,bk->btk", wave, aside).view_as(line)


def at_even_times(points: Tensor, n_steps: int) -> Tensor:
    """The same curves, as splines, at so many equal steps of time: (B, T, *latent) -> (B, n_steps + 1, *latent)."""
    if points.shape[1] == n_steps + 1:
        return points
    times = torch.linspace(0, 1, n_steps + 1, dtype=points.dtype, device=points.device)
    found = spline_points(points, times.expand(len(points), -1))
    found[:, 0], found[:, -1] = points[:, 0], points[:, -1]
    return found


def check_starts(init: str | Tensor, data: Tensor | None, start: Tensor, end: Tensor) -> None:
    """Refuse curves of other ends, and a graph without codes."""
    if isinstance(init, Tensor):
        check_curves(init, "init")
        ends = torch.stack([start, end], 1)
        met = init.shape[::2] == ends.shape[::2] and init.shape[3:] == ends.shape[3:]
        met = met and (init.dtype, init.device) == (start.dtype, start.device)
        met = met and torch.allclose(init[:, [0, -1]], ends, rtol=1e-4, atol=1e-6)
        require(met, "init", f"{init.dtype} curves of shape {tuple(init.shape)}", "curves from start to end")
        return
    require(isinstance(init, str), "init", type(init).__name__, "'line', 'graph' or a tensor (B, T, *latent)")
    check_choice(init, "init", ("line", "graph"))
    require((data is None) == (init == "line"), "data", type(data).__name__, 'codes with init="graph", and only then')
    if data is not None:
        check_like(check_batch(data, "data")[:1], start, "data", "start")
        require(data.shape[1:] == start.shape[1:], "data", f"shape {tuple(data.shape)}", "(N, *latent) like start")
