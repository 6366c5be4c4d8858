"""PGD: it stays where it may go, reaches the closed-form optimum of a linear model, and treats each image alone."""

import pytest
import torch
import torch.nn.functional as F
from captum.robust import PGD
from conditional import same_alone
from helpers import close, conv_model, draw, no_warning, one_warning, smooth_model, untouched

import manifold_lib as ml

NORMS = ["l2", "linf"]


def length(delta, norm):
    order = 2 if norm == "l2" else float("inf")
    return torch.linalg.vector_norm(delta.flatten(1), ord=order, dim=1)


def linear(weights):
    return lambda x: x.flatten(1) @ weights.T


def cross_entropy(model, points, labels):
    return F.cross_entropy(model(points), labels, reduction="none")


@pytest.fixture
def images():
    return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.7, 5.0])
@pytest.mark.parametrize("start", [None, 3])
def test_it_stays_in_the_ball_and_in_the_range(norm, eps, start, images):
    generator = None if start is None else torch.Generator().manual_seed(start)
    for dtype in (torch.float32, torch.float64):
        model, inputs = smooth_model(dtype=dtype), images.to(dtype)
        found = ml.pgd(model, inputs, eps=eps, norm=norm, n_steps=5, generator=generator)
        assert found.dtype == dtype and found.shape == inputs.shape and not found.requires_grad
        assert (length(found - inputs, norm) <= eps * (1 + 1e-5) + 1e-7).all()
        assert found.min() >= 0 and found.max() <= 1


