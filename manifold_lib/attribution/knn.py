"""Geodesic IG by neighbours: along shortest paths of a graph whose edges cost the gradient met on them (paper 4)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.autoencoder import encoded
from ..core.checks import check_baselines, check_batch, check_choice, check_count, check_like, warn_of
from ..core.scorer import LEAST_CHANGE, Model, Scorer, Target, scoring
from ..paths.edges import Edges, Graph, edge_integrals, sum_along
from ..paths.graph import Indices, nearest_nodes, neighbour_edges, shortest_paths, walk_back
from ..paths.integral import integrate, path_method, with_delta
from ..paths.path import Path, polyline
from .latent import bridged

EDGE_COSTS = ("conformal", "rank1", "euclidean")
# Entries of the edges of some paths in memory at once, and what a sum may miss without a warning.
_ENTRIES, _MISSED = 2**25, 1e-2
_Search = tuple[Indices, Indices, Tensor, Edges]


@dataclass(frozen=True)
class GraphPaths(Path):
    """Shortest paths from the baselines to the inputs, polylines through vertices of a graph.

    Attributes
    ----------
    points : Tensor
        (B, T, *shape), vertices, ends included, or their latents; a path with fewer of them stays at its end.
    length : Tensor
        (B,), in the metric: for ``"conformal"`` and ``"rank1"`` in score units, at least |Δf| between the ends of
        the path (in a graph of latents the decoded ones).
    n_hops : Tensor
        (B,) int64, edges.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> nodes, inputs = torch.tensor([[0.0, 1.0], [5.0, 5.0]]), torch.tensor([[1.0, 1.0]])
    >>> ml.geodesic_paths(lambda x: (x**2).sum(1), inputs, nodes=nodes, n_neighbors=1).n_hops
    tensor([2])
    """

    points: Tensor = field(kw_only=True)
    length: Tensor = field(kw_only=True)
    n_hops: Tensor = field(kw_only=True)


@path_method
def geodesic_ig(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    nodes: Tensor,
    baselines: Tensor | float | None = None,
    n_neighbors: int = 15,
    metric: str = "conformal",
    n_nodes: int = 20,
    space: Any = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Geodesic Integrated Gradients (Salek and Enguehard 2025) by neighbours (paper 4, section 3.3).

    The nodes are joined to their nearest neighbours, inputs and baselines to the nodes nearest to them only, so that no
    attribution depends on its batch. The attribution is the line integral ∫ ∂_i f(γ) dγ_i along the shortest path. The
    gradients on the edges are taken once, and shared by all inputs.

    Parameters
    ----------
    model, inputs, target, baselines, additional_forward_args, return_convergence_delta
        As for :func:`manifold_lib.integrated_gradients`. Edge costs are taken anew for each class that is explained and
        each value of the other arguments; paths are searched anew for each distinct baseline.
    nodes : Tensor
        (N, *shape), what paths may lead through, such as a test set; copies count once. Their order does not matter.
    n_neighbors : int
        Nearest others that each point is joined to, itself not counted; an edge counts both ways. With as many as
        there are nodes, all are joined. Separate parts of the graph are linked by their closest pairs.
    metric : {"conformal", "rank1", "euclidean"}
        Cost of an edge, in this order: ``∫ √(‖∇f‖² + ε) ‖dγ‖`` with ε = (0.01 · median ‖∇f‖ at the nodes)², the paper's
        edge weight ‖x_i − x_j‖ ∫ ‖∇f‖ dt but for ε; ``∫ |∇f · dγ|``, the metric ∇f ∇fᵀ of its text, by which all ways
        without a turn of f are equally short, so that the straightest of them is taken; or ``∫ ‖dγ‖``,
        "Enhanced IG (k-NN)".
    n_nodes : int
        Gauss–Legendre nodes of each edge; four times as many and more where a path would miss its change of score.
    space : object, optional
        With ``encode`` and ``decode``: the graph is on latents, its edges are straight lines between these, decoded,
        and gradients and lengths are those of the decoded images. Bridges as of :func:`manifold_lib.enhanced_ig` join
        the raw baselines and inputs to their reconstructions.
    internal_batch_size : int, optional
        Points per pass through the model. Beside these the integral of each edge is kept, (edges, *shape).

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,). An input equal to its baseline gets zeros. One
        that is reached only through gradients that are not finite gets NaN, with a warning.

    Raises
    ------
    ValueError
        For bad input, and nodes that are not like the inputs.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model = lambda x: (x**2).sum(1)
    >>> ml.geodesic_ig(model, torch.tensor([[1.0, 2.0]]), nodes=torch.rand(5, 2), n_neighbors=2).sum().round()
    tensor(5.)
    """
    check_batch(inputs)
    check_batch(nodes, "nodes")
    points = check_count(n_nodes, "n_nodes") * len(nodes)
    with scoring(model, inputs, target, points, additional_forward_args, internal_batch_size, space) as scorer:
        baselines = check_baselines(baselines, inputs).detach()
        options: dict[str, Any] = {"n_neighbors": n_neighbors, "metric": metric, "n_nodes": n_nodes, "space": space}
        path = geodesic_paths(scorer, inputs, nodes=nodes, baselines=baselines, **options)
        attributions = integrate(scorer, path, name="geodesic_ig")
        return with_delta(scorer, attributions, inputs.detach(), baselines, return_convergence_delta)


