"""The two ways to move a baseline: what their steps report, where they lead, and which network takes which."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from helpers import Counting, close, draw, seeded
from torch import Tensor, nn

import manifold_lib as ml
from manifold_lib.attribution.alignment import Search, gradient_steps, is_piecewise_linear, projection_steps
from manifold_lib.core.scorer import Scorer

D, K, B = 12, 3, 4
INPUTS = draw(B, D, seed=1).sigmoid()
BASIS = torch.linalg.qr(draw(B, D, K, seed=2))[0]
TARGET = torch.tensor([0, 2, 1, 0])
ROWS = torch.tensor([2, 0, 2])  # one image twice, from two starts


def network(activation: type[nn.Module] = nn.Softplus) -> nn.Module:
    return seeded(nn.Sequential(nn.Linear(D, 24), activation(), nn.Linear(24, 3))).double()


def search(model: Callable[[Tensor], Tensor], size: int = 100, **changes: object) -> Search:
    scorer = Scorer(model, B, (), size)
    scorer.classes, scorer.highest = TARGET, 2
    given = {
        **{"scorer": scorer, "decode": None, "constraint": "none", "c": 0.8, "clamp": (0.0, 1.0)},
        **{"n_steps": 5, "learning_rate": 0.05, "stop_gradient": False},
    }
    return Search(**{**given, **changes})  # type: ignore[arg-type]


def fraction(model: nn.Module, baselines: Tensor, rows: Tensor = ROWS, n_steps: int = 5) -> Tensor:
    options = {"baselines": baselines, "method": "midpoint", "n_steps": n_steps}
    return ml.tangent_fraction(ml.integrated_gradients(model, INPUTS[rows], TARGET[rows], **options), BASIS[rows])


STEPS = {"projection": projection_steps, "gradient": gradient_steps}


@pytest.mark.parametrize("steps", STEPS)
def test_each_step_reports_where_it_stands(steps: str) -> None:
    """The fraction of Integrated Gradients from these baselines, of the class and the basis of each row's image."""
    model, starts = network(), draw(3, D, seed=3).sigmoid()
    walk = STEPS[steps](search(model), INPUTS[ROWS], starts, BASIS[ROWS], ROWS)
    for place, (baselines, found, violation) in enumerate(itertools.islice(walk, 4)):
        close(found, fraction(model, baselines), 1e-9)
        assert not violation.any() and not baselines.requires_grad
        if not place:
            assert torch.equal(baselines, starts)


@pytest.mark.parametrize("steps", STEPS)
def test_steps_lead_up(steps: str) -> None:
    walk = STEPS[steps](search(network()), INPUTS[ROWS], torch.zeros(3, D).double(), BASIS[ROWS], ROWS)
    fractions = torch.stack([found for _, found, _ in itertools.islice(walk, 40)])
    assert (fractions[-1] > fractions[0] + 0.2).all()


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("size", [1, 7])
def test_no_row_depends_on_the_others_or_on_the_chunk(steps: str, size: int) -> None:
    counted, starts = Counting(network()), draw(3, D, seed=3).sigmoid()

    def last(rows: Tensor, own: Tensor, size: int = 100) -> Tensor:
        walk = STEPS[steps](search(counted, size), INPUTS[rows], own, BASIS[rows], rows)
        return list(itertools.islice(walk, 6))[-1][0]

    whole = last(ROWS, starts)
    counted.calls.clear()
    close(last(ROWS, starts, size), whole, 1e-10)
    assert counted.largest <= size
    for i in range(3):
        close(last(ROWS[i : i + 1], starts[i : i + 1]), whole[i : i + 1], 1e-10)


def test_a_linear_model_is_aligned_by_projections_and_stays_so() -> None:
    """For a constant h the Newton step solves the problem but for its damping."""
    weights = draw(D, 3, seed=4)
    weights = weights.sign() * (1 + weights.abs())
    walk = projection_steps(search(lambda x: x @ weights), INPUTS[ROWS], 0 * INPUTS[ROWS], BASIS[ROWS], ROWS)
    fractions = torch.stack([found for _, found, _ in itertools.islice(walk, 30)])
    assert (fractions.diff(dim=0) > -1e-9).all() and fractions[-1].min() > 1 - 1e-6


