"""Fisher–Rao and variance metrics: closed forms of one pixel, Fisher information, and curves that avoid voids."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from decoders import image_decoder
from helpers import draw
from hypothesis import given, settings, strategies as st
from torch import Tensor

import manifold_lib as ml

DOUBLE = torch.float64
inside = st.floats(1e-9, 1 - 1e-9)


@settings(deadline=None, max_examples=50)
@given(inside, inside)
def test_a_bernoulli_pixel_has_the_length_of_its_arc(p: float, q: float) -> None:
    curve = torch.linspace(0, 1, 2, dtype=DOUBLE)[None, :, None] * (q - p) + p
    length = ml.curve_length(ml.fisher_rao(lambda z: z), curve).item()
    assert length == pytest.approx(2 * abs(math.asin(q**0.5) - math.asin(p**0.5)), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bernoulli_slopes_are_those_of_the_arc_and_finite_at_the_ends(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.0], [1e-7], [0.3], [1 - 1e-7], [1.0]], dtype=dtype)
    slopes = ml.decoder_jacobian(ml.fisher_rao(lambda z: z), p).flatten()
    assert torch.isfinite(slopes).all()
    inner = p.flatten()[1:4].double()
    torch.testing.assert_close(slopes[1:4].double(), (inner * (1 - inner)).rsqrt(), rtol=2e-3, atol=0)


def test_the_bernoulli_geodesic_of_one_pixel() -> None:
    start, end = torch.tensor([[-4.0]], dtype=DOUBLE), torch.tensor([[5.0]], dtype=DOUBLE)
    found = ml.geodesic(ml.fisher_rao(torch.sigmoid), start, end, n_steps=32)
    p, q = torch.sigmoid(start).item(), torch.sigmoid(end).item()
    assert found.length.item() == pytest.approx(2 * (math.asin(q**0.5) - math.asin(p**0.5)), abs=1e-6)
    arc = (found.points.flatten().sigmoid().sqrt().asin()).diff()  # at constant speed
    torch.testing.assert_close(arc, arc.mean().expand_as(arc), rtol=1e-2, atol=0)


def test_categorical_lies_on_a_sphere_of_radius_two() -> None:
    decoder = ml.fisher_rao(lambda z: z.softmax(1), "categorical")
    z = draw(3, 4)
    torch.testing.assert_close(decoder(z).norm(dim=1), torch.full((3,), 2.0, dtype=DOUBLE))
    p = z.softmax(1)
    information = torch.diag_embed(p) - p[:, :, None] * p[:, None]  # of a softmax's logits
    torch.testing.assert_close(ml.pullback_metric(decoder, z), information, rtol=1e-9, atol=1e-12)


def upper_half(z: Tensor) -> Tensor:
    """Mean and standard deviation as they are."""
    return z[:, :, None]


def test_gaussian_is_the_fisher_information_and_its_geodesics_are_hyperbolic() -> None:
    decoder = ml.fisher_rao(upper_half, "gaussian", least_std=0.2)
    z = torch.tensor([[0.3, 0.5], [1.0, 0.25]], dtype=DOUBLE)
    expected = torch.diag_embed(torch.stack([z[:, 1] ** -2, 2 * z[:, 1] ** -2], 1))
    torch.testing.assert_close(ml.pullback_metric(decoder, z), expected, rtol=1e-9, atol=1e-9)
    start, end = torch.tensor([[0.0, 0.3]], dtype=DOUBLE), torch.tensor([[0.8, 0.5]], dtype=DOUBLE)
    found = ml.geodesic(decoder, start, end, n_steps=64, max_iter=100, tolerance=1e-7)
    # (μ / √2, σ) is the upper half-plane, √2 its unit
    apart = 1 + (0.8**2 / 2 + 0.2**2) / (2 * 0.3 * 0.5)
    assert found.length.item() == pytest.approx(2**0.5 * math.acosh(apart), rel=1e-3)
    assert found.points[0, :, 1].max() > 0.5  # where the deviation is large, means are near each other


def test_what_is_no_probability_or_deviation_is_refused() -> None:
    z = torch.tensor([[0.5, 1.5]])
    with pytest.raises(ValueError, match="decoder: got values outside"):
        ml.pullback_metric(ml.fisher_rao(lambda z: z), z)
    with pytest.raises(ValueError, match="decoder: got sums that are not 1"):
        ml.fisher_rao(lambda z: z / 9, "categorical")(z)
    with pytest.raises(ValueError, match=r"decoder: got shape .* wants \(B, 2, \*shape\)"):
        ml.fisher_rao(lambda z: z, "gaussian")(z)
    with pytest.raises(ValueError, match="standard deviations of 0"):
        ml.fisher_rao(upper_half, "gaussian")(-z)
    with pytest.raises(ValueError, match="likelihood: got 'poisson'"):
        ml.fisher_rao(lambda z: z, "poisson")


def test_the_variance_metric_adds_both_parts() -> None:
    mean, std = image_decoder(3, 0), image_decoder(3, 1)
    z = draw(2, 3)
    found = ml.pullback_metric(ml.variance_metric(mean, std), z)
    torch.testing.assert_close(found, ml.pullback_metric(mean, z) + ml.pullback_metric(std, z))


def test_an_ensemble_has_its_own_mean_and_deviation() -> None:
    members = [image_decoder(3, seed) for seed in range(3)]
    z = draw(2, 3)
    said = torch.stack([member(z) for member in members])
    found = ml.variance_metric(members[0], members[1:])(z)
    torch.testing.assert_close(found, torch.stack([said.mean(0), said.std(0, correction=0)], 1))
    alike = ml.variance_metric(members[0], [members[0]])  # no deviation, and a slope of none
    torch.testing.assert_close(ml.pullback_metric(alike, z), ml.pullback_metric(members[0], z))
    with pytest.raises(ValueError, match="std: got no decoders"):
        ml.variance_metric(members[0], [])
    with pytest.raises(ValueError, match="std: got shape"):
        ml.variance_metric(members[0], lambda z: z)(z)


def test_curves_stay_with_the_data_where_the_deviation_is_large_elsewhere() -> None:
    angles = torch.linspace(-math.pi / 2, math.pi, 90, dtype=DOUBLE)
    codes = torch.stack([angles.cos(), angles.sin()], 1)
    flat = SimpleNamespace(encode=lambda x: x, decode=lambda z: z)
    noisy = SimpleNamespace(encode=lambda x: x, decode=lambda z: 0.99 * z)
    std = ml.rbf_std(noisy, codes, n_centers=30, far=3.0)
    start, end = codes[:1], codes[-1:]
    lone = ml.geodesic(flat.decode, start, end, n_steps=32).points[0]
    both = ml.variance_metric(flat.decode, std)
    found = ml.geodesic(both, start, end, n_steps=32, max_iter=200, init="graph", data=codes).points[0]
    assert std(found).max() < 0.2 * std(lone).max()  # the chord crosses the void


def test_rbf_std_is_the_error_at_the_codes_and_far_away_what_is_asked() -> None:
    x = draw(60, 6, seed=3) * 0.1
    half = SimpleNamespace(encode=lambda x: x[:, :3], decode=lambda z: torch.cat([z, 0 * z], 1))
    std = ml.rbf_std(half, x, n_centers=1, far=2.0)
    error = x[:, 3:].square().sum() / x.numel()
    center = x[:, :3].mean(0, keepdim=True)
    assert std(center).item() == pytest.approx((1 / error + 0.25).rsqrt().item(), rel=1e-6)
    assert std(center + 100).item() == pytest.approx(2)
    assert std(x[:5, :3]).shape == (5, 1)
