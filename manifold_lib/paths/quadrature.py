"""Quadrature along a path: nodes, weights, and sums of gradients that never hold all points at once."""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..core.derivatives import jvp, require_slope
from ..core.scorer import Scorer
from .path import Path, column, path_starts

RULES = ("trapezoid", "left", "right", "midpoint", "gausslegendre")

# Weights of the gradients at the two ends of a chord; midpoint has a node in the middle of each segment.
CHORD_WEIGHTS = {"trapezoid": (0.5, 0.5), "left": (1.0, 0.0), "right": (0.0, 1.0), "midpoint": (1.0, 1.0)}


def line_integral(scorer: Scorer, path: Path, *, method: str, n_steps: int, create_graph: bool = False) -> Tensor:
    """Σ_j w_j ∇f(γ(t_j)) ⊙ γ'(t_j), or its sum over chords: (B, *shape), on arguments that were checked."""
    if path.displacement is not None and path.gradients is None:
        rules = rule(method, n_steps, path.end)
        return path.displacement * mean_gradient(scorer, path, *rules, create_graph=create_graph)
    per_edge = math.ceil(n_steps / path.n_edges)
    if method == "gausslegendre":
        nodes, weights = repeated(*rule(method, per_edge, path.end), path.n_edges)
        return _velocity_sum(scorer, path, nodes, weights, create_graph)
    return _chord_sum(scorer, path, method, per_edge * path.n_edges, create_graph)


def count_nodes(method: str, n_steps: int, n_edges: int = 1) -> int:
    """Gradients that :func:`line_integral` takes of each image."""
    return math.ceil(n_steps / n_edges) * n_edges + (method == "trapezoid")


