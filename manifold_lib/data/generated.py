"""The generative route of paper 1: data whose manifold, tangent spaces and labels are known by construction."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_count, check_generator
from ..core.derivatives import check_decoder, check_rows
from ..core.modules import check_mode
from ..core.progress import predict

_BLOCK = 512


class Samples(NamedTuple):
    """Generated images with their labels, their latents, and the share of draws that was accepted."""

    inputs: Tensor
    labels: Tensor
    latents: Tensor
    acceptance: float


def sample_generated(
    decoder: Callable[[Tensor], Tensor],
    labeller: Callable[[Tensor], Tensor],
    n_samples: int,
    *,
    latent_dim: int,
    generator: torch.Generator,
) -> Samples:
    """Decode prior draws and keep each with probability p_max², which rejects ambiguous images.

    Paper 1's sampler: z ~ N(0, I), x = dec(z), p = softmax(labeller(x)), accept with (max_c p_c)², label argmax p.
    ``decoder`` takes (B, latent_dim) to images (B, *shape), ``labeller`` images to logits (B, C). The result is on the
    CPU: inputs (n_samples, *shape), labels (n_samples,), latents (n_samples, latent_dim). Draws come from a CPU
    ``generator`` in blocks of fixed size: a seed gives the same data set on any device. Raises ``RuntimeError`` where
    the labeller accepts fewer than one draw in a hundred.

    >>> generator = torch.Generator().manual_seed(0)
    >>> sample_generated(torch.tanh, lambda x: 9 * x, 50, latent_dim=3, generator=generator).inputs.shape
    torch.Size([50, 3])
    """
    check_count(n_samples, "n_samples")
    check_generator(generator, "cpu")
    check_mode(labeller, "labeller")
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    count = drawn = 0
    while count < n_samples:
        latents = torch.randn(_BLOCK, latent_dim, generator=generator)
        images = predict(decoder, latents, name="decoder")
        if not kept:
            check_decoder(functools.partial(predict, decoder, name="decoder"), latents, needs="rows")
            check_rows(functools.partial(predict, labeller, name="labeller"), images, "labeller")
        confidence, labels = predict(labeller, images, name="labeller").softmax(1).max(1)
        accepted = torch.rand(_BLOCK, generator=generator) < confidence**2
        kept.append((images[accepted], labels[accepted], latents[accepted]))
        count += int(accepted.sum())
        drawn += _BLOCK
        if drawn >= 100 * _BLOCK and count < drawn // 100:
            raise RuntimeError(f"labeller: accepts {count} of {drawn} draws; it is not confident on any image")
    inputs, labels, latents = (torch.cat(part)[:n_samples] for part in zip(*kept, strict=True))
    return Samples(inputs, labels, latents, count / drawn)
