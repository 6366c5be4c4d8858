"""Edges of a graph: integrals and costs against a fine rule, and sums along paths that are cut where they miss."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import Counting, close, draw, smooth_model
from torch import Tensor

import manifold_lib as ml
from manifold_lib.core.scorer import Scorer
from manifold_lib.paths import edges
from manifold_lib.paths.edges import Edges, Graph

METRICS = ("conformal", "rank1", "euclidean")
PAIRS = np.array([[0, 1], [0, 4], [1, 2], [2, 3], [2, 5], [4, 5]])


def drawn(shape: tuple[int, ...] = (3,), decode: bool = False) -> Graph:
    """Four nodes, a baseline and an input, and edges between them; decoded from two latents, if asked for."""

    def map_of(latents: Tensor) -> Tensor:
        return torch.tanh(latents @ draw(2, math.prod(shape), seed=8)).view(-1, *shape)

    vertices = draw(6, 2, seed=1) if decode else draw(6, *shape, seed=1)
    at = np.array([4]), np.array([5])
    return Graph(vertices, PAIRS, 4, *at, torch.Size(shape), torch.float64, map_of if decode else None)


def scorer_of(model, target: list[int] | None, size: int = 16) -> Scorer:
    scorer = Scorer(model, 1 if target is None else len(target), size=size)
    scorer.classes = None if target is None else torch.tensor(target)
    scorer.highest = max(target or [0])
    return scorer


def finely(model, graph: Graph, pair: np.ndarray, target: int, n: int = 4000) -> tuple[Tensor, dict[str, float]]:
    """Integral and lengths of one edge by the midpoints of n short chords."""
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64).view(-1, *(1,) * (graph.vertices.ndim - 1))
    points = graph.vertices[pair[0]] + t * (graph.vertices[pair[1]] - graph.vertices[pair[0]])
    points = points if graph.decode is None else graph.decode(points)
    chords, middles = points.diff(dim=0), (points[:-1] + points[1:]) / 2
    slopes = ml.gradient(model, middles, target)
    norms = slopes.flatten(1).norm(dim=1)
    nodes = graph.vertices[: graph.n_inner] if graph.decode is None else graph.decode(graph.vertices[: graph.n_inner])
    floor = 0.01 * ml.gradient(model, nodes, target).flatten(1).norm(dim=1).median()
    steps = chords.flatten(1).norm(dim=1)
    lengths = {
        "euclidean": steps.sum(),
        "rank1": (slopes * chords).flatten(1).sum(1).abs().sum(),
        "conformal": ((norms**2 + floor**2).sqrt() * steps).sum(),
    }
    return (slopes * chords).sum(0), {name: float(length) for name, length in lengths.items()}


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(3,), (1, 2, 2)])
def test_integrals_and_costs_are_those_of_a_fine_rule(shape: tuple[int, ...], metric: str, decode: bool) -> None:
    graph, model = drawn(shape, decode), smooth_model(shape)
    found = edges.edge_integrals(scorer_of(model, [0, 2]), graph, PAIRS, 1, metric, 200)
    assert found.row == 1 and torch.equal(found.ends, torch.from_numpy(PAIRS))
    for place, pair in enumerate(PAIRS):
        integral, lengths = finely(model, graph, pair, 2)
        close(found.integrals[place], integral, 1e-5)
        assert float(found.costs[place]) == pytest.approx(lengths[metric], rel=2e-3 if metric == "rank1" else 1e-5)
    images = graph.vertices if graph.decode is None else graph.decode(graph.vertices)
    close(found.scores, model(images)[:, 2], 1e-13)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_no_edge_depends_on_how_many_go_at_once(size: int) -> None:
    graph, counted = drawn(), Counting(smooth_model((3,)))
    whole = edges.edge_integrals(scorer_of(counted, [1]), graph, PAIRS, 0, "conformal", 6)
    counted.calls.clear()
    found = edges.edge_integrals(scorer_of(counted, [1], size), graph, PAIRS, 0, "conformal", 6)
    close(found.integrals, whole.integrals, 1e-13)
    close(found.costs, whole.costs, 1e-13)
    assert counted.largest <= size and counted.gradient_rows == len(PAIRS) * 6 + 4, "and those at the nodes"


def test_vertices_that_no_edge_uses_are_not_scored() -> None:
    graph = drawn()
    found = edges.edge_integrals(scorer_of(smooth_model((3,)), [1]), graph, PAIRS[:1], 0, "euclidean", 3)
    assert found.scores.isnan().tolist() == [False] * 4 + [True] * 2


def moves(*steps: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.tensor(part) for part in zip(*steps, strict=True))  # type: ignore[return-value]


def known(graph: Graph, scorer: Scorer, n_nodes: int) -> Edges:
    return edges.edge_integrals(scorer, graph, PAIRS, 0, "euclidean", n_nodes)


@pytest.mark.parametrize("decode", [False, True])
def test_a_path_is_the_sum_of_its_edges_each_in_its_direction(decode: bool) -> None:
    graph, model = drawn(decode=decode), smooth_model((3,))
    scorer = scorer_of(model, [1])
    parts = [finely(model, graph, pair, 1)[0] for pair in PAIRS]
    # 4 -> 0 -> 1 -> 2 -> 5, 5 -> 4 and 3 -> 2
    way = moves((0, 1, -1), (0, 0, 1), (0, 2, 1), (0, 4, 1), (1, 5, -1), (2, 3, -1))
    found = edges.sum_along(scorer, graph, known(graph, scorer, 20), way, 4, 20)
    wanted = torch.stack([-parts[1] + parts[0] + parts[2] + parts[4], -parts[5], -parts[3], 0 * parts[0]])
    close(found, wanted, 1e-5)


def steep(x: Tensor) -> Tensor:
    return torch.tanh(60 * (x[:, 0] - 0.1)) + x[:, 1] * x[:, 2]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_path_that_misses_its_change_is_cut_until_it_does_not(sign: int) -> None:
    graph, counted = drawn(), Counting(steep)
    scorer = scorer_of(counted, None)
    edges_known = known(graph, scorer, 3)
    crude = edges_known.integrals.sum(1) - edges_known.scores[edges_known.ends].diff(dim=1)[:, 0]
    worst = int(crude.abs().argmax())
    assert crude[worst].abs() > 0.1
    counted.calls.clear()
    found = edges.sum_along(scorer, graph, edges_known, moves((0, worst, sign)), 1, 3)
    change = sign * edges_known.scores[edges_known.ends].diff(dim=1)[worst]
    assert (found.sum() - change).abs() <= 1.1e-3 * change.abs()
    # by 4, 16, 64 and 256 times three nodes at most
    assert 0 < counted.gradient_rows <= 12 * (1 + 4 + 16 + 64)
    close(found[0], sign * finely(lambda x: steep(x)[:, None], graph, PAIRS[worst], 0, 40_000)[0], 5e-3)


def test_no_path_hangs_on_the_others_and_a_shared_edge_is_cut_once() -> None:
    graph, counted = drawn(), Counting(steep)
    scorer = scorer_of(counted, None)
    edges_known = known(graph, scorer, 3)
    ways = [[(1, -1), (0, 1)], [(0, 1)], [(0, 1), (2, 1), (3, 1)], [(5, 1)]]
    alone, rows = [], []
    for way in ways:
        counted.calls.clear()
        alone.append(edges.sum_along(scorer, graph, edges_known, moves(*[(0, *step) for step in way]), 1, 3))
        rows.append(counted.gradient_rows)
    counted.calls.clear()
    every = moves(*[(path, *step) for path, way in enumerate(ways) for step in way])
    close(edges.sum_along(scorer, graph, edges_known, every, 4, 3), torch.cat(alone), 1e-12)
    assert counted.gradient_rows < sum(rows)


def wall(steepness):
    """A score with one steep wall across the first axis."""
    return lambda x: torch.sigmoid(steepness * (x[:, 0] - 0.5))


@pytest.mark.parametrize("metric", ["conformal", "rank1"])
@pytest.mark.parametrize("steepness", [2e3, 2e4])
def test_a_wall_between_two_nodes_of_the_quadrature_is_no_open_door(metric, steepness):
    inputs, baselines = torch.tensor([[0.95, 0.5]]).double(), torch.tensor([[0.05, 0.5]]).double()
    graph = {"nodes": torch.rand(60, 2, generator=torch.Generator().manual_seed(0)).double(), "baselines": baselines}
    path = ml.geodesic_paths(wall(steepness), inputs, metric=metric, **graph)
    assert path.length >= 1 - 1e-6
    maps, delta = ml.geodesic_ig(wall(steepness), inputs, metric=metric, return_convergence_delta=True, **graph)
    assert delta.abs() < 1e-2 and (maps[:, 0] - 1).abs() < 1e-2


def test_gradients_without_bound_at_most_nodes_spoil_no_cost():
    inputs = torch.tensor([[1.0, 2.0]]).double()
    nodes = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).double()
    maps = ml.geodesic_ig(lambda x: x.sqrt().sum(1), inputs, nodes=nodes, baselines=0.5)
    torch.testing.assert_close(maps, inputs.sqrt() - 0.5**0.5, atol=2e-3, rtol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_keeps_from_gradients_that_are_not_finite(metric):
    def model(x):
        hole = ((x - 0.5).abs() < 0.2).all(1)
        return torch.where(hole, torch.nan, 1.0) * x.sum(1)

    ticks = torch.linspace(0, 1, 9, dtype=torch.float64)
    maps = ml.geodesic_ig(
        model, torch.ones(1, 2, dtype=torch.float64), nodes=torch.cartesian_prod(ticks, ticks), metric=metric
    )
    torch.testing.assert_close(maps, torch.ones(1, 2, dtype=torch.float64))


def test_what_a_path_refines_hangs_on_no_other_input():
    model = wall(300)
    inputs, nodes = draw(12, 2, seed=1) * 0.3 + 0.5, draw(30, 2, seed=2) * 0.3 + 0.5
    together = ml.geodesic_ig(model, inputs, nodes=nodes, n_neighbors=3, n_nodes=2)
    alone = torch.cat([ml.geodesic_ig(model, one[None], nodes=nodes, n_neighbors=3, n_nodes=2) for one in inputs])
    torch.testing.assert_close(together, alone)
