"""The greedy rule of guided paths: the coordinates with the smallest gradients move first, in any coordinates.

On pixels it is Guided IG (Kapishnikov et al. 2021); on the latents of a decoder it is MA-GIG (paper 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.scorer import Model, score_gradient
from .path import Path, polyline
from .quadrature import empty_sum


class Node(NamedTuple):
    """What lies at some coordinates of a path, a row for each image.

    coordinates : (B, *coordinates).
    point : (B, *shape), the image there.
    gradient : (B, *shape), ∂f/∂x at it, or None where the rule has no use for it.
    score : (B,), f at it, or None.
    """

    coordinates: Tensor
    point: Tensor
    gradient: Any = None
    score: Any = None


# evaluate(coordinates, rows, guide): the node at those coordinates of those images, and ∂f by coordinate if asked for
Evaluate = Callable[[Tensor, Tensor, bool], tuple[Node, Tensor | None]]


def greedy_nodes(
    evaluate: Evaluate,
    starts: Tensor,
    ends: Tensor,
    n_steps: int,
    fraction: float,
    max_dist: float = 1.0,
    *,
    last: bool = True,
) -> Iterator[Node]:
    """The n_steps + 1 nodes of the greedy path from ``starts`` to ``ends`` (B, *coordinates).

    Parameters
    ----------
    evaluate : callable
        What lies at some coordinates of some images, called once a node.
    last : bool
        Whether the gradient at the end is wanted; without it, the end is given as its coordinates.
    """
    displacement, rows = ends - starts, torch.arange(len(ends), device=ends.device)
    # in half precision a step would be lost beside the way so far
    distances = displacement.flatten(1).abs().to(empty_sum(displacement[:1]).dtype)
    progress = torch.zeros_like(distances)
    for step in range(n_steps):
        node, guide = evaluate((starts + progress.view_as(starts) * displacement).to(ends.dtype), rows, True)
        assert guide is not None
        yield node
        time = (step + 1) / n_steps
        progress = greedy_step(progress, distances, guide.flatten(1), time, fraction=fraction, max_dist=max_dist)
    yield evaluate(ends, rows, False)[0] if last else Node(ends, ends)


def greedy_step(
    progress: Tensor, distances: Tensor, gradient: Tensor, time: float, *, fraction: float, max_dist: float = 1.0
) -> Tensor:
    """Move coordinates, smallest |gradient| first, until the share ``time`` of the L1 way is behind them.

    The released loop moves one group after the other, each the ``fraction`` of all coordinates that has the
    smallest gradients among those not yet moved, with all that tie with its last; the last group moves in part.
    Here the groups are read off one sort and one cumulative sum.

    Parameters
    ----------
    progress : Tensor
        (B, D) in [0, 1], how far each coordinate has come.
    distances : Tensor
        (B, D), the whole way |x_j − x'_j| of each.
    gradient : Tensor
        (B, D), ∂f by coordinate.
    time : float
        In (0, 1], the share of the L1 distance to have covered; all progress stays within
        ``time`` ± ``max_dist``.

    Returns
    -------
    Tensor
        The new progress (B, D).
    """
    low, high = max(time - max_dist, 0.0), min(time + max_dist, 1.0)
    progress = progress.clamp_min(low)
    need = (distances * (1 - progress)).sum(1, keepdim=True) - (1 - time) * distances.sum(1, keepdim=True)
    movable = (progress < high) & (distances > 0)
    room = (distances * (high - progress)).where(movable, 0)
    whole, part, gamma = greedy_groups(gradient, movable, room, need, fraction)
    moved = torch.where(whole, high, progress + gamma.clamp(0, 1) * (high - progress))
    return moved.where(movable & (whole | part), progress)


def greedy_groups(
    gradient: Tensor, movable: Tensor, room: Tensor, need: Tensor, fraction: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Which coordinates go all the way and which in part (B, D), and that part (B, 1).

    Parameters
    ----------
    room : Tensor
        (B, D), the L1 distance each may yet go; 0 where it is not ``movable``.
    need : Tensor
        (B, 1), the L1 distance to go now.
    """
    # a NaN spoils the attribution of its image, but must not stop its path
    size = torch.nan_to_num(gradient.abs(), nan=0.0)
    keys, order = size.where(movable, math.inf).sort(1)
    n = keys.shape[1]
    others = math.floor(fraction * (n - 1))
    reach = room.gather(1, order).cumsum(1)
    first = torch.zeros_like(need, dtype=torch.int64)
    last_whole, behind = torch.full_like(need, -1.0), torch.zeros_like(need)
    for _ in range(math.ceil(n / (others + 1))):
        level = keys.gather(1, (first + others).clamp_max(n - 1))
        stop = torch.searchsorted(keys, level, right=True)
        ahead = reach.gather(1, stop - 1)
        short = (ahead < need) & (stop < n)
        if not short.any():
            break
        first = torch.where(short, stop, first)
        last_whole, behind = torch.where(short, level, last_whole), torch.where(short, ahead, behind)
    gamma = torch.nan_to_num((need - behind) / (ahead - behind), nan=0.0)
    whole = size <= last_whole
    return whole, (size <= level) & ~whole, gamma


def ticked(nodes: Iterable[Node], bar: Iterator[int]) -> Iterator[Node]:
    """The nodes as they come, each moving a progress bar on."""
    for node in nodes:
        next(bar, None)
        yield node


def stacked(nodes: Iterable[Node]) -> tuple[Tensor, Tensor]:
    """Points and gradients of all nodes: (B, T, *shape) each."""
    kept = [(node.point, node.gradient) for node in nodes]
    points, gradients = zip(*kept, strict=True)
    return torch.stack(points, 1), torch.stack(gradients, 1)


def known_path(points: Tensor, gradients: Tensor, target: Tensor | None, model: Model) -> Path:
    """The polyline through points (B, T, *shape) that brings the model's gradients at them."""
    line, n_steps = polyline(points), points.shape[1] - 1

    def known(rows: Tensor, t: Tensor) -> Tensor:
        node = (t * n_steps).round().long()
        found = gradients[rows, node]
        between = ((t * n_steps - node).abs() > 1e-3).nonzero().squeeze(1)
        if len(between):
            own = None if target is None else target[rows[between]]
            found[between] = score_gradient(model, line.at(rows[between], t[between]), own)
        return found

    return Path(line.at, gradients=known, end=line.end, target=target, model=model)
