"""The greedy rule of guided paths: the coordinates with the smallest gradients move first, in any coordinates.

On pixels it is Guided IG (Kapishnikov et al. 2021); on the latents of a decoder it is MA-GIG (paper 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .paths import Path, polyline
from .quadrature import empty_sum
from .scores import LEAST_CHANGE, Model, score_gradient

# A segment is rough when its error is above this, over the square of their number, of the change of the score: the
# errors of smooth segments fall faster, so that what is above it is a kink or a jump.
_ROUGH = 40.0
_DEEPEST = 6


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


# images, how often their segments were halved, and the two ends of these
_Segments = tuple[Tensor, Tensor, Node, Node]
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


def chord_sum(nodes: Iterable[Node], before: float, after: float) -> Tensor:
    """Σ_k (before · ∇f(p_k) + after · ∇f(p_{k+1})) ⊙ (p_{k+1} − p_k), the nodes taken as they come: (B, *shape)."""
    total, here = torch.zeros(()), None
    for node in nodes:
        if here is None:
            total = empty_sum(node.point)
        else:
            mixed = before * here.gradient if node.gradient is None else before * here.gradient + after * node.gradient
            total += mixed * (node.point.to(total.dtype) - here.point)
        here = node
    return total


def refined_sum(nodes: Iterable[Node], evaluate: Evaluate, change: Tensor, n_steps: int, size: int) -> Tensor:
    """The trapezoid over the nodes, rough segments halved on the way between their coordinates: (B, *shape).

    The scores at its ends tell the error of each segment. Rough ones wait until there are enough for a pass.

    Parameters
    ----------
    change : Tensor
        (B,), |f(x) − f(x')|, of which errors are a share; less than 0.05 counts as 0.05.
    size : int
        Points per pass.
    """
    bound = _ROUGH / n_steps**2 * change.clamp_min(LEAST_CHANGE)
    # a score full of noise has no smooth half: no image gets more halvings than it has steps
    spare = torch.full_like(bound, n_steps, dtype=torch.int64)
    total, here = torch.zeros(()), None
    waiting: list[_Segments] = []
    for node in nodes:
        if here is None:
            total = empty_sum(node.point)
            rows = torch.arange(len(total), device=total.device)
        else:
            waiting += _add_smooth(total, bound, spare, (rows, torch.zeros_like(rows), here, node))
            _halve(total, bound, spare, waiting, evaluate, size, least=size)
        here = node
    _halve(total, bound, spare, waiting, evaluate, size, least=1)
    return total


def _halve(
    total: Tensor,
    bound: Tensor,
    spare: Tensor,
    waiting: list[_Segments],
    evaluate: Evaluate,
    size: int,
    *,
    least: int,
) -> None:
    """Halve the segments that wait, the last ones first so that few ever do, while there are ``least`` of them."""
    while sum(len(segments[0]) for segments in waiting) >= least:
        taken = [waiting.pop()]
        while waiting and sum(len(segments[0]) for segments in taken) < size:
            taken.append(waiting.pop())
        rows, depth = (torch.cat([part[i] for part in taken]) for i in (0, 1))
        starts, ends = (Node(*map(torch.cat, zip(*(part[i] for part in taken), strict=True))) for i in (2, 3))
        for some in torch.arange(len(rows), device=rows.device).split(size):
            start, end, own = _rows(starts, some), _rows(ends, some), rows[some]
            middle, _ = evaluate((start.coordinates + end.coordinates) / 2, own, False)
            for half in ((start, middle), (middle, end)):
                waiting += _add_smooth(total, bound, spare, (own, depth[some] + 1, *half))


def _add_smooth(total: Tensor, bound: Tensor, spare: Tensor, segments: _Segments) -> list[_Segments]:
    """Add the segments whose error is within the bound to the sums of their images; return the others, if any."""
    rows, depth, start, end = segments
    part = 0.5 * (start.gradient + end.gradient) * (end.point.to(total.dtype) - start.point)
    error = (end.score - start.score).to(total.dtype) - part.flatten(1).sum(1)
    rounding = 8 * torch.finfo(end.score.dtype).eps * (end.score.abs() + start.score.abs())
    # a NaN is no error that halving mends, and neither is rounding
    rough = (error.abs() > bound[rows] + rounding) & (depth < _DEEPEST) & (spare[rows] > 0)
    spare.index_add_(0, rows, -rough.to(spare.dtype))
    total.index_add_(0, rows[~rough], part[~rough])
    return [(rows[rough], depth[rough], _rows(start, rough), _rows(end, rough))] if rough.any() else []


def _rows(node: Node, chosen: Tensor) -> Node:
    return Node(*(part[chosen] for part in node))


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
