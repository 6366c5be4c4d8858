"""Training: one resumable loop, the losses of the zoo, and the numbers measured on a trained model."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import files
from ..core.progress import predict, progress_bar
from ..data import Dataset, Samples
from ..evaluation.attacks import pgd
from ..models.vae import VAE, Autoencoder, ConvVAE, beta_tcvae_loss, elbo_loss, kl_nats, reconstruction_nats


class Moment(NamedTuple):
    """Where training stands: progress in [0, 1), the step's number, and the epoch's generator."""

    progress: float
    step: int
    generator: torch.Generator


Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch, Moment], Tensor]


def fit(
    model: nn.Module,
    loss: Loss,
    data: Batch | Callable[[int], Batch],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    bf16: bool = False,
    checkpoint: Path | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
    label: str = "",
    progress: bool = False,
) -> float:
    """Train in place with Adam (short warm-up, then a cosine to zero); return all seconds of training.

    ``loss(model, batch, moment)`` gives a scalar; ``data`` are tensors of equal length, or a function that makes those
    of an epoch; ``bf16`` runs the forward pass alone in bfloat16; ``on_step(step, model)`` is called before each step
    and once at the end. The ``checkpoint`` is written after each epoch, whose draws are seeded by (seed, epoch): a
    run that was killed and resumed ends with the same weights as one that was not.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    settings = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "bf16": bf16}
    first, seconds, steps = 0, 0.0, 0
    if checkpoint is not None and checkpoint.exists():
        state = files.load_checkpoint(checkpoint)
        if state["settings"] == settings:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first, seconds, steps = state["epoch"], state["seconds"], state["steps"]

    was_training = model.training
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in range(first, epochs):
            started = time.perf_counter()
            torch.manual_seed(seed * 1_000 + epoch)
            generator = torch.Generator().manual_seed(seed * 1_000 + epoch)
            tensors = data(epoch) if callable(data) else data
            batches = torch.randperm(len(tensors[0]), generator=generator).split(batch_size)
            for index, rows in enumerate(progress_bar(batches, show=progress, desc=f"{label} {epoch + 1}/{epochs}")):
                step = epoch * len(batches) + index
                moment = Moment(step / (epochs * len(batches)), step, generator)
                if on_step is not None:
                    on_step(step, model)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * _schedule(moment.progress)
                batch = tuple(tensor[rows].to(device) for tensor in tensors)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    value = loss(model, batch, moment)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
            steps += len(batches)
            seconds += time.perf_counter() - started
            if checkpoint is not None:
                states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                reached = {"settings": settings, "epoch": epoch + 1, "steps": steps, "seconds": seconds}
                files.save_checkpoint(checkpoint, states | reached)
    if on_step is not None:
        on_step(steps, model)
    model.train(was_training)
    return seconds


def _schedule(progress: float, warm_up: float = 0.03) -> float:
    """Share of the learning rate: linear warm-up, then half a cosine."""
    if progress < warm_up:
        return (progress + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def classification_loss(model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
    """Cross-entropy of (inputs, labels)."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs).float(), labels)


def multilabel_loss(model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
    """Binary cross-entropy of each class by itself, labels (B, classes) of 0 and 1."""
    inputs, labels = batch
    return F.binary_cross_entropy_with_logits(model(inputs).float(), labels)


def adversarial_loss(eps: tuple[float, ...], *, n_steps: int = 10, norm_scope: str = "sample") -> Loss:
    """Cross-entropy on L2-PGD examples (Madry et al. 2018), as in paper 1, Fig. 4.

    ``eps`` is drawn anew: one radius per image, or per batch with ``norm_scope="batch"``, as in the published code.
    Radii grow over the first tenth of training. The attack sees the network in eval mode (the code leaves dropout on).
    """
    choices = torch.tensor(eps)

    def loss(model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        inputs, labels = batch
        draws = len(inputs) if norm_scope == "sample" else 1
        radius = choices[torch.randint(len(choices), (draws,), generator=moment.generator)]
        radius = radius.to(inputs) * min(1.0, 0.2 + 8 * moment.progress)
        size = radius if norm_scope == "sample" else float(radius)
        model.eval()
        attacked = pgd(
            *(model, inputs, labels), eps=size, n_steps=n_steps, norm_scope=norm_scope, generator=moment.generator
        )
        model.train()
        return F.cross_entropy(model(attacked).float(), labels)

    return loss


def vae_loss(n_data: int, *, beta: float = 6.0, warm_up: float = 0.12) -> Loss:
    """β-TCVAE loss with its regularisers warmed up over the first share of training."""

    def loss(model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        assert isinstance(model, VAE)
        anneal = min(1.0, moment.progress / warm_up)
        # latent noise comes from torch's default generator, which the loop seeds for each epoch
        return beta_tcvae_loss(model, batch[0], n_data=n_data, beta=beta, anneal=anneal)

    return loss


def vae_elbo_loss(beta: float, warm_up: float = 0.1) -> Loss:
    """ELBO of a VAE, its KL warmed up over the first share of training."""

    def loss(model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        assert isinstance(model, VAE | ConvVAE)
        return elbo_loss(model, batch[0], beta=beta * min(1.0, moment.progress / warm_up))

    return loss


def reconstruction_loss(model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
    """Mean absolute error of an autoencoder, the L1 loss of paper 1."""
    assert isinstance(model, Autoencoder)
    return F.l1_loss(model(batch[0]).float(), batch[0])


def squared_loss(model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
    """Mean squared error of an autoencoder."""
    return F.mse_loss(model(batch[0]).float(), batch[0])


def decibels(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each reconstruction, images in [0, 1]: (N,)."""
    error = (predict(model, inputs).clamp(0, 1) - inputs.cpu()).flatten(1).square().mean(1)
    return -10 * error.log10()


def accuracy(model: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor) -> float:
    """Share of correctly classified inputs."""
    return (predict(model, inputs).argmax(1) == labels.cpu()).float().mean().item()


def measure_classifier(model: nn.Module, drawn: Samples, real: Dataset) -> dict[str, float]:
    """Accuracy on fresh generated images, on real ones, and under attack."""
    device = next(model.parameters()).device
    numbers = {"accuracy on 10,000 fresh samples": round(accuracy(model, drawn.inputs, drawn.labels), 4)}
    numbers["accuracy on real test images"] = round(accuracy(model, real.inputs, real.labels), 4)
    inputs, labels = drawn.inputs[:1000].to(device), drawn.labels[:1000].to(device)
    for eps in (0.5, 1.0, 2.0):
        start = torch.Generator().manual_seed(0)
        parts = zip(inputs.split(100), labels.split(100), strict=True)
        attacked = torch.cat([pgd(model, *part, eps=eps, n_steps=20, generator=start) for part in parts])
        numbers[f"accuracy under L2-PGD, ε = {eps}"] = round(accuracy(model, attacked, labels), 4)
    return numbers


def measure_vae(vae: VAE | ConvVAE, inputs: Tensor) -> dict[str, float]:
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
