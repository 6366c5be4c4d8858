"""Weights drawn anew, and sensitivity: by hand, and Captum's of our maps."""

import copy
import functools

import pytest
import torch
from captum.metrics import sensitivity_max
from conditional import INPUTS, MODEL, given, same_alone
from helpers import conv_model, draw, seeded, smooth_model
from torch import nn

import manifold_lib as ml


def seed(number=0):
    return torch.Generator().manual_seed(number)


def test_all_weights_are_drawn_anew_and_the_model_is_left_alone():
    model = conv_model().double().eval()
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    other = ml.randomised(model, generator=seed())
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert other.state_dict()[name].dtype == value.dtype
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    assert all(changed) and not any(module.training for module in other.modules())
    again, differs = (ml.randomised(model, generator=seed(number)) for number in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), again.parameters(), strict=True))
    pairs = zip(other.parameters(), differs.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs if a.ndim > 1), "of batch norm's scales there is one draw only"


def test_layers_are_redrawn_from_the_output_on():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    same = []
    for n_layers in (1, 2, 3):
        other = ml.randomised(model, n_layers=n_layers, generator=seed())
        same.append([torch.equal(model[i].weight, other[i].weight) for i in (0, 2, 4)])
    assert same == [[True, True, False], [True, False, False], [False, False, False]]


def test_frozen_parameters_stay_frozen():
    other = ml.randomised(smooth_model().requires_grad_(False))
    assert not any(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize(
    ("model", "n_layers", "named"),
    [
        (lambda x: x, None, "model"),
        (nn.ReLU(), None, "model: got no layers"),
        (nn.Linear(2, 2), 2, "n_layers"),
        (nn.Linear(2, 2), 0, "n_layers"),
        (nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2)), None, "in_proj_weight"),
    ],
)
def test_what_cannot_be_redrawn_is_refused(model, n_layers, named):
    with pytest.raises(ValueError, match=named):
        ml.randomised(model, n_layers=n_layers)


def test_the_sensitivity_of_a_linear_map_by_hand():
    """A(x) = 3 x: the change is 3 ‖δ‖, over 3 ‖x‖."""
    inputs = draw(4, 1, 3, 3)
    found = ml.max_sensitivity(
        None, inputs, attribution=lambda model, x, target: 3 * x, radius=0.1, n_samples=5, generator=seed()
    )
    draws, generator = [], seed()
    for _ in range(5):
        draws.append(0.1 * (2 * torch.rand(1, 3, 3, generator=generator, dtype=torch.float64) - 1))
    expected = max(noise.norm() for noise in draws) / inputs.flatten(1).norm(dim=1)
    torch.testing.assert_close(found, expected)
    assert (found <= 0.1 * 3 / inputs.flatten(1).norm(dim=1)).all()


def test_sensitivity_of_a_constant_map_is_zero_and_of_no_map_nan():
    inputs = draw(2, 1, 3, 3)
    assert not ml.max_sensitivity(None, inputs, attribution=lambda m, x, t: torch.ones_like(x)).any()
    with pytest.warns(RuntimeWarning, match="max_sensitivity"):
        assert ml.max_sensitivity(None, inputs, attribution=lambda m, x, t: torch.zeros_like(x)).isnan().all()


def test_sensitivity_does_not_depend_on_the_batch_and_takes_maps_at_hand():
    model, inputs = smooth_model(), draw(5, 1, 4, 4)
    options = {"attribution": ml.gradient, "n_samples": 3}
    whole = ml.max_sensitivity(model, inputs, 1, generator=seed(), **options)
    alone = torch.cat([ml.max_sensitivity(model, x, 1, generator=seed(), **options) for x in inputs.split(1)])
    torch.testing.assert_close(whole, alone)
    maps, calls = ml.gradient(model, inputs, 1), []

    def counted(model, inputs, target):
        calls.append(len(inputs))
        return ml.gradient(model, inputs, target)

    given = ml.max_sensitivity(model, inputs, 1, attribution=counted, n_samples=3, maps=maps, generator=seed())
    torch.testing.assert_close(given, whole)
    assert calls == [5, 5, 5]


def test_maps_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="maps"):
        ml.max_sensitivity(smooth_model(), draw(3, 1, 4, 4), 0, attribution=ml.gradient, maps=draw(1, 1, 4, 4))


@pytest.mark.parametrize("options", [{"radius": 0}, {"radius": float("nan")}, {"n_samples": 0}])
def test_bad_numbers_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ml.max_sensitivity(smooth_model(), draw(2, 1, 4, 4), 0, attribution=ml.gradient, **options)


def linear_model():
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), 0)


METHODS = {
    "IG": ml.integrated_gradients,
    "adaptive IG": lambda model, x, target: ml.integrated_gradients(model, x, target, tolerance=0.01),
    "guided IG": lambda model, x, target: ml.guided_ig(model, x, target, n_steps=20),
    "input × gradient": ml.input_x_gradient,
}


@pytest.mark.parametrize("copies", [1, 5])
def test_the_gradient_of_a_linear_model_is_not_sensitive(copies):
    """Classes differ, so copies of an image that met another's class would show."""
    model, inputs, target = linear_model(), draw(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])

    def explain(images, target):
        return tuple(ml.gradient(model, one, target) for one in images)

    assert (sensitivity_max(explain, inputs, target=target, n_perturb_samples=copies) == 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_sensitivity_is_the_largest_relative_change(name):
    model, inputs, target = smooth_model(), draw(4, 1, 4, 4), torch.tensor([0, 1, 0, 1])
    seen = []

    def explain(images, target):
        seen.append(tuple(METHODS[name](model, one.detach(), target) for one in images))
        return seen[-1]

    found = sensitivity_max(explain, inputs, target=target, n_perturb_samples=3, perturb_radius=0.05)
    (clean,), (copied,) = seen
    change = (copied.view(4, 3, -1) - clean.view(4, 1, -1)).norm(dim=2) / clean.view(4, -1).norm(dim=1, keepdim=True)
    assert torch.allclose(found, change.amax(1)) and (found > 0).all()


SENSITIVE = {
    "gradient": ml.gradient,
    "input_x_gradient": ml.input_x_gradient,
    "integrated_gradients": ml.integrated_gradients,
    "chunks of three": functools.partial(ml.integrated_gradients, internal_batch_size=3),
}


@pytest.mark.parametrize("name", SENSITIVE)
def test_an_image_with_an_argument_of_its_own_gets_what_it_gets_alone(name):
    def measure(model, inputs, maps, target, **options):
        attribution = SENSITIVE[name]
        maps = attribution(model, inputs, target, **options)
        found = [
            ml.max_sensitivity(
                *(model, inputs, target),
                attribution=attribution,
                radius=0.5,
                n_samples=3,
                maps=some,
                generator=seed(),
                **options,
            )
            for some in (None, maps)
        ]
        return torch.stack(found, 1)

    same_alone(measure)


def test_an_attribution_that_does_not_take_other_arguments_is_refused():
    def own(model, inputs, target):
        return inputs

    with pytest.raises(ValueError, match="additional_forward_args"):
        ml.max_sensitivity(MODEL, INPUTS, 0, attribution=own, **given())

    def passing(model, inputs, target, **options):
        return ml.gradient(model, inputs, target, **options)

    options = {"n_samples": 2, **given()}
    found = ml.max_sensitivity(MODEL, INPUTS, 0, attribution=passing, generator=seed(), **options)
    expected = ml.max_sensitivity(MODEL, INPUTS, 0, attribution=ml.gradient, generator=seed(), **options)
    assert torch.equal(found, expected)