def rule(method: str, n_steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights of a quadrature rule; the weights sum to 1.

    Captum's trapezoid weights do not (they sum to 1 − 1/n), so its attributions fall short by that share.
    """
    if method == "gausslegendre":
        roots, gauss = _legendre(n_steps)
        return torch.from_numpy((roots + 1) / 2).to(like), torch.from_numpy(gauss / 2).to(like)
    first = {"trapezoid": 0.0, "left": 0.0, "right": 1.0, "midpoint": 0.5}[method]
    n_nodes = n_steps + (method == "trapezoid")
    nodes = (torch.arange(n_nodes, dtype=torch.float64) + first) / n_steps
    weights = torch.full((n_nodes,), 1 / n_steps, dtype=torch.float64)
    if method == "trapezoid":
        weights[[0, -1]] /= 2
    return nodes.to(like), weights.to(like)


_legendre = functools.lru_cache(64)(np.polynomial.legendre.leggauss)  # as slow as the gradients of a small network


def repeated(nodes: Tensor, weights: Tensor, n_edges: int) -> tuple[Tensor, Tensor]:
    """A rule on each of so many equal parts of [0, 1]."""
    starts = torch.arange(n_edges, device=nodes.device, dtype=nodes.dtype)[:, None]
    return ((starts + nodes) / n_edges).flatten(), (weights / n_edges).repeat(n_edges)


def mean_gradient(scorer: Scorer, path: Path, nodes: Tensor, weights: Tensor, *, create_graph: bool = False) -> Tensor:
    """Σ_j w_j ∇f(γ(t_j)), the path-averaged gradient: (B, *shape)."""
    return summed_gradients(
        scorer, lambda rows, index: path.at(rows, nodes[index]), weights, path.end, create_graph=create_graph
    )


def summed_gradients(
    scorer: Scorer,
    points: Callable[[Tensor, Tensor], Tensor],
    weights: Tensor,
    like: Tensor,
    *,
    create_graph: bool = False,
) -> Tensor:
    """Σ_j w_j ∇f(points(row, j)) for each row of ``like``, some points at a time: (B, *shape)."""
    total = empty_sum(like)
    for rows, index in pairs(len(like), len(weights), scorer.size, like.device):
        with torch.set_grad_enabled(create_graph):
            x = points(rows, index)
        gradient = scorer.gradient(x, rows, weights=weights[index], create_graph=create_graph)
        total = _add(total, rows, gradient, create_graph)
    return total.to(like.dtype)


def empty_sum(like: Tensor) -> Tensor:
    """Zeros to add to: half precision would lose what is small beside the sum so far, so its sums are in single."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32), requires_grad=False)


def pairs(n_rows: int, n_columns: int, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Every (row, column) in order, ``size`` at a time, without listing them all."""
    for start in range(0, n_rows * n_columns, size):
        index = torch.arange(start, min(start + size, n_rows * n_columns), device=device)
        yield index // n_columns, index % n_columns


def _velocity_sum(scorer: Scorer, path: Path, nodes: Tensor, weights: Tensor, create_graph: bool) -> Tensor:
    """Σ_j w_j ∇f(γ(t_j)) ⊙ γ'(t_j), the velocity by forward-mode differentiation of the path."""
    total, moves = empty_sum(path.end), False
    for rows, index in pairs(len(path.end), len(nodes), scorer.size, nodes.device):
        t = nodes[index]
        with torch.set_grad_enabled(create_graph):
            x, velocity = jvp(functools.partial(path.at, rows), t, torch.ones_like(t), "path")
        moves = moves or bool(velocity.detach().any())
        gradient = _gradient(scorer, path, x, rows, t, create_graph)
        total = _add(total, rows, gradient * velocity * column(weights[index], path.end), create_graph)
    if not moves:
        require_slope(torch.equal(path_starts(path, scorer.size), path.end), "path")
    return total.to(path.end.dtype)


def _chord_sum(scorer: Scorer, path: Path, method: str, n_steps: int, create_graph: bool) -> Tensor:
    """Σ_i (w₀ ∇f(γ(t_i)) + w₁ ∇f(γ(t_{i+1}))) ⊙ (γ(t_{i+1}) − γ(t_i)).

    The nodes of all images stand in one row. The last point of a chunk is carried into the next, so that no point and
    no gradient is computed twice.
    """
    n_nodes = n_steps * (2 if method == "midpoint" else 1) + 1
    before, after = CHORD_WEIGHTS[method]
    total = empty_sum(path.end)
    carried: tuple[Tensor, ...] = ()
    for rows, index in pairs(len(path.end), n_nodes, scorer.size, path.end.device):
        t = index.to(path.end.dtype) / (n_nodes - 1)
        with torch.set_grad_enabled(create_graph):
            x = path.at(rows, t)
        if method == "trapezoid":
            gradient = _gradient(scorer, path, x, rows, t, create_graph)
        else:
            wanted = index % 2 == 1 if method == "midpoint" else index != (n_nodes - 1 if method == "left" else 0)
            needed = wanted.nonzero().squeeze(1)
            gradient = torch.zeros_like(x)
            if len(needed):
                some = _gradient(scorer, path, x[needed], rows[needed], t[needed], create_graph)
                gradient = gradient.index_copy(0, needed, some)
        last = (x[-1:], gradient[-1:], rows[-1:])
        if carried:
            x, gradient, rows = (torch.cat(pair) for pair in zip(carried, (x, gradient, rows), strict=True))
        carried = last
        joint = (rows[1:] == rows[:-1]).nonzero().squeeze(1)
        mixed = before * gradient[joint] + after * gradient[joint + 1]
        total = _add(total, rows[joint], mixed * (x[joint + 1] - x[joint]), create_graph)
    return total.to(path.end.dtype)


def _gradient(scorer: Scorer, path: Path, points: Tensor, rows: Tensor, t: Tensor, create_graph: bool) -> Tensor:
    """∂f/∂x at some points of a path, which may bring it."""
    if path.gradients is not None and not create_graph:
        return path.gradients(rows, t)
    return scorer.gradient(points, rows, create_graph=create_graph)


def _add(total: Tensor, rows: Tensor, values: Tensor, create_graph: bool) -> Tensor:
    values = values.to(total.dtype)
    return total.index_add(0, rows, values) if create_graph else total.index_add_(0, rows, values)
