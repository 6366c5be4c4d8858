"""What is measured on attribution maps, per image."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_batch, warn_non_finite


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
