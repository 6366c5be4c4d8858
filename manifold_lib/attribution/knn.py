"""Geodesic IG by neighbours: along shortest paths of a graph whose edges cost the gradient met on them (paper 4)."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_baselines, check_batch, check_choice, check_count, check_like
from ..core.scorer import LEAST_CHANGE, Model, Scorer, Target, scoring
from ..paths.edges import Edges, Graph, edge_integrals, sum_along
from ..paths.graph import Indices, nearest_nodes, neighbour_edges, shortest_paths, walk_back
from ..paths.integral import integrate, path_method, with_delta
from ..paths.path import Path, polyline
from .latent import bridged, decoder_of, encode

EDGE_COSTS = ("conformal", "rank1", "euclidean")
# Entries of the edges of some paths in memory at once, and what a sum may miss without a warning.
_ENTRIES, _MISSED = 2**25, 1e-2


@dataclass(frozen=True)
class GraphPaths(Path):
    """Shortest paths from the baselines to the inputs, polylines through vertices of a graph.

    points : (B, T, *shape), the vertices, ends included; a path with fewer of them stays at its end. In latents where
        the graph is in latents.
    length : (B,), in the metric: for ``"conformal"`` and ``"rank1"`` in score units, at least |Δf| between the ends of
        the path (in a graph of latents the decoded ones).
    n_hops : (B,) int64, edges.
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

    The nodes are joined to their nearest neighbours, inputs and baselines to the nodes nearest to them and to nothing
    else, so that no attribution depends on its batch. The path is the shortest of the graph; the attribution is the
    line integral ∫ ∂_i f(γ) dγ_i along it. The gradients on the edges are taken once, and shared by all inputs.

    Parameters
    ----------
    model, inputs, target, additional_forward_args
        As for :func:`manifold_lib.gradient`. Each class that is explained has edge costs of its own, and so
        have images whose other arguments differ.
    nodes : Tensor
        (N, *shape), what paths may lead through, such as a test set; copies count once. Their order does not matter.
    baselines : Tensor, float or None
        (B, *shape), (1, *shape), a number, or None for zeros. There is one search for each that differs.
    n_neighbors : int
        Nearest others that each point is joined to, itself not counted; an edge counts both ways. With as many as
        there are nodes, all are joined. Separate parts of the graph are linked by their closest pairs.
    metric : {"conformal", "rank1", "euclidean"}
        Cost of an edge: ``∫ √(‖∇f‖² + ε) ‖dγ‖`` with ε = (0.01 · median ‖∇f‖ at the nodes)², which is what the
        paper's edge weight (‖x_i − x_j‖ ∫ ‖∇f‖ dt) comes to; ``∫ |∇f · dγ|``, the metric ∇f ∇fᵀ of its text, by
        which all ways without a turn of f are equally short; or ``∫ ‖dγ‖``, "Enhanced IG (k-NN)".
    n_nodes : int
        Gauss–Legendre nodes of each edge; an edge is cut in four where a path would miss the change of its score.
    space : object, optional
        With ``encode`` and ``decode``: the graph is drawn on latents, its edges are decoded straight lines between
        these, and all gradients and lengths are those of the decoded images. Bridges as of
        :func:`manifold_lib.enhanced_ig` join the raw baselines and inputs to their reconstructions.
    internal_batch_size : int, optional
        Points per pass through the model. Beside these the integral of each edge is kept, (edges, *shape).
    return_convergence_delta : bool
        Also return Σ A − (f(x) − f(x')).

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and Σ A − (f(x) − f(x')) (B,). An input equal to its baseline gets zeros, one that
        is reached only through gradients that are not finite NaN, with a warning.

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
    """The paths of :func:`geodesic_ig`, whose arguments these are, to look at or to integrate.

    They bring the integrals of the edges that they use.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> nodes = torch.tensor([[0.0, 1.0], [5.0, 5.0]])
    >>> paths = ml.geodesic_paths(lambda x: (x**2).sum(1), torch.tensor([[1.0, 1.0]]), nodes=nodes, n_neighbors=1)
    >>> paths.points, paths.n_hops
    (tensor([[[0., 0.],
             [0., 1.],
             [1., 1.]]]), tensor([2]))
    """
    check_batch(inputs)
    baselines = check_baselines(baselines, inputs)
    check_batch(nodes, "nodes")
    if nodes.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"nodes: got shape {tuple(nodes.shape)}, wants (N, *{tuple(inputs.shape[1:])}) like inputs")
    check_like(nodes[:1], inputs, "nodes")
    check_count(n_neighbors, "n_neighbors")
    check_choice(metric, "metric", EDGE_COSTS)
    check_count(n_nodes, "n_nodes")
    inputs, baselines = inputs.detach(), baselines.detach()
    every = n_nodes * len(nodes)
    with scoring(model, inputs, target, every, additional_forward_args, internal_batch_size, space) as scorer:
        graph = _draw(inputs, nodes, baselines, n_neighbors, space, scorer.size)
        searches = [_search(scorer, graph, rows, metric, n_nodes) for rows in _groups(scorer)]
        order = np.argsort(np.concatenate([found[0] for found in searches]))
        vertices = _stacked([found[1] for found in searches])[order]
        length = torch.cat([found[2] for found in searches])[torch.from_numpy(order).to(inputs.device)]
        n_hops = torch.from_numpy((vertices[:, 1:] != vertices[:, :-1]).sum(1)).to(inputs.device)
        points = graph.vertices[torch.from_numpy(vertices).to(inputs.device)]

        def integral(other: Scorer, method: str, create_graph: bool) -> Tensor | None:
            if create_graph or method != "trapezoid" or not other.explains(scorer):
                return None
            return _sums(other, graph, searches, n_nodes)

        line = polyline(points)
        own: dict[str, Any] = {"points": points, "length": length.to(inputs.dtype), "n_hops": n_hops}
        if space is None:
            return GraphPaths(line.at, end=inputs, n_edges=line.n_edges, integral=integral, **own)
        with torch.no_grad():
            decode = decoder_of(space, inputs)
            start, end = (torch.cat([decode(part) for part in points[:, i].split(scorer.size)]) for i in (0, -1))
        curve = Path(lambda rows, t: decode(line.at(rows, t)), end=end, n_edges=line.n_edges, integral=integral)
        whole = bridged(curve, start, inputs, baselines)
        return GraphPaths(whole.at, end=inputs, parts=whole.parts, **own)


_Search = tuple[Indices, Indices, Tensor, Edges]


def _groups(scorer: Scorer) -> list[Indices]:
    """Rows of the images that share class and arguments, and so the costs of edges."""
    return [rows.cpu().numpy() for rows in scorer.groups()]


def _draw(inputs: Tensor, nodes: Tensor, baselines: Tensor, n_neighbors: int, space: Any, size: int) -> Graph:
    """The graph on the nodes, and what joins the baselines and the inputs to it."""
    same = (inputs == baselines).flatten(1).all(1).cpu().numpy()
    starts, own = torch.unique(baselines, dim=0, return_inverse=True)
    groups, decode = (nodes.detach(), starts, inputs), None
    if space is not None:
        with torch.no_grad():
            groups = tuple(encode(space, group, size) for group in groups)
        decode = decoder_of(space, inputs)
    flat = [group.flatten(1).cpu().double().numpy() for group in groups]
    flat[0], kept = np.unique(flat[0], axis=0, return_index=True)
    others = np.concatenate(flat[1:])
    nearest, is_node = nearest_nodes(flat[0], others, n_neighbors)
    places = np.where(is_node, nearest[:, 0], len(kept) + np.arange(len(others)))
    joints = np.stack([nearest, np.broadcast_to(places[:, None], nearest.shape)], 2)[~is_node].reshape(-1, 2)
    edges = np.concatenate([neighbour_edges(flat[0], n_neighbors), joints])
    vertices = torch.cat([groups[0][torch.from_numpy(kept).to(inputs.device)], *groups[1:]])
    begin = places[own.cpu().numpy()]
    return Graph(
        vertices,
        edges,
        len(kept),
        begin,
        np.where(same, begin, places[len(starts) :]),
        inputs.shape[1:],
        inputs.dtype,
        decode,
    )


def _search(scorer: Scorer, graph: Graph, rows: Indices, metric: str, n_nodes: int) -> _Search:
    """The paths of one group: its rows, their vertices (n, T), lengths (n,), and what is known of the edges used.

    There is a search for each distinct baseline.
    """
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
    n_missed = 0
    for rows, vertices, length, edges in searches:
        here, there, n = vertices[:, :-1], vertices[:, 1:], len(graph.vertices)
        keys = np.minimum(here, there) * n + np.maximum(here, there)
        places = np.searchsorted(edges.ends.cpu().numpy() @ [n, 1], keys)
        at_once = max(_ENTRIES // (here.shape[1] * graph.shape.numel()), 1)
        for some in np.split(np.arange(len(rows)), np.arange(at_once, len(rows), at_once)):
            moves = (here != there)[some]
            paths = np.broadcast_to(np.arange(len(some))[:, None], moves.shape)
            each = np.stack([paths[moves], places[some][moves], np.sign(there - here)[some][moves]])
            along, edge, sign = torch.from_numpy(each).to(total.device)
            sums = sum_along(scorer, graph, edges, (along, edge, sign), len(some), n_nodes)
            ends = torch.from_numpy(vertices[some][:, [0, -1]]).to(total.device)
            change = edges.scores[ends[:, 1]] - edges.scores[ends[:, 0]]
            error = (sums.flatten(1).sum(1, dtype=torch.float64) - change).abs()
            n_missed += int((error > _MISSED * change.abs().clamp_min(LEAST_CHANGE)).sum())
            sums[torch.isinf(length[torch.from_numpy(some).to(length.device)])] = torch.nan
            total[torch.from_numpy(rows[some]).to(total.device)] = sums.to(total.dtype)
    if n_missed:
        message = f"geodesic_ig: {n_missed} of {len(total)} sums miss f(x) - f(x') by more than 1 %; take more n_nodes"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return total
