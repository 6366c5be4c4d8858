"""Surfaces and decoders that the tests of this room share."""

from __future__ import annotations

import math

import torch
from helpers import draw, seeded
from torch import Tensor, nn


def sphere(z: Tensor) -> Tensor:
    """Colatitude and longitude -> the unit sphere."""
    theta, phi = z[:, 0], z[:, 1]
    return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], 1)


def torus(z: Tensor) -> Tensor:
    """Angles around the hole (radius 2) and around the tube (radius 1)."""
    ring = 2 + z[:, 1].cos()
    return torch.stack([ring * z[:, 0].cos(), ring * z[:, 0].sin(), z[:, 1].sin()], 1)


def image_decoder(k: int = 4, seed: int = 0) -> nn.Module:
    layers = (nn.Linear(k, 32), nn.SiLU(), nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 48), nn.Sigmoid())
    return seeded(nn.Sequential(*layers, nn.Unflatten(1, (3, 4, 4))), seed).double()


def pair(*ends: tuple[float, float]) -> tuple[Tensor, Tensor]:
    start, end = torch.tensor(ends, dtype=torch.float64)
    return start[None], end[None]


def orthogonal(rows, columns, seed=0):
    return torch.linalg.qr(draw(rows, columns, seed=seed))[0]


def smooth_decoder(k=3, shape=(1, 4, 4), seed=0, dtype=torch.float64):
    size = math.prod(shape)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(k, 8), nn.Tanh(), nn.Linear(8, size), nn.Sigmoid())
    return nn.Sequential(seeded(layers, seed), nn.Unflatten(1, shape)).to(dtype)


def linear_decoder(matrix):
    return lambda latents: latents.flatten(1) @ matrix.T


def planted(values, d=12, dtype=torch.float64, seed=0):
    """A linear decoder with these singular values, and its left singular vectors."""
    s = torch.tensor(values, dtype=torch.float64)
    left, right = orthogonal(d, len(values), seed), orthogonal(len(values), len(values), seed + 1)
    return linear_decoder(((left * s) @ right.T).to(dtype)), left


def projector(basis):
    return basis @ basis.mT


def ranks(basis):
    return (basis.norm(dim=1) > 0.5).sum(1).tolist()
