"""A differentiable renderer of two shapes, whose tangent spaces are exact and whose evidence is known.

The shape in one half decides the class. The other half holds a ring of the same ink that says nothing
about the class, so an attribution that lands there is wrong by construction.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_generator
from ..core.scorer import check_target

CLASSES = ("disc", "square", "triangle", "cross")
LATENT_DIM = 8  # x, y, size, angle of the class shape, then of the distractor
_INK = 32.0  # summed intensity of each half of a 32×32 image
_SOFTNESS = 0.6  # width of an edge, in pixels of a 32×32 image


class ShapeSamples(NamedTuple):
    """Images (n, 1, s, s), classes (n,), latents (n, 8) and the half that holds the evidence (n, 1, s, s)."""

    inputs: Tensor
    labels: Tensor
    latents: Tensor
    mask: Tensor


def render_shapes(latents: Tensor, labels: Tensor | int, *, size: int = 32) -> Tensor:
    """Draw a class shape in the left half and a ring in the right half, both with the same ink.

    ``latents`` (B, 8) are x, y, size and angle of the class shape, then of the ring. Standard-normal values give
    readable images: all pass through a tanh, and no shape leaves its half. ``labels`` (B,) are 0 to 3: disc, square,
    triangle, cross. Images (B, 1, size, size) of an even ``size`` are in [0, 1] and differentiable in the latents.

    >>> render_shapes(torch.zeros(2, 8), 0).shape
    torch.Size([2, 1, 32, 32])
    """
    check_batch(latents, "latents")
    if latents.ndim != 2 or latents.shape[1] != LATENT_DIM:
        raise ValueError(f"latents: got shape {tuple(latents.shape)}, wants (B, {LATENT_DIM})")
    if check_count(size, "size", least=8) % 2:
        raise ValueError(f"size: got {size}, wants an even number")
    labels = check_target(labels, len(latents), len(CLASSES), latents.device, "labels")
    return torch.cat([_half(latents[:, :4], labels, size), _half(latents[:, 4:], None, size)], 2)[:, None]


def shape_decoder(labels: Tensor | int, *, size: int = 32) -> Callable[[Tensor], Tensor]:
    """The decoder (B, 8) -> (B, 1, size, size) of images with these labels, for the tangent functions.

    With a tensor of labels it decodes batches of just that length, B: the tangent functions then need an
    ``internal_batch_size`` of at least 8 · B.

    >>> shape_decoder(3)(torch.zeros(2, 8)).shape
    torch.Size([2, 1, 32, 32])
    """
    return functools.partial(render_shapes, labels=labels, size=size)


def sample_shapes(n_samples: int, *, generator: torch.Generator, size: int = 32) -> ShapeSamples:
    """Images with classes and standard-normal latents drawn at random.

    >>> sample_shapes(5, generator=torch.Generator().manual_seed(0)).inputs.shape
    torch.Size([5, 1, 32, 32])
    """
    check_count(n_samples, "n_samples")
    check_generator(generator, "cpu")
    labels = torch.randint(len(CLASSES), (n_samples,), generator=generator)
    latents = torch.randn(n_samples, LATENT_DIM, generator=generator)
    mask = torch.zeros(n_samples, 1, size, size, dtype=torch.bool)
    mask[..., : size // 2] = True
    return ShapeSamples(render_shapes(latents, labels, size=size), labels, latents, mask)


def _half(latents: Tensor, labels: Tensor | None, size: int) -> Tensor:
    """One shape in a half image (B, size, size / 2); labels None draws the ring."""
    unit = size / 32
    x, y, r, angle = torch.tanh(latents)[..., None, None].unbind(1)
    rows = torch.arange(size, device=latents.device, dtype=latents.dtype)[:, None] + 0.5 - (16 + 8 * y) * unit
    columns = torch.arange(size // 2, device=latents.device, dtype=latents.dtype) + 0.5 - (8 + 1.2 * x) * unit
    r, cosine, sine = (4.5 + 0.7 * r) * unit, (math.pi / 5 * angle).cos(), (math.pi / 5 * angle).sin()
    u, v = cosine * columns + sine * rows, cosine * rows - sine * columns
    if labels is None:
        # an ellipse, so that the ring's angle moves it and its tangent space has full rank
        distance = (_length(u * 1.15, v / 1.15, unit) - 0.85 * r).abs() - 0.24 * r
    else:
        distance = _distances(u, v, r, unit)[torch.arange(len(labels), device=labels.device), labels]
    coverage = torch.sigmoid(-distance / (_SOFTNESS * unit))
    return coverage * (_INK * unit**2 / coverage.sum((1, 2), keepdim=True))


def _length(u: Tensor, v: Tensor, unit: float) -> Tensor:
    return torch.sqrt(u**2 + v**2 + 1e-3 * unit**2)


def _distances(u: Tensor, v: Tensor, r: Tensor, unit: float) -> Tensor:
    """Signed distances (pixels, negative inside) to an ellipse, a square, a triangle and a cross: (B, 4, s, s / 2)."""
    disc = _length(u * 1.1, v / 1.1, unit) - r
    square = torch.maximum(u.abs(), v.abs()) - 0.92 * r
    half, height = math.sqrt(3) / 2, 0.62
    triangle = torch.maximum(v - height * r, half * u.abs() - v / 2 - height * r)
    upright = torch.maximum(u.abs() - 0.45 * r, v.abs() - 1.2 * r)
    level = torch.maximum(u.abs() - 1.2 * r, v.abs() - 0.45 * r)
    return torch.stack([disc, square, triangle, torch.minimum(upright, level)], 1)
