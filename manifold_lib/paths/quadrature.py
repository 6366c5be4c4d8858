"""Quadrature along a path: nodes, weights, and sums of gradients that never hold all points at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..core.scorer import Model, jvp, score_gradient
from .path import Path, column

METHODS = ("trapezoid", "left", "right", "midpoint", "gausslegendre")

# weights of the gradients at the two ends of a chord; midpoint has a node in the middle of each segment
_CHORD_WEIGHTS = {"trapezoid": (0.5, 0.5), "left": (1.0, 0.0), "right": (0.0, 1.0), "midpoint": (1.0, 1.0)}


def line_integral(
    model: Model,
    path: Path,
    target: Tensor | None,
    *,
    method: str,
    n_steps: int,
    size: int,
    n_edges: int = 1,
    create_graph: bool = False,
) -> Tensor:
    """Σ_j w_j ∇f(γ(t_j)) ⊙ γ'(t_j), or its sum over chords: (B, *shape), on arguments that were checked."""
    assert path.end is not None
    per_edge = math.ceil(n_steps / n_edges)
    if path.displacement is not None and path.gradients is None:
        nodes, weights = rule(method, n_steps, path.end)
        return path.displacement * mean_gradient(
            model, path, target, nodes, weights, size=size, create_graph=create_graph
        )
    if method == "gausslegendre":
        nodes, weights = rule(method, per_edge, path.end)
        starts = torch.arange(n_edges, device=nodes.device, dtype=nodes.dtype)[:, None]
        nodes, weights = ((starts + nodes) / n_edges).flatten(), (weights / n_edges).repeat(n_edges)
        return _velocity_sum(model, path, target, nodes, weights, size=size, create_graph=create_graph)
    return _chord_sum(model, path, target, method, per_edge * n_edges, size=size, create_graph=create_graph)


def count_nodes(method: str, n_steps: int, n_edges: int = 1) -> int:
    """Gradients that :func:`line_integral` takes of each image."""
    n_steps = math.ceil(n_steps / n_edges) * n_edges
    return n_steps + (method == "trapezoid")


