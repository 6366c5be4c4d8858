"""Gaussian blur of images, each by a width of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_batch

# a width at which the filter is the identity to the last digit
_SHARP = 1e-2


def gaussian_filter(inputs: Tensor, sigma: Tensor) -> Tensor:
    """Images after a Gaussian filter, mirrored at the border and not truncated; differentiable in both arguments.

    Parameters
    ----------
    inputs : Tensor
        (B, C, H, W).
    sigma : Tensor
        (B,), the width of each image's filter in pixels, at least 0, which leaves it as it is.

    Returns
    -------
    Tensor
        (B, C, H, W).
    """
    check_batch(inputs)
    if inputs.ndim != 4:
        raise ValueError(f"inputs: got shape {tuple(inputs.shape)}, wants images (B, C, H, W) to blur")
    rows, columns = (_filter(side, sigma)[:, None] for side in inputs.shape[2:])
    return rows @ inputs @ columns.mT


def _filter(side: int, sigma: Tensor) -> Tensor:
    """The filter along an axis, as matrices whose rows sum to 1: (B, side, side)."""
    places = torch.arange(side, device=sigma.device)
    weights = sigma.new_zeros(len(sigma), side, side)
    period = max(2 * (side - 1), 1)
    # a pixel is seen at its place and in the mirrors; a filter as wide as the image sees nothing beyond the third
    for image in (places, -places) if side > 1 else (places,):
        for shift in range(-3 * period, 3 * period + 1, period):
            away = (places[:, None] - image - shift).to(sigma)
            # the pixels at the border lie on the mirror and are seen in it but once
            once = 1 - 0.5 * ((places == 0) | (places == side - 1)).to(sigma) if side > 1 else 1.0
            weights = weights + once * torch.exp(-0.5 * (away / sigma.clamp_min(_SHARP).view(-1, 1, 1)) ** 2)
    return weights / weights.sum(2, keepdim=True)
