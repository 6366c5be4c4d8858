"""The edges of a graph as paths: the line integral of the gradient along each, and what it costs to take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .graph import Floats, Indices
from .latent import decoded_path
from .paths import Path, column, straight_path
from .quadrature import rule
from .scores import Model, jvp, score, score_gradient

_EPSILON = 0.01  # of the median gradient norm at the nodes
_LEAST_EPSILON = 1e-12  # where the gradient is zero everywhere, the shorter way
# edges on a path whose integral misses the change of the score by more are cut into so many pieces
_TOLERANCE, _PIECES = 1e-3, (4, 16)


class Graph(NamedTuple):
    """Where the paths may go.

    vertices : (V, *shape) or, where ``decode`` is given, latents (V, *latent); the ``n_nodes`` nodes come first.
    edges : (E, 2), i < j.
    starts, ends : (B,), the vertices of the baselines and the inputs.
    shape : of what the model takes.
    """

    vertices: Tensor
    edges: Indices
    n_nodes: int
    starts: Indices
    ends: Indices
    shape: torch.Size
    decode: Callable[[Tensor], Tensor] | None

    def images(self, vertices: Tensor, size: int) -> Iterator[Tensor]:
        """Some vertices at a time, decoded where they are latents."""
        for part in vertices.split(size):
            with torch.no_grad():
                yield part if self.decode is None else self.decode(part.clone())

    def decoded_lines(self, size: int) -> Path:
        """From starts to ends, decoded; the bridges need their ends only."""
        assert self.decode is not None
        return decoded_path(self.decode, straight_path(self.vertices[self.ends], self.vertices[self.starts]), size)


def edge_integrals(
    model: Model, graph: Graph, edges: Indices, label: Tensor | None, metric: str, n_nodes: int, size: int
) -> tuple[Tensor, Floats]:
    """Line integrals of the gradient along edges i -> j, and what the edges cost: (E, *shape) and (E,)."""
    ends = torch.from_numpy(edges).to(graph.vertices.device)
    epsilon = _epsilon(model, graph, label, size) if metric == "conformal" else 0.0
    nodes = rule("gausslegendre", n_nodes, graph.vertices)
    integrals, costs = _quadrature(model, graph, ends, label, metric, *nodes, epsilon, size)
    return integrals, costs.cpu().numpy()


def refine(
    model: Model, graph: Graph, edges: Indices, integrals: Tensor, label: Tensor | None, n_nodes: int, size: int
) -> Tensor:
    """The integrals of edges that are gone along, those cut into pieces that miss f(v_j) − f(v_i): (E, *shape).

    A long edge over a steep place has begun with no more nodes than the short ones elsewhere.
    """
    ends = torch.from_numpy(edges).to(graph.vertices.device)
    integrals = integrals.clone()
    values = _scores(model, graph, ends, label, size)
    change = values[ends[:, 1]] - values[ends[:, 0]]
    bound = _TOLERANCE * change.abs().clamp_min(0.05 * _spread(values[: graph.n_nodes]))
    times, weights = rule("gausslegendre", n_nodes, graph.vertices)
    for n_pieces in _PIECES:
        missed = ((integrals.flatten(1).sum(1) - change).abs() > bound).nonzero().squeeze(1)
        if not len(missed):
            break
        starts = torch.arange(n_pieces, device=times.device, dtype=times.dtype)[:, None]
        finer = ((starts + times) / n_pieces).flatten(), (weights / n_pieces).repeat(n_pieces)
        integrals[missed], _ = _quadrature(model, graph, ends[missed], label, "euclidean", *finer, 0.0, size)
    return integrals


def _quadrature(
    model: Model,
    graph: Graph,
    ends: Tensor,
    label: Tensor | None,
    metric: str,
    times: Tensor,
    weights: Tensor,
    epsilon: float,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Integrals and costs of edges by one rule: (E, *shape) and (E,) float64."""
    n_times = len(times)
    integrals = graph.vertices.new_empty(len(ends), *graph.shape)
    costs = torch.empty(len(ends), dtype=torch.float64, device=ends.device)
    for chunk in torch.arange(len(ends), device=ends.device).split(max(size // n_times, 1)):
        parts = []
        here, there = (ends[chunk, side].repeat_interleave(n_times).split(size) for side in (0, 1))
        for i, j, t in zip(here, there, times.repeat(len(chunk)).split(size), strict=True):
            points, velocity = _segment(graph, i, j, t)
            classes = None if label is None else label.expand(len(points))
            parts.append((score_gradient(model, points, classes), velocity))
        slopes, velocity = (torch.cat(part).unflatten(0, (-1, n_times)) for part in zip(*parts, strict=True))
        products = slopes * velocity
        integrals[chunk] = torch.einsum("q,eq...->e...", weights, products)
        speed = velocity.flatten(2).double().norm(dim=2)
        if metric == "conformal":
            speed = speed * (slopes.flatten(2).double().square().sum(2) + epsilon).sqrt()
        elif metric == "rank1":
            speed = products.flatten(2).double().sum(2).abs()
        met = torch.isfinite(products).flatten(1).all(1)
        costs[chunk] = (speed @ weights.double()).where(met, torch.inf)
    return integrals, costs


def _segment(graph: Graph, here: Tensor, there: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Points on straight edges at some times, and their velocities; decoded, where the graph is in latents."""
    start = graph.vertices[here]
    step = graph.vertices[there] - start
    points = start + column(t, start) * step
    if graph.decode is None:
        return points, step
    with torch.no_grad():
        return jvp(graph.decode, points, step)


def _epsilon(model: Model, graph: Graph, label: Tensor | None, size: int) -> float:
    """(0.01 · median ‖∇f‖ at the nodes)²."""
    norms = []
    for points in graph.images(graph.vertices[: graph.n_nodes], size):
        classes = None if label is None else label.expand(len(points))
        norms.append(score_gradient(model, points, classes).flatten(1).double().norm(dim=1))
    return max(_EPSILON * float(torch.cat(norms).nanmedian()), _LEAST_EPSILON) ** 2


def _spread(scores: Tensor) -> float:
    """Interquartile range of f at the nodes, which no input and no single score of infinity changes."""
    values = scores[torch.isfinite(scores)].double()
    return float(torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) if len(values) else 0.0


def _scores(model: Model, graph: Graph, ends: Tensor, label: Tensor | None, size: int) -> Tensor:
    """f at the nodes and at the ends of some edges, NaN at the other vertices: (V,)."""
    wanted = torch.arange(len(graph.vertices), device=ends.device) < graph.n_nodes
    wanted[ends] = True
    values = torch.cat(
        [
            score(model, points, None if label is None else label.expand(len(points)), size)
            for points in graph.images(graph.vertices[wanted], size)
        ]
    )
    return values.new_full(wanted.shape, torch.nan).masked_scatter(wanted, values)
