"""The numbers on the cards of the zoo's models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.datasets import Dataset
from ..data.generated import Samples
from ..evaluation.attacks import pgd
from ..models.vae import VAE, ConvVAE, kl_nats, reconstruction_nats
from . import training


def of_classifier(model: nn.Module, drawn: Samples, real: Dataset) -> dict[str, float]:
    """Accuracy on fresh generated images, on real ones, and under attack."""
    device = next(model.parameters()).device
    numbers = {"accuracy on 10,000 fresh samples": round(training.accuracy(model, drawn.inputs, drawn.labels), 4)}
    numbers["accuracy on real test images"] = round(training.accuracy(model, real.inputs, real.labels), 4)
    inputs, labels = drawn.inputs[:1000].to(device), drawn.labels[:1000].to(device)
    for eps in (0.5, 1.0, 2.0):
        start = torch.Generator().manual_seed(0)
        attacked = torch.cat(
            [
                pgd(model, inputs[i : i + 100], labels[i : i + 100], eps=eps, n_steps=20, generator=start)
                for i in range(0, len(inputs), 100)
            ]
        )
        numbers[f"accuracy under L2-PGD, ε = {eps}"] = round(training.accuracy(model, attacked, labels), 4)
    return numbers


def of_vae(vae: VAE | ConvVAE, inputs: Tensor) -> dict[str, float]:
    """Test reconstruction and KL in nats (one posterior draw an image), and how many latents are in use."""
    generator = torch.Generator().manual_seed(0)
    device = next(vae.parameters()).device
    reconstruction, error, kl = 0.0, 0.0, torch.zeros(())
    with torch.no_grad():
        for chunk in inputs.split(500):
            mean, log_variance = vae.posterior(chunk.to(device))
            noise = torch.randn(mean.shape, generator=generator).to(device)
            logits = vae.decoder(mean + noise * torch.exp(0.5 * log_variance))
            reconstruction += reconstruction_nats(logits, chunk.to(device)).sum().item()
            kl = kl + kl_nats(mean, log_variance).flatten(1).sum(0).cpu()
            error += (vae(chunk.to(device)) - chunk.to(device)).square().flatten(1).mean(1).sum().item()
    reconstruction, kl = reconstruction / len(inputs), kl / len(inputs)
    return {
        "test root mean squared error": round((error / len(inputs)) ** 0.5, 4),
        "test reconstruction, nats": round(reconstruction, 2),
        "test KL, nats": round(kl.sum().item(), 2),
        "test −ELBO, nats": round(reconstruction + kl.sum().item(), 2),
        "latents in use (KL ≥ 0.05)": int((kl >= 0.05).sum()),
    }
