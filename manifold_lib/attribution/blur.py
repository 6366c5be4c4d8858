"""Gaussian blur of images, each by a width of its own, and Blur IG: the path from the blurred image to the image."""

from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_batch, check_positive
from ..core.scorer import Model, Target
from ..paths.integral import integrate
from ..paths.path import Path


def gaussian_filter(inputs: Tensor, sigma: Tensor) -> Tensor:
    """Images (B, C, H, W) after Gaussian filters of ``sigma`` (B,) pixels each; 0 leaves an image as it is.

    The filter is mirrored at the border and not truncated. It is differentiable in both arguments.
    """
    check_batch(inputs)
    if inputs.ndim != 4:
        raise ValueError(f"inputs: got shape {tuple(inputs.shape)}, wants images (B, C, H, W) to blur")
    if sigma.shape != inputs.shape[:1] or not (torch.isfinite(sigma) & (sigma >= 0)).all():
        raise ValueError(f"sigma: got {sigma}, wants ({len(inputs)},) finite widths of at least 0")
    rows, columns = (_filter(side, sigma)[:, None] for side in inputs.shape[2:])
    return rows @ inputs @ columns.mT


def blur_path(inputs: Tensor, *, sigma: float = 10.0) -> Path:
    """From the image after a Gaussian filter of width ``sigma`` (pixels) to the image.

    The width falls to 0 as (1 − t)², so that the last steps, in which the details appear, are the smallest.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.blur_path(torch.rand(2, 1, 8, 8), sigma=2.0).sample(4).shape
    torch.Size([2, 5, 1, 8, 8])
    """
    check_batch(inputs)
    check_positive(sigma, "sigma")
    return Path(lambda rows, t: gaussian_filter(inputs[rows], sigma * (1 - t.to(inputs)).square()), end=inputs)


def blur_ig(model: Model, inputs: Tensor, target: Target = None, *, sigma: float = 10.0, **options: Any) -> Tensor:
    """Blur Integrated Gradients (Xu et al. 2020): the line integral along the scales of the image itself.

    The sum is f(x) − f(x blurred by ``sigma``). The method needs no baseline.

    Parameters
    ----------
    model, inputs, target
        As for :func:`manifold_lib.gradient`, for images (B, C, H, W).
    sigma : float
        Width of the widest filter, in pixels.
    **options
        Keywords of :func:`manifold_lib.integrate`: ``method``, ``n_steps``, ``tolerance``, ``internal_batch_size`` …

    Returns
    -------
    Tensor
        (B, *shape) in score units.

    Raises
    ------
    ValueError
        For inputs that are no images, and a width that is not above 0.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> image = torch.zeros(1, 1, 5, 5)
    >>> image[0, 0, 2, 2] = 1.0
    >>> ml.blur_ig(lambda x: x[:, 0, 2, 2:3], image, 0, sigma=20.0, tolerance=1e-3).sum().round(decimals=2)
    tensor(0.9400)
    """
    return integrate(model, blur_path(inputs, sigma=sigma), target, name="blur_ig", **options)


def _filter(side: int, sigma: Tensor) -> Tensor:
    """The filter along an axis, as matrices whose rows sum to 1: (B, side, side)."""
    places = torch.arange(side, device=sigma.device)
    weights = sigma.new_zeros(len(sigma), side, side)
    period = max(2 * (side - 1), 1)
    # both mirrors show the pixels at the border, which count once
    once = 1 - 0.5 * ((places == 0) | (places == side - 1)).to(sigma) if side > 1 else 1.0
    # a pixel is seen at its place and in the mirrors; a filter as wide as the image sees nothing beyond the third
    for image in (places, -places) if side > 1 else (places,):
        for shift in range(-3 * period, 3 * period + 1, period):
            away = (places[:, None] - image - shift).to(sigma)
            # a width of 0.01 pixels is the identity to the last digit
            weights = weights + once * torch.exp(-0.5 * (away / sigma.clamp_min(1e-2).view(-1, 1, 1)) ** 2)
    return weights / weights.sum(2, keepdim=True)
