"""Generators: the β-TCVAE of paper 1, a convolutional VAE with a map of latents, an autoencoder, and their losses."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Variational(nn.Module):
    """A normal posterior, and images of Bernoulli pixels."""

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

    def sample(self, inputs: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Latents drawn from the posterior, with its mean and log-variance, each (B, *latent)."""
        mean, log_variance = self.posterior(inputs)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + noise * torch.exp(0.5 * log_variance), mean, log_variance


def _he(module: nn.Module) -> None:
    """He initialisation. With torch's default the VAE of paper 1 learns slowly: 133 nats after five epochs, not 93."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _down(*widths: int) -> list[nn.Module]:
    """Convolutions that halve the image, each with a ReLU behind it."""
    return [layer for a, b in itertools.pairwise(widths) for layer in (nn.Conv2d(a, b, 4, 2, 1), nn.ReLU())]


def _up(*widths: int) -> list[nn.Module]:
    """Transposed convolutions that double the image, each with a ReLU before it."""
    return [layer for a, b in itertools.pairwise(widths) for layer in (nn.ReLU(), nn.ConvTranspose2d(a, b, 4, 2, 1))]


class VAE(_Variational):
    """Variational autoencoder for images (B, channels, 32, 32) in [0, 1], architecture of Burgess et al. (2018).

    The prior is N(0, I); ``width`` counts the channels of the convolutions, ``hidden`` the units of the dense layers.

    >>> VAE(latent_dim=10).encode(torch.rand(2, 1, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, latent_dim: int = 10, width: int = 32, hidden: int = 256, channels: int = 1) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = nn.Sequential(
            *(*_down(channels, width, width, width), nn.Flatten(), nn.Linear(16 * width, hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent_dim)),
        )
        self.decoder = nn.Sequential(
            *(nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()),
            *(nn.Linear(hidden, 16 * width), nn.Unflatten(1, (width, 4, 4)), *_up(width, width, width, channels)),
        )
        self.apply(_he)


class ConvVAE(_Variational):
    """Variational autoencoder whose latent is a small map, for images (B, channels, s, s) in [0, 1].

    After the VAE of paper 3 (residual, convolutional, latent 64×12×12 there), a hundredth of its size. SiLU makes the
    decoder smooth, and so its geodesics. ``widths`` are the channels after each halving of the image; n of them give
    latents (latent_channels, s / 2ⁿ, s / 2ⁿ).

    >>> ConvVAE(1, (8, 16, 16), latent_channels=2).encode(torch.rand(3, 1, 32, 32)).shape
    torch.Size([3, 2, 4, 4])
    """

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (32, 64, 64), latent_channels: int = 8) -> None:
        super().__init__()
        sides, last = list(itertools.pairwise((channels, *widths))), widths[-1]
        downs = [nn.Sequential(nn.Conv2d(a, b, 4, 2, 1), nn.SiLU()) for a, b in sides]
        ups = [nn.Sequential(nn.SiLU(), nn.ConvTranspose2d(b, a, 4, 2, 1)) for a, b in sides]
        narrow, wide = nn.Conv2d(last, 2 * latent_channels, 1), nn.Conv2d(latent_channels, last, 3, padding=1)
        self.encoder = nn.Sequential(*downs, _Residual(last, nn.SiLU), nn.SiLU(), narrow)
        self.decoder = nn.Sequential(wide, _Residual(last, nn.SiLU), *reversed(ups))
        self.apply(_he)


class Autoencoder(nn.Module):
    """Convolutional autoencoder of stride 8 without a quantiser (van den Oord-style blocks), linear output.

    The reconstructive route of paper 1: no KL, no sampling, trained with an L1 loss.

    >>> Autoencoder(3, width=8, latent_channels=9).encode(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 9, 4, 4])
    """

    def __init__(self, channels: int = 3, width: int = 32, latent_channels: int = 9, n_blocks: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(*_down(channels, width, width, width), nn.Conv2d(width, width, 3, padding=1)),
            *(*(_Residual(width) for _ in range(n_blocks)), nn.Conv2d(width, latent_channels, 1)),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv2d(latent_channels, width, 3, padding=1), *(_Residual(width) for _ in range(n_blocks))),
            *_up(width, width, width, channels),
        )

    def encode(self, inputs: Tensor) -> Tensor:
        """Latents, (B, channels, s, s) -> (B, latent_channels, s/8, s/8)."""
        return self.encoder(inputs)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, not clamped, (B, latent_channels, s/8, s/8) -> (B, channels, s, s)."""
        return self.decoder(latents)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decode(self.encode(inputs))


class PhotoAutoencoder(nn.Module):
    """Convolutional autoencoder of stride 8 for photographs (B, 3, H, W) in [0, 1], H and W multiples of 8.

    Encoder and decoder are each the sum of a linear map of patches of 8 × 8 pixels, which alone would find principal
    components, and of a network. SiLU makes the decoder smooth, and so its geodesics.

    >>> PhotoAutoencoder().encode(torch.rand(1, 3, 32, 48)).shape
    torch.Size([1, 32, 4, 6])
    """

    def __init__(self, width: int = 64, latent_channels: int = 32) -> None:
        super().__init__()
        half, blocks = width // 2, [nn.Sequential(_Residual(width, nn.SiLU), nn.SiLU()) for _ in range(4)]
        self.components = nn.Sequential(nn.PixelUnshuffle(8), nn.Conv2d(192, latent_channels, 1))
        self.encoder = nn.Sequential(
            *(nn.PixelUnshuffle(2), nn.Conv2d(12, half, 3, padding=1), nn.SiLU(), nn.Conv2d(half, width, 4, 2, 1)),
            *(blocks[0], nn.Conv2d(width, width, 4, 2, 1), blocks[1], nn.Conv2d(width, latent_channels, 1)),
        )
        self.patches = nn.Sequential(nn.Conv2d(latent_channels, 192, 1), nn.PixelShuffle(8))
        self.decoder = nn.Sequential(
            *(nn.Conv2d(latent_channels, width, 3, padding=1), blocks[2], nn.ConvTranspose2d(width, width, 4, 2, 1)),
            *(blocks[3], nn.ConvTranspose2d(width, half, 4, 2, 1), nn.SiLU()),
            *(nn.Conv2d(half, 12, 3, padding=1), nn.PixelShuffle(2)),
        )

    def encode(self, inputs: Tensor) -> Tensor:
        """Latents, (B, 3, H, W) -> (B, latent_channels, H/8, W/8)."""
        return self.components(inputs) + self.encoder(inputs)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, nearly in [0, 1] since not clamped, (B, latent_channels, h, w) -> (B, 3, 8 h, 8 w)."""
        return self.patches(latents) + self.decoder(latents)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decode(self.encode(inputs))