def test_the_range_is_kept_to_the_last_bit():
    """Normalised images: (input + step) - input + input need not be what it was."""
    low, high = -2.1179, 2.64
    inputs = torch.rand(500, 16, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    inputs = inputs.clamp(low, high)
    found = ml.pgd(linear(draw(3, 16, dtype=torch.float32)), inputs, eps=20.0, clamp=(low, high), n_steps=4)
    assert found.min() >= inputs.new_tensor(low) and found.max() <= inputs.new_tensor(high)


@pytest.mark.parametrize("norm", NORMS)
def test_a_radius_of_zero_returns_the_inputs(norm, images):
    assert torch.equal(ml.pgd(smooth_model(), images, eps=0.0, norm=norm), images)


@pytest.mark.parametrize("norm", NORMS)
def test_each_image_may_have_its_own_radius(norm, images):
    eps = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)
    found = ml.pgd(smooth_model(), images, eps=eps, norm=norm, clamp=None)
    close(length(found - images, norm), eps, 1e-9)
    singles = [ml.pgd(smooth_model(), images[i : i + 1], eps=float(eps[i]), norm=norm, clamp=None) for i in range(6)]
    close(found, torch.cat(singles), 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n_steps", [1, 3, 20])
def test_a_linear_model_is_attacked_at_the_closed_form_optimum(norm, n_steps):
    weights, inputs = draw(2, 16), draw(5, 1, 4, 4, seed=1)
    labels = torch.tensor([0, 1, 1, 0, 1])
    toward = (weights[1 - labels] - weights[labels]).view_as(inputs)
    unit = toward.sign() if norm == "linf" else toward / length(toward, "l2").view(-1, 1, 1, 1)
    found = ml.pgd(linear(weights), inputs, labels, eps=0.5, norm=norm, n_steps=n_steps, clamp=None)
    close(found - inputs, 0.5 * unit, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_it_beats_random_noise_of_the_same_length(norm):
    weights, inputs, labels = draw(2, 16), draw(5, 16, seed=1), torch.tensor([0, 1, 1, 0, 1])
    model = linear(weights)
    attacked = ml.pgd(model, inputs, labels, eps=0.5, norm=norm, clamp=None)
    best = cross_entropy(model, attacked, labels)
    for seed in range(50):
        noise = draw(5, 16, seed=100 + seed)
        noise = 0.5 * (noise.sign() if norm == "linf" else noise / noise.norm(dim=1, keepdim=True))
        assert (cross_entropy(model, inputs + noise, labels) <= best + 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_it_raises_the_loss_of_a_curved_model(norm, images):
    model, labels = smooth_model(), torch.tensor([0, 1, 2, 0, 1, 2])
    attacked = ml.pgd(model, images, labels, eps=0.3, norm=norm)
    assert (cross_entropy(model, attacked, labels) > cross_entropy(model, images, labels)).all()


def test_linf_equals_captums_pgd(images):
    model, labels = smooth_model(), torch.tensor([0, 1, 2, 0, 1, 2])
    oracle = PGD(model, torch.nn.CrossEntropyLoss(reduction="none"), lower_bound=0.0, upper_bound=1.0)
    expected = oracle.perturb(images, radius=0.2, step_size=0.05, step_num=7, target=labels, norm="Linf")
    found = ml.pgd(model, images, labels, eps=0.2, norm="linf", n_steps=7, step_size=0.25)
    close(found, expected.detach(), 1e-12)


def test_one_step_is_the_fast_gradient_method(images):
    model, labels = smooth_model(), torch.tensor([0, 1, 2, 0, 1, 2])
    points = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model, points, labels).sum(), points)
    keywords = {"eps": 0.2, "n_steps": 1, "step_size": 0.5, "clamp": None}
    close(ml.pgd(model, images, labels, norm="linf", **keywords), images + 0.1 * gradient.sign(), 1e-13)
    unit = gradient / length(gradient, "l2").view(-1, 1, 1, 1)
    close(ml.pgd(model, images, labels, **keywords), images + 0.1 * unit, 1e-13)


@pytest.mark.parametrize("norm", NORMS)
def test_no_image_depends_on_its_batch_or_order(norm, images):
    model, order = smooth_model(), torch.tensor([4, 0, 5, 2, 1, 3])
    whole = ml.pgd(model, images, eps=0.3, norm=norm)
    close(ml.pgd(model, images[order], eps=0.3, norm=norm), whole[order], 1e-12)
    close(torch.cat([ml.pgd(model, image[None], eps=0.3, norm=norm) for image in images]), whole, 1e-12)


def test_the_batch_scope_spends_one_budget_on_the_whole_batch():
    weights, inputs = draw(2, 16), draw(5, 16, seed=1)
    labels = torch.tensor([0, 1, 1, 0, 1])
    found = ml.pgd(linear(weights), inputs, labels, eps=1.0, norm_scope="batch", clamp=None)
    delta = found - inputs
    assert float(delta.norm()) == pytest.approx(1.0, rel=1e-9)
    shares = delta.norm(dim=1)
    assert shares.max() > 1 / 5**0.5 + 1e-3 and shares.min() < 1 / 5**0.5


def test_the_batch_scope_of_one_image_is_the_sample_scope(images):
    model = smooth_model()
    found = ml.pgd(model, images[:1], eps=0.5, norm_scope="batch")
    close(found, ml.pgd(model, images[:1], eps=0.5), 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_the_start_depends_on_the_generator_only(norm, images):
    model = smooth_model()

    def attack(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return ml.pgd(model, images, eps=0.5, norm=norm, n_steps=2, step_size=0.1, generator=generator)

    state = torch.random.get_rng_state()
    assert torch.equal(attack(1), attack(1))
    assert torch.equal(attack(None), attack(None))
    assert not torch.allclose(attack(1), attack(2)) and not torch.allclose(attack(1), attack(None))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_without_labels_it_moves_away_from_the_prediction(images):
    model = smooth_model(n_classes=5, seed=3)
    predicted = model(images).argmax(1)
    assert torch.equal(ml.pgd(model, images, eps=0.3), ml.pgd(model, images, predicted, eps=0.3))


def test_a_flat_loss_leaves_the_image_where_it_is():
    inputs = draw(3, 4)
    inputs[1] = 0
    found = ml.pgd(lambda x: x.square().cumsum(1), inputs, 0, eps=0.5, clamp=None)
    assert torch.isfinite(found).all() and torch.equal(found[1], inputs[1]) and not torch.equal(found[0], inputs[0])


def test_the_model_and_the_inputs_come_out_as_they_went_in(capfd):
    model = conv_model().to(memory_format=torch.channels_last)
    inputs = torch.rand(3, 2, 8, 8).to(memory_format=torch.channels_last)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    with untouched(model, inputs), no_warning():
        ml.pgd(model, inputs, eps=0.5, n_steps=3)
    assert capfd.readouterr() == ("", "")


def test_train_mode_is_used_as_found_with_one_warning_and_buffers_restored():
    model, inputs = conv_model().train(), torch.rand(3, 2, 8, 8)
    with untouched(model, inputs), one_warning():
        ml.pgd(model, inputs, 1, eps=0.5, n_steps=3)


def test_it_works_where_gradients_are_switched_off(images):
    expected = ml.pgd(smooth_model(), images, 1, eps=0.3)
    with torch.no_grad():
        assert torch.equal(ml.pgd(smooth_model(), images, 1, eps=0.3), expected)


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"eps": -1.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
        ({"eps": torch.ones(5, dtype=torch.float64)}, "eps"),
        ({"eps": torch.full((6,), -1.0, dtype=torch.float64)}, "eps"),
        ({"eps": torch.ones(6, dtype=torch.float64), "norm_scope": "batch"}, "eps"),
        ({"eps": 1.0, "norm": "l1"}, "norm"),
        ({"eps": 1.0, "norm_scope": "pixel"}, "norm_scope"),
        ({"eps": 1.0, "norm": "linf", "norm_scope": "batch"}, "norm_scope"),
        ({"eps": 1.0, "n_steps": 0}, "n_steps"),
        ({"eps": 1.0, "step_size": 0.0}, "step_size"),
        ({"eps": 1.0, "clamp": (1.0, 0.0)}, "clamp"),
    ],
)
def test_bad_settings_are_refused_by_name(keywords, name, images):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        ml.pgd(smooth_model(), images, 1, **keywords)


def test_a_model_with_one_score_is_refused(images):
    with pytest.raises(ValueError, match="model"):
        ml.pgd(lambda x: x.flatten(1).sum(1), images, eps=1.0)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_with_an_argument_of_its_own_gets_what_it_gets_alone(norm):
    same_alone(lambda m, x, a, t, **k: ml.pgd(m, x, t, eps=0.3, norm=norm, n_steps=5, **k))


def test_one_column_of_scores_is_no_logits(images):
    with pytest.raises(ValueError, match=r"got scores \(B, 1\), wants logits"):
        ml.pgd(lambda x: x.flatten(1).sum(1, keepdim=True), images, eps=1.0)
