"""The edges of a graph as paths: the line integral of the gradient along each, and what it costs to go along it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.modules import jvp
from ..core.scorer import Scorer
from .graph import Indices
from .path import column
from .quadrature import empty_sum, rule
from .refine import ALLOWED, Node, by_share, gauss, quarters, refine, share_of

# Share of the median gradient norm that a way costs where the gradient is zero; the least of it where it is everywhere.
_EPSILON, _LEAST_EPSILON = 0.01, 1e-12


@dataclasses.dataclass
class Graph:
    """Where the paths may go.

    vertices : (V, *shape) or, where ``decode`` is given, latents (V, *latent); the ``n_inner`` graph nodes come first.
    edges : (E, 2), i < j.
    starts, ends : (B,), the vertices of the baselines and the inputs.
    shape, dtype : of what the model takes.
    """

    vertices: Tensor
    edges: Indices
    n_inner: int
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

    def segment(self, here: Tensor, there: Tensor, t: Tensor, *, velocity: bool = True) -> tuple[Tensor, Tensor]:
        """Points on straight edges at some times, and their velocities; decoded, where the graph is in latents."""
        start = self.vertices[here]
        step = self.vertices[there] - start
        points = start + column(t, start) * step
        if self.decode is None:
            return points, step
        with torch.no_grad():
            return jvp(self.decode, points, step) if velocity else (self.decode(points), step)


class Edges(NamedTuple):
    """What is known of edges i -> j for one group of images, of which ``row`` is one.

    ends : (E, 2), sorted.
    integrals : (E, *shape), line integrals of the gradient.
    costs : (E,) float64.
    scores : (V,) float64, f at the vertices used, NaN at others.
    """

    row: int
    ends: Tensor
    integrals: Tensor
    costs: Tensor
    scores: Tensor

    @property
    def rounding(self) -> Tensor:
        """How far the change of the score along each edge may be off: (E,)."""
        return 4 * torch.finfo(self.integrals.dtype).eps * self.scores[self.ends].abs().amax(1)


def edge_integrals(scorer: Scorer, graph: Graph, edges: Indices, row: int, metric: str, n_nodes: int) -> Edges:
    """Line integrals of the gradient along edges, and what the edges cost, for the score of one image.

    By length of gradient an edge costs at least the change of the score. Without that, a steep wall that lies between
    two nodes of the quadrature would cost nothing.
    """
    ends = torch.from_numpy(edges).to(graph.vertices.device)
    epsilon = _epsilon(scorer, graph, row) if metric == "conformal" else 0.0
    zeros = torch.zeros(len(ends), dtype=torch.float64, device=ends.device)
    integrals, costs = _quadrature(scorer, graph, ends, row, zeros, zeros + 1, n_nodes, metric, epsilon)
    found = Edges(row, ends, integrals, costs, _scores(scorer, graph, ends, row))
    if metric != "euclidean":
        here, there = found.scores[ends].unbind(1)
        least = (there - here).abs() - found.rounding
        costs = torch.where(least > costs, least, costs)
    return found._replace(costs=costs)


def sum_along(
    scorer: Scorer, graph: Graph, edges: Edges, moves: tuple[Tensor, Tensor, Tensor], n: int, n_nodes: int
) -> Tensor:
    """The integrals of paths from those of their edges, cut finer where a path misses the change of its score.

    A long edge over a steep place has begun with no more nodes than the short ones elsewhere. Each path asks for what
    itself needs, so that no sum depends on the others.

    Parameters
    ----------
    moves : (Tensor, Tensor, Tensor)
        (M,) each: the path, the edge, and +1 or −1 for its direction.
    n : int
        Paths.

    Returns
    -------
    Tensor
        (n, *shape).
    """
    paths, places, signs = moves
    ends, sums = edges.scores[edges.ends[places]], edges.integrals[places]
    t = (1 - signs.double()) / 2  # against its direction an edge is gone from 1 to 0
    first, last = (torch.where(signs > 0, ends[:, a], ends[:, 1 - a]) for a in (0, 1))
    start = Node(torch.stack([places.double(), t], 1), score=first)
    end = Node(torch.stack([places.double(), 1 - t], 1), score=last)
    sums = sums * column(signs.to(sums), sums)
    pieces = gauss(paths, torch.zeros_like(paths), start, end, sums)
    spare = edges.rounding[places]
    change, rounding, count = (torch.zeros(n, dtype=torch.float64, device=t.device) for _ in range(3))
    for total, values in ((change, last - first), (rounding, spare), (count, torch.ones_like(spare))):
        total.index_add_(0, paths, values)
    allowed = share_of(change, ALLOWED)
    share = allowed / count.clamp_min(1) + rounding / count.clamp_min(1)
    total = empty_sum(graph.vertices.new_zeros(n, *graph.shape, dtype=graph.dtype))

    def integral(rows: Tensor, begin: Tensor, finish: Tensor) -> Tensor:
        # paths from one baseline begin with the same edges: each piece of an edge is taken once
        keys, inverse = torch.stack([begin[:, 0], begin[:, 1], finish[:, 1]], 1).unique(dim=0, return_inverse=True)
        own = edges.ends[keys[:, 0].long()]
        return _quadrature(scorer, graph, own, edges.row, keys[:, 1], keys[:, 2], n_nodes)[0][inverse]

    def score(rows: Tensor, place: Tensor) -> Tensor:
        keys, inverse = place.unique(dim=0, return_inverse=True)
        own, parts = edges.ends[keys[:, 0].long()], []
        for some in torch.arange(len(keys), device=keys.device).split(scorer.size):
            points, _ = graph.segment(own[some, 0], own[some, 1], keys[some, 1], velocity=False)
            parts.append(scorer.score(points, torch.full_like(some, edges.row)))
        return torch.cat(parts).double()[inverse]

    refine(total, pieces, quarters(integral, score), by_share(allowed + rounding, share))
    return total


def _quadrature(
    scorer: Scorer,
    graph: Graph,
    ends: Tensor,
    row: int,
    first: Tensor,
    last: Tensor,
    n_nodes: int,
    metric: str = "euclidean",
    epsilon: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Integrals and costs of edges between two times each: (E, *shape) and (E,) float64."""
    times, weights = rule("gausslegendre", n_nodes, graph.vertices)
    integrals = graph.vertices.new_empty(len(ends), *graph.shape, dtype=graph.dtype)
    costs = torch.empty(len(ends), dtype=torch.float64, device=ends.device)
    for chunk in torch.arange(len(ends), device=ends.device).split(max(scorer.size // n_nodes, 1)):
        parts, width = [], (last - first)[chunk]
        t = (first[chunk, None] + width[:, None] * times.double()).flatten()
        here, there = (ends[chunk, side].repeat_interleave(n_nodes) for side in (0, 1))
        for some in torch.arange(len(t), device=ends.device).split(scorer.size):
            points, velocity = graph.segment(here[some], there[some], t[some])
            parts.append((scorer.gradient(points, torch.full_like(some, row)), velocity))
        slopes, velocity = (torch.cat(part).unflatten(0, (-1, n_nodes)) for part in zip(*parts, strict=True))
        products = slopes * velocity
        found = torch.einsum("q,eq...->e...", weights.to(products), products)
        integrals[chunk] = found * column(width, found)
        speed = velocity.flatten(2).double().norm(dim=2)
        if metric == "conformal":
            speed = speed * (slopes.flatten(2).double().square().sum(2) + epsilon).sqrt()
        elif metric == "rank1":
            speed = products.flatten(2).double().sum(2).abs()
        met = torch.isfinite(products).flatten(1).all(1)
        costs[chunk] = (speed @ weights.double()).where(met, torch.inf)
    return integrals, costs


def _epsilon(scorer: Scorer, graph: Graph, row: int) -> float:
    """(0.01 · median ‖∇f‖ at the nodes where it is finite)²."""
    norms = []
    for points in graph.images(graph.vertices[: graph.n_inner], scorer.size):
        rows = torch.full((len(points),), row, device=points.device)
        norms.append(scorer.gradient(points, rows).flatten(1).double().norm(dim=1))
    known = torch.cat(norms)
    known = known[known.isfinite()]
    return max(_EPSILON * float(known.median()) if len(known) else 0.0, _LEAST_EPSILON) ** 2


def _scores(scorer: Scorer, graph: Graph, ends: Tensor, row: int) -> Tensor:
    """f at the nodes and at the ends of some edges, NaN at the other vertices: (V,) float64."""
    wanted = torch.arange(len(graph.vertices), device=ends.device) < graph.n_inner
    wanted[ends] = True
    parts = [
        scorer.score(points, torch.full((len(points),), row, device=points.device))
        for points in graph.images(graph.vertices[wanted], scorer.size)
    ]
    values = torch.cat(parts).double()
    return values.new_full(wanted.shape, torch.nan).masked_scatter(wanted, values)
