"""Generators: the β-TCVAE of paper 1, a convolutional VAE with a map of latents, an autoencoder, and their losses."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _he(module: nn.Module) -> None:
    """He initialisation. torch's default stalls this VAE: after five epochs 133 nats instead of 93."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


class _Variational(nn.Module):
    """What the variational autoencoders share: a normal posterior, and images of Bernoulli pixels."""

    encoder: nn.Module
    decoder: nn.Module

    def posterior(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), each (B, *latent)."""
        mean, log_variance = self.encoder(inputs).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, inputs: Tensor) -> Tensor:
        """Posterior mean, (B, *shape) -> (B, *latent)."""
        return self.posterior(inputs)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], (B, *latent) -> (B, *shape)."""
        return torch.sigmoid(self.decoder(latents))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decode(self.encode(inputs))


class VAE(_Variational):
    """Variational autoencoder for (B, channels, 32, 32) images in [0, 1], architecture of Burgess et al. (2018).

    Parameters
    ----------
    latent_dim : int
        Size k of the latent space, whose prior is N(0, I).
    width : int
        Channels of the three strided convolutions (32 in the paper).
    hidden : int
        Width of the two fully connected layers (256 in the paper).
    """

    def __init__(self, latent_dim: int = 10, width: int = 32, hidden: int = 256, channels: int = 1) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        flat = width * 4 * 4
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU()),
            *(nn.Conv2d(width, width, 4, 2, 1), nn.ReLU()),
            *(nn.Conv2d(width, width, 4, 2, 1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            nn.Linear(hidden, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            *(nn.Linear(hidden, flat), nn.ReLU(), nn.Unflatten(1, (width, 4, 4))),
            *(nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU()),
            *(nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU()),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )
        self.apply(_he)


def _drawn(vae: VAE | ConvVAE, inputs: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Latents from the posterior by z = μ + σ ε, with μ and the logarithm of σ²."""
    mean, log_variance = vae.posterior(inputs)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + noise * torch.exp(0.5 * log_variance), mean, log_variance


def _normal_log_density(values: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + log_variance + (values - mean) ** 2 * torch.exp(-log_variance))


def reconstruction_nats(logits: Tensor, inputs: Tensor) -> Tensor:
    """Bernoulli reconstruction term in nats, summed over pixels: (B, *shape) twice -> (B,)."""
    return F.binary_cross_entropy_with_logits(logits, inputs, reduction="none").flatten(1).sum(1)


def kl_nats(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(z | x) ‖ N(0, I)) in nats per latent: (B, *latent) -> (B, *latent)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


def beta_tcvae_loss(
    vae: VAE,
    inputs: Tensor,
    *,
    n_data: int,
    beta: float = 6.0,
    anneal: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """β-TCVAE loss (Chen et al. 2018, eq. 4 with α = γ = 1), by minibatch stratified sampling.

    ``reconstruction + anneal · (I(z; x) + β · TC(z) + Σ_j KL(q(z_j) ‖ p(z_j)))`` in nats per image.

    Parameters
    ----------
    inputs : Tensor
        (B, channels, 32, 32) in [0, 1].
    n_data : int
        Size of the training set, for the stratified weights.
    beta : float
        Weight of the total correlation; 6 in the paper.
    anneal : float
        In [0, 1], weight of all three terms while training warms up. (The authors' code anneals
        the dimension-wise KL alone.)

    Returns
    -------
    Tensor
        Scalar mean over the batch.
    """
    latents, mean, log_variance = _drawn(vae, inputs, generator)
    reconstruction = reconstruction_nats(vae.decoder(latents), inputs)

    log_q_zx = _normal_log_density(latents, mean, log_variance).sum(1)
    log_p_z = _normal_log_density(latents, torch.zeros_like(mean), torch.zeros_like(mean)).sum(1)
    # log q(z_i) over the batch's own posteriors: entry (i, j, k) is log q(z_ik | x_j)
    pairwise = _normal_log_density(latents[:, None], mean[None], log_variance[None])
    weights = _stratified_log_weights(len(inputs), n_data).to(pairwise)
    log_q_z = torch.logsumexp(weights + pairwise.sum(2), 1)
    log_prod_q_z = torch.logsumexp(weights[:, :, None] + pairwise, 1).sum(1)

    mutual_information = log_q_zx - log_q_z
    total_correlation = log_q_z - log_prod_q_z
    dimension_kl = log_prod_q_z - log_p_z
    return (reconstruction + anneal * (mutual_information + beta * total_correlation + dimension_kl)).mean()


def _stratified_log_weights(batch: int, n_data: int) -> Tensor:
    """log of the importance weights of Chen et al. (2018), appendix C.2: (batch, batch)."""
    others = max(batch - 1, 1)
    stratum = (n_data - others) / (n_data * others)
    weights = torch.full((batch, batch), 1 / others)
    weights.fill_diagonal_(1 / n_data)
    if batch > 1:
        weights[torch.arange(batch), torch.arange(batch) - 1] = stratum
    return weights.log()


class ConvVAE(_Variational):
    """Variational autoencoder whose latent is a small map, for images (B, channels, s, s) in [0, 1].

    After the VAE of paper 3 (residual, convolutional, latent 64×12×12 there), a hundredth of its size. SiLU throughout:
    a decoder without kinks has geodesics without kinks.

    Parameters
    ----------
    channels : int
        Channels of the images.
    widths : tuple of int
        Channels after each halving of the image; s must be a multiple of 2 to the power of their number.
    latent_channels : int
        The latent is (latent_channels, s / 2ⁿ, s / 2ⁿ) for n widths.
    """

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (32, 64, 64), latent_channels: int = 8) -> None:
        super().__init__()
        sides = (channels, *widths)
        downs = [nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.SiLU()) for a, b in itertools.pairwise(sides)]
        ups = [nn.Sequential(nn.SiLU(), nn.ConvTranspose2d(b, a, 4, 2, 1)) for a, b in itertools.pairwise(sides)]
        self.encoder = nn.Sequential(
            *downs, ResidualBlock(widths[-1], nn.SiLU), nn.SiLU(), nn.Conv2d(widths[-1], 2 * latent_channels, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, widths[-1], 3, padding=1), ResidualBlock(widths[-1], nn.SiLU), *reversed(ups)
        )
        self.apply(_he)


def elbo_loss(
    vae: VAE | ConvVAE, inputs: Tensor, *, beta: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Reconstruction + β · KL in nats per image, the mean over the batch: a scalar (Kingma & Welling 2014)."""
    latents, mean, log_variance = _drawn(vae, inputs, generator)
    kl = kl_nats(mean, log_variance).flatten(1).sum(1)
    return (reconstruction_nats(vae.decoder(latents), inputs) + beta * kl).mean()


class Autoencoder(nn.Module):
    """Convolutional autoencoder of stride 8 without a quantiser (van den Oord-style blocks), linear output.

    The reconstructive route of paper 1: no KL, no sampling, trained with an L1 loss. The latent of
    an image (B, channels, s, s) has shape (B, latent_channels, s/8, s/8).
    """

    def __init__(self, channels: int = 3, width: int = 32, latent_channels: int = 9, n_blocks: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU()),
            *(nn.Conv2d(width, width, 4, 2, 1), nn.ReLU()),
            *(nn.Conv2d(width, width, 4, 2, 1), nn.ReLU()),
            nn.Conv2d(width, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(n_blocks)),
            nn.Conv2d(width, latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, width, 3, padding=1),
            *(ResidualBlock(width) for _ in range(n_blocks)),
            *(nn.ReLU(), nn.ConvTranspose2d(width, width, 4, 2, 1)),
            *(nn.ReLU(), nn.ConvTranspose2d(width, width, 4, 2, 1)),
            *(nn.ReLU(), nn.ConvTranspose2d(width, channels, 4, 2, 1)),
        )

    def encode(self, inputs: Tensor) -> Tensor:
        """(B, channels, s, s) -> (B, latent_channels, s/8, s/8)."""
        return self.encoder(inputs)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, s/8, s/8) -> (B, channels, s, s); linear output, not clamped."""
        return self.decoder(latents)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decode(self.encode(inputs))


class ResidualBlock(nn.Module):
    """x + Conv1×1(φ(Conv3×3(φ(x)))), φ = ReLU unless told."""

    def __init__(self, width: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.body = nn.Sequential(
            activation(), nn.Conv2d(width, 32, 3, padding=1), activation(), nn.Conv2d(32, width, 1)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.body(inputs)
