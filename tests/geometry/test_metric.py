"""The pullback metric, volume, exponential and logarithm on the sphere."""

from __future__ import annotations

import pytest
import torch
from decoders import image_decoder, pair, sphere, torus
from helpers import draw
from torch import Tensor

import manifold_lib as ml
from manifold_lib.geometry.tangent import Decoder


def test_exp_map_names_the_step_at_which_the_decoder_fails() -> None:
    start = torch.tensor([[1.0], [0.1]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"decoder: got NaN .* at step \d+ of 32 of the geodesics \[1\]"):
        ml.exp_map(lambda z: torch.cat([z.sqrt(), z], 1), start, torch.tensor([[1.0], [-2.0]], dtype=torch.float64))


def test_metric_and_magnification_of_the_sphere() -> None:
    z = torch.tensor([[0.5, 0.3], [1.2, -2.0]], dtype=torch.float64)
    expected = torch.diag_embed(torch.stack([torch.ones(2, dtype=z.dtype), z[:, 0].sin() ** 2], 1))
    torch.testing.assert_close(ml.pullback_metric(sphere, z), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ml.magnification_factor(sphere, z), z[:, 0].sin(), rtol=1e-12, atol=0)


def test_magnification_keeps_small_factors() -> None:
    """det(JᵀJ) = 1e-20 in float32 is lost if JᵀJ is formed."""
    matrix = torch.tensor([[1.0, 1.0], [0.0, 1e-5], [0.0, 0.0]])
    found = ml.magnification_factor(lambda z: z @ matrix.T, torch.zeros(1, 2))
    assert found.item() == pytest.approx(1e-5, rel=1e-4)


def half_plane(z: Tensor) -> Tensor:
    """Poincaré's half-plane by the pseudosphere: √2 times the hyperbolic metric of (μ / √2, σ)."""
    return ml.fisher_rao(lambda z: z[:, :, None], "gaussian", least_std=0.2)(z)


@pytest.mark.parametrize(
    ("decoder", "ends", "length"),
    [
        (sphere, ((0.5, 0.0), (0.7, 2.2)), 1.0593355),
        (sphere, ((1.0, 0.0), (1.2, 2.6)), 2.0672),  # two thirds of the way to the cut point
        (torus, ((0.3, -1.0), (0.3, 1.2)), 2.2),
        (half_plane, ((0.0, 0.3), (0.8, 0.5)), 2.0158439),
    ],
    ids=["sphere", "sphere, far", "torus", "half-plane"],
)
def test_exp_map_and_log_map_undo_each_other(decoder: Decoder, ends: tuple, length: float) -> None:
    start, end = pair(*ends)
    velocity = ml.log_map(decoder, start, end)
    torch.testing.assert_close(ml.exp_map(decoder, start, velocity), end, rtol=0, atol=1e-7)
    torch.testing.assert_close(ml.log_map(decoder, start, ml.exp_map(decoder, start, 0.8 * velocity)), 0.8 * velocity)
    speed = torch.einsum("bi,bij,bj->b", velocity, ml.pullback_metric(decoder, start), velocity).sqrt()
    assert speed.item() == pytest.approx(length, rel=1e-4)


def test_exp_map_keeps_the_speed() -> None:
    decoder, z, v = image_decoder(2), draw(3, 2, seed=1), draw(3, 2, seed=2)
    speeds = []
    for t in (0.0, 0.5, 1.0):
        here, ahead = (ml.exp_map(decoder, z, s * v, n_steps=64) for s in (t, t + 1e-4))
        speeds.append((decoder(ahead) - decoder(here)).flatten(1).norm(dim=1) / 1e-4)
    torch.testing.assert_close(speeds[0], speeds[2], rtol=1e-3, atol=0)
