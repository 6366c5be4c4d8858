"""Energy, length, resampling and splines of latent curves."""

from __future__ import annotations

import pytest
import torch
from decoders import image_decoder, sphere
from helpers import draw
from torch import Tensor

import manifold_lib as ml
from manifold_lib.geometry import curves


def test_energy_and_length_can_be_differentiated() -> None:
    decoder, points = image_decoder(), draw(2, 5, 4).requires_grad_()
    for measure in (ml.curve_energy, ml.curve_length):
        assert torch.autograd.gradcheck(lambda p, f=measure: f(decoder, p), points)
        assert not measure(decoder, points.detach()).requires_grad
    assert not ml.exp_map(decoder, draw(1, 4), 0.1 * draw(1, 4, seed=1), n_steps=2).requires_grad


def test_resampling_gives_constant_speed_and_keeps_the_curve() -> None:
    times = torch.linspace(0, 1, 65, dtype=torch.float64) ** 2
    z = torch.stack([0.5 + 0.2 * times, 2.2 * times], 1)[None]
    even = ml.resample(sphere, z, 32)
    steps = sphere(even[0]).diff(dim=0).norm(dim=1)
    assert steps.std() / steps.mean() < 0.01
    assert torch.equal(even[:, 0], z[:, 0])
    assert torch.equal(even[:, -1], z[:, -1])
    torch.testing.assert_close(even[0, :, 0], 0.5 + 0.2 * even[0, :, 1] / 2.2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_points", [2, 3, 4, 9])
def test_splines_pass_through_their_points_and_reproduce_parabolas(n_points: int) -> None:
    t = torch.linspace(0, 1, n_points, dtype=torch.float64)
    values = torch.stack([t, 3 * t**2 - t], 1)[None]
    fine = torch.linspace(0, 1, 33, dtype=torch.float64)[None]
    torch.testing.assert_close(curves.spline_points(values, t[None]), values)
    found = curves.spline_points(values, fine)
    torch.testing.assert_close(found[0, :, 0], fine[0], rtol=0, atol=1e-12)
    if n_points > 3:
        torch.testing.assert_close(found[0, :, 1], 3 * fine[0] ** 2 - fine[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_steps", [4, 8, 32])
@pytest.mark.parametrize("name", ["uneven line", "half circle", "sphere"])
def test_resampled_curves_have_constant_decoded_speed(name: str, n_steps: int) -> None:
    t = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] ** 2
    curves_of = {
        "uneven line": (lambda z: z, torch.cat([t, 0 * t], 1)),
        "half circle": (lambda z: z, torch.cat([(torch.pi * t).cos(), (torch.pi * t).sin()], 1)),
        "sphere": (sphere, torch.cat([0.5 + 0.2 * t, 2.2 * t], 1)),
    }
    decoder, points = curves_of[name]
    found = ml.resample(decoder, points[None], n_steps)
    steps = decoder(found[0]).diff(dim=0).norm(dim=1)
    assert steps.std() <= 0.01 * steps.mean()
    assert torch.equal(found[:, [0, -1]], points[None][:, [0, -1]])


@pytest.mark.parametrize("size", [1, 4])
def test_no_more_images_at_once_than_asked(size: int) -> None:
    seen, inner = [], image_decoder()

    def decoder(z: Tensor) -> Tensor:
        seen.append(len(z))
        return inner(z)

    points = draw(2, 20, 4)
    for measure in (ml.curve_energy, ml.curve_length):
        torch.testing.assert_close(measure(decoder, points, internal_batch_size=size), measure(inner, points))
        assert max(seen) <= size
    found = ml.resample(decoder, points, 7, internal_batch_size=size)
    assert max(seen) <= size
    torch.testing.assert_close(found, ml.resample(inner, points, 7))
