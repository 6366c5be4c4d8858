"""The line integral of a model's gradient along a path: the one integrator behind every path method.

``A = ∫₀¹ ∇f(γ(t)) ⊙ γ'(t) dt``, whose entries sum to f(γ(1)) − f(γ(0)).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from scipy.special import roots_legendre
from torch import Tensor

from .checks import check_batch, check_choice, check_count, warn_non_finite
from .paths import Path, column, polyline
from .scores import Model, chunk_size, jvp, left_as_found, module_of, resolve_target, score_gradient

METHODS = ("trapezoid", "left", "right", "midpoint", "gausslegendre")

# weights of the gradients at the two ends of a chord; midpoint has a node in the middle of each segment
_CHORD_WEIGHTS = {"trapezoid": (0.5, 0.5), "left": (1.0, 0.0), "right": (0.0, 1.0), "midpoint": (1.0, 1.0)}


def integrate(
    model: Model,
    path: Path | Tensor,
    target: int | Tensor | None = None,
    *,
    method: str = "trapezoid",
    n_steps: int | None = None,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Line integral of ∂f/∂x along a path, batched over images and path points.

    Parameters
    ----------
    model : callable
        Scores (B, C), or (B,), from inputs (B, *shape).
    path : Path or Tensor
        A :class:`Path`, or points (B, T, *shape) read as a polyline.
    target : int, Tensor or None
        Class explained, for all or for each image (B,); None means the class predicted at the path's
        end. It is fixed along the whole path.
    method : {"trapezoid", "left", "right", "midpoint", "gausslegendre"}
        Sums over chords γ(t_{i+1}) − γ(t_i), or Gauss–Legendre nodes with the velocity γ'(t) by
        forward-mode differentiation.
    n_steps : int, optional
        Segments (for Gauss–Legendre: nodes). By default 50 for a Path, and a polyline's own T − 1;
        a larger number subdivides each of its edges equally, so that no corner is cut.
    internal_batch_size : int, optional
        Points per pass through the model. By default they are sized to the cache of a CPU or the
        memory of a GPU. Memory never grows with B · n_steps.
    create_graph : bool
        Keep the graph, to differentiate the attribution itself.

    Returns
    -------
    Tensor
        (B, *shape), in the units of the score.

    Raises
    ------
    ValueError
        For bad input, naming the argument, what it got and what it wants.
    """
    check_choice(method, "method", METHODS)
    n_edges = 1
    if isinstance(path, Tensor):
        n_edges = path.shape[1] - 1 if path.ndim > 2 else 1
        path = polyline(path)
        n_steps = n_steps if n_steps is not None or method == "gausslegendre" else n_edges
    n_steps = check_count(50 if n_steps is None else n_steps, "n_steps")
    path = _with_end(model, path)
    assert path.end is not None
    with left_as_found(model, path.end):
        size = chunk_size(model, path.end, internal_batch_size)
        classes = resolve_target(model, path.end, target, size)
        attributions = line_integral(
            model,
            path,
            classes,
            method=method,
            n_steps=n_steps,
            n_edges=n_edges,
            size=size,
            create_graph=create_graph,
        )
    warn_non_finite(attributions, "integrate")
    return attributions if create_graph else attributions.detach()


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
    """:func:`integrate` on arguments that were checked."""
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


def rule(method: str, n_steps: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights of a quadrature rule; the weights sum to 1.

    Captum's trapezoid weights do not (they sum to 1 − 1/n), so its attributions fall short by that share.
    """
    if method == "gausslegendre":
        roots, gauss = roots_legendre(n_steps)
        nodes, weights = torch.from_numpy((roots + 1) / 2), torch.from_numpy(gauss / 2)
    else:
        first = {"trapezoid": 0.0, "left": 0.0, "right": 1.0, "midpoint": 0.5}[method]
        n_nodes = n_steps + (method == "trapezoid")
        nodes = (torch.arange(n_nodes, dtype=torch.float64) + first) / n_steps
        weights = torch.full((n_nodes,), 1 / n_steps, dtype=torch.float64)
        if method == "trapezoid":
            weights[[0, -1]] /= 2
    return nodes.to(like), weights.to(like)


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
    total = torch.zeros_like(like, requires_grad=False)
    for rows, index in _pairs(len(like), len(weights), size, like.device):
        with torch.set_grad_enabled(create_graph):
            x = points(rows, index)
        gradient = score_gradient(model, x, _of(target, rows), weights=weights[index], create_graph=create_graph)
        total = _add(total, rows, gradient, create_graph)
    return total


def _pairs(n_rows: int, n_columns: int, size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Every (row, column) in order, ``size`` at a time, without listing them all."""
    for start in range(0, n_rows * n_columns, size):
        pairs = torch.arange(start, min(start + size, n_rows * n_columns), device=device)
        yield pairs // n_columns, pairs % n_columns


def _velocity_sum(
    model: Model, path: Path, target: Tensor | None, nodes: Tensor, weights: Tensor, *, size: int, create_graph: bool
) -> Tensor:
    """Σ_j w_j ∇f(γ(t_j)) ⊙ γ'(t_j), the velocity by forward-mode differentiation of the path."""
    assert path.end is not None
    total = torch.zeros_like(path.end)
    for rows, index in _pairs(len(path.end), len(nodes), size, nodes.device):
        t = nodes[index]
        with torch.set_grad_enabled(create_graph):
            x, velocity = jvp(lambda time, at=rows: path.at(at, time), t, torch.ones_like(t))
        gradient = _gradient(model, path, x, rows, t, target, create_graph)
        total = _add(total, rows, gradient * velocity * column(weights[index], path.end), create_graph)
    return total


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
    total = torch.zeros_like(path.end)
    carried: tuple[Tensor, Tensor, Tensor] | None = None
    for rows, index in _pairs(len(path.end), n_nodes, size, path.end.device):
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
    return total


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
    return total.index_add(0, rows, values) if create_graph else total.index_add_(0, rows, values)


def _with_end(model: Model, path: Path) -> Path:
    """The path with its end points, which give batch size, shape, dtype and device."""
    if not isinstance(path, Path):
        raise ValueError(f"path: got {type(path).__name__}, wants a Path or a tensor (B, T, *shape)")
    if path.end is None:
        module = module_of(model)
        tensors = [] if module is None else [*module.parameters(), *module.buffers()]
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.ones(1))
        try:
            with torch.no_grad():
                end = path.at(slice(None), torch.ones(1, device=like.device, dtype=like.dtype))  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(
                "path: got a Path without end whose at(rows, t) does not take rows = slice(None), "
                "wants Path(at, end=...) with the end points (B, *shape)"
            ) from error
        path = dataclasses.replace(path, end=end)
    check_batch(path.end, "path")
    return path
