"""The greedy rule: who moves, the nodes as a stream, and the sums over them that halve what is rough."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from helpers import Counting, close, draw, relu_net, smooth_model
from hypothesis import given, strategies as st
from torch import Tensor

import manifold_lib as ml
from manifold_lib.core.scorer import Scorer, scoring
from manifold_lib.paths.greedy import Evaluate, chord_sum, greedy_nodes, greedy_step, guided_sum, streamed_path
from manifold_lib.paths.refine import BLOCK, Node

# --- who moves ----


def test_greedy_step_in_numbers():
    """Four coordinates, two a group, one of them dead: by hand."""
    distances = torch.tensor([[1.0, 2.0, 1.0, 0.0]])
    gradient = torch.tensor([[0.3, -0.1, 0.2, 0.0]])
    # half of the L1 way, 2 of 4; the first group is {1, 2} with room 3, so both move by 2/3
    found = greedy_step(torch.zeros(1, 4), distances, gradient, 0.5, fraction=0.5)
    close(found, torch.tensor([[0.0, 2 / 3, 2 / 3, 0.0]]), 1e-6)
    # one a group: the second coordinate moves alone, and all the way
    found = greedy_step(torch.zeros(1, 4), distances, gradient, 0.5, fraction=0.1)
    close(found, torch.tensor([[0.0, 1.0, 0.0, 0.0]]), 1e-6)
    # in a band of a tenth all must follow
    found = greedy_step(torch.zeros(1, 4), distances, gradient, 0.5, fraction=0.1, max_dist=0.1)
    assert found[0, :3].min() >= 0.4 - 1e-6 and found[0, :3].max() <= 0.6 + 1e-6
    assert math.isclose((found * distances).sum().item(), 2.0, rel_tol=1e-6)


def one_after_the_other(
    progress: Tensor, distances: Tensor, gradient: Tensor, time: float, fraction: float, max_dist: float
) -> Tensor:
    """The released loop for one image: group after group, the last one in part."""
    low, high = max(time - max_dist, 0.0), min(time + max_dist, 1.0)
    progress = progress.clamp_min(low).clone()
    size = gradient.abs().clone()
    left = (1 - time) * float(distances.sum())
    for _ in range(len(size) + 1):
        to_go = float((distances * (1 - progress)).sum())
        if math.isclose(to_go, left, rel_tol=1e-12, abs_tol=1e-12):
            break
        size[(progress >= high) | (distances == 0)] = math.inf
        level = size.sort().values[math.floor(fraction * (len(size) - 1))]
        group = (size <= level) & size.isfinite()
        reach = float((distances * (high - progress))[group].sum())
        gamma = (to_go - left) / reach if reach else math.inf
        progress[group] += min(gamma, 1.0) * (high - progress[group])
        if gamma <= 1:
            break
    return progress


@given(
    n=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    fraction=st.sampled_from([0.05, 0.25, 0.5, 1.0]),
    max_dist=st.sampled_from([0.05, 0.3, 1.0]),
    ties=st.booleans(),
)
def test_a_step_is_that_of_the_released_loop(n: int, seed: int, fraction: float, max_dist: float, ties: bool) -> None:
    distances, gradient = draw(1, n, seed=seed).abs(), draw(1, n, seed=seed + 1)
    distances[0, n // 2] = 0 if n > 2 else distances[0, n // 2]
    gradient = gradient.round() if ties else gradient
    progress = torch.zeros(1, n, dtype=torch.float64)
    for step in range(1, 6):
        wanted = one_after_the_other(progress[0], distances[0], gradient[0], step / 5, fraction, max_dist)
        moved = greedy_step(progress, distances, gradient, step / 5, fraction=fraction, max_dist=max_dist)
        moving = distances > 0
        close(moved[moving], wanted[None][moving], 1e-9)
        assert (moved >= progress.clamp_min(0) - 1e-12).all(), "nothing moves back"
        close((moved * distances).sum(), step / 5 * distances.sum(), 1e-9)
        progress, gradient = moved, gradient.roll(1, 1)


# --- nodes as a stream ----


def evaluator(scorer: Scorer, seen: list | None = None) -> Evaluate:
    def evaluate(points: Tensor, rows: Tensor, guide: bool) -> tuple[Node, Tensor | None]:
        value, gradient = scorer.score_and_gradient(points, rows)
        if seen is not None:
            seen.append(weakref.ref(points))
        return Node(points, points, gradient, value), gradient if guide else None

    return evaluate


def test_a_node_a_step_and_the_gradient_at_the_end_only_where_it_is_wanted() -> None:
    counted, inputs = Counting(smooth_model()), draw(3, 1, 4, 4)
    with scoring(counted, inputs, 1) as scorer:
        nodes = greedy_nodes(evaluator(scorer), 0 * inputs, inputs, 5, 0.3)
        assert counted.gradient_rows == 0
        next(nodes)
        assert counted.gradient_rows == 3, "nodes come when they are asked for"
        assert len(list(nodes)) == 5 and counted.gradient_rows == 3 * 6
        ends = list(greedy_nodes(evaluator(scorer), 0 * inputs, inputs, 5, 0.3, last=False))[-1]
        assert ends.gradient is None and torch.equal(ends.point, inputs) and counted.gradient_rows == 3 * 11


@pytest.mark.parametrize(("rule", "weights"), [("left", (1.0, 0.0)), ("right", (0.0, 1.0)), ("both", (0.5, 0.5))])
def test_a_sum_over_chords_is_that_of_its_formula(rule: str, weights: tuple[float, float]) -> None:
    points, slopes = draw(5, 2, 3, seed=1), draw(5, 2, 3, seed=2)
    nodes = [Node(x, x, g) for x, g in zip(points, slopes, strict=True)]
    if rule == "left":
        nodes[-1] = nodes[-1]._replace(gradient=None)
    mixed = weights[0] * slopes[:-1] + weights[1] * slopes[1:]
    close(chord_sum(iter(nodes), *weights), (mixed * points.diff(dim=0)).sum(0), 1e-14)


def test_no_more_than_a_few_nodes_are_alive_at_a_time() -> None:
    inputs, seen, most = draw(2, 1, 4, 4), [], 0
    with scoring(smooth_model(), inputs, 1) as scorer:
        evaluate = evaluator(scorer, seen)

        def watched() -> Iterator[Node]:
            nonlocal most
            for node in greedy_nodes(evaluate, 0 * inputs, inputs, 60, 0.3):
                most = max(most, sum(point() is not None for point in seen))
                yield node

        found = guided_sum(watched(), evaluate, scorer.change(inputs, 0 * inputs), 60, 16)
    assert found.isfinite().all() and most <= 4


def test_a_stream_is_asked_for_some_rows_at_a_time_and_only_for_what_it_serves() -> None:
    model, inputs, asked = smooth_model(), draw(5, 1, 4, 4), []
    with scoring(model, inputs, 1) as own:

        def stream(scorer: Scorer, rows: Tensor, last: bool) -> tuple[Iterator[Node], Evaluate]:
            asked.append(rows.tolist())
            evaluate = evaluator(scorer)
            return greedy_nodes(evaluate, 0 * inputs[rows], inputs[rows], 4, 0.3, last=last), evaluate

        path = streamed_path(own, stream, (0 * inputs, inputs), n_steps=4, size=2)
        assert not asked and path.integral is not None
        found = path.integral(own, "trapezoid", False)
        assert asked == [[0, 1], [2, 3], [4]]
        close(found, ml.guided_ig(model, inputs, 1, n_steps=4, fraction=0.3, max_dist=1.0), 1e-12)
        for scorer, rule, graph in (
            (own, "midpoint", False),
            (own, "trapezoid", True),
            (own.of(torch.arange(4)), "left", False),
        ):
            assert path.integral(scorer, rule, graph) is None
        asked.clear()
        assert path.sample(4).shape == (5, 5, 1, 4, 4) and path.sample(3).shape == (5, 4, 1, 4, 4)
        assert len(asked) == 3, "the nodes are found once"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nodes_are_found_in_any_mode(mode: type) -> None:
    model, inputs = smooth_model(), draw(3, 1, 4, 4)
    wanted = ml.guided_path(model, inputs, 1, n_steps=6).sample(6)
    path = ml.guided_path(model, inputs, 1, n_steps=6)
    with mode():
        close(path.sample(6), wanted, 1e-14)
        inside = ml.guided_path(model, inputs.clone(), 1, n_steps=6)
    close(inside.sample(6), wanted, 1e-14)
    close(ml.integrate(model, inside, 1), ml.guided_ig(model, inputs, 1, n_steps=6), 1e-14)


# --- sums that halve what is rough ----


@pytest.mark.parametrize("n_steps", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_any_number_of_steps_is_summed_to_its_end(n_steps: int) -> None:
    """A linear score needs no halving, and the sum is exact only if no block is left out."""
    weights, inputs = draw(16, seed=1), draw(3, 16)
    with scoring(lambda x: x @ weights, inputs) as scorer:
        evaluate = evaluator(scorer)
        nodes = greedy_nodes(evaluate, 0 * inputs, inputs, n_steps, 0.2)
        found = guided_sum(nodes, evaluate, scorer.change(inputs, 0 * inputs), n_steps, 16)
    close(found, weights * inputs, 1e-12)


def images(n=5):
    inputs = draw(n, 1, 6, 6, seed=1).abs()
    inputs[:, :, :2] = 0  # equal to the baseline
    inputs[-1] = 0
    return inputs


def kinked(x):
    """A score with a steep stretch that a path of 200 steps runs through in one or two of them."""
    s = x.flatten(1).sum(1)
    return torch.stack([s.clamp(2.0, 2.02) * 50 + 0.1 * s**2, -s], 1)


def test_rough_segments_are_halved_and_smooth_ones_are_not():
    inputs = images(3)[:2] + 0.2
    plain = ml.integrate(kinked, ml.guided_path(kinked, inputs, 0, n_steps=200), 0, n_steps=200)
    counting = Counting(kinked)
    _, delta = ml.guided_ig(counting, inputs, 0, return_convergence_delta=True, internal_batch_size=2)
    change = kinked(inputs)[:, 0] - kinked(0 * inputs)[:, 0]
    assert ((plain.flatten(1).sum(1) - change) / change).abs().min() > 0.01
    assert (delta / change).abs().max() < 0.005
    assert 2 * 201 < counting.gradient_rows < 2 * 220 and counting.largest <= 2


def test_a_jump_of_the_score_and_rounding_end_the_halving():
    inputs = images(3)[:2] + 0.2

    def jump(x):
        s = x.flatten(1).sum(1)
        return torch.stack([s + 5.0 * (s > 2), -s], 1)

    counting = Counting(jump)
    ml.guided_ig(counting, inputs, 0, n_steps=50, internal_batch_size=2)
    assert counting.gradient_rows <= 2 * (51 + 6)

    def coarse(x):
        return jump(x) + 1e6

    counting = Counting(coarse)
    ml.guided_ig(counting, inputs.float(), 0, n_steps=50, internal_batch_size=2)
    assert counting.gradient_rows <= 2 * (51 + 20)


@pytest.mark.parametrize("place", [0.1025, 0.5025, 0.8025])
@pytest.mark.parametrize("height", [0.02, 0.05])
def test_a_cliff_is_climbed_although_its_first_halves_are_worse(place, height):
    # its middle is where the first halving looks, and finds a gradient of 2500; kinks have used up halvings before
    def cliff(x):
        share = x.flatten(1).mean(1)
        turns = share.clamp(max=0.6) * 100 + 0.13
        score = height * (2 * (turns - turns.floor()) - 1).abs() + torch.sigmoid((share - place) / 1e-4)
        return torch.stack([score, -share], 1)

    counting, inputs = Counting(cliff), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    _, delta = ml.guided_ig(counting, inputs, 0, fraction=1.0, return_convergence_delta=True)
    assert delta.abs() < 0.005
    assert counting.gradient_rows <= 201 + 8 * 200


@pytest.mark.parametrize("periods", [30, 110, 150, 230])
def test_kinks_are_followed_as_long_as_that_pays(periods):
    def wave(x):
        share = x.flatten(1).mean(1)
        turns = share * periods + 0.137
        return torch.stack([share + (2 * (turns - turns.floor()) - 1).abs(), -share], 1)

    counting, inputs = Counting(wave), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    _, delta = ml.guided_ig(counting, inputs, 0, n_steps=50, fraction=1.0, return_convergence_delta=True)
    assert counting.gradient_rows <= 51 + 32 * 50
    # up to three periods a step their kinks are found; more would need finer halves than there are
    assert delta.abs() < 1e-9 or periods > 150


class Plain:
    encode = staticmethod(lambda x: x)
    decode = staticmethod(lambda z: 0.8 * z + 0.3)


@pytest.mark.parametrize("guided", [False, True])
def test_kinks_do_not_tie_an_image_to_its_batch_or_its_chunk(guided):
    model, inputs = relu_net(5), draw(24, 64, seed=5)
    target = model(inputs).argmax(1)

    def explain(inputs, target, size):
        if guided:
            return ml.guided_ig(model, inputs, target, n_steps=50, internal_batch_size=size)
        return ml.ma_gig(model, inputs, target, vae=Plain, n_steps=50, internal_batch_size=size)

    whole = explain(inputs, target, None)
    for size in (1, 2, 7):
        close(explain(inputs, target, size), whole, 1e-10)
    for i in (0, 11, 23):
        close(explain(inputs[i : i + 1], target[i : i + 1], None), whole[i : i + 1], 1e-10)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    close(explain(inputs[order], target[order], None), whole[order], 1e-10)
    many = explain(inputs.repeat(13, 1), target.repeat(13), None)
    close(many, whole.repeat(13, 1), 1e-10)


@pytest.mark.parametrize("n_steps", [1, 5, 8, 9, 50])
def test_halvings_are_bounded_and_any_number_of_steps_will_do(n_steps):
    model, inputs = relu_net(6), draw(4, 64, seed=6)
    for i in range(4):
        counted = Counting(model)
        ml.ma_gig(counted, inputs[i : i + 1], 0, vae=Plain, n_steps=n_steps, bridge=False)
        assert counted.gradient_rows <= n_steps + 1 + 8 * n_steps
    values = ml.ma_gig(model, inputs, 0, vae=Plain, n_steps=n_steps)
    assert values.isfinite().all()
    if n_steps == 50:
        close(values.sum(1), (model(inputs) - model(0 * inputs))[:, 0], 0.05)


@pytest.mark.parametrize("anchors", [0, 1, 3])
def test_no_segment_is_lost_with_anchors(anchors):
    model, inputs = relu_net(4), draw(8, 64, seed=4)
    counted = Counting(model)
    for n_steps in (4, 9, 40, 200):
        counted.calls.clear()
        found = ml.guided_ig(counted, inputs, 0, n_steps=n_steps, anchors=anchors, fraction=0.1, max_dist=1.0)
        assert counted.gradient_rows <= 8 * (9 * (n_steps + anchors) + anchors + 1)
    assert ml.completeness_error(model, inputs, found, 0).max() < 0.05


def test_the_left_rule_stays_the_released_one():
    inputs = images(3)[:2] + 0.2
    counting = Counting(kinked)
    ml.guided_ig(counting, inputs, 0, method="left", internal_batch_size=2)
    assert counting.gradient_rows == 2 * 200