@pytest.mark.parametrize("steps", STEPS)
def test_the_box_is_kept(steps: str) -> None:
    given = search(network(), constraint="box", clamp=(0.2, 0.6))
    walk = STEPS[steps](given, INPUTS[ROWS], torch.full((3, D), 0.4).double(), BASIS[ROWS], ROWS)
    for baselines, _, _ in itertools.islice(walk, 20):
        assert baselines.min() >= 0.2 and baselines.max() <= 0.6


def test_adam_begins_in_the_direction_of_the_gradient() -> None:
    """Its first step is the rate in the direction of each entry's sign, here against differences."""
    model, starts, width = network(), draw(3, D, seed=3).sigmoid(), 1e-6
    walk = gradient_steps(search(model), INPUTS[ROWS], starts, BASIS[ROWS], ROWS)
    step = list(itertools.islice(walk, 2))[1][0] - starts
    moved = [width * e for e in torch.eye(D, dtype=torch.float64)]
    slopes = torch.stack([fraction(model, starts + e) - fraction(model, starts - e) for e in moved], 1) / (2 * width)
    clear = slopes.abs() > 1e-5
    assert clear.double().mean() > 0.9
    close(step[clear], 0.05 * slopes.sign()[clear], 1e-2)


@pytest.mark.parametrize("c", [0.5, 1.0])
def test_what_is_missing_of_the_change_is_told_and_made_good(c: float) -> None:
    """Next to the input the change that is kept falls short, and the penalty leads away."""
    inner = network()

    def model(x: Tensor) -> Tensor:
        return -inner(x)  # scores that rise from zero to the inputs

    starts = INPUTS[ROWS] - 0.01 * draw(3, D, seed=5)
    walk = gradient_steps(search(model, constraint="change", c=c), INPUTS[ROWS], starts, BASIS[ROWS], ROWS)
    found = list(itertools.islice(walk, 120))

    def score(x: Tensor) -> Tensor:
        return model(x).gather(1, TARGET[ROWS][:, None])[:, 0]

    change = score(INPUTS[ROWS]) - score(0 * INPUTS[ROWS])
    assert (change > 0.05).all()
    for baselines, _, violation in (found[0], found[-1]):
        missing = c * change - (score(INPUTS[ROWS]) - score(baselines))
        close(violation, missing.clamp_min(0) / change.abs().clamp_min(0.05), 1e-9)
    assert (found[-1][2] <= found[0][2]).all() and found[-1][2].max() < 0.3 * found[0][2].max()


def test_on_a_manifold_the_latents_move() -> None:
    weights = draw(2, D, seed=6)
    decode = lambda z: torch.sigmoid(z @ weights)  # noqa: E731
    given = search(network(), constraint="manifold", decode=decode)
    walk = gradient_steps(given, INPUTS[ROWS], draw(3, 2, seed=7), BASIS[ROWS], ROWS)
    found = list(itertools.islice(walk, 10))
    for baselines, _, _ in found:
        latents = torch.logit(baselines) @ torch.linalg.pinv(weights)
        close(decode(latents), baselines, 1e-9)
    assert (found[-1][1] > found[0][1]).all()


@pytest.mark.parametrize(
    ("activation", "wanted"), [(nn.ReLU, True), (nn.Identity, True), (nn.Tanh, False), (nn.Softplus, False)]
)
def test_a_network_without_second_derivative_is_told_from_one_with(activation: type[nn.Module], wanted: bool) -> None:
    model = network(activation)
    with torch.no_grad():
        model[0].bias.zero_()
    for inputs in (INPUTS, 0 * INPUTS):  # at zero tanh has none, and looks like ReLU
        assert is_piecewise_linear(search(model).scorer, inputs, (0.0, 1.0)) == wanted
