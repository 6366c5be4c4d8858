"""Geodesic IG by neighbours: exact laws of a polyline's integral, the graph behind it, and what can go wrong."""

import itertools

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import Counting, Quadratic, draw, one_warning, seeded, smooth_model, untouched

import manifold_lib as ml
from manifold_lib.attribution import knn
from manifold_lib.data import moons

METRICS = ("conformal", "rank1", "euclidean")


def plane_model(seed=0, n_classes=2):
    net = torch.nn.Sequential(torch.nn.Linear(2, 12), torch.nn.Tanh(), torch.nn.Linear(12, n_classes))
    return seeded(net, seed).double()


def cloud(n=80, d=2, seed=0):
    return draw(n, d, seed=seed)


def change(model, inputs, target, baselines=0.0):
    starts = torch.zeros_like(inputs) + baselines
    return (model(inputs) - model(starts))[:, target]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3, 15, 1000])
def test_the_sum_is_the_change_of_the_score(metric, k):
    model, inputs = plane_model(), cloud(9, seed=1)
    maps, delta = ml.geodesic_ig(
        *(model, inputs, 1), nodes=cloud(), n_neighbors=k, metric=metric, return_convergence_delta=True
    )
    assert delta.abs().max() < 1e-6
    torch.testing.assert_close(maps.sum(1), change(model, inputs, 1))


@pytest.mark.parametrize("metric", METRICS)
def test_a_linear_score_gets_w_times_the_displacement_on_every_path(metric):
    model = seeded(torch.nn.Linear(3, 2, bias=False)).double()
    inputs, baselines = draw(5, 3, seed=1), draw(5, 3, seed=2)
    maps = ml.geodesic_ig(model, inputs, 0, nodes=cloud(40, 3), baselines=baselines, n_neighbors=4, metric=metric)
    torch.testing.assert_close(maps, model.weight[0] * (inputs - baselines))
    # no cancellation if and only if all terms have one sign
    gap = ml.cancellation_ratio(model, inputs, maps, 0, baselines=baselines, reduction="none")
    one_sign = (maps >= 0).all(1) | (maps <= 0).all(1)
    assert torch.equal(gap.abs() < 1e-12, one_sign)


def test_where_all_are_joined_and_lengths_are_euclidean_it_is_integrated_gradients():
    model, inputs, baseline = plane_model(), cloud(6, seed=1), draw(1, 2, seed=5)
    nodes = torch.cat([cloud(20), baseline])
    maps = ml.geodesic_ig(
        *(model, inputs, 1), nodes=nodes, baselines=baseline, n_neighbors=len(nodes), metric="euclidean"
    )
    wanted = ml.integrated_gradients(model, inputs, 1, baselines=baseline, n_steps=40)
    torch.testing.assert_close(maps, wanted)


def test_reversal_negates():
    model, a, b, nodes = plane_model(), cloud(1, seed=1), cloud(1, seed=2), cloud()
    there = ml.geodesic_ig(model, a, 1, nodes=nodes, baselines=b)
    back = ml.geodesic_ig(model, b, 1, nodes=nodes, baselines=a)
    torch.testing.assert_close(there, -back)


@pytest.mark.parametrize("metric", METRICS)
def test_the_cost_is_that_of_networkx_on_a_graph_of_our_own(metric):
    """Held-out graph: edges, their costs by a fine rule and the search are all built anew here."""
    model, nodes, inputs = plane_model(3), cloud(40, seed=3), cloud(7, seed=4)
    start = torch.zeros(1, 2, dtype=torch.float64)
    vertices = torch.cat([nodes, start, inputs])
    distance = torch.cdist(vertices, vertices)
    steepness = ml.gradient(model, nodes, 1).norm(dim=1).nanmedian() * 0.01
    reference = nx.Graph()
    for i in range(len(vertices)):
        order = [int(j) for j in distance[i, :40].argsort() if j != i][:5]
        for j in order:
            t = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
            step = vertices[j] - vertices[i]
            slopes = ml.gradient(model, vertices[i] + t * step, 1)
            speeds = {
                "conformal": (slopes.square().sum(1) + steepness**2).sqrt() * step.norm(),
                "rank1": (slopes @ step).abs(),
                "euclidean": step.norm().expand(len(t)),
            }
            reference.add_edge(i, j, weight=float(torch.trapezoid(speeds[metric], t[:, 0])))
    assert nx.is_connected(reference), "else bridges would have to be built here too"
    wanted = nx.single_source_dijkstra_path_length(reference, 40)
    found = ml.geodesic_paths(model, inputs, 1, nodes=nodes, n_neighbors=5, metric=metric)
    assert found.length.tolist() == pytest.approx([wanted[41 + i] for i in range(7)], rel=2e-3)


