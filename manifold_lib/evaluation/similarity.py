"""What is measured on attribution maps, per image: how rough one is, and how alike two are.

Two maps are compared by their relevance n(A): absolute values, summed over channels, scaled to sum 1, as attacks on
attributions see them (Dombrowski et al. 2019). A map of zeros has none, and NaN is what is measured on it.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_batch, check_map, check_share, floor_of, warn_non_finite

_WINDOW = 11  # of SSIM: Gaussian, σ = 1.5 (Wang et al. 2004)
_SHOWN = 0.99  # the quantile of a map that SSIM takes for white


def total_variation(maps: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of each map scaled to unit L2 norm: (B, C, H, W) -> (B,).

    NaN, with one warning, for a map that is zero everywhere.

    A proxy for "looks structured": low for smooth maps, high for noise.
    """
    check_batch(maps, "maps", min_dim=4)
    maps = maps / torch.linalg.vector_norm(maps, dim=(1, 2, 3), keepdim=True)
    warn_non_finite(maps, "total_variation")
    vertical = (maps[..., 1:, :] - maps[..., :-1, :]).abs().flatten(1).sum(1)
    horizontal = (maps[..., 1:] - maps[..., :-1]).abs().flatten(1).sum(1)
    return (vertical + horizontal) / maps[0].numel()


def relevance(maps: Tensor) -> Tensor:
    """n(A) = Σ_channels |A| / Σ |A|, differentiable: (B, C, H, W) -> (B, H, W), other shapes stay (B, *shape)."""
    strength = maps.abs().sum(1) if maps.ndim == 4 else maps.abs()
    return strength / strength.flatten(1).sum(1).view(-1, *(1,) * (strength.ndim - 1))


