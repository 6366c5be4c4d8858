"""How much of an attribution lies where the evidence is known to be (Arras et al. 2022), per image."""

import torch
from torch import Tensor

from ..core.checks import warn_non_finite
from .roar import ranks_of
from .similarity import check_maps, relevance


def relevance_mass(maps: Tensor, mask: Tensor) -> Tensor:
    """Share of the relevance that lies within a mask, relevance mass accuracy: (B,) in [0, 1].

    Relevance that is spread evenly gives the mask's share of the pixels; a map of zeros NaN, with one warning.

    Parameters
    ----------
    maps, mask : Tensor
        (B, C, *places), in any unit; and (B, 1, *places) bool, of at least one pixel, which holds all of the evidence.

    Raises
    ------
    ValueError
        For maps that are no batch of images, and a mask of another shape or type, or without a pixel.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.relevance_mass(torch.tensor([[[[-3.0, 1.0]]]]), torch.tensor([[[[True, False]]]]))
    tensor([0.7500])
    """
    strength, inside = _strength(maps, mask, "relevance_mass")
    return torch.where(inside, strength, 0 * strength).sum(1)


def relevance_rank(maps: Tensor, mask: Tensor) -> Tensor:
    """Share of the K most relevant pixels that lie within a mask of K pixels, relevance rank accuracy: (B,) in [0, 1].

    Arguments and exceptions are those of :func:`relevance_mass`. Of tied pixels the first count.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.relevance_rank(torch.tensor([[[[-3.0, 1.0, 2.0]]]]), torch.tensor([[[[True, True, False]]]]))
    tensor([0.5000])
    """
    strength, inside = _strength(maps, mask, "relevance_rank")
    counted = ranks_of(strength) < inside.sum(1, keepdim=True)
    found = (inside & counted).sum(1).to(strength) / inside.sum(1)
    return found.where(torch.isfinite(strength).all(1), torch.nan)


def _strength(maps: Tensor, mask: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """n(A) of each map and its mask, flat: (B, pixels) each."""
    check_maps(maps, min_dim=4)
    wants = (len(maps), 1, *maps.shape[2:])
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != wants:
        got = (tuple(mask.shape), mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask: got {got}, wants {wants} of bool")
    if not mask.flatten(1).any(1).all():
        raise ValueError("mask: got an empty one, wants at least one pixel of each image")
    strength = relevance(maps.detach().to(torch.promote_types(maps.dtype, torch.float32))).flatten(1)
    warn_non_finite(strength, name)
    return strength, mask.flatten(1)