def test_paths_begin_and_end_exactly_and_their_integral_is_the_attribution():
    model, inputs, baselines = plane_model(), cloud(8, seed=1), cloud(8, seed=2)
    arguments = {"nodes": cloud(), "baselines": baselines, "n_neighbors": 4}
    paths = ml.geodesic_paths(model, inputs, 1, **arguments)
    assert torch.equal(paths.points[:, 0], baselines) and torch.equal(paths.points[:, -1], inputs)
    assert (paths.n_hops >= 2).all() and paths.n_hops.max() == paths.points.shape[1] - 1
    maps = ml.geodesic_ig(model, inputs, 1, **arguments)
    finely = ml.integrate(model, paths.points, 1, method="gausslegendre", n_steps=20 * (paths.points.shape[1] - 1))
    torch.testing.assert_close(maps, finely)


def test_the_conformal_path_costs_no_more_than_the_straight_edge_or_the_euclidean_path():
    model, inputs = plane_model(5), cloud(20, seed=1)
    start = torch.zeros(1, 2, dtype=torch.float64)
    nodes = torch.cat([cloud(200), start])

    def length(points):
        t = torch.linspace(0, 1, 200, dtype=torch.float64)
        total = 0
        epsilon = 0.01 * ml.gradient(model, nodes, 1).norm(dim=1).median()
        for a, b in itertools.pairwise(points):
            slopes = ml.gradient(model, a + t[:, None] * (b - a), 1)
            total += torch.trapezoid((slopes.square().sum(1) + epsilon**2).sqrt(), t) * (b - a).norm()
        return float(total)

    bent = ml.geodesic_paths(model, inputs, 1, nodes=nodes, n_neighbors=300)
    short = ml.geodesic_paths(model, inputs, 1, nodes=nodes, n_neighbors=300, metric="euclidean")
    assert short.n_hops.eq(1).all()
    for i in range(len(inputs)):
        assert bent.length[i] <= length([start[0], inputs[i]]) * (1 + 1e-3)
    sparse = {"nodes": nodes, "n_neighbors": 4}
    bent, short = (
        ml.geodesic_paths(model, inputs, 1, **sparse, metric=metric) for metric in ("conformal", "euclidean")
    )
    for i in range(len(inputs)):
        assert bent.length[i] <= length(short.points[i]) * (1 + 1e-3)


def test_by_the_printed_metric_every_monotone_way_is_shortest():
    """Rank one: the length is the total variation of f, at least |Δf|, and a linear f has no other."""
    model = seeded(torch.nn.Linear(2, 1, bias=False)).double()
    weights = model.weight[0]
    nodes = cloud(200)
    inputs = cloud(30, seed=1)
    found = ml.geodesic_paths(model, inputs, 0, nodes=nodes, metric="rank1", n_neighbors=300)
    torch.testing.assert_close(found.length, (inputs @ weights).abs())
    with_turns = plane_model(7)
    found = ml.geodesic_paths(with_turns, inputs, 1, nodes=nodes, metric="rank1")
    assert (found.length >= change(with_turns, inputs, 1).abs() * (1 - 1e-6)).all()