def pearson(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson correlation of the relevance of two maps: (B, *shape) twice -> (B,) in [−1, 1]."""
    return _correlation(*_relevances(maps, others, "pearson"), "pearson")


def spearman(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's rank correlation of relevance, ties at their mean rank: (B, *shape) twice -> (B,) in [−1, 1]."""
    from scipy.stats import rankdata  # here, since it takes seconds to import

    pair = _relevances(maps, others, "spearman")
    ranks = (torch.from_numpy(rankdata(part.cpu().numpy(), axis=1, nan_policy="propagate")) for part in pair)
    first, second = (rank.to(part) for rank, part in zip(ranks, pair, strict=True))
    return _correlation(first, second, "spearman")


def map_mse(maps: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference of relevance: (B, *shape) twice -> (B,); entries are of the order 1 / their number."""
    a, b = _relevances(maps, others, "map_mse")
    return (a - b).square().mean(1)


def top_k(maps: Tensor, others: Tensor, *, share: float = 0.1) -> Tensor:
    """Share of the ``share`` · N most relevant pixels of one map that are so in the other: (B, *shape) twice -> (B,).

    Of tied pixels the first count.
    """
    check_share(share, "share")
    a, b = _relevances(maps, others, "top_k")
    k = max(1, floor_of(share * a.shape[1]))
    first, second = (
        torch.zeros_like(part).scatter_(1, part.argsort(dim=1, descending=True, stable=True)[:, :k], 1.0)
        for part in (a, b)
    )
    return ((first * second).sum(1) / k).where(torch.isfinite(a + b).all(1), torch.nan)


def ssim(maps: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of relevance as a figure shows it: (B, C, H, W) twice -> (B,) in [−1, 1].

    scikit-image's, with the Gaussian window of 11×11 of Wang et al. (2004). Each map is scaled first, its 99th
    percentile to 1: relevance sums to 1, and with the range of unscaled images any two maps would be alike.
    """
    _check_maps(maps, min_dim=4)
    if min(maps.shape[2:]) < _WINDOW:
        raise ValueError(f"maps: got shape {tuple(maps.shape)}, wants images of at least {_WINDOW}×{_WINDOW}")
    pair = [
        _shown(part).unflatten(1, maps.shape[2:]).double().cpu().numpy() for part in _relevances(maps, others, "ssim")
    ]
    found = np.array([_ssim(a, b) for a, b in zip(*pair, strict=True)])
    return torch.from_numpy(found).to(maps)


def relevance_mass(maps: Tensor, mask: Tensor) -> Tensor:
    """Share of the relevance that lies within a mask, per image: (B, C, H, W) and (B, 1, H, W) bool -> (B,) in [0, 1].

    Relevance mass accuracy of Arras et al. (2022), where the mask holds all of the evidence. A map that knows nothing
    has the mask's share of the pixels.
    """
    return _within(maps, mask, "relevance_mass").sum(1)


def relevance_rank(maps: Tensor, mask: Tensor) -> Tensor:
    """Share of the K most relevant pixels that lie within a mask of K pixels, per image: arguments as above, (B,).

    Relevance rank accuracy of Arras et al. (2022). Of tied pixels the first count.
    """
    strength, inside = _within(maps, mask, "relevance_rank", everywhere=True), mask.flatten(1)
    order = strength.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device)
    hits = inside.gather(1, order) & (places < inside.sum(1, keepdim=True))
    found = hits.sum(1).to(strength) / inside.sum(1)
    return found.where(torch.isfinite(strength).all(1), torch.nan)


def _within(maps: Tensor, mask: Tensor, name: str, *, everywhere: bool = False) -> Tensor:
    """n(A) of each map, flat (B, H · W), set to 0 outside the mask unless ``everywhere``."""
    _check_maps(maps, min_dim=4)
    wants = (len(maps), 1, *maps.shape[2:])
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != wants:
        got = (tuple(mask.shape), mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask: got {got}, wants {wants} of bool")
    if not mask.flatten(1).any(1).all():
        raise ValueError("mask: got an empty one, wants at least one pixel of each image")
    strength = relevance(maps.detach().to(torch.promote_types(maps.dtype, torch.float32))).flatten(1)
    warn_non_finite(strength, name)
    return strength if everywhere else torch.where(mask.flatten(1), strength, 0 * strength)


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    from skimage.metrics import structural_similarity  # here, since it takes seconds to import

    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    if not np.isfinite(high - low):
        return math.nan
    if high == low:
        return 1.0
    return structural_similarity(
        a, b, data_range=high - low, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )


def _shown(relevances: Tensor) -> Tensor:
    """Scaled to the 99th percentile, or to the largest entry where that is 0, and cut at 1."""
    top = relevances.quantile(_SHOWN, dim=1, keepdim=True)
    top = torch.where(top > 0, top, relevances.amax(1, keepdim=True))
    return (relevances / top).clamp_max(1)


def _relevances(maps: Tensor, others: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """n(A) of both maps, flat (B, N)."""
    _check_maps(maps)
    check_map(others, maps, "others")
    # half precision has too few digits for a sum over an image
    exact = torch.promote_types(maps.dtype, torch.float32)
    pair = relevance(maps.detach().to(exact)).flatten(1), relevance(others.detach().to(exact)).flatten(1)
    warn_non_finite(pair[0] + pair[1], name)
    return pair


def _check_maps(maps: Tensor, min_dim: int = 2) -> None:
    """Refuse what is no batch of maps; NaN may pass, since an attribution that failed is one."""
    check_batch(torch.nan_to_num(maps) if isinstance(maps, Tensor) else maps, "maps", min_dim=min_dim)


def _correlation(a: Tensor, b: Tensor, name: str) -> Tensor:
    constant = ((a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)) & torch.isfinite(a + b).all(1)
    if constant.any():
        n_pairs = f"{int(constant.sum())} of {len(constant)} pairs"
        warnings.warn(f"{name}: {n_pairs} hold a constant map; their value is NaN", RuntimeWarning, stacklevel=3)
    a, b = (part - part.mean(1, keepdim=True) for part in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).masked_fill(constant, torch.nan)
