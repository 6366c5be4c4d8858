"""Baselines (the papers also write base-points): the images that an attribution starts from.

All take ``(inputs, *, low, high, generator)`` with the valid range of ``inputs``, so that one can replace another,
and return (B, *shape). Give the range after normalisation: black is then not zero. The images of a batch share what
is drawn at random, so no attribution depends on its batch.
"""

import math

import torch
from torch import Tensor

from ..core.checks import check_batch, check_positive, check_range
from .gradients import drawn


def zero(inputs: Tensor, *, low: float = 0.0, high: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Zeros: black, for images in [0, 1] that are not normalised."""
    _check(inputs, low, high)
    return torch.zeros_like(inputs)


def constant(
    inputs: Tensor,
    *,
    value: float | None = None,
    low: float = 0.0,
    high: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One value everywhere; by default the middle of the range, grey."""
    _check(inputs, low, high)
    value = (low + high) / 2 if value is None else float(value)
    if not math.isfinite(value):
        raise ValueError(f"value: got {value}, wants a finite number")
    return torch.full_like(inputs, value)


def max_distance(
    inputs: Tensor, *, low: float = 0.0, high: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """The farthest image of the range, in any norm: ``low`` where the input is above the middle, else ``high``."""
    _check(inputs, low, high)
    return torch.where(inputs > (low + high) / 2, inputs.new_tensor(low), inputs.new_tensor(high))


def uniform(inputs: Tensor, *, low: float = 0.0, high: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Independent uniform noise over the range."""
    _check(inputs, low, high)
    return (low + (high - low) * drawn(torch.rand, inputs.shape[1:], inputs, generator)).expand_as(inputs)


def gaussian(
    inputs: Tensor,
    *,
    stdevs: float = 0.5,
    clip: bool = True,
    low: float = 0.0,
    high: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The input with Gaussian noise N(x, σ²), clipped to the range; paper 2 leaves its σ open.

    Parameters
    ----------
    stdevs : float
        σ in input units.
    clip : bool
        Whether to clip to [low, high].
    """
    _check(inputs, low, high)
    check_positive(stdevs, "stdevs", zero=True)
    noisy = inputs + stdevs * drawn(torch.randn, inputs.shape[1:], inputs, generator)
    return noisy.clamp(low, high) if clip else noisy


def blurred(
    inputs: Tensor,
    *,
    sigma: float = 3.0,
    low: float = 0.0,
    high: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The input after a Gaussian filter, for images (B, C, H, W); sigma in pixels."""
    _check(inputs, low, high)
    check_positive(sigma, "sigma")
    if inputs.ndim != 4:
        raise ValueError(f"inputs: got shape {tuple(inputs.shape)}, wants images (B, C, H, W) to blur")
    from torchvision.transforms.functional import gaussian_blur  # here, since it takes seconds to import

    # the filter mirrors at the border, which an image must be wide enough for
    radius = [min(math.ceil(3 * sigma), side - 1) for side in (inputs.shape[3], inputs.shape[2])]
    return gaussian_blur(inputs, [2 * r + 1 for r in radius], sigma)


def mean(inputs: Tensor, *, low: float = 0.0, high: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Each image's own mean, per channel for images (B, C, H, W) and volumes (B, C, D, H, W)."""
    _check(inputs, low, high)
    axes = tuple(range(2 if inputs.ndim >= 4 else 1, inputs.ndim))
    return inputs.mean(axes, keepdim=True).expand_as(inputs)


def _check(inputs: Tensor, low: float, high: float) -> None:
    check_batch(inputs)
    check_range((low, high), "low, high")
