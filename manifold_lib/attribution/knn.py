"""Geodesic IG by neighbours: along shortest paths of a graph whose edges cost the gradient met on them (paper 4)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, check_like, warn_non_finite
from ..core.passes import plan_passes
from ..core.scorer import Model, buffers_as_found, left_as_found, resolve_target, score_change
from ..geometry.graph import Indices, nearest_nodes, neighbour_edges, shortest_paths, walk_back
from ..paths.bridges import bridges
from ..paths.edges import Edges, Graph, edge_integrals, refine
from ..paths.quadrature import empty_sum
from .latent import decoder_of, encode, modules_of

METRICS = ("conformal", "rank1", "euclidean")


class GraphPaths(NamedTuple):
    """Shortest paths from the baselines to the inputs.

    points : (B, T, *shape), the vertices, ends included; a path with fewer of them stays at its end. In latents where
        the graph is in latents.
    length : (B,), in the metric: for ``"conformal"`` and ``"rank1"`` in score units, at least |Δf| between the ends of
        the path (in a graph of latents the decoded ones).
    n_hops : (B,) int64, edges.
    """

    points: Tensor
    length: Tensor
    n_hops: Tensor


def geodesic_ig(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    nodes: Tensor,
    baselines: Tensor | float | None = None,
    n_neighbors: int = 15,
    metric: str = "conformal",
    n_nodes: int = 20,
    space: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Geodesic Integrated Gradients (Salek and Enguehard 2025) by neighbours (paper 4, section 3.3).

    The nodes are joined to their nearest neighbours, inputs and baselines to the nodes nearest to them and to nothing
    else, so that no attribution depends on its batch. The path is the shortest of the graph; the attribution is the
    line integral ∫ ∂_i f(γ) dγ_i along it. The gradients on the edges are taken once, and shared by all inputs.

    Parameters
    ----------
    model, inputs, target
        As for :func:`manifold_lib.gradient`. Each class that is explained has edge costs of its own.
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
        Gauss–Legendre nodes of each edge.
    space : object, optional
        With ``encode`` and ``decode``: the graph is drawn on latents, its edges are decoded straight lines between
        these, and all gradients and lengths are those of the decoded images. Straight pixel lines of 16 nodes join
        the raw baselines and inputs to their reconstructions.
    internal_batch_size : int, optional
        Points per pass through the model. Beside these the integral of each edge is kept, (edges, *shape).
    return_convergence_delta : bool
        Also return Σ A − (f(x) − f(x')).

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units, and Σ A − (f(x) − f(x')) (B,). An input equal to its baseline gets zeros, one that
        is reached only through gradients that are not finite NaN, with a warning.
    """
    inputs, baselines = _check(inputs, nodes, baselines, n_neighbors, metric, n_nodes)
    with left_as_found(model, inputs), buffers_as_found(modules_of(space)):
        attributions = torch.zeros_like(inputs)
        model, size = plan_passes(model, inputs, n_nodes * len(nodes), internal_batch_size, exact=True)
        classes = resolve_target(model, inputs, target, size)
        graph = _draw(inputs, nodes, baselines, n_neighbors, space, size)
        n_missed = 0
        for found in _searches(model, graph, classes, metric, n_nodes, size):
            attributions[found.rows], missed = _along(model, graph, found, n_nodes, size)
            n_missed += int(missed.sum())
        if space is not None:
            with torch.no_grad():
                lines = graph.decoded_lines(size)
            attributions += bridges(model, inputs, baselines, lines, classes, size)
            attributions[(inputs == baselines).flatten(1).all(1)] = 0
        delta = None
        if return_convergence_delta:
            delta = attributions.flatten(1).sum(1) - score_change(model, inputs, baselines, classes, size)
    if n_missed:
        message = f"geodesic_ig: {n_missed} of {len(inputs)} sums miss f(x) - f(x') by more than 1 %; take more n_nodes"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    warn_non_finite(attributions, "geodesic_ig")
    return attributions if delta is None else (attributions, delta)


def geodesic_paths(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    nodes: Tensor,
    baselines: Tensor | float | None = None,
    n_neighbors: int = 15,
    metric: str = "conformal",
    n_nodes: int = 20,
    space: Any = None,
    internal_batch_size: int | None = None,
) -> GraphPaths:
    """The paths of :func:`geodesic_ig`, to look at or to integrate along by other rules; arguments as there."""
    inputs, baselines = _check(inputs, nodes, baselines, n_neighbors, metric, n_nodes)
    with left_as_found(model, inputs), buffers_as_found(modules_of(space)):
        model, size = plan_passes(model, inputs, n_nodes * len(nodes), internal_batch_size, exact=True)
        classes = resolve_target(model, inputs, target, size)
        graph = _draw(inputs, nodes, baselines, n_neighbors, space, size)
        # what the edges hold is not kept
        every = _searches(model, graph, classes, metric, n_nodes, size)
        searches = [(found.rows, found.vertices, found.length) for found in every]
    rows, parts, lengths = zip(*searches, strict=True)
    order = np.argsort(np.concatenate(rows))
    vertices = _stacked(list(parts))[order]
    length = torch.cat(lengths)[torch.from_numpy(order).to(inputs.device)]
    n_hops = torch.from_numpy((vertices[:, 1:] != vertices[:, :-1]).sum(1)).to(inputs.device)
    return GraphPaths(graph.vertices[torch.from_numpy(vertices).to(inputs.device)], length.to(inputs.dtype), n_hops)