def geodesic_paths(
    model: Model | Scorer,
    inputs: Tensor,
    target: Target = None,
    *,
    nodes: Tensor,
    baselines: Tensor | float | None = None,
    n_neighbors: int = 15,
    metric: str = "conformal",
    n_nodes: int = 20,
    space: Any = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
) -> GraphPaths:
    """The paths of :func:`geodesic_ig`, whose arguments these are, with the integrals of the edges that they use.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> nodes = torch.tensor([[0.0, 1.0], [5.0, 5.0]])
    >>> paths = ml.geodesic_paths(lambda x: (x**2).sum(1), torch.tensor([[1.0, 1.0]]), nodes=nodes, n_neighbors=1)
    >>> paths.points
    tensor([[[0., 0.],
             [0., 1.],
             [1., 1.]]])
    """
    check_batch(inputs)
    baselines = check_baselines(baselines, inputs)
    check_batch(nodes, "nodes")
    if nodes.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"nodes: got shape {tuple(nodes.shape)}, wants (N, *{tuple(inputs.shape[1:])}) like inputs")
    check_like(nodes[:1], inputs, "nodes")
    check_count(n_neighbors, "n_neighbors")
    check_choice(metric, "metric", EDGE_COSTS)
    every = check_count(n_nodes, "n_nodes") * len(nodes)
    inputs, baselines, device = inputs.detach(), baselines.detach(), inputs.device
    with scoring(model, inputs, target, every, additional_forward_args, internal_batch_size, space) as scorer:
        graph = _draw(inputs, nodes, baselines, n_neighbors, space, scorer.size)
        # images that share class and arguments share the costs of edges
        searches = [_search(scorer, graph, rows.cpu().numpy(), metric, n_nodes) for rows in scorer.groups()]
        order = np.argsort(np.concatenate([found[0] for found in searches]))
        vertices = torch.from_numpy(_stacked([found[1] for found in searches])[order]).to(device)
        length = torch.cat([found[2] for found in searches])[torch.from_numpy(order).to(device)]
        points, n_hops = graph.vertices[vertices], vertices.diff(dim=1).ne(0).sum(1)

        def integral(other: Scorer, method: str, create_graph: bool) -> Tensor | None:
            if create_graph or method != "trapezoid" or not other.explains(scorer):
                return None
            return _sums(other, graph, searches, n_nodes)

        line, decode = polyline(points), graph.decode
        own: dict[str, Any] = {"points": points, "length": length.to(inputs.dtype), "n_hops": n_hops}
        if decode is None:
            return GraphPaths(line.at, end=inputs, n_edges=line.n_edges, integral=integral, **own)
        start, end = (torch.cat([*graph.images(points[:, i], scorer.size)]) for i in (0, -1))
        curve = Path(lambda rows, t: decode(line.at(rows, t)), end=end, n_edges=line.n_edges, integral=integral)
        whole = bridged(curve, start, inputs, baselines)
        return GraphPaths(whole.at, end=inputs, parts=whole.parts, bounds=whole.bounds, **own)


