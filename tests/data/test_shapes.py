"""The shape renderer: data whose labels, masks and tangent spaces are known by construction."""

import pytest
import torch
from helpers import close, draw
from torch.autograd import gradcheck

import manifold_lib as ml


def sample(n=64, seed=0, **keywords):
    return ml.sample_shapes(n, generator=torch.Generator().manual_seed(seed), **keywords)


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("n", [1, 30])
def test_the_samples_have_their_shapes_and_ranges(n, size):
    found = sample(n, size=size)
    assert found.inputs.shape == found.mask.shape == (n, 1, size, size)
    assert found.latents.shape == (n, 8) and found.labels.shape == (n,) and found.labels.dtype == torch.int64
    assert found.inputs.min() >= 0 and found.inputs.max() <= 1
    assert torch.isfinite(found.inputs).all() and not found.inputs.requires_grad


def test_there_are_four_classes_of_about_equal_size():
    counts = sample(4000).labels.bincount()
    assert len(counts) == 4 and (counts > 850).all()


def test_each_image_is_its_rendered_latents():
    found = sample()
    close(ml.render_shapes(found.latents, found.labels), found.inputs, 1e-6)
    close(ml.shape_decoder(found.labels)(found.latents), found.inputs, 1e-6)


def test_a_seed_gives_the_same_samples_and_the_global_seed_has_no_part_in_it():
    state = torch.random.get_rng_state()
    first, again, other = sample(), sample(), sample(seed=1)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.latents, other.latents)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_mask_marks_one_half():
    mask = sample(200).mask.double()
    assert ((mask == 0) | (mask == 1)).all()
    assert (mask.flatten(1).sum(1) == 512).all()


def test_the_two_halves_hold_the_same_ink():
    found = sample(256)
    mask = found.mask.to(found.inputs)
    inside = (found.inputs * mask).flatten(1).sum(1)
    outside = (found.inputs * (1 - mask)).flatten(1).sum(1)
    assert inside.min() > 1
    assert ((inside - outside).abs() / inside).max() < 1e-3


def test_the_class_shape_and_the_distractor_stay_in_their_halves():
    found = sample(32)
    jacobian = ml.decoder_jacobian(ml.shape_decoder(found.labels), found.latents)
    mask = found.mask.to(jacobian).flatten(1)[:, :, None]
    scale = jacobian.abs().max()
    assert (jacobian[:, :, :4] * (1 - mask)).abs().max() < 1e-3 * scale
    assert (jacobian[:, :, 4:7] * mask).abs().max() < 1e-3 * scale
    for latent in (0, 1, 2):
        assert (jacobian[:, :, latent] * mask[..., 0]).abs().amax(1).min() > 1e-2


def test_the_distractor_does_not_know_the_class():
    found = sample(32)
    outside = 1 - found.mask.to(found.inputs)
    for shift in (1, 2, 3):
        other = ml.render_shapes(found.latents, (found.labels + shift) % 4)
        change = (other - found.inputs).abs().flatten(1).amax(1)
        assert (change > 0.05).all()
        difference = ((other - found.inputs) * outside).abs().max()
        assert difference < 0.05, f"the distractor changes by {difference:.3g} with the class"


def test_the_distractor_latents_have_one_law_for_all_classes():
    found = sample(8000)
    tail = found.latents[:, 4:].double()
    means = torch.stack([tail[found.labels == label].mean(0) for label in range(4)])
    spread = tail.std(0).clamp_min(1e-6)
    assert ((means - tail.mean(0)).abs() / spread).max() < 5 / 2000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [16, 32])
def test_rendering_keeps_the_dtype_and_the_range(dtype, size):
    found = sample(8)
    images = ml.render_shapes(found.latents.to(dtype), found.labels, size=size)
    assert images.dtype == dtype and images.shape == (8, 1, size, size)
    assert images.min() >= 0 and images.max() <= 1


def test_no_image_depends_on_its_batch():
    found = sample(8)
    singles = [ml.render_shapes(found.latents[i : i + 1], found.labels[i : i + 1]) for i in range(8)]
    close(torch.cat(singles), ml.render_shapes(found.latents, found.labels), 1e-6)


def test_rendering_is_differentiable_for_every_class():
    found = sample(16)
    rows = torch.stack([(found.labels == label).nonzero()[0, 0] for label in range(4)])
    labels, latents = found.labels[rows], found.latents[rows].double().requires_grad_()
    assert gradcheck(lambda z: ml.render_shapes(z, labels, size=8), latents, atol=1e-5)


def test_the_jacobian_of_the_decoder_equals_finite_differences():
    found = sample(6)
    decoder, latents = ml.shape_decoder(found.labels), found.latents.double()
    jacobian = ml.decoder_jacobian(decoder, latents)
    steps = 1e-6 * torch.eye(8, dtype=torch.float64)
    columns = [(decoder(latents + step) - decoder(latents - step)).flatten(1) / 2e-6 for step in steps]
    close(jacobian, torch.stack(columns, 2), 1e-6)


def test_the_tangent_basis_of_a_batch_is_that_of_each_image():
    found = sample(6)
    latents = found.latents.double()
    whole = ml.tangent_basis(ml.shape_decoder(found.labels), latents)
    assert whole.shape == (6, 1024, 8)
    used = whole.norm(dim=1) > 0.5
    assert (used.sum(1) >= 6).all()
    for i in range(6):
        alone = ml.tangent_basis(ml.shape_decoder(found.labels[i : i + 1]), latents[i : i + 1])
        close(alone[0] @ alone[0].T, whole[i] @ whole[i].T, 1e-8)


def test_the_matrix_free_projection_of_the_decoder_equals_the_dense_one():
    found = sample(4)
    decoder, latents, vectors = ml.shape_decoder(found.labels), found.latents.double(), draw(4, 1, 32, 32, seed=1)
    expected = ml.project(vectors, ml.tangent_basis(decoder, latents))
    close(ml.project_matrix_free(vectors, decoder, latents), expected, 1e-5)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: sample(0), "n"),
        (lambda: ml.render_shapes(torch.rand(3, 7), torch.zeros(3, dtype=torch.int64)), "latents"),
        (lambda: ml.render_shapes(torch.rand(3, 8), torch.zeros(2, dtype=torch.int64)), "labels"),
        (lambda: ml.render_shapes(torch.rand(3, 8), torch.full((3,), 4)), "labels"),
        (lambda: ml.render_shapes(torch.rand(3, 8), torch.full((3,), -1)), "labels"),
        (lambda: ml.render_shapes(torch.rand(3, 8), torch.zeros(3)), "labels"),
        (lambda: ml.render_shapes(torch.full((3, 8), float("nan")), torch.zeros(3, dtype=torch.int64)), "latents"),
        (lambda: ml.render_shapes(torch.rand(3, 8), torch.zeros(3, dtype=torch.int64), size=0), "size"),
    ],
)
def test_bad_input_is_refused_by_name(call, name):
    with pytest.raises(ValueError, match=rf"\b{name}"):
        call()
