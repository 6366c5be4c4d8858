"""The edges of a graph as paths: the line integral of the gradient along each, and its cost."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.derivatives import jvp
from ..core.scorer import Scorer
from .graph import Indices
from .path import column
from .quadrature import empty_sum, rule
from .refine import ALLOWED, DEEPEST_EDGE, Pieces, by_share, finer, gauss, refine, share_of

# √ε as a share of the median gradient norm, and its least value.
_EPSILON, _LEAST_EPSILON = 0.01, 1e-12


@dataclasses.dataclass
class Graph:
    """Where the paths may go.

    vertices : (V, *shape) or, with ``decode``, latents (V, *latent); the ``n_inner`` graph nodes come first.
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
        """Some vertices at a time, decoded if they are latents."""
        for part in vertices.split(size):
            with torch.no_grad():
                yield part if self.decode is None else self.decode(part.clone())

    def at_vertices(
        self, function: Callable[[Tensor, Tensor], Tensor], vertices: Tensor, row: int, size: int
    ) -> Tensor:
        """``function(points, rows)`` at vertices, for the score of one image: (n,) float64."""
        parts = self.images(vertices, size)
        return torch.cat([function(part, torch.full((len(part),), row, device=part.device)) for part in parts]).double()

    def segment(self, here: Tensor, there: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Points on straight edges at some times, and their velocities; decoded if the graph is in latents."""
        start = self.vertices[here]
        step = self.vertices[there] - start
        points = start + column(t, start) * step
        if self.decode is None:
            return points, step
        with torch.no_grad():
            return jvp(self.decode, points, step, "vae.decode")


class Edges(NamedTuple):
    """Edges i -> j for one group of images, of which ``row`` is one: sorted ends (E, 2), line integrals of the gradient
    (E, *shape), float64 costs (E,), and f at the vertices used, NaN at others (V,)."""

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

    Except for ``"euclidean"`` an edge costs at least the change of the score, so that a steep wall between two nodes of
    the quadrature is seen.
    """

    def norms(points: Tensor, rows: Tensor) -> Tensor:
        return scorer.gradient(points, rows).flatten(1).double().norm(dim=1)

    ends, epsilon = torch.from_numpy(edges).to(graph.vertices.device), 0.0
    if metric == "conformal":  # (0.01 · median ‖∇f‖ at the nodes where it is finite)²
        known = graph.at_vertices(norms, graph.vertices[: graph.n_inner], row, scorer.size)
        known = known[known.isfinite()]
        epsilon = max(_EPSILON * float(known.median()) if len(known) else 0.0, _LEAST_EPSILON) ** 2
    integrals, costs = _quadrature(scorer, graph, ends, row, n_nodes, 1, metric, epsilon)
    used = torch.arange(len(graph.vertices), device=ends.device) < graph.n_inner
    used[ends] = True
    scores = graph.at_vertices(scorer.score, graph.vertices[used], row, scorer.size)
    scores = scores.new_full(used.shape, torch.nan).masked_scatter(used, scores)
    found = Edges(row, ends, integrals, costs, scores)
    if metric != "euclidean":
        here, there = found.scores[ends].unbind(1)
        least = (there - here).abs() - found.rounding
        costs = torch.where(least > costs, least, costs)
    if metric == "rank1":
        costs = costs + _shorter(graph, found)
    return found._replace(costs=costs)


def _shorter(graph: Graph, edges: Edges) -> Tensor:
    """Costs of edges by their lengths, (E,), too small to count but among ways that cost the same.

    All ways without a turn of f do in the metric ∇f ∇fᵀ, and which of them is the shortest would be left to rounding.
    """
    nodes, known = graph.vertices[: graph.n_inner].flatten(1).double(), edges.scores[: graph.n_inner]
    known = known[known.isfinite()]
    if not len(known):
        return torch.zeros_like(edges.costs)
    slope = (known.max() - known.min()) / (nodes.amax(0) - nodes.amin(0)).norm().clamp_min(1e-300)
    lengths = graph.vertices[edges.ends].flatten(2).double().diff(dim=1)[:, 0].norm(dim=1)
    return 0.01 * torch.finfo(graph.dtype).eps ** 0.5 * slope * lengths


def sum_along(
    scorer: Scorer, graph: Graph, edges: Edges, moves: tuple[Tensor, Tensor, Tensor], n: int, n_nodes: int
) -> Tensor:
    """The integrals of n paths from those of their edges, with more nodes where a path misses its change of score.

    ``moves`` are the path, the edge, and +1 or −1 for its direction, (M,) each. What a path gets, (n, *shape), does not
    depend on the others.
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
