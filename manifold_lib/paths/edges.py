"""The edges of a graph as paths: the line integral of the gradient along each, and what it costs to take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..attribution.latent import decoded_path
from ..core.scorer import LEAST_CHANGE, Model, jvp, score, score_gradient
from ..geometry.graph import Floats, Indices
from .path import Path, column, straight_path
from .quadrature import rule

_EPSILON = 0.01  # of the median gradient norm at the nodes
_LEAST_EPSILON = 1e-12  # where the gradient is zero everywhere, the shorter way
# a path that misses f(x) − f(x') by more has the edges that miss their share cut into so many pieces
_TOLERANCE, _PIECES = 1e-3, (4, 16, 64, 256)
_MISSED = 1e-2  # what a path may miss without a warning


class Graph(NamedTuple):
    """Where the paths may go.

    vertices : (V, *shape) or, where ``decode`` is given, latents (V, *latent); the ``n_nodes`` nodes come first.
    edges : (E, 2), i < j.
    starts, ends : (B,), the vertices of the baselines and the inputs.
    shape, dtype : of what the model takes.
    """

    vertices: Tensor
    edges: Indices
    n_nodes: int
    starts: Indices
    ends: Indices
    shape: torch.Size
    dtype: torch.dtype
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


class Edges(NamedTuple):
    """What is known of edges i -> j.

    ends : (E, 2), sorted.
    integrals : (E, *shape), line integrals of the gradient.
    costs : (E,).
    change, rounding : (E,), f(v_j) − f(v_i), and how far that may be off.
    """

    ends: Indices
    integrals: Tensor
    costs: Floats
    change: Tensor
    rounding: Tensor


def edge_integrals(
    model: Model, graph: Graph, edges: Indices, label: Tensor | None, metric: str, n_nodes: int, size: int
) -> Edges:
    """Line integrals of the gradient along edges, and what the edges cost.

    By length of gradient an edge costs at least the change of the score: a steep wall between two nodes of the
    quadrature is no open door.
    """
    ends = torch.from_numpy(edges).to(graph.vertices.device)
    epsilon = _epsilon(model, graph, label, size) if metric == "conformal" else 0.0
    nodes = rule("gausslegendre", n_nodes, graph.vertices)
    integrals, costs = _quadrature(model, graph, ends, label, metric, *nodes, epsilon, size)
    here, there = _scores(model, graph, ends, label, size)[ends].double().unbind(1)
    rounding = 4 * torch.finfo(integrals.dtype).eps * torch.maximum(here.abs(), there.abs())
    if metric != "euclidean":
        least = (there - here).abs() - rounding
        costs = torch.where(least > costs, least, costs)
    return Edges(edges, integrals, costs.cpu().numpy(), there - here, rounding)


def refine(
    model: Model,
    graph: Graph,
    edges: Edges,
    moves: tuple[Tensor, Tensor, Tensor],
    total: Tensor,
    label: Tensor | None,
    n_nodes: int,
    size: int,
) -> Tensor:
    """Add to the sums of paths that miss f(x) − f(x') what finer rules on their edges give; True for those still off.

    A long edge over a steep place has begun with no more nodes than the short ones elsewhere. Each path asks for what
    itself needs, so that no sum depends on the others.

    Parameters
    ----------
    moves : (Tensor, Tensor, Tensor)
        (M,) each: the path, the edge, and +1 or −1 for its direction.
    total : Tensor
        (n, *shape), the sums so far; changed in place.
    """
    paths, places, signs = moves
    ends = torch.from_numpy(edges.ends).to(total.device)

    def summed(values: Tensor) -> Tensor:
        return values.new_zeros(len(total)).index_add_(0, paths, values)

    allowed = _TOLERANCE * summed(signs * edges.change[places]).abs().clamp_min(LEAST_CHANGE)
    share = (allowed / summed(torch.ones_like(allowed[paths])).clamp_min(1))[paths]
    allowed = allowed + summed(edges.rounding[places])
    error = (edges.integrals.flatten(1).sum(1, dtype=torch.float64) - edges.change)[places]
    active, before = torch.arange(len(paths), device=paths.device), None
    times, weights = rule("gausslegendre", n_nodes, graph.vertices)
    for n_pieces in _PIECES:
        missed = summed(signs * error).abs() > allowed
        kept = missed[paths[active]] & (error[active].abs() > (share + edges.rounding[places])[active])
        active = active[kept]
        if not len(active):
            break
        before = edges.integrals[places[active]] if before is None else before[kept]
        which, inverse = places[active].unique(return_inverse=True)
        starts = torch.arange(n_pieces, device=times.device, dtype=times.dtype)[:, None]
        finer = ((starts + times) / n_pieces).flatten(), (weights / n_pieces).repeat(n_pieces)
        found, _ = _quadrature(model, graph, ends[which], label, "euclidean", *finer, 0.0, size)
        error[active] = (found.flatten(1).sum(1, dtype=torch.float64) - edges.change[which])[inverse]
        gain = (found[inverse] - before).to(total) * column(signs[active].to(total), total)
        total.index_add_(0, paths[active], gain)
        before = found[inverse]
    return summed(signs * error).abs() > _MISSED / _TOLERANCE * allowed


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
    integrals = graph.vertices.new_empty(len(ends), *graph.shape, dtype=graph.dtype)
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
        integrals[chunk] = torch.einsum("q,eq...->e...", weights.to(products), products)
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
    """(0.01 · median ‖∇f‖ at the nodes where it is finite)²."""
    norms = []
    for points in graph.images(graph.vertices[: graph.n_nodes], size):
        classes = None if label is None else label.expand(len(points))
        norms.append(score_gradient(model, points, classes).flatten(1).double().norm(dim=1))
    known = torch.cat(norms)
    known = known[known.isfinite()]
    return max(_EPSILON * float(known.median()) if len(known) else 0.0, _LEAST_EPSILON) ** 2


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