def rule(method: str, n_steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights of a quadrature rule; the weights sum to 1.

    Captum's trapezoid weights do not (they sum to 1 − 1/n), so its attributions fall short by that share.
    """
    if method == "gausslegendre":
        roots, gauss = _legendre(n_steps)
        nodes, weights = torch.from_numpy((roots + 1) / 2), torch.from_numpy(gauss / 2)
    else:
        first = {"trapezoid": 0.0, "left": 0.0, "right": 1.0, "midpoint": 0.5}[method]
        n_nodes = n_steps + (method == "trapezoid")
        nodes = (torch.arange(n_nodes, dtype=torch.float64) + first) / n_steps
        weights = torch.full((n_nodes,), 1 / n_steps, dtype=torch.float64)
        if method == "trapezoid":
            weights[[0, -1]] /= 2
    return nodes.to(like), weights.to(like)


_legendre = functools.lru_cache(64)(np.polynomial.legendre.leggauss)  # as dear as the gradients of a small network


def mean_gradient(
    model: Model,
    path: Path,
    target: Tensor | None,
    nodes: Tensor,
    weights: Tensor,
    *,
    size: int,
    create_graph: bool = False,
) -> Tensor:
    """Σ_j w_j ∇f(γ(t_j)), the path-averaged gradient: (B, *shape)."""
    assert path.end is not None
    return summed_gradients(
        model,
        lambda rows, index: path.at(rows, nodes[index]),
        weights,
        path.end,
        target,
        size=size,
        create_graph=create_graph,
    )


def summed_gradients(
    model: Model,
    points: Callable[[Tensor, Tensor], Tensor],
    weights: Tensor,
    like: Tensor,
    target: Tensor | None,
    *,
    size: int,
    create_graph: bool = False,
) -> Tensor:
    """Σ_j w_j ∇f(points(row, j)) for each row of ``like``, ``size`` points at a time: (B, *shape)."""
    total = empty_sum(like)
    for rows, index in pairs(len(like), len(weights), size, like.device):
        with torch.set_grad_enabled(create_graph):
            x = points(rows, index)
        gradient = score_gradient(model, x, _of(target, rows), weights=weights[index], create_graph=create_graph)
        total = _add(total, rows, gradient, create_graph)
    return total.to(like.dtype)


def empty_sum(like: Tensor) -> Tensor:
    """Zeros to add to: half precision would lose what is small beside the sum so far, so its sums are in single."""
    half = like.dtype in (torch.float16, torch.bfloat16)
    return torch.zeros_like(like, dtype=torch.float32 if half else like.dtype, requires_grad=False)


def pairs(n_rows: int, n_columns: int, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Every (row, column) in order, ``size`` at a time, without listing them all."""
    for start in range(0, n_rows * n_columns, size):
        pairs = torch.arange(start, min(start + size, n_rows * n_columns), device=device)
        yield pairs // n_columns, pairs % n_columns


def _velocity_sum(
    model: Model, path: Path, target: Tensor | None, nodes: Tensor, weights: Tensor, *, size: int, create_graph: bool
) -> Tensor:
    """Σ_j w_j ∇f(γ(t_j)) ⊙ γ'(t_j), the velocity by forward-mode differentiation of the path."""
    assert path.end is not None
    total = empty_sum(path.end)
    for rows, index in pairs(len(path.end), len(nodes), size, nodes.device):
        t = nodes[index]
        with torch.set_grad_enabled(create_graph):
            x, velocity = jvp(lambda time, at=rows: path.at(at, time), t, torch.ones_like(t))
        gradient = _gradient(model, path, x, rows, t, target, create_graph)
        total = _add(total, rows, gradient * velocity * column(weights[index], path.end), create_graph)
    return total.to(path.end.dtype)


def _chord_sum(
    model: Model, path: Path, target: Tensor | None, method: str, n_steps: int, *, size: int, create_graph: bool
) -> Tensor:
    """Σ_i (w₀ ∇f(γ(t_i)) + w₁ ∇f(γ(t_{i+1}))) ⊙ (γ(t_{i+1}) − γ(t_i)).

    The nodes of all images stand in one row; the last point of a chunk is carried into the next, so that
    no point and no gradient is computed twice.
    """
    assert path.end is not None
    n_nodes = n_steps * (2 if method == "midpoint" else 1) + 1
    before, after = _CHORD_WEIGHTS[method]
    total = empty_sum(path.end)
    carried: tuple[Tensor, Tensor, Tensor] | None = None
    for rows, index in pairs(len(path.end), n_nodes, size, path.end.device):
        t = index.to(path.end.dtype) / (n_nodes - 1)
        with torch.set_grad_enabled(create_graph):
            x = path.at(rows, t)
        if method == "trapezoid":
            gradient = _gradient(model, path, x, rows, t, target, create_graph)
        else:
            gradient = torch.zeros_like(x)
            needed = _needs_gradient(method, index, n_nodes).nonzero().squeeze(1)
            if len(needed):
                some = _gradient(model, path, x[needed], rows[needed], t[needed], target, create_graph)
                gradient = gradient.index_copy(0, needed, some)
        last = (x[-1:], gradient[-1:], rows[-1:])
        if carried is not None:
            x, gradient, rows = (torch.cat(pair) for pair in zip(carried, (x, gradient, rows), strict=True))
        carried = last
        joined = (rows[1:] == rows[:-1]).nonzero().squeeze(1)
        mixed = before * gradient[joined] + after * gradient[joined + 1]
        total = _add(total, rows[joined], mixed * (x[joined + 1] - x[joined]), create_graph)
    return total.to(path.end.dtype)


def _needs_gradient(method: str, index: Tensor, n_nodes: int) -> Tensor:
    if method == "midpoint":
        return index % 2 == 1
    return index != (n_nodes - 1 if method == "left" else 0)


def _gradient(
    model: Model, path: Path, x: Tensor, rows: Tensor, t: Tensor, target: Tensor | None, create_graph: bool
) -> Tensor:
    if path.gradients is not None:
        return path.gradients(rows, t)
    return score_gradient(model, x, _of(target, rows), create_graph=create_graph)


def _of(target: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if target is None else target[rows]


def _add(total: Tensor, rows: Tensor, values: Tensor, create_graph: bool) -> Tensor:
    values = values.to(total.dtype)
    return total.index_add(0, rows, values) if create_graph else total.index_add_(0, rows, values)
