"""The sampler of generated data: acceptance with probability p_max², labels, latents and seeds (T10)."""

import math

import pytest
import torch
from helpers import draw

import manifold_lib as ml


def decoder(latents):
    return torch.sigmoid(latents @ draw(9, 3, dtype=torch.float32).T).view(-1, 1, 3, 3)


def labeller(images):
    return 8 * images.flatten(1) @ draw(9, 4, seed=1, dtype=torch.float32)


def sample(n, seed=0, decode=decoder, label=labeller):
    return ml.sample_generated(decode, label, n, latent_dim=3, generator=torch.Generator().manual_seed(seed))


def sure(probability):
    """A labeller of two classes that is equally confident of every image."""
    gap = math.log(probability / (1 - probability))
    return lambda images: torch.tensor([[gap, 0.0]]).expand(len(images), 2)


@pytest.mark.parametrize("n", [1, 7, 700])
def test_it_returns_as_many_samples_as_asked_for(n):
    found = sample(n)
    assert found.inputs.shape == (n, 1, 3, 3) and found.latents.shape == (n, 3) and found.labels.shape == (n,)
    assert found.labels.dtype == torch.int64 and 0 < found.acceptance <= 1


def test_each_image_is_the_decoded_latent_with_the_label_of_the_labeller():
    found = sample(300)
    assert torch.allclose(found.inputs, decoder(found.latents), atol=1e-6)
    assert torch.equal(found.labels, labeller(found.inputs).argmax(1))


def test_a_seed_gives_the_same_data_set_and_another_seed_another():
    first, again, other = sample(50), sample(50), sample(50, seed=1)
    for one, two in zip(first[:3], again[:3], strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.latents, other.latents)


def test_the_global_seed_has_no_part_in_it():
    torch.manual_seed(1)
    first, state = sample(50), torch.random.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(sample(50).latents, first.latents)
    torch.manual_seed(1)
    sample(50)
    assert torch.equal(torch.random.get_rng_state(), torch.manual_seed(1).get_state())
    assert state is not None


def test_a_small_data_set_is_the_beginning_of_a_larger_one():
    small, large = sample(40), sample(1500)
    assert torch.equal(small.latents, large.latents[:40]) and torch.equal(small.labels, large.labels[:40])


@pytest.mark.parametrize("probability", [0.5001, 0.7, 0.9])
def test_the_acceptance_probability_is_the_squared_confidence(probability):
    """T10: within 4 standard errors of p_max²."""
    found = sample(20_000, label=sure(probability))
    expected = probability**2
    drawn = 20_000 / found.acceptance
    assert abs(found.acceptance - expected) < 4 * math.sqrt(expected * (1 - expected) / drawn)


def test_images_are_kept_in_proportion_to_their_own_squared_confidence():
    def halves(images):  # certain for one half of the prior, p = 0.6 for the other
        first = images.flatten(1)[:, 0]
        return torch.stack([torch.where(first > 0, 40.0, math.log(1.5)), torch.zeros(len(first))], 1)

    found = ml.sample_generated(lambda z: z, halves, 30_000, latent_dim=1, generator=torch.Generator().manual_seed(0))
    share = float((found.latents[:, 0] > 0).double().mean())
    expected = 1 / (1 + 0.36)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 30_000)


def test_a_sure_labeller_keeps_every_draw_and_the_prior():
    found = sample(20_000, label=sure(1 - 1e-7))
    assert found.acceptance > 0.999
    assert found.latents.mean().abs() < 0.02 and (found.latents.std() - 1).abs() < 0.02


def test_a_labeller_that_is_never_confident_is_an_error_and_no_endless_loop():
    with pytest.raises(RuntimeError, match="labeller"):
        sample(10, label=lambda images: torch.zeros(len(images), 100))


def test_the_samples_hold_no_graph():
    vae = ml.VAE(latent_dim=3)
    found = ml.sample_generated(
        vae.decode,
        lambda images: images.flatten(1)[:, :2] * 50,
        5,
        latent_dim=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert not found.inputs.requires_grad and all(parameter.grad is None for parameter in vae.parameters())