class _Found(NamedTuple):
    """The paths of one class: its rows of the inputs, their vertices (n, T) and lengths (n,), and what edges hold."""

    label: Tensor | None
    rows: Indices
    vertices: Indices
    length: Tensor
    edges: Edges


def _check(
    inputs: Tensor, nodes: Tensor, baselines: Tensor | float | None, n_neighbors: int, metric: str, n_nodes: int
) -> tuple[Tensor, Tensor]:
    """Inputs and baselines without their graphs."""
    check_batch(inputs)
    baselines = check_like(0.0 if baselines is None else baselines, inputs, "baselines")
    check_batch(nodes, "nodes")
    if nodes.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"nodes: got shape {tuple(nodes.shape)}, wants (N, *{tuple(inputs.shape[1:])}) like inputs")
    check_like(nodes[:1], inputs, "nodes")
    check_count(n_neighbors, "n_neighbors")
    check_choice(metric, "metric", METRICS)
    check_count(n_nodes, "n_nodes")
    return inputs.detach(), baselines.detach()


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


def _searches(
    model: Model, graph: Graph, target: Tensor | None, metric: str, n_nodes: int, size: int
) -> Iterator[_Found]:
    """For each class its costs, and a search for each distinct baseline."""
    for label in [None] if target is None else target.unique():
        rows = np.arange(len(graph.starts)) if label is None else (target == label).cpu().numpy().nonzero()[0]
        used = np.arange(len(graph.vertices)) < graph.n_nodes
        used[graph.starts[rows]] = used[graph.ends[rows]] = True
        edges = graph.edges[used[graph.edges].all(1)]
        edges = edges[np.lexsort(edges.T[::-1])]
        known = edge_integrals(model, graph, edges, label, metric, n_nodes, size)
        rows = rows[np.argsort(graph.starts[rows], kind="stable")]
        sources, first = np.unique(graph.starts[rows], return_index=True)
        vertices, lengths = [], []
        for source, members in zip(sources, np.split(rows, first[1:]), strict=True):
            distance, before = shortest_paths(len(graph.vertices), graph.n_nodes, edges, known.costs, int(source))
            vertices.append(walk_back(before, graph.ends[members]))
            lengths.append(distance[graph.ends[members]])
        length = torch.from_numpy(np.concatenate(lengths)).to(graph.vertices.device)
        yield _Found(label, rows, _stacked(vertices), length, known)


def _stacked(parts: list[Indices]) -> Indices:
    """Paths of vertices, one below the other, the shorter ones filled up with their ends."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, longest - part.shape[1])), mode="edge") for part in parts])


def _along(model: Model, graph: Graph, found: _Found, n_nodes: int, size: int) -> tuple[Tensor, Tensor]:
    """Sums of the integrals of the edges on each path, NaN where there is none, and which are off: (n, *shape) (n,)."""
    here, there = found.vertices[:, :-1], found.vertices[:, 1:]
    moves = here != there
    total = empty_sum(graph.vertices.new_zeros(len(here), *graph.shape, dtype=graph.dtype))
    missed = torch.zeros(len(here), dtype=torch.bool, device=total.device)
    if moves.any():
        here, there, n = here[moves], there[moves], len(graph.vertices)
        edges = np.searchsorted(found.edges.ends @ [n, 1], np.minimum(here, there) * n + np.maximum(here, there))
        used, place = np.unique(edges, return_inverse=True)
        every = torch.from_numpy(used).to(total.device)
        whole = found.edges
        known = Edges(
            *(whole.ends[used], whole.integrals[every], whole.costs[used], whole.change[every], whole.rounding[every])
        )
        # one row for each path: +1 where it goes along an edge i -> j, -1 where it comes back
        at, signs = torch.from_numpy(np.stack([moves.nonzero()[0], place])), torch.from_numpy(np.sign(there - here))
        paths = torch.sparse_coo_tensor(at, signs, (len(total), len(used)), check_invariants=False).to(total)
        total = torch.sparse.mm(paths, known.integrals.to(total).flatten(1)).view_as(total)
        each = (*at.to(total.device), signs.to(total.device))
        missed = refine(model, graph, known, each, total, found.label, n_nodes, size)
    total[torch.isinf(found.length)] = torch.nan
    return total.to(graph.dtype), missed
