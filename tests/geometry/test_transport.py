"""Parallel transport: holonomy of the sphere, isometry, and the geodesic's own velocity."""

from __future__ import annotations

import math

import pytest
import torch
from decoders import image_decoder, sphere, torus
from helpers import draw
from torch import Tensor

import manifold_lib as ml

DOUBLE = torch.float64


def latitude(theta: float, n_points: int = 65) -> Tensor:
    around = torch.linspace(0, 2 * math.pi, n_points, dtype=DOUBLE)
    return torch.stack([torch.full_like(around, theta), around], 1)


def test_a_circle_of_latitude_turns_a_vector_by_its_holonomy() -> None:
    thetas = [0.3, math.pi / 3, 1.2, math.pi / 2]
    south = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    found = ml.parallel_transport(sphere, torch.stack([latitude(theta) for theta in thetas]), south)
    for theta, (down, along) in zip(thetas, found, strict=True):
        angle = math.atan2(along * math.sin(theta), down)
        off = (angle + 2 * math.pi * math.cos(theta)) % (2 * math.pi)
        assert min(off, 2 * math.pi - off) < 1e-3


def test_a_cylinder_is_flat() -> None:
    cylinder = lambda z: torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], 1)  # noqa: E731
    t = torch.linspace(0, 1, 33, dtype=DOUBLE)
    curve = torch.stack([6 * t, (5 * t).sin()], 1)[None]
    vector = torch.tensor([[0.4, -1.0]], dtype=DOUBLE)
    torch.testing.assert_close(ml.parallel_transport(cylinder, curve, vector), vector, rtol=0, atol=1e-4)


def test_lengths_and_angles_are_kept_and_the_way_back_undoes_it() -> None:
    decoder, curve = image_decoder(4), draw(3, 9, 4, seed=1).cumsum(1) / 5
    vectors = draw(2, 3, 4, seed=2)
    carried = torch.stack([ml.parallel_transport(decoder, curve, vector) for vector in vectors])

    def products(points: Tensor, pair: Tensor) -> Tensor:
        return torch.einsum("ibk,bkl,jbl->bij", pair, ml.pullback_metric(decoder, points), pair)

    torch.testing.assert_close(products(curve[:, -1], carried), products(curve[:, 0], vectors), rtol=1e-6, atol=1e-9)
    back = ml.parallel_transport(decoder, curve.flip(1), carried[0])
    torch.testing.assert_close(back, vectors[0], rtol=1e-6, atol=1e-8)


def test_a_geodesic_carries_its_own_velocity() -> None:
    start, velocity = torch.tensor([[0.2, 0.4]], dtype=DOUBLE), torch.tensor([[0.3, 0.8]], dtype=DOUBLE)
    times = torch.linspace(0, 1, 17, dtype=DOUBLE)[:, None]
    every = torch.cat([ml.exp_map(torus, start, t * velocity, n_steps=64) for t in times])
    found = ml.parallel_transport(torus, every[None], velocity)
    last = 16 * torch.tensor([1 / 4, -4 / 3, 3, -4, 25 / 12], dtype=DOUBLE) @ every[-5:]
    torch.testing.assert_close(found[0], last, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_a_dead_latent_is_left_out_and_the_length_stays(slope: float) -> None:
    decoder = lambda z: torch.stack([z[:, 0].cos(), z[:, 0].sin(), slope * z[:, 0]], 1)  # noqa: E731
    t = torch.linspace(0, math.pi / 2, 9, dtype=DOUBLE)
    curve = torch.stack([t, 3 * t], 1)[None]
    found = ml.parallel_transport(decoder, curve, torch.tensor([[1.0, 2.0]], dtype=DOUBLE))
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0]], dtype=DOUBLE), rtol=0, atol=1e-6)


def test_bad_curves_and_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="curve: got shape"):
        ml.parallel_transport(sphere, torch.rand(2, 1, 2), torch.rand(2, 2))
    with pytest.raises(ValueError, match="vectors: got shape"):
        ml.parallel_transport(sphere, torch.rand(2, 5, 2), torch.rand(3, 2))