def test_nothing_depends_on_the_batch_nor_on_the_order_of_nodes():
    model, inputs, nodes = plane_model(), cloud(11, seed=1), cloud()
    whole = ml.geodesic_ig(model, inputs, nodes=nodes)
    for i in range(len(inputs)):
        assert torch.allclose(ml.geodesic_ig(model, inputs[[i]], nodes=nodes), whole[[i]], atol=1e-12)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(ml.geodesic_ig(model, inputs[order], nodes=nodes), whole[order], atol=1e-12)
    assert torch.allclose(ml.geodesic_ig(model, inputs, nodes=nodes.flip(0)), whole, atol=1e-12)
    assert torch.allclose(ml.geodesic_ig(model, inputs, nodes=nodes, internal_batch_size=7), whole, atol=1e-12)


def test_copies_of_nodes_change_nothing():
    model, inputs, nodes = plane_model(), cloud(5, seed=1), cloud(30)
    copies = torch.cat([nodes, *[nodes[:3]] * 20])
    wanted = ml.geodesic_ig(model, inputs, 1, nodes=nodes, n_neighbors=3)
    assert torch.equal(ml.geodesic_ig(model, inputs, 1, nodes=copies, n_neighbors=3), wanted)


def test_an_input_that_is_a_node_is_that_node():
    model, nodes = plane_model(), cloud()
    counted = Counting(model)
    paths = ml.geodesic_paths(counted, nodes[:20], 1, nodes=nodes, n_neighbors=4)
    assert (paths.points[:, -2] != paths.points[:, -1]).any(1).sum() > 0
    alone = Counting(model)
    ml.geodesic_paths(alone, nodes[:1], 1, nodes=nodes, n_neighbors=4)
    assert counted.gradient_rows - alone.gradient_rows < 20, "it brings no edges of its own"


