"""Other toolkits' metrics take our attributions: Captum's infidelity and sensitivity, one of Quantus."""

import pytest
import torch
from captum.metrics import infidelity, infidelity_perturb_func_decorator, sensitivity_max
from helpers import draw, seeded, smooth_model
from torch import nn

import manifold_lib as ml


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


def test_quantus_scores_every_image():
    quantus = pytest.importorskip("quantus")
    model, inputs, target = linear_model().float(), draw(8, 1, 4, 4).float(), torch.arange(8) % 3
    maps = ml.integrated_gradients(model, inputs, target)
    metric = quantus.Sparseness(disable_warnings=True)
    scores = torch.tensor(metric(model, inputs.numpy(), target.numpy(), maps.numpy(), softmax=False))
    assert scores.shape == (8,) and torch.isfinite(scores).all() and scores.std() > 0
