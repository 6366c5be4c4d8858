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
from .refine import ALLOWED, DEEPEST_EDGE, Pieces, by_share, finer, gauss, refine, share_of

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

    def segment(self, here: Tensor, there: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Points on straight edges at some times, and their velocities; decoded, where the graph is in latents."""
        start = self.vertices[here]
        step = self.vertices[there] - start
        points = start + column(t, start) * step
        if self.decode is None:
            return points, step
        with torch.no_grad():
            return jvp(self.decode, points, step)


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
    integrals, costs = _quadrature(scorer, graph, ends, row, n_nodes, 1, metric, epsilon)
    found = Edges(row, ends, integrals, costs, _scores(scorer, graph, ends, row))
    if metric != "euclidean":
        here, there = found.scores[ends].unbind(1)
        least = (there - here).abs() - found.rounding
        costs = torch.where(least > costs, least, costs)
    return found._replace(costs=costs)


def sum_along(
    scorer: Scorer, graph: Graph, edges: Edges, moves: tuple[Tensor, Tensor, Tensor], n: int, n_nodes: int
) -> Tensor:
    """The integrals of paths from those of their edges, with more nodes where a path misses the change of its score.

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
    rounding = edges.rounding
    change = signs * edges.scores[edges.ends].diff(dim=1)[places, 0]

    def by_path(values: Tensor) -> Tensor:
        return torch.zeros(n, dtype=torch.float64, device=values.device).index_add_(0, paths, values)

    def share(pieces: Pieces) -> Tensor:
        return own_share[pieces.rows] + rounding[pieces.start.coordinates[:, 0]]

    def integral(pieces: Pieces, n_times: int) -> Tensor:
        places, signs = pieces.start.coordinates.unbind(1)
        which, inverse = places.unique(return_inverse=True)  # paths from one baseline begin with the same edges
        found, _ = _quadrature(scorer, graph, edges.ends[which], edges.row, n_nodes, n_times)
        return found[inverse] * column(signs.to(found), found)

    sums = edges.integrals[places]
    pieces = gauss(paths, torch.stack([places, signs], 1), change, sums * column(signs.to(sums), sums))
    allowed = share_of(by_path(change), ALLOWED)
    own_share = allowed / by_path(torch.ones_like(change)).clamp_min(1)
    total = empty_sum(graph.vertices.new_zeros(n, *graph.shape, dtype=graph.dtype))
    refine(total, pieces, finer(integral), by_share(allowed + by_path(rounding[places]), share, DEEPEST_EDGE))
    return total


def _quadrature(
    scorer: Scorer,
    graph: Graph,
    ends: Tensor,
    row: int,
    n_nodes: int,
    n_pieces: int = 1,
    metric: str = "euclidean",
    epsilon: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Integrals and costs of edges, by a rule for each of their pieces: (E, *shape) and (E,) float64."""
    times, weights = rule("gausslegendre", n_nodes, graph.vertices)
    first = torch.arange(n_pieces, device=times.device, dtype=times.dtype)[:, None]
    times, weights = ((first + times) / n_pieces).flatten(), (weights / n_pieces).repeat(n_pieces)
    integrals = graph.vertices.new_empty(len(ends), *graph.shape, dtype=graph.dtype)
    costs = torch.empty(len(ends), dtype=torch.float64, device=ends.device)
    for chunk in torch.arange(len(ends), device=ends.device).split(max(scorer.size // len(times), 1)):
        parts, t = [], times.repeat(len(chunk))
        here, there = (ends[chunk, side].repeat_interleave(len(times)) for side in (0, 1))
        for some in torch.arange(len(t), device=ends.device).split(scorer.size):
            points, velocity = graph.segment(here[some], there[some], t[some])
            parts.append((scorer.gradient(points, torch.full_like(some, row)), velocity))
        slopes, velocity = (torch.cat(part).unflatten(0, (-1, len(times))) for part in zip(*parts, strict=True))
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
