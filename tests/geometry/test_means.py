"""Karcher means: closed forms on flat and round surfaces, weights, and k-means by geodesics."""

from __future__ import annotations

import math

import pytest
import torch
from decoders import linear_decoder, orthogonal, sphere
from helpers import draw
from scipy.optimize import minimize_scalar
from torch import Tensor

import manifold_lib as ml

DOUBLE = torch.float64


def stereographic(u: Tensor) -> Tensor:
    square = u.square().sum(1, keepdim=True)
    return torch.cat([2 * u, 1 - square], 1) / (1 + square)


def on_sphere(x: Tensor, weights: Tensor) -> Tensor:
    """The Karcher mean of points of the unit sphere, by its own exponential and logarithm."""
    q = x.mean(0) / x.mean(0).norm()
    for _ in range(200):
        cosine = (x @ q).clamp(-1, 1)
        aside = x - cosine[:, None] * q
        log = cosine.acos()[:, None] * aside / aside.norm(dim=1, keepdim=True).clamp_min(1e-15)
        step = weights @ log / weights.sum()
        size = step.norm().clamp_min(1e-300)
        q = q * size.cos() + step / size * size.sin()
    return q


def test_a_flat_decoder_gives_the_weighted_mean() -> None:
    decoder, z, weights = linear_decoder(orthogonal(9, 3)), draw(7, 3), draw(2, 7, seed=1).abs()
    found = ml.karcher_mean(decoder, z, weights)
    torch.testing.assert_close(found, weights @ z / weights.sum(1, keepdim=True), rtol=0, atol=1e-6)
    assert ml.karcher_mean(decoder, z).shape == (3,)
    torch.testing.assert_close(ml.karcher_mean(decoder, z, weights[0]), found[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("theta", [0.3, 0.8, 1.3])
def test_a_circle_of_latitude_and_an_arc_of_one(theta: float) -> None:
    angles = torch.arange(7, dtype=DOUBLE) * 2 * math.pi / 7
    circle = math.tan(theta / 2) * torch.stack([angles.cos(), angles.sin()], 1)
    pole = ml.karcher_mean(stereographic, circle)
    assert stereographic(pole[None])[0, 2] > 1 - 1e-6
    longitudes = torch.linspace(-0.8, 0.8, 5, dtype=DOUBLE)
    arc = torch.stack([torch.full_like(longitudes, theta), longitudes], 1)
    found = ml.karcher_mean(sphere, arc)

    def spread(colatitude: float) -> float:
        here = sphere(torch.tensor([[colatitude, 0.0]], dtype=DOUBLE))[0]
        return (sphere(arc) @ here).clamp(-1, 1).acos().square().sum().item()

    best = minimize_scalar(spread, bounds=(0.05, 1.6), method="bounded", options={"xatol": 1e-9}).x
    torch.testing.assert_close(found, torch.tensor([best, 0.0], dtype=DOUBLE), rtol=0, atol=1e-3)


def test_weighted_means_on_the_sphere_all_at_once() -> None:
    z, weights = 0.4 * draw(9, 2, seed=2) + 0.5, draw(3, 9, seed=3).abs()
    weights[1, :6] = 0
    found = stereographic(ml.karcher_mean(stereographic, z, weights))
    for mean, weight in zip(found, weights, strict=True):
        assert (mean - on_sphere(stereographic(z), weight)).norm() < 1e-3


def test_k_means_by_geodesics_finds_the_arms_that_lie_across_a_fold() -> None:
    """Two arcs of a rolled-up sheet whose images lie close together, but not along the sheet."""
    sheet = lambda z: torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], 1) * (1 + z[:, :1] / 40)  # noqa: E731
    arms = [torch.linspace(low, low + 1, 8, dtype=DOUBLE) for low in (0.0, 5.6)]
    z = torch.stack([torch.cat(arms), draw(16) * 0.05], 1)
    centers = z[[3, 8]]
    for _ in range(3):
        pairs = z.repeat(2, 1), centers.repeat_interleave(16, 0)
        nearest = ml.geodesic(sheet, *pairs, n_steps=16, max_iter=100).length.view(2, 16).argmin(0)
        centers = ml.karcher_mean(sheet, z, torch.nn.functional.one_hot(nearest).T.to(z))
    assert nearest.tolist() == [0] * 8 + [1] * 8


def test_weights_that_do_not_fit_are_refused() -> None:
    z = torch.rand(3, 2)
    for weights in (torch.rand(2), torch.tensor([1.0, -1.0, 1.0]), torch.zeros(3), "even"):
        with pytest.raises(ValueError, match="weights: got"):
            ml.karcher_mean(sphere, z, weights)  # type: ignore[arg-type]