@pytest.mark.parametrize("in_nodes", [True, False])
def test_an_input_equal_to_its_baseline_gets_zeros(in_nodes):
    model, inputs = plane_model(), cloud(4, seed=1)
    nodes = torch.cat([cloud(), inputs]) if in_nodes else cloud()
    maps, delta = ml.geodesic_ig(
        *(model, inputs, 1), nodes=nodes, baselines=inputs.clone(), return_convergence_delta=True
    )
    assert maps.count_nonzero() == 0 and delta.count_nonzero() == 0
    assert ml.geodesic_paths(model, inputs, 1, nodes=nodes, baselines=inputs).length.eq(0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_a_flat_score_gets_zeros_by_the_shorter_way(metric):
    maps = ml.geodesic_ig(lambda x: 0 * x, cloud(5, seed=1), 0, nodes=cloud(), metric=metric)
    assert maps.eq(0).all()
    model = lambda x: torch.stack([torch.relu(x[:, 0] - 100), 0 * x[:, 0]], 1)  # noqa: E731
    flat = ml.geodesic_paths(model, cloud(5, seed=1), 0, nodes=cloud(), metric="conformal")
    short = ml.geodesic_paths(model, cloud(5, seed=1), 0, nodes=cloud(), metric="euclidean")
    assert torch.equal(flat.points, short.points)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_node_or_two_will_do(n):
    model, inputs = plane_model(), cloud(4, seed=1)
    maps = ml.geodesic_ig(model, inputs, 1, nodes=cloud(n, seed=3))
    torch.testing.assert_close(maps.sum(1), change(model, inputs, 1))


def test_clusters_far_apart_are_bridged():
    model = plane_model()
    nodes = torch.cat([0.1 * cloud(30) + shift for shift in (-2.0, 0.0, 2.0)])
    inputs = 0.1 * cloud(5, seed=1) + 2
    paths = ml.geodesic_paths(model, inputs, 1, nodes=nodes, baselines=-2.0, n_neighbors=3)
    assert torch.isfinite(paths.length).all()
    maps = ml.geodesic_ig(model, inputs, 1, nodes=nodes, baselines=-2.0, n_neighbors=3)
    torch.testing.assert_close(maps.sum(1), change(model, inputs, 1, -2.0), atol=1e-5, rtol=1e-4)


def test_baselines_of_their_own_and_one_search_for_each_that_differs(monkeypatch):
    model, inputs, nodes = plane_model(), cloud(6, seed=1), cloud()
    pair = draw(2, 2, seed=9)
    baselines = pair[[0, 1, 0, 0, 1, 1]]
    searches = []
    search = knn.shortest_paths
    monkeypatch.setattr(knn, "shortest_paths", lambda *a: searches.append(a[3]) or search(*a))
    maps = ml.geodesic_ig(model, inputs, 1, nodes=nodes, baselines=baselines)
    assert len(searches) == 2
    for i in range(6):
        alone = ml.geodesic_ig(model, inputs[[i]], 1, nodes=nodes, baselines=baselines[[i]])
        assert torch.allclose(alone, maps[[i]], atol=1e-12)


def test_each_class_has_costs_of_its_own():
    model, inputs, nodes = plane_model(n_classes=3), cloud(9, seed=1), cloud()
    target = torch.tensor([0, 1, 2] * 3)
    maps = ml.geodesic_ig(model, inputs, target, nodes=nodes)
    for label in range(3):
        own = target == label
        assert torch.allclose(ml.geodesic_ig(model, inputs[own], label, nodes=nodes), maps[own], atol=1e-12)


def test_a_model_of_one_score():
    model, inputs = Quadratic(2, None), cloud(5, seed=1)
    maps = ml.geodesic_ig(model, inputs, nodes=cloud())
    torch.testing.assert_close(maps.sum(1), model(inputs) - model(torch.zeros_like(inputs)))


def test_gradients_of_edges_are_taken_once_for_all_inputs_where_the_published_code_searches_for_each():
    """PEERS: one A* for each input in pure Python; here the number of inputs that are nodes costs nothing."""
    model, nodes = plane_model(), cloud(200)
    counts = {}
    for n in (1, 50, 200):
        counted = Counting(model)
        ml.geodesic_ig(counted, nodes[:n], 1, nodes=nodes, n_neighbors=10)
        counts[n] = counted.gradient_rows
    assert counts[1] <= 200 * 10 * 20 + 10 * 20 + 200 + 20
    assert counts[200] - counts[1] < 20


def test_the_model_is_left_as_it_was_and_memory_is_bounded():
    model, inputs, nodes = smooth_model((2,)), cloud(5, seed=1), cloud()
    with untouched(model, inputs, nodes):
        ml.geodesic_ig(model, inputs, nodes=nodes, return_convergence_delta=True)
    counted = Counting(model)
    ml.geodesic_ig(counted, inputs, nodes=nodes, internal_batch_size=13)
    assert counted.largest <= 13


def test_an_image_behind_nan_is_nan_and_no_other():
    base = plane_model()

    def model(x):
        return base(x) * torch.where(x[:, :1] > 3, torch.nan, 1.0)

    inputs = torch.tensor([[0.5, 0.5], [5.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    nodes = torch.cat([cloud(), torch.tensor([[5.5, 0.0], [4.5, 1.0]], dtype=torch.float64)])
    with one_warning():
        maps = ml.geodesic_ig(model, inputs, 1, nodes=nodes)
    assert maps[1].isnan().all()
    clean = ml.geodesic_ig(base, inputs[[0, 2]], 1, nodes=cloud())
    assert torch.isfinite(maps[[0, 2]]).all()
    torch.testing.assert_close(maps[[0, 2]].sum(1), clean.sum(1))


class Flat:
    """A linear decoder and its pseudo-inverse."""

    def __init__(self, d=6, k=2):
        self.weights = draw(d, k, seed=8)

    def encode(self, x):
        return torch.linalg.lstsq(self.weights, x.T).solution.T

    def decode(self, z):
        return torch.tanh(z @ self.weights.T)


def test_on_latents_the_sum_is_still_the_change_of_the_score():
    vae, model = Flat(), smooth_model((6,))
    nodes, inputs = vae.decode(draw(50, 2, seed=1)), draw(4, 6, seed=2)
    maps, delta = ml.geodesic_ig(model, inputs, 1, nodes=nodes, space=vae, return_convergence_delta=True)
    torch.testing.assert_close(maps.sum(1), change(model, inputs, 1), atol=1e-6, rtol=1e-4)
    assert delta.abs().max() < 1e-5
    paths = ml.geodesic_paths(model, inputs, 1, nodes=nodes, space=vae)
    assert paths.points.shape[2] == 2


def test_where_the_decoder_is_the_identity_latents_are_pixels():
    class Identity:
        encode = decode = staticmethod(lambda x: x)

    model, inputs, nodes = plane_model(), cloud(6, seed=1), cloud()
    for metric in METRICS:
        wanted = ml.geodesic_ig(model, inputs, 1, nodes=nodes, metric=metric)
        found = ml.geodesic_ig(model, inputs, 1, nodes=nodes, metric=metric, space=Identity())
        torch.testing.assert_close(found, wanted)


def test_two_thousand_inputs_on_ten_thousand_nodes():
    sets = moons.half_moons(0.2, 0)
    nodes = torch.cat([sets[0], sets[2]])
    assert nodes.shape == (10_000, 2)
    model = plane_model().float()
    maps, delta = ml.geodesic_ig(
        *(model, nodes[:2000], 1), nodes=nodes, baselines=-0.5, n_neighbors=10, n_nodes=5, return_convergence_delta=True
    )
    assert torch.isfinite(maps).all() and delta.abs().max() < 1e-3


def test_occlusion_with_a_joint_window_returns_the_whole_change_for_both_features():
    captum = pytest.importorskip("captum.attr")
    model, inputs = plane_model(), cloud(4, seed=1)
    maps = captum.Occlusion(model).attribute(inputs, (2,), target=1)
    torch.testing.assert_close(maps.double(), change(model, inputs, 1)[:, None].expand(-1, 2), atol=1e-6, rtol=1e-5)


def test_no_global_random_number_is_drawn():
    model, state, torch_state = plane_model(), np.random.get_state()[1].copy(), torch.random.get_rng_state()
    ml.geodesic_ig(model, cloud(3, seed=1), nodes=cloud())
    assert (np.random.get_state()[1] == state).all() and torch.equal(torch.random.get_rng_state(), torch_state)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [3, 15])
def test_no_path_leads_through_another_input_or_baseline(metric, k):
    model, nodes = plane_model(2), cloud(80)
    inputs, baselines = cloud(60, seed=1), cloud(3, seed=2)[torch.arange(60) % 3]
    options = {"nodes": nodes, "n_neighbors": k, "metric": metric}
    whole = ml.geodesic_ig(model, inputs, 1, baselines=baselines, **options)
    for i in range(0, 60, 7):
        alone = ml.geodesic_ig(model, inputs[[i]], 1, baselines=baselines[[i]], **options)
        torch.testing.assert_close(alone, whole[[i]], atol=1e-9, rtol=1e-9)
    points = ml.geodesic_paths(model, inputs, 1, baselines=baselines, **options).points
    for i in range(60):
        inner = points[i, (points[i] != baselines[i]).any(1) & (points[i] != inputs[i]).any(1)]
        assert all((point == nodes).all(1).any() for point in inner)


def test_of_ways_without_a_turn_of_the_score_rank1_takes_the_straightest():
    nodes, inputs = cloud(40), cloud(20, seed=1)

    def rising(x):
        return x @ x.new_tensor([1.0, 0.5])

    found = ml.geodesic_paths(rising, inputs, baselines=-3.0, nodes=nodes, n_neighbors=60, metric="rank1")
    start = torch.full((2,), -3.0, dtype=torch.float64)
    ways = (nodes - start).norm(dim=1) + (inputs[:, None] - nodes).norm(dim=2)
    ways = ways.where(rising(nodes) < rising(inputs)[:, None], torch.inf)
    assert (found.n_hops == 2).all(), "an input has no edge to a baseline; a second node would be a detour"
    torch.testing.assert_close(found.points[:, 1], nodes[ways.argmin(1)])
    torch.testing.assert_close(found.length, rising(inputs) - rising(start[None]), rtol=1e-8, atol=0)


def test_an_input_with_an_infinite_score_changes_no_other():
    def model(x):
        first = torch.tanh(8 * (x[:, 0] - 0.3)) * x[:, 1]
        return first + torch.where(x[:, 0] > 50, torch.inf, 0.0)

    nodes, inputs = 3 * cloud(15), torch.tensor([[2.0, 1.5], [60.0, 0.0]], dtype=torch.float64)
    options = {"nodes": nodes, "baselines": -2.0, "n_neighbors": 4, "metric": "euclidean", "n_nodes": 3}
    alone, delta = ml.geodesic_ig(model, inputs[:1], return_convergence_delta=True, **options)
    assert delta.abs() < 1e-3
    torch.testing.assert_close(ml.geodesic_ig(model, inputs, **options)[:1], alone)


def test_a_vae_with_parameters_leaves_no_graph_behind():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = torch.nn.Conv2d(1, 2, 2, 2), torch.nn.ConvTranspose2d(2, 1, 2, 2)

        def encode(self, x):
            return self.down(x)

        def decode(self, z):
            return torch.tanh(self.up(z))

    vae, model = seeded(Net()).double().eval(), smooth_model((1, 4, 4))
    nodes, inputs = draw(20, 1, 4, 4), draw(3, 1, 4, 4, seed=1)
    with untouched(vae, nodes, inputs):
        maps, delta = ml.geodesic_ig(model, inputs, 1, nodes=nodes, space=vae, return_convergence_delta=True)
    assert not maps.requires_grad and delta.abs().max() < 1e-3


def test_few_inputs_go_through_in_few_passes():
    counted = Counting(plane_model())
    ml.geodesic_ig(counted, cloud(1, seed=1), 1, nodes=cloud(300), n_neighbors=8, n_nodes=8)
    assert len(counted.calls) < 40


def test_a_long_chain_of_half_precision_is_summed_in_single():
    def model(x):
        return 10 * x[:, 0] + x[:, 1]

    nodes = torch.stack([torch.linspace(0, 1, 500), torch.zeros(500)], 1).half()
    maps = ml.geodesic_ig(model, torch.tensor([[1.0, 0.0]]).half(), nodes=nodes, n_neighbors=1, n_nodes=2)
    torch.testing.assert_close(maps.float(), torch.tensor([[10.0, 0.0]]), atol=0.03, rtol=0)


def wall(steepness):
    """A score with one steep wall across the first axis."""
    return lambda x: torch.sigmoid(steepness * (x[:, 0] - 0.5))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.filterwarnings("ignore:geodesic_ig. .* sums miss:RuntimeWarning")
def test_few_nodes_on_steep_log_probabilities_still_add_up(metric):
    """What climbs on one edge falls on another: errors are held against the path's change, not each edge's."""
    case = moons.train_moons([0.05], [3], n_points=1200, n_epochs=40)[0]
    inputs = case.inputs[:120]
    for n in (5, 15, 50):
        maps = ml.geodesic_ig(
            *(case.model, inputs, 1), nodes=case.inputs[-n:], baselines=-0.5, n_neighbors=5, metric=metric
        )
        error = ml.completeness_error(case.model, inputs, maps, 1, baselines=-0.5)
        assert error.median() < 1e-2 and error.quantile(0.95) < 5e-2


def test_a_sum_that_stays_off_is_said_in_one_warning():
    model, inputs = wall(1e8), torch.tensor([[0.95, 0.5], [0.9, 0.4], [0.1, 0.1]]).double()
    nodes = torch.tensor([[0.5001234, 0.5]]).double()
    with pytest.warns(RuntimeWarning, match="2 of 3 sums miss"):
        ml.geodesic_ig(model, inputs, nodes=nodes, n_nodes=2, n_neighbors=1, baselines=torch.zeros(1, 2).double())


def test_latents_may_have_a_precision_of_their_own():
    class Doubled:
        encode = staticmethod(lambda x: x.double())
        decode = staticmethod(lambda z: z.float())

    model, inputs, nodes = plane_model().float(), cloud(5, seed=1).float(), cloud(30).float()
    maps = ml.geodesic_ig(model, inputs, 0, nodes=nodes, space=Doubled)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, ml.geodesic_ig(model, inputs, 0, nodes=nodes), atol=1e-4, rtol=1e-3)
