"""How rough one attribution map is, and how alike two are, per image.

Maps are compared by their relevance n(A): absolute values, summed over channels, scaled to sum 1 (Dombrowski et al.
2019), without a unit. A map of zeros, or with NaN, gets NaN, with one warning; so does a constant map in a
correlation. Bad maps raise a ValueError.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..core.checks import check_batch, check_map, check_share, floor_of, warn_non_finite, warn_of
from .roar import ranks_of


def total_variation(maps: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of each map scaled to unit L2 norm: (B, C, *places) -> (B,).

    Low for smooth maps, high for noise. The places are those of images (H, W) or volumes (D, H, W).

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.total_variation(torch.tensor([[[[3.0, 4.0]]]]))
    tensor([0.1000])
    """
    check_batch(maps, "maps", min_dim=4)
    maps = maps / torch.linalg.vector_norm(maps, dim=tuple(range(1, maps.ndim)), keepdim=True)
    warn_non_finite(maps, "total_variation")
    differences = torch.stack([maps.diff(dim=dim).abs().flatten(1).sum(1) for dim in range(2, maps.ndim)])
    return differences.sum(0) / maps[0].numel()


def relevance(maps: Tensor) -> Tensor:
    """n(A) = Σ_channels |A| / Σ |A|, differentiable: (B, C, H, W) -> (B, H, W), and of volumes (B, D, H, W).

    Maps of fewer dimensions have no channels: (B, *shape) stays.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.relevance(torch.tensor([[1.0, -3.0]]))
    tensor([[0.2500, 0.7500]])
    """
    strength = maps.abs().sum(1) if maps.ndim >= 4 else maps.abs()
    return strength / strength.flatten(1).sum(1).view(-1, *(1,) * (strength.ndim - 1))


def pearson(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson correlation of the relevance of two maps: (B, *shape) twice -> (B,) in [−1, 1]; NaN for a constant map.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.pearson(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[-2.0, -4.0, -6.0]])).round(decimals=3)
    tensor([1.])
    """
    return _correlation(*relevances(maps, others, "pearson"), name="pearson")


def spearman(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation of relevance, ties at mean rank: (B, *shape) twice -> (B,) in [−1, 1]; NaN if constant.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.spearman(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[9.0, 4.0, 1.0]])).round(decimals=3)
    tensor([-1.])
    """
    from scipy.stats import rankdata  # here, since it takes seconds to import

    pair = relevances(maps, others, "spearman")
    ranks = (torch.from_numpy(rankdata(part.cpu().numpy(), axis=1, nan_policy="propagate")).to(part) for part in pair)
    return _correlation(*ranks, name="spearman")


def map_mse(maps: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference of relevance: (B, *shape) twice -> (B,); entries are of the order 1 / their number.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.map_mse(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([0.2500])
    """
    a, b = relevances(maps, others, "map_mse")
    return (a - b).square().mean(1)


def top_k(maps: Tensor, others: Tensor, *, share: float = 0.1) -> Tensor:
    """Share of the ``share`` · N most relevant pixels of one map that are so in the other: (B, *shape) twice -> (B,).

    At least one pixel is counted; of tied pixels the first count.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.top_k(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([[4.0, 1.0, 2.0, 3.0]]), share=0.5)
    tensor([0.5000])
    """
    check_share(share, "share")
    a, b = relevances(maps, others, "top_k")
    k = max(1, floor_of(share * a.shape[1]))
    common = (ranks_of(a) < k) & (ranks_of(b) < k)
    return (common.sum(1).to(a.dtype) / k).where(torch.isfinite(a + b).all(1), torch.nan)


def ssim(maps: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of relevance as a figure shows it: (B, C, *places) twice -> (B,) in [−1, 1].

    scikit-image's, with the Gaussian window of 11×11 (of 11×11×11 for volumes), σ = 1.5, of Wang et al. (2004). Each
    map is scaled first, so that its 99th percentile is 1: the entries of relevance are so small that any two maps would
    be alike.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> maps = torch.eye(11).expand(1, 1, 11, 11)
    >>> ml.ssim(maps, -2 * maps)
    tensor([1.])
    """
    from skimage.metrics import structural_similarity  # here, since it takes seconds to import

    check_maps(maps, min_dim=4)
    if min(maps.shape[2:]) < 11:
        raise ValueError(f"maps: got shape {tuple(maps.shape)}, wants at least 11 pixels along each side")

    def shown(relevances: Tensor) -> np.ndarray:
        top = relevances.quantile(0.99, dim=1, keepdim=True)
        top = torch.where(top > 0, top, relevances.amax(1, keepdim=True))
        return (relevances / top).clamp_max(1).unflatten(1, maps.shape[2:]).double().cpu().numpy()

    found, window = [], {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for a, b in zip(*map(shown, relevances(maps, others, "ssim")), strict=True):
        span = max(a.max(), b.max()) - min(a.min(), b.min())
        same = 1.0 if span == 0 else math.nan
        found.append(structural_similarity(a, b, data_range=span, **window) if span > 0 else same)
    return torch.tensor(found, dtype=maps.dtype, device=maps.device)


def relevances(maps: Tensor, others: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """n(A) of both maps, flat (B, N), in single precision at least: half has too few digits for such a sum."""
    check_maps(maps)
    check_map(others, maps, "others")
    exact = torch.promote_types(maps.dtype, torch.float32)
    a, b = (relevance(part.detach().to(exact)).flatten(1) for part in (maps, others))
    warn_non_finite(a + b, name)
    return a, b


def check_maps(maps: Tensor, min_dim: int = 2) -> None:
    """Refuse what is not a batch of maps; NaN may pass, since an attribution that failed is one."""
    check_batch(torch.nan_to_num(maps) if isinstance(maps, Tensor) else maps, "maps", min_dim=min_dim)


def _correlation(a: Tensor, b: Tensor, *, name: str) -> Tensor:
    constant = ((a == a[:, :1]).all(1) | (b == b[:, :1]).all(1)) & torch.isfinite(a + b).all(1)
    warn_of(name, constant, "pairs hold a constant map; their value is NaN", 4)
    a, b = (part - part.mean(1, keepdim=True) for part in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).masked_fill(constant, torch.nan)
