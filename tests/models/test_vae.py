"""The generators and their losses, against torch.distributions and the formulas written out."""

import math

import pytest
import torch
from helpers import close, draw, seeded
from torch.distributions import Bernoulli, Normal, kl_divergence

import manifold_lib as ml
from manifold_lib.models.vae import kl_nats, reconstruction_nats


def vae_of(latent_dim=3, **keywords):
    return seeded(ml.VAE(latent_dim, width=4, hidden=8, **keywords), seed=2).double()


def images(batch=5, channels=1, seed=0):
    return torch.rand(batch, channels, 32, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("latent_dim", [1, 10])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_vae_maps_images_to_latents_and_back(latent_dim, channels):
    vae, inputs = vae_of(latent_dim, channels=channels), images(4, channels)
    mean, log_variance = vae.posterior(inputs)
    assert mean.shape == log_variance.shape == (4, latent_dim)
    assert torch.equal(vae.encode(inputs), mean)
    decoded = vae.decode(mean)
    assert decoded.shape == inputs.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(vae(inputs), decoded)
    close(decoded, torch.sigmoid(vae.decoder(mean)), 1e-15)


def test_the_paper_vae_has_the_architecture_of_the_spec():
    vae = ml.VAE()
    widths = [(m.in_features, m.out_features) for m in vae.modules() if isinstance(m, torch.nn.Linear)]
    assert widths == [(512, 256), (256, 256), (256, 20), (10, 256), (256, 256), (256, 512)]
    assert vae.latent_dim == 10


def test_images_of_a_batch_do_not_mix():
    vae, inputs = vae_of(), images()
    close(torch.cat([vae(image[None]) for image in inputs]), vae(inputs), 1e-12)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(("channels", "latent_channels"), [(1, 2), (3, 9)])
def test_the_autoencoder_has_stride_eight(size, channels, latent_channels):
    model = ml.Autoencoder(channels, width=4, latent_channels=latent_channels, n_blocks=1)
    inputs = torch.rand(2, channels, size, size)
    latents = model.encode(inputs)
    assert latents.shape == (2, latent_channels, size // 8, size // 8)
    assert model.decode(latents).shape == inputs.shape and torch.equal(model(inputs), model.decode(latents))


def test_the_autoencoder_output_is_not_clamped():
    model = seeded(ml.Autoencoder(1, width=4, latent_channels=2, n_blocks=1))
    decoded = model.decode(100 * draw(3, 2, 4, 4, dtype=torch.float32))
    assert decoded.min() < 0 and decoded.max() > 1


@pytest.mark.parametrize(("size", "channels", "widths"), [(32, 1, (4, 6, 6)), (64, 1, (4, 4, 6, 6)), (32, 3, (4, 6))])
def test_the_latent_of_the_convolutional_vae_is_a_map(size, channels, widths):
    vae = ml.ConvVAE(channels, widths, 5)
    inputs = torch.rand(2, channels, size, size)
    mean, log_variance = vae.posterior(inputs)
    side = size // 2 ** len(widths)
    assert mean.shape == log_variance.shape == (2, 5, side, side) and torch.equal(mean, vae.encode(inputs))
    decoded = vae.decode(mean)
    assert decoded.shape == inputs.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(decoded, vae(inputs))
    assert not any(isinstance(part, torch.nn.ReLU) for part in vae.modules())  # no kinks, for geodesics


def test_the_elbo_is_reconstruction_and_weighted_kl():
    vae = seeded(ml.ConvVAE(1, (4, 4), 2)).double()
    inputs = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, log_variance = vae.posterior(inputs)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = vae.decoder(mean + noise * (0.5 * log_variance).exp())
    nats = reconstruction_nats(logits, inputs), kl_nats(mean, log_variance).sum((1, 2, 3))
    for beta in (0.0, 0.5):
        expected = (nats[0] + beta * nats[1]).mean()
        found = ml.elbo_loss(vae, inputs, beta=beta, generator=torch.Generator().manual_seed(1))
        close(found, expected, 1e-12)


def test_the_kl_term_equals_torchs():
    mean, log_variance = draw(4, 3), draw(4, 3, seed=1)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    close(kl_nats(mean, log_variance), expected, 1e-12)
    assert (kl_nats(torch.zeros(1, 2), torch.zeros(1, 2)) == 0).all()


def test_the_reconstruction_term_is_the_bernoulli_log_likelihood():
    logits, inputs = 5 * draw(4, 1, 6, 6), (draw(4, 1, 6, 6, seed=1) > 0).double()
    expected = -Bernoulli(logits=logits).log_prob(inputs).flatten(1).sum(1)
    close(reconstruction_nats(logits, inputs), expected, 1e-12)
    assert torch.isfinite(reconstruction_nats(1000 * logits, inputs)).all()


def parts(vae, inputs, n_data, seed):
    """The four terms of Chen et al. (2018), one image and one latent at a time."""
    mean, log_variance = vae.posterior(inputs)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(seed), dtype=mean.dtype)
    deviation = (0.5 * log_variance).exp()
    latents = mean + noise * deviation
    batch, k = mean.shape
    weights = torch.full((batch, batch), 1 / (batch - 1), dtype=mean.dtype)
    for i in range(batch):  # the image's own posterior, one for the rest of the data, the others for themselves
        weights[i, i] = 1 / n_data
        weights[i, i - 1] = (n_data - (batch - 1)) / (n_data * (batch - 1))
    close(weights.sum(1), torch.ones(batch, dtype=mean.dtype), 1e-12)
    densities = torch.stack(
        [torch.stack([Normal(mean[j], deviation[j]).log_prob(latents[i]) for j in range(batch)]) for i in range(batch)]
    )
    own = Normal(mean, deviation).log_prob(latents).sum(1)
    prior = Normal(0.0, 1.0).log_prob(latents).sum(1)
    joint = (weights * densities.sum(2).exp()).sum(1).log()
    marginals = sum((weights * densities[:, :, j].exp()).sum(1).log() for j in range(k))
    reconstruction = reconstruction_nats(vae.decoder(latents), inputs)
    return reconstruction, own - joint, joint - marginals, marginals - prior


def loss_of(vae, inputs, seed=3, **keywords):
    return ml.beta_tcvae_loss(vae, inputs, generator=torch.Generator().manual_seed(seed), **keywords)


@pytest.mark.parametrize("beta", [1.0, 6.0])
@pytest.mark.parametrize("anneal", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_data", [5, 100])
def test_the_loss_is_the_sum_of_its_four_terms(beta, anneal, n_data):
    vae, inputs = vae_of(), images()
    reconstruction, information, correlation, dimension = parts(vae, inputs, n_data, 3)
    expected = (reconstruction + anneal * (information + beta * correlation + dimension)).mean()
    found = loss_of(vae, inputs, n_data=n_data, beta=beta, anneal=anneal)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)


def test_at_beta_one_the_loss_is_the_sampled_negative_elbo_whatever_the_size_of_the_data():
    vae, inputs = vae_of(), images()
    losses = [float(loss_of(vae, inputs, n_data=n, beta=1.0).detach()) for n in (5, 50, 60_000)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12) and losses[2] == pytest.approx(losses[0], rel=1e-12)


def test_without_the_other_terms_the_loss_is_the_reconstruction():
    vae, inputs = vae_of(), images()
    expected = parts(vae, inputs, 100, 3)[0].mean()
    assert float(loss_of(vae, inputs, n_data=100, anneal=0.0).detach()) == pytest.approx(
        float(expected.detach()), rel=1e-12
    )


def test_the_loss_depends_on_its_generator_only():
    vae, inputs = vae_of(), images()
    first, state = loss_of(vae, inputs, n_data=100), torch.random.get_rng_state()
    assert torch.equal(loss_of(vae, inputs, n_data=100), first)
    assert not torch.equal(loss_of(vae, inputs, n_data=100, seed=4), first)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_loss_has_finite_gradients_for_every_parameter(batch):
    vae = vae_of()
    loss = loss_of(vae, images(batch), n_data=100)
    assert loss.shape == () and math.isfinite(float(loss.detach()))
    loss.backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_the_autoencoder_of_photographs_takes_any_multiple_of_eight_and_is_smooth():
    vae = seeded(ml.PhotoAutoencoder(width=8, latent_channels=2), seed=3).double()
    inputs = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    latents = vae.encode(inputs)
    assert latents.shape == (2, 2, 3, 5) and vae(inputs).shape == inputs.shape
    assert torch.equal(vae(inputs), vae.decode(latents))
    assert torch.autograd.gradcheck(vae.decode, latents[:1, :, :2, :2].detach().requires_grad_())
    moved = vae.decode(latents + torch.nn.functional.pad(torch.ones(2, 2, 1, 1), (4, 0, 2, 0)))
    near = (moved - vae.decode(latents)).abs().amax((0, 1, 2))
    assert near[-8:].max() > 0 and near[0] == 0  # it is convolutional: what is far stays
