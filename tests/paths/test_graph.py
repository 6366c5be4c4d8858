"""The neighbour graph against scikit-learn and networkx: edges, bridges, shortest paths."""

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.neighbors import kneighbors_graph

from manifold_lib.paths import graph


def cloud(n, d=2, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def edge_set(edges):
    return {tuple(edge) for edge in edges.tolist()}


@pytest.mark.parametrize("d", [1, 2, 5, 40])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_edges_are_those_of_scikit_learn_with_the_point_itself_left_out(k, d):
    points = cloud(60, d)
    near = kneighbors_graph(points, k).toarray()
    wanted = {tuple(sorted(pair)) for pair in np.argwhere(near)}
    found = edge_set(graph.neighbour_edges(points, k))
    assert wanted <= found
    assert found - wanted == edge_set(graph.bridges(points, np.array(sorted(wanted))))
    assert all(i < j for i, j in found)


@pytest.mark.parametrize("k", [11, 12, 500])
def test_with_as_many_neighbours_as_there_are_others_all_are_joined(k):
    assert edge_set(graph.neighbour_edges(cloud(12), k)) == set(itertools.combinations(range(12), 2))


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_points(n):
    assert len(graph.neighbour_edges(cloud(n), 3)) == n - 1


@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 8), min_size=2, max_size=5), k=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_bridges_connect_the_graph_and_each_is_a_closest_pair(seed, sizes, k):
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal(size=(n, 2)) + 50 * rng.normal(size=2) for n in sizes])
    near = [
        (i, j) for i in range(len(points)) for j in np.argsort(np.linalg.norm(points - points[i], axis=1))[1 : k + 1]
    ]
    edges = np.unique(np.sort(np.array(near).reshape(-1, 2), 1), axis=0)
    whole = nx.Graph(edges.tolist())
    whole.add_nodes_from(range(len(points)))
    added = graph.bridges(points, edges).tolist()
    n_parts = nx.number_connected_components(whole)
    assert len(added) == n_parts - 1, "a spanning tree of the parts, no more"
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    for i, j in added:
        # without this bridge there are two halves, and no pair across them is closer
        rest = whole.copy()
        rest.add_edges_from(edge for edge in added if edge != [i, j])
        half = sorted(nx.node_connected_component(rest, i))
        others = sorted(set(range(len(points))) - set(half))
        assert j in others
        assert distance[i, j] <= distance[np.ix_(half, others)].min() * (1 + 1e-9)


def test_two_far_rows_are_bridged_once_where_the_published_code_would_link_every_pair():
    rows = [np.stack([np.arange(20.0), np.full(20, 100.0 * i)], 1) for i in range(4)]
    edges = graph.neighbour_edges(np.concatenate(rows), 2)
    across = [(i, j) for i, j in edges.tolist() if i // 20 != j // 20]
    assert len(across) == 3 and all(abs(i // 20 - j // 20) == 1 for i, j in across)


def test_a_point_that_is_a_node_is_told():
    nodes = cloud(30, 50).astype(np.float32).astype(float)
    points = np.concatenate([nodes[[4, 7]], cloud(3, 50, seed=1)])
    nearest, same = graph.nearest_nodes(nodes, points, 5)
    assert nearest.shape == (5, 5) and same.tolist() == [True, True, False, False, False]
    assert nearest[:2, 0].tolist() == [4, 7]
    distance = np.linalg.norm(points[:, None] - nodes[None], axis=2)
    assert (np.sort(nearest, 1) == np.sort(np.argsort(distance, 1)[:, :5], 1)).all()


@given(seed=st.integers(0, 10**6), n=st.integers(3, 25))
@settings(max_examples=30, deadline=None)
def test_costs_are_those_of_networkx_and_the_paths_walked_back_have_them(seed, n):
    rng = np.random.default_rng(seed)
    pairs = np.array(sorted(itertools.combinations(range(n), 2)))
    edges = pairs[rng.random(len(pairs)) < 0.35]
    weights = rng.exponential(size=len(edges)) * (rng.random(len(edges)) < 0.8)  # some are free
    reference = nx.Graph()
    reference.add_nodes_from(range(n))
    reference.add_weighted_edges_from((i, j, w) for (i, j), w in zip(edges.tolist(), weights, strict=True))
    wanted = nx.single_source_dijkstra_path_length(reference, 0)
    distance, before = graph.shortest_paths(n, n, edges, weights, 0)
    assert {i for i in range(n) if np.isfinite(distance[i])} == set(wanted)
    vertices = graph.walk_back(before, np.arange(n))
    for i, path in enumerate(vertices.tolist()):
        if i not in wanted:
            assert set(path) == {i}
            continue
        assert path[0] == 0 and path[-1] == i and distance[i] == pytest.approx(wanted[i], abs=1e-12)
        cost = sum(reference[a][b]["weight"] for a, b in itertools.pairwise(path) if a != b)
        assert cost == pytest.approx(wanted[i], abs=1e-12)
