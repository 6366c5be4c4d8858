"""Completeness, cancellation and purity by hand; Captum's infidelity and Quantus take our maps."""

import pytest
import torch
from captum.metrics import infidelity, infidelity_perturb_func_decorator
from conditional import CONDITION, INPUTS, MAPS, MODEL, SIZES, TABLE, given, same_alone
from helpers import close, draw, one_warning, seeded, smooth_model
from torch import nn

import manifold_lib as ml


def model(x):
    """Two classes that count the left and the right half."""
    flat = x.flatten(1)
    half = flat.shape[1] // 2
    return torch.stack([flat[:, :half].sum(1), flat[:, half:].sum(1)], 1)


def test_completeness_error_and_cancellation_by_hand():
    inputs = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.01]], dtype=torch.float64)
    attributions = torch.tensor([[1.0, 1.0, 0.0, 0.0], [2.0, -1.0, 0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]).double()
    change = torch.tensor([3.0, 1.0, 0.0]).double()
    close(
        ml.completeness_error(model, inputs, attributions, 0, baselines=0.0),
        torch.tensor([1 / 3, 0.0, 0.0], dtype=torch.float64),
        1e-12,
    )
    close(
        ml.cancellation_ratio(model, inputs, attributions, 0, baselines=0.0),
        torch.tensor((2 + 4) / 4.0).double(),
        1e-12,
    )
    gap = ml.cancellation_ratio(model, inputs, attributions, 0, baselines=0.0, reduction="none")
    close(gap, torch.tensor([2.0, 4.0, 0.0]).double() - change, 1e-12)
    # the target is the class predicted at the inputs, and small changes are measured against 0.05
    close(
        ml.completeness_error(model, inputs[2:], attributions[2:], baselines=0.0),
        torch.tensor([0.01 / 0.05], dtype=torch.float64),
        1e-12,
    )


def test_integrated_gradients_of_a_smooth_network_are_complete():
    function, inputs = smooth_model(), draw(4, 1, 4, 4)
    attributions = ml.integrated_gradients(function, inputs)
    assert ml.completeness_error(function, inputs, attributions, baselines=0.0).max() < 1e-6
    assert ml.cancellation_ratio(function, inputs, attributions, baselines=0.0, reduction="none").min() > -1e-6


def moons_like():
    """Points on a line, class 1 to the right of 0."""
    inputs = torch.tensor([[-3.0], [-2.0], [-1.0], [1.0], [2.0], [3.0]])
    return (lambda x: torch.cat([-x, x], 1)), inputs


def test_purity_counts_the_points_of_the_other_class_among_the_larger_half():
    model, inputs = moons_like()
    maps = torch.tensor([[0.1], [5.0], [0.2], [4.0], [-3.0], [1.0]])
    # the three largest: −2 (of the baseline's class), 1 and 2
    assert ml.purity(model, inputs, maps, baselines=-1.0).item() == pytest.approx(2 / 3)
    assert ml.purity(model, inputs, maps, baselines=1.0).item() == pytest.approx(1 / 3)


def test_the_released_purity_is_right_for_a_baseline_in_class_one_and_the_complement_otherwise():
    model, inputs = moons_like()
    perfect_for_one = torch.tensor([[3.0], [4.0], [5.0], [0.0], [0.1], [0.2]])
    for baseline, wanted in ((1.0, 1.0), (-1.0, 0.0)):
        maps = perfect_for_one if baseline > 0 else 5 - perfect_for_one
        assert ml.purity(model, inputs, maps, baselines=baseline).item() == 1
        assert ml.purity(model, inputs, maps, baselines=baseline, published=True).item() == wanted


def test_purity_of_given_classes_and_of_baselines_of_their_own():
    model, inputs = moons_like()
    maps = torch.tensor([[6.0], [5.0], [4.0], [3.0], [2.0], [1.0]])
    baselines = torch.tensor([[1.0], [-1.0], [1.0], [1.0], [1.0], [1.0]])
    assert ml.purity(model, inputs, maps, baselines=baselines).item() == pytest.approx(2 / 3)
    assert ml.purity(model, inputs, maps, 1, baselines=-1.0).item() == 1


def test_purity_of_random_numbers_is_a_half():
    model = lambda x: torch.cat([-x, x], 1)  # noqa: E731
    inputs, maps = draw(4000, 1, seed=1), draw(4000, 1, seed=2)
    assert abs(ml.purity(model, inputs, maps, baselines=-1.0).item() - 0.5) < 0.03


def test_a_map_with_nan_has_no_purity_and_one_point_no_half():
    model, inputs = moons_like()
    maps = inputs.clone()
    maps[2] = torch.nan
    with one_warning():
        assert ml.purity(model, inputs, maps).isnan()
    with pytest.raises(ValueError, match="two or more"):
        ml.purity(model, inputs[:1], inputs[:1])


def linear_model():
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), 0)


@infidelity_perturb_func_decorator(multiply_by_inputs=True)
def noisy(images):
    return images + 0.1 * torch.randn_like(images)


METHODS = {
    "IG": ml.integrated_gradients,
    "adaptive IG": lambda model, x, target: ml.integrated_gradients(model, x, target, tolerance=0.01),
    "guided IG": lambda model, x, target: ml.guided_ig(model, x, target, n_steps=20),
    "input × gradient": ml.input_x_gradient,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_complete_map_of_a_linear_model_has_no_infidelity(name):
    model, inputs, target = linear_model(), draw(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    maps = METHODS[name](model, inputs, target)
    torch.manual_seed(0)
    assert (infidelity(model, noisy, inputs, maps, target=target, n_perturb_samples=8) < 1e-20).all()
    wrong = infidelity(model, noisy, inputs, maps.flip(0), target=target, n_perturb_samples=8)
    assert (wrong > 1e-6).sum() >= 4


def test_quantus_scores_every_image():
    quantus = pytest.importorskip("quantus")
    model, inputs, target = linear_model().float(), draw(8, 1, 4, 4).float(), torch.arange(8) % 3
    maps = ml.integrated_gradients(model, inputs, target)
    metric = quantus.Sparseness(disable_warnings=True)
    scores = torch.tensor(metric(model, inputs.numpy(), target.numpy(), maps.numpy(), softmax=False))
    assert scores.shape == (8,) and torch.isfinite(scores).all() and scores.std() > 0


@pytest.mark.parametrize("size", SIZES)
def test_an_image_with_an_argument_of_its_own_gets_what_it_gets_alone(size):
    same_alone(lambda m, x, a, t, **k: ml.completeness_error(m, x, a, t, baselines=0.5, **k), size)
    same_alone(lambda m, x, a, t, **k: ml.cancellation_ratio(m, x, a, t, reduction="none", **k), size)


@pytest.mark.parametrize("size", SIZES)
def test_purity_with_other_arguments_is_that_of_images_that_hold_them(size):
    def packed(x):
        return MODEL(x[:, :16], x[:, 16:], TABLE, "word")

    def pack(x):
        return torch.cat([x.flatten(1), CONDITION], 1)

    wide = torch.cat([MAPS.flatten(1), 0 * CONDITION], 1)
    for target in (None, torch.tensor([0, 1, 2, 1, 0])):
        found = ml.purity(MODEL, INPUTS, MAPS, target, baselines=0.5, internal_batch_size=size, **given())
        baselines = pack(torch.full_like(INPUTS, 0.5))
        assert found == ml.purity(packed, pack(INPUTS), wide, target, baselines=baselines)
