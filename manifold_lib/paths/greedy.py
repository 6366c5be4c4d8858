"""The greedy rule of guided paths: the coordinates with the smallest gradients move first, in any coordinates.

On pixels it is Guided IG (Kapishnikov et al. 2021); on the latents of a decoder it is MA-GIG (paper 5). The gradient at
each node gives the next one, so a path brings its nodes as a stream: the integral is summed meanwhile, and no path is
kept whole.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.progress import progress_bar
from ..core.scorer import Scorer
from .path import Path, polyline
from .quadrature import CHORD_WEIGHTS, empty_sum
from .refine import BLOCK, ROUGH, Budget, Node, Pieces, chosen, halves, joined, refine, share_of, trapezoid

# evaluate(coordinates, rows, guide): the node at those coordinates of those images, and ∂f by coordinate if asked for
Evaluate = Callable[[Tensor, Tensor, bool], tuple[Node, Tensor | None]]
# stream(scorer, rows, last): the nodes of those rows, in lock-step, and what looks at coordinates between them;
# ``last`` is whether the gradient at the end is wanted
Stream = Callable[[Scorer, Tensor, bool], tuple[Iterator[Node], Evaluate]]


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
    """The n_steps + 1 nodes of the greedy path from ``starts`` to ``ends`` (B, *coordinates), one ``evaluate`` each.

    Without ``last`` there is no gradient at the end, which is given as its coordinates.
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
    """Move coordinates, smallest |gradient| first, until a share ``time`` of the L1 distance is covered: (B, D).

    ``progress`` in [0, 1], the ``distances`` |x_j − x'_j| and the ``gradient`` are (B, D). All progress stays within
    ``time`` ± ``max_dist``. The released loop moves one group after the other, each the ``fraction`` of all coordinates
    that has the smallest gradients among those not yet moved, with all that tie with its last; the last group moves in
    part. Here one sort and one cumulative sum give the groups.
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

    ``room`` (B, D) is the L1 distance each may yet go, 0 where it is not ``movable``; ``need`` (B, 1) is to go now.
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


def streamed_path(
    own: Scorer,
    stream: Stream,
    ends: tuple[Tensor, Tensor],
    *,
    n_steps: int,
    n_pieces: int = 1,
    method: str | None = None,
    size: int,
    progress: bool = False,
    name: str = "",
) -> Path:
    """The path through the nodes of a stream; its integral takes the gradients that the stream brings.

    The scorer ``own`` guides the path; for other scores it is a polyline like any other. ``ends`` are the baselines and
    the inputs, (B, *shape) each. The rows of the stream, ``size`` in lock-step, are images, or the ``n_pieces`` of each
    image one after the other, of ``n_steps`` segments each. With ``method`` the stream serves no other rule.
    """
    first, last = ends
    every = torch.arange(len(last) * n_pieces, device=last.device).split(size)

    @functools.cache
    def line() -> Path:
        parts = []
        for rows in every:
            nodes, _ = stream(own.of(rows // n_pieces), rows, False)
            with own.in_use():
                parts.append(torch.stack([node.point for node in nodes], 1))
        points = torch.cat(parts)
        if n_pieces > 1:
            pieces = points.unflatten(0, (-1, n_pieces))
            points = torch.cat([pieces[:, :, :-1].flatten(1, 2), pieces[:, -1, -1:]], 1)
        return polyline(points)

    def integral(scorer: Scorer, rule: str, create_graph: bool) -> Tensor | None:
        if create_graph or not scorer.explains(own) or rule not in ("trapezoid", method or "left", method or "right"):
            return None
        rule = method or rule
        weights = CHORD_WEIGHTS[rule]
        total, change = empty_sum(last), scorer.change(last, first)
        bar = iter(progress_bar(range(len(every) * (n_steps + 1)), show=progress, desc=name))
        for rows in every:
            images = rows // n_pieces
            nodes, evaluate = stream(scorer.of(images), rows, weights[1] > 0)
            ticked = (node for node in nodes if next(bar, 0) is not None)
            if rule == "trapezoid":
                found = guided_sum(ticked, evaluate, change[images], n_steps * n_pieces, scorer.size)
            else:
                found = chord_sum(ticked, *weights)
            total.index_add_(0, images, found)
        next(bar, None)
        return total.to(last.dtype)

    known: dict[str, Any] = {"end": last, "n_edges": n_steps * n_pieces, "integral": integral}
    # a rule of its own is a released sum, which is not expected to be complete
    return Path(lambda rows, t: line().at(rows, t), start=None if method else first, **known)


def chord_sum(nodes: Iterator[Node], before: float, after: float) -> Tensor:
    """Σ_k (before · ∇f(p_k) + after · ∇f(p_{k+1})) ⊙ (p_{k+1} − p_k), the nodes taken as they come: (B, *shape)."""
    here = next(nodes)
    total = empty_sum(here.point)
    for node in nodes:
        mixed = before * here.gradient if node.gradient is None else before * here.gradient + after * node.gradient
        total += mixed * (node.point.to(total.dtype) - here.point)
        here = node
    return total


def guided_sum(nodes: Iterator[Node], evaluate: Evaluate, change: Tensor, n_steps: int, size: int) -> Tensor:
    """The trapezoid over the nodes, rough segments halved between their coordinates: (B, *shape).

    Errors are a share of ``change`` (B,), f(x) − f(x'), and ``n_steps`` counts the segments of the whole path, of which
    these may be a piece. What is halved depends on the image alone.
    """
    here = next(nodes)
    total = empty_sum(here.point)
    budget = Budget(share_of(change, ROUGH / n_steps**2).to(total.dtype))
    cut = halves(lambda coordinates, rows: evaluate(coordinates, rows, False)[0], size)
    rows = torch.arange(len(total), device=total.device)
    waiting: list[Pieces] = []

    def halve(steps: int) -> None:
        budget.grant(steps)
        if waiting:
            refine(total, joined(waiting), cut, budget)
        waiting.clear()

    step = 0
    for step, node in enumerate(nodes, 1):
        pieces = trapezoid(rows, torch.zeros_like(rows), here, node)
        rough = budget.rough(pieces)
        total += torch.where(rough.view(-1, *(1,) * (total.ndim - 1)), 0, pieces.sums)
        if rough.any():
            waiting.append(chosen(pieces, rough))
        if step % BLOCK == 0:
            halve(BLOCK)
        here = node
    halve(step % BLOCK)
    return total