def _draw(inputs: Tensor, nodes: Tensor, baselines: Tensor, n_neighbors: int, space: Any, size: int) -> Graph:
    """The graph on the nodes, and what joins the baselines and the inputs to it."""
    same = (inputs == baselines).flatten(1).all(1).cpu().numpy()
    starts, own = torch.unique(baselines, dim=0, return_inverse=True)
    groups, decode = (nodes.detach(), starts, inputs), None
    if space is not None:
        with torch.no_grad():
            decode, latents = encoded(space, size, *groups, needs="slope")
        groups = tuple(latents)
    flat = [group.flatten(1).cpu().double().numpy() for group in groups]
    flat[0], kept = np.unique(flat[0], axis=0, return_index=True)
    others = np.concatenate(flat[1:])
    nearest, is_node = nearest_nodes(flat[0], others, n_neighbors)
    places = np.where(is_node, nearest[:, 0], len(kept) + np.arange(len(others)))
    joints = np.stack([nearest, np.broadcast_to(places[:, None], nearest.shape)], 2)[~is_node].reshape(-1, 2)
    edges = np.concatenate([neighbour_edges(flat[0], n_neighbors), joints])
    vertices = torch.cat([groups[0][torch.from_numpy(kept).to(inputs.device)], *groups[1:]])
    begin = places[own.cpu().numpy()]
    end = np.where(same, begin, places[len(starts) :])
    return Graph(vertices, edges, len(kept), begin, end, inputs.shape[1:], inputs.dtype, decode)


def _search(scorer: Scorer, graph: Graph, rows: Indices, metric: str, n_nodes: int) -> _Search:
    """The paths of one group, by a search for each distinct baseline: rows, vertices (n, T), lengths (n,) and edges."""
    used = np.arange(len(graph.vertices)) < graph.n_inner
    used[graph.starts[rows]] = used[graph.ends[rows]] = True
    edges = graph.edges[used[graph.edges].all(1)]
    edges = edges[np.lexsort(edges.T[::-1])]
    known = edge_integrals(scorer, graph, edges, int(rows[0]), metric, n_nodes)
    rows = rows[np.argsort(graph.starts[rows], kind="stable")]
    sources, first = np.unique(graph.starts[rows], return_index=True)
    costs, vertices, lengths = known.costs.cpu().numpy(), [], []
    for source, members in zip(sources, np.split(rows, first[1:]), strict=True):
        distance, before = shortest_paths(len(graph.vertices), graph.n_inner, edges, costs, int(source))
        vertices.append(walk_back(before, graph.ends[members]))
        lengths.append(distance[graph.ends[members]])
    length = torch.from_numpy(np.concatenate(lengths)).to(graph.vertices.device)
    return rows, _stacked(vertices), length, known


def _stacked(parts: list[Indices]) -> Indices:
    """Paths of vertices, one below the other, the shorter ones filled up with their ends."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1])), mode="edge") for part in parts])


def _sums(scorer: Scorer, graph: Graph, searches: list[_Search], n_nodes: int) -> Tensor:
    """The sums along all paths, NaN where there is none: (B, *shape). Those that miss their change are counted."""
    total = graph.vertices.new_zeros(scorer.batch, *graph.shape, dtype=graph.dtype)
    n, missed = len(graph.vertices), torch.zeros(scorer.batch, dtype=torch.bool, device=total.device)
    for rows, vertices, length, edges in searches:
        images, walks = (torch.from_numpy(part).to(total.device) for part in (rows, vertices))
        here, there = walks[:, :-1], walks[:, 1:]
        keys = torch.minimum(here, there) * n + torch.maximum(here, there)
        places = torch.searchsorted(edges.ends[:, 0] * n + edges.ends[:, 1], keys)
        at_once = max(_ENTRIES // (here.shape[1] * graph.shape.numel()), 1)
        for some in torch.arange(len(rows), device=total.device).split(at_once):
            moves = (here != there)[some]
            used = moves.nonzero()[:, 0], places[some][moves], (there - here)[some][moves].sign()
            sums = sum_along(scorer, graph, edges, used, len(some), n_nodes)
            change = edges.scores[walks[some, -1]] - edges.scores[walks[some, 0]]
            error = (sums.flatten(1).sum(1, dtype=torch.float64) - change).abs()
            missed[images[some]] = error > _MISSED * change.abs().clamp_min(LEAST_CHANGE)
            sums[torch.isinf(length[some])] = torch.nan
            total[images[some]] = sums.to(total.dtype)
    warn_of("geodesic_ig", missed, "sums miss f(x) - f(x') by more than 1 %; take more n_nodes")
    return total
