"""Sums over the segments of a guided path: plain chords, and the trapezoid that halves the rough ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.scorer import LEAST_CHANGE
from .greedy import Evaluate, Node
from .quadrature import empty_sum

# A segment is rough when its error is above this, over the square of their number, of the change of the score: the
# errors of smooth segments fall faster, so that what is above it is a kink or a jump.
_ROUGH = 20.0
_DEEPEST = 6
# Steps whose segments are halved together: a constant, so that no sum hangs on the batch or on the points in a pass.
_BLOCK = 8
# An image may have a halving a step; where halving pays (kinks halve their error, noise keeps it) so many more times.
_PAYS, _MORE = 0.9, 32


class _Segments(NamedTuple):
    """Segments of paths: image, how often halved, ends, ½ (∇f + ∇f) ⊙ Δp, and what that misses of Δf."""

    rows: Tensor
    depth: Tensor
    start: Node
    end: Node
    part: Tensor
    error: Tensor


class _Halvings(NamedTuple):
    """What an image may still halve, and Σ |error| of the segments halved so far and of their halves, (B,) each."""

    left: Tensor
    before: Tensor
    after: Tensor


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

    The scores at its ends tell the error of each segment. What is halved hangs on the image alone, on no other one
    and not on ``size``.

    Parameters
    ----------
    change : Tensor
        (B,), |f(x) − f(x')|, of which errors are a share; less than 0.05 counts as 0.05.
    n_steps : int
        Segments of the whole path, of which these may be a piece.
    size : int
        Points per pass.
    """
    bound = _ROUGH / n_steps**2 * change.clamp_min(LEAST_CHANGE)
    total, here = torch.zeros(()), None
    waiting: list[_Segments] = []
    for step, node in enumerate(nodes):
        if here is None:
            total = empty_sum(node.point)
            rows = torch.arange(len(total), device=total.device)
            nothing = torch.zeros_like(bound, dtype=total.dtype)
            halvings = _Halvings(torch.zeros_like(rows), nothing, nothing.clone())
        else:
            waiting.append(_add_smooth(total, bound, _segments(rows, torch.zeros_like(rows), here, node, total.dtype)))
            if step % _BLOCK == 0:
                _halve(total, bound, halvings, waiting, evaluate, _BLOCK, size)
                waiting = []
        here = node
    _halve(total, bound, halvings, waiting, evaluate, step % _BLOCK, size)
    return total


def _halve(
    total: Tensor,
    bound: Tensor,
    halvings: _Halvings,
    waiting: list[_Segments],
    evaluate: Evaluate,
    steps: int,
    size: int,
) -> None:
    """Halve segments and their halves, the largest errors of each image first, as far as these steps allow.

    A score full of noise has no smooth half. What was allowed is not taken back: the first halves of a jump are worse.
    """
    left, before, after = halvings
    left += steps
    more = torch.full_like(left, (_MORE - 1) * steps)
    while waiting:
        pays = after < _PAYS * before
        left += torch.where(pays, more, 0)
        more = torch.where(pays, 0, more)
        segments = _joined(waiting)
        # half of what is left at a time, so that the halves of a jump come before the lesser errors
        taken = _largest(segments, (left + 1) // 2)
        waiting = [_chosen(segments, ~taken)]
        if not taken.any():
            return _add(total, segments)
        segments = _chosen(segments, taken)
        left.index_add_(0, segments.rows, -torch.ones_like(segments.rows))
        before.index_add_(0, segments.rows, segments.error.abs())
        for some in torch.arange(len(segments.rows), device=total.device).split(size):
            rows, depth, start, end, _, _ = _chosen(segments, some)
            middle, _ = evaluate((start.coordinates + end.coordinates) / 2, rows, False)
            for ends in ((start, middle), (middle, end)):
                half = _segments(rows, depth + 1, *ends, total.dtype)
                after.index_add_(0, rows, half.error.abs())
                waiting.append(_add_smooth(total, bound, half))


def _segments(rows: Tensor, depth: Tensor, start: Node, end: Node, dtype: torch.dtype) -> _Segments:
    part = 0.5 * (start.gradient + end.gradient) * (end.point.to(dtype) - start.point)
    error = (end.score - start.score).to(dtype) - part.flatten(1).sum(1)
    return _Segments(rows, depth, start, end, part, error)


def _add_smooth(total: Tensor, bound: Tensor, segments: _Segments) -> _Segments:
    """Add the segments whose error is within the bound, or that are short enough; return the others."""
    scores = segments.start.score.abs() + segments.end.score.abs()
    rounding = 8 * torch.finfo(scores.dtype).eps * scores
    # a NaN is no error that halving mends, and neither is rounding
    rough = (segments.error.abs() > bound[segments.rows] + rounding) & (segments.depth < _DEEPEST)
    _add(total, _chosen(segments, ~rough))
    return _chosen(segments, rough)


def _add(total: Tensor, segments: _Segments) -> None:
    total.index_add_(0, segments.rows, segments.part)


def _largest(segments: _Segments, number: Tensor) -> Tensor:
    """True for the largest errors of each image, so many of them."""
    order = segments.error.abs().argsort(descending=True, stable=True)
    order = order[segments.rows[order].argsort(stable=True)]
    rows = segments.rows[order]
    place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    return torch.zeros_like(rows, dtype=torch.bool).index_put_((order,), place < number[rows])


def _chosen(segments: _Segments, chosen: Tensor) -> _Segments:
    rows, depth, start, end, part, error = segments
    start, end = (Node(*(value[chosen] for value in node)) for node in (start, end))
    return _Segments(rows[chosen], depth[chosen], start, end, part[chosen], error[chosen])


def _joined(parts: list[_Segments]) -> _Segments:
    rows, depth, starts, ends, part, error = zip(*parts, strict=True)
    start, end = (Node(*map(torch.cat, zip(*nodes, strict=True))) for nodes in (starts, ends))
    return _Segments(torch.cat(rows), torch.cat(depth), start, end, torch.cat(part), torch.cat(error))
