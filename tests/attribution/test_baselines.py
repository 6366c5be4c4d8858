"""Baselines: values, ranges, independence of the batch."""

import pytest
import torch
from helpers import close, draw
from scipy.ndimage import gaussian_filter

import manifold_lib as ml
from manifold_lib.attribution import baselines

NAMES = ["zero", "constant", "max_distance", "uniform", "gaussian", "blurred", "mean"]


def images(n=3, channels=2):
    return torch.rand(n, channels, 9, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def seed():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("name", NAMES)
def test_all_take_the_same_arguments_and_stay_in_the_range(name):
    inputs = 3 * images() - 1
    found = getattr(baselines, name)(inputs, low=-1.0, high=2.0, generator=seed())
    assert found.shape == inputs.shape and found.dtype == inputs.dtype
    assert found.min() >= -1 - 1e-12 and found.max() <= 2 + 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch(name):
    inputs, function = images(4), getattr(baselines, name)
    whole = function(inputs, generator=seed())
    for i in range(4):
        close(function(inputs[i : i + 1], generator=seed()), whole[i : i + 1], 1e-12)


def test_values():
    inputs = images()
    assert not baselines.zero(inputs).any()
    assert (baselines.constant(inputs) == 0.5).all() and (baselines.constant(inputs, low=-1, high=3) == 1).all()
    assert (baselines.constant(inputs, value=0.2) == 0.2).all()
    far = baselines.max_distance(inputs)
    assert set(far.unique().tolist()) == {0.0, 1.0} and ((far - inputs).abs() >= 0.5).all()
    close(baselines.mean(inputs)[:, :, 4, 4], inputs.mean((2, 3)), 1e-12)
    close(baselines.mean(inputs[:, 0, 0])[:, 3], inputs[:, 0, 0].mean(1), 1e-12)


def test_noise_is_shared_and_has_its_law():
    inputs = torch.full((2, 1, 200, 200), 0.5, dtype=torch.float64)
    noisy = baselines.gaussian(inputs, stdevs=0.3, clip=False, generator=seed())
    assert torch.equal(noisy[0], noisy[1]) and abs(noisy[0].std() - 0.3) < 0.01 and noisy.max() > 1
    assert baselines.gaussian(inputs, stdevs=0.3, generator=seed()).max() == 1
    flat = baselines.uniform(inputs, low=2, high=4, generator=seed())
    assert abs(flat.mean() - 3) < 0.01 and abs(flat.std() - 2 / 12**0.5) < 0.01 and torch.equal(flat[0], flat[1])


def test_blur_is_a_gaussian_filter_and_small_images_can_be_blurred():
    inputs = images()
    expected = gaussian_filter(inputs[0, 0].numpy(), 1.0, mode="mirror", truncate=3.0)
    close(baselines.blurred(inputs, sigma=1.0)[0, 0], torch.from_numpy(expected), 1e-6)
    assert baselines.blurred(draw(1, 1, 2, 2)).shape == (1, 1, 2, 2)
    with pytest.raises(ValueError, match="inputs"):
        baselines.blurred(draw(2, 5))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_range_is_refused(name):
    with pytest.raises(ValueError, match="low, high"):
        getattr(baselines, name)(images(), low=1.0, high=1.0)


@pytest.mark.parametrize(("name", "argument"), [("gaussian", "stdevs"), ("blurred", "sigma")])
@pytest.mark.parametrize("value", [-1, float("nan"), "wide"])
def test_a_bad_width_is_refused(name, argument, value):
    with pytest.raises(ValueError, match=argument):
        getattr(baselines, name)(images(), **{argument: value})


def test_every_baseline_gives_a_complete_attribution():
    model = lambda x: x.flatten(1).pow(2).sum(1, keepdim=True) * torch.tensor([1.0, -1.0])  # noqa: E731
    inputs = images()
    for name in NAMES:
        found, delta = ml.integrated_gradients(
            model,
            inputs,
            0,
            baselines=getattr(baselines, name)(inputs, generator=seed()),
            return_convergence_delta=True,
        )
        assert delta.abs().max() < 1e-9 * found.abs().sum()


def test_the_range_is_kept_in_double_precision():
    inputs = draw(2, 1, 4, 4)
    found = ml.baselines.max_distance(inputs, low=0.1, high=0.3)
    assert found.dtype == torch.float64
    assert set(found.flatten().tolist()) <= {0.1, 0.3}
