"""Paths: where the points lie between a baseline (the papers also write base-point) and an input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import check_batch, check_like


@dataclass(frozen=True)
class Path:
    """A batch of curves γ: [0, 1] → inputs, one for each image.

    A new attribution method is a new function that returns one of these.

    Parameters
    ----------
    at : callable
        ``at(rows, t)`` gives the points of those images at those times: rows (n,) int64 and t (n,)
        -> (n, *shape). Only what is asked for is ever in memory.
    gradients : callable, optional
        ``gradients(rows, t)`` -> (n, *shape), where a builder already has ∂f/∂x at these points.
    displacement : Tensor, optional
        (B, *shape), set for straight lines only: the constant velocity γ(1) − γ(0).
    end : Tensor, optional
        (B, *shape), γ(1). Without it, it is asked for once, as ``at(slice(None), t)`` with t of shape (1,).
    target : Tensor, optional
        (B,), the classes that ``gradients`` belong to; for other classes they are not used.
    model : callable, optional
        The model that ``gradients`` belong to; for another they are not used.
    """

    at: Callable[[Tensor, Tensor], Tensor]
    gradients: Callable[[Tensor, Tensor], Tensor] | None = None
    displacement: Tensor | None = None
    end: Tensor | None = None
    target: Tensor | None = None
    model: Callable[[Tensor], Tensor] | None = None


def column(t: Tensor, like: Tensor) -> Tensor:
    """Times (n,) shaped to multiply points (n, *shape)."""
    return t.to(like.dtype).view(-1, *(1,) * (like.ndim - 1))


def straight_path(inputs: Tensor, baselines: Tensor | float = 0.0) -> Path:
    """The straight line γ(t) = x' + t (x − x') of Integrated Gradients (Sundararajan et al. 2017).

    Parameters
    ----------
    inputs : Tensor
        (B, *shape), the ends.
    baselines : Tensor or float
        (B, *shape), (1, *shape) or a number, the starts.
    """
    check_batch(inputs)
    baselines = check_like(baselines, inputs, "baselines")
    displacement = inputs - baselines

    def at(rows: Tensor, t: Tensor) -> Tensor:
        # torch.lerp would be exact at both ends, but has no forward-mode derivative in t for a broadcast weight
        if isinstance(rows, slice):
            return baselines[rows] + column(t, inputs) * displacement[rows]
        # index_select is several times faster than indexing
        return baselines.index_select(0, rows) + column(t, inputs) * displacement.index_select(0, rows)

    return Path(at, displacement=displacement, end=inputs)


def path_starts(path: Path, size: int) -> Tensor:
    """γ(0) of each image, without a graph and ``size`` at a time, since a path may decode: (B, *shape)."""
    assert path.end is not None
    rows = torch.arange(len(path.end), device=path.end.device)
    with torch.no_grad():
        return torch.cat([path.at(chunk, path.end.new_zeros(len(chunk))) for chunk in rows.split(size)])


def polyline(points: Tensor) -> Path:
    """The path through given points (B, T, *shape), T ≥ 2, at equal steps of t."""
    check_batch(points, "path", min_dim=3)
    n_edges = points.shape[1] - 1
    if n_edges < 1:
        raise ValueError(f"path: got shape {tuple(points.shape)}, wants (B, T, *shape) with T of at least 2")

    def at(rows: Tensor, t: Tensor) -> Tensor:
        position = t * n_edges
        edge = position.detach().floor().long().clamp(0, n_edges - 1)
        if isinstance(rows, slice):
            rows = torch.arange(len(points), device=points.device)
        start, stop = points[rows, edge], points[rows, edge + 1]
        return start + column(position - edge, start) * (stop - start)

    return Path(at, end=points[:, -1])