class _Residual(nn.Module):
    """x + Conv1×1(φ(Conv3×3(φ(x))))."""

    def __init__(self, width: int, activation: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        first, second = nn.Conv2d(width, 32, 3, padding=1), nn.Conv2d(32, width, 1)
        self.body = nn.Sequential(activation(), first, activation(), second)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.body(inputs)


def reconstruction_nats(logits: Tensor, inputs: Tensor) -> Tensor:
    """Bernoulli reconstruction term in nats, summed over pixels: (B, *shape) twice -> (B,)."""
    return F.binary_cross_entropy_with_logits(logits, inputs, reduction="none").flatten(1).sum(1)


def kl_nats(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q(z | x) ‖ N(0, I)) in nats per latent: (B, *latent) -> (B, *latent)."""
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


def elbo_loss(
    vae: VAE | ConvVAE, inputs: Tensor, *, beta: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Reconstruction + β · KL in nats per image (Kingma & Welling 2014), the mean over a batch (B, *shape): a scalar.

    >>> elbo_loss(ConvVAE(widths=(8, 8)), torch.rand(4, 1, 32, 32)).ndim
    0
    """
    latents, mean, log_variance = vae.sample(inputs, generator)
    kl = kl_nats(mean, log_variance).flatten(1).sum(1)
    return (reconstruction_nats(vae.decoder(latents), inputs) + beta * kl).mean()


def beta_tcvae_loss(
    vae: VAE,
    inputs: Tensor,
    *,
    n_data: int,
    beta: float = 6.0,
    anneal: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """β-TCVAE loss (Chen et al. 2018, eq. 4 with α = γ = 1), by minibatch stratified sampling: a scalar.

    ``reconstruction + anneal · (I(z; x) + β · TC(z) + Σ_j KL(q(z_j) ‖ p(z_j)))`` in nats, the mean over images
    (B, channels, 32, 32). ``n_data`` is the size of the training set; ``anneal`` in [0, 1] weighs all three terms
    while training warms up. (The authors' code anneals the dimension-wise KL alone.)

    >>> beta_tcvae_loss(VAE(4), torch.rand(8, 1, 32, 32), n_data=60_000).ndim
    0
    """
    latents, mean, log_variance = vae.sample(inputs, generator)
    reconstruction = reconstruction_nats(vae.decoder(latents), inputs)
    log_q_zx = _normal_log_density(latents, mean, log_variance).sum(1)
    log_p_z = _normal_log_density(latents, torch.zeros_like(mean), torch.zeros_like(mean)).sum(1)
    # log q(z_i) over the batch's own posteriors: entry (i, j, k) is log q(z_ik | x_j)
    pairwise = _normal_log_density(latents[:, None], mean[None], log_variance[None])
    weights = _stratified_log_weights(len(inputs), n_data).to(pairwise)
    log_q_z = torch.logsumexp(weights + pairwise.sum(2), 1)
    log_prod_q_z = torch.logsumexp(weights[:, :, None] + pairwise, 1).sum(1)
    regulariser = (log_q_zx - log_q_z) + beta * (log_q_z - log_prod_q_z) + (log_prod_q_z - log_p_z)
    return (reconstruction + anneal * regulariser).mean()


def _normal_log_density(values: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + log_variance + (values - mean) ** 2 * torch.exp(-log_variance))


def _stratified_log_weights(batch: int, n_data: int) -> Tensor:
    """log of the importance weights of Chen et al. (2018), appendix C.2: (batch, batch)."""
    others = max(batch - 1, 1)
    weights = torch.full((batch, batch), 1 / others).fill_diagonal_(1 / n_data)
    if batch > 1:
        weights[torch.arange(batch), torch.arange(batch) - 1] = (n_data - others) / (n_data * others)
    return weights.log()
