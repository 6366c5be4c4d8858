"""Neighbour graphs: edges, bridges between components, shortest paths. By scikit-learn and SciPy, on the CPU.

These are imported where they are used, since each takes seconds.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]


def neighbour_edges(points: Floats, n_neighbors: int) -> Indices:
    """Sorted edges i < j (E, 2) that join each of (N, d) distinct points to its nearest others, made connected.

    An edge counts both ways. With N − 1 neighbours or more, all points are joined.
    """
    from sklearn.neighbors import NearestNeighbors

    n_neighbors = min(n_neighbors, len(points) - 1)
    if not n_neighbors:
        return np.empty((0, 2), np.int64)
    nearest = NearestNeighbors(n_neighbors=n_neighbors).fit(points).kneighbors(return_distance=False)
    edges = np.stack([np.repeat(np.arange(len(points)), n_neighbors), nearest.ravel()], 1)
    edges = _distinct(np.sort(edges, 1), len(points))
    return _distinct(np.concatenate([edges, bridges(points, edges)]), len(points))


def bridges(points: Floats, edges: Indices) -> Indices:
    """The edges i < j that connect the components of a graph (paper 4, figure 6): (E', 2).

    Each component but the largest is linked to the rest by the closest pair of points, until there is one component:
    a minimum spanning tree of the components, where the published code links every pair of them.
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.metrics import pairwise_distances_argmin_min

    added = np.empty((0, 2), np.int64)
    while True:
        every = np.concatenate([edges, added])
        n_parts, part_of = connected_components(_matrix(len(points), every, np.ones(len(every))), directed=False)
        if n_parts == 1:
            return added
        links = []
        for part in np.delete(np.arange(n_parts), np.bincount(part_of).argmax()):
            inside, outside = (part_of == part).nonzero()[0], (part_of != part).nonzero()[0]
            nearest, distance = pairwise_distances_argmin_min(points[inside], points[outside])
            best = distance.argmin()
            links.append(sorted((inside[best], outside[nearest[best]])))
        added = _distinct(np.concatenate([added, np.array(links)]), len(points))


def nearest_nodes(nodes: Floats, points: Floats, n_neighbors: int) -> tuple[Indices, NDArray[np.bool_]]:
    """The nodes nearest to each point, nearest first, and whether the first of them is the point itself.

    (N, d) and (n, d) -> (n, k), with k at most N, and (n,).
    """
    from sklearn.neighbors import NearestNeighbors

    n_neighbors = min(n_neighbors, len(nodes))
    nearest = NearestNeighbors(n_neighbors=n_neighbors).fit(nodes).kneighbors(points, return_distance=False)
    return nearest, (nodes[nearest[:, 0]] == points).all(1)


def shortest_paths(
    n_vertices: int, n_nodes: int, edges: Indices, weights: Floats, source: int
) -> tuple[Floats, Indices]:
    """Dijkstra from one vertex to all: distances, and the vertex before each on its path, −1 where none leads.

    Edges between the first ``n_nodes`` vertices count both ways. The others are the ends of some path each: paths only
    leave the source and only arrive at the others, so that none leads through the end of another.
    """
    from scipy.sparse.csgraph import dijkstra

    back = (edges[:, 1] < n_nodes) | (edges[:, 1] == source)
    ways = np.concatenate([edges, edges[back][:, ::-1]])
    graph = _matrix(n_vertices, ways, np.concatenate([weights, weights[back]]))
    distance, before = dijkstra(graph, directed=True, indices=source, return_predecessors=True)
    before = np.where(before < 0, -1, before).astype(np.int64)
    before[source] = source
    return distance, before


def shortest_paths_of(
    n_vertices: int, n_nodes: int, edges: Indices, weights: Floats, sources: Indices, ends: Indices
) -> Indices:
    """The vertices of the shortest path from each source to its own end, as :func:`walk_back` has them: (n, T).

    As in :func:`shortest_paths`, none leads through an end of another. Edges join sources and ends to nodes only.
    """
    from scipy.sparse.csgraph import dijkstra

    inner = edges[:, 1] < n_nodes
    leaving = inner | np.isin(edges[:, 1], sources)
    forward = inner | ~leaving
    ways = np.concatenate([edges[forward], edges[leaving][:, ::-1]])
    graph = _matrix(n_vertices, ways, np.concatenate([weights[forward], weights[leaving]]))
    before = dijkstra(graph, directed=True, indices=sources, return_predecessors=True)[1].astype(np.int64)
    rows = np.arange(len(sources))
    before[rows, sources] = sources
    flat = np.where(before < 0, -1, before + n_vertices * rows[:, None]).ravel()
    return walk_back(flat, ends + n_vertices * rows) % n_vertices


def walk_back(before: Indices, ends: Indices) -> Indices:
    """The vertices of the shortest paths to some ends, each filled up with its end: (n,) -> (n, T), T ≥ 2.

    Ends that no path leads to stay where they are.
    """
    back = [ends]
    while True:
        ahead = np.where(before[back[-1]] < 0, back[-1], before[back[-1]])
        if (ahead == back[-1]).all():
            break
        back.append(ahead)
    # reversed, a short path begins with copies of the source; they go to its end instead
    vertices = np.stack(back[::-1], 1)
    n_hops = (vertices[:, 1:] != vertices[:, :-1]).sum(1, keepdims=True)
    places = np.arange(max(len(back), 2))
    return np.take_along_axis(vertices, np.minimum(places + len(back) - 1 - n_hops, len(back) - 1), 1)


def _distinct(edges: Indices, n_vertices: int) -> Indices:
    """Each edge once, sorted; by one key an edge, which sorts ten times as fast as rows do."""
    return np.stack(np.divmod(np.unique(edges @ [n_vertices, 1]), n_vertices), 1)


def _matrix(n_vertices: int, edges: Indices, weights: Floats) -> Any:
    """The weights of edges i -> j; an explicit zero is an edge of no length."""
    from scipy.sparse import coo_array

    return coo_array((weights, (edges[:, 0], edges[:, 1])), shape=(n_vertices, n_vertices)).tocsr()
