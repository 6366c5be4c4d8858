"""Other starts of the search for geodesics: graphs of codes, given curves, and what several starts say."""

from __future__ import annotations

import math

import pytest
import torch
from decoders import pair, sphere
from helpers import draw
from torch import Tensor

import manifold_lib as ml
from manifold_lib.geometry.starts import along_codes, bent

DOUBLE = torch.float64


def hill(z: Tensor) -> Tensor:
    """A plane with a steep hill at the origin, around which the short ways lead."""
    return torch.cat([z, 4 * (-4 * z.square().sum(1, keepdim=True)).exp()], 1)


def test_both_ways_around_a_hill_are_found_and_the_shorter_is_kept() -> None:
    start, end = pair((-1.5, 0.15), (1.5, 0.15))
    below = torch.linspace(-1.5, 1.5, 33, dtype=DOUBLE)
    way = torch.stack([below, 0.15 - 1.2 * (math.pi * torch.linspace(0, 1, 33, dtype=DOUBLE)).sin()], 1)[None]
    options = {"n_steps": 32, "max_iter": 200, "tolerance": 1e-6}
    low = ml.geodesic(hill, start, end, init=way, **options)
    best = ml.geodesic(hill, start, end, certify=True, **options)
    assert low.points[0, 16, 1] < -0.3
    assert best.points[0, 16, 1] > 0.3
    assert best.energy < low.energy
    assert best.certificate.item() == pytest.approx((1 - best.energy / low.energy).item(), rel=1e-2)
    assert low.certificate is None


def test_a_sphere_is_certified() -> None:
    found = ml.geodesic(sphere, *pair((0.9, 0.0), (1.3, 1.0)), certify=True, max_iter=200, tolerance=1e-7)
    assert found.certificate.item() < 1e-5


def test_a_graph_of_codes_leads_through_them_and_never_costs_energy() -> None:
    angles = torch.linspace(0, 2 * math.pi, 60, dtype=DOUBLE)[:-1]
    codes = torch.stack([angles.cos(), angles.sin()], 1)
    start, end = torch.cat([codes[:1], codes[5:6] * 1.02]), torch.cat([codes[29:30], codes[9:10]])
    curves = along_codes(hill, codes, start, end, 24)
    assert torch.equal(curves[:, 0], start)
    assert torch.equal(curves[:, -1], end)
    assert (curves.norm(dim=2) - 1).abs().max() < 0.05
    speed = (hill(curves.flatten(0, 1)).unflatten(0, (2, 25))).diff(dim=1).norm(dim=2)
    assert speed.std(1).max() < 0.05 * speed.mean()
    lines = ml.geodesic(hill, start, end, n_steps=24, max_iter=100)
    found = ml.geodesic(hill, start, end, n_steps=24, max_iter=100, init="graph", data=codes)
    assert (found.energy <= lines.energy * (1 + 1e-9)).all()
    assert (found.certificate >= 0).all()


def test_a_curve_of_the_graph_does_not_depend_on_its_batch() -> None:
    codes, start, end = draw(80, 2, seed=1), draw(4, 2, seed=2), draw(4, 2, seed=3)
    every = along_codes(hill, codes, start, end, 8)
    alone = torch.cat([along_codes(hill, codes, start[i : i + 1], end[i : i + 1], 8) for i in range(4)])
    torch.testing.assert_close(every, alone, rtol=0, atol=1e-12)
    line = torch.stack([start, end], 1)
    torch.testing.assert_close(bent(line, 0.5)[:1], bent(line[:1], 0.5), rtol=0, atol=1e-12)


def test_one_end_for_all() -> None:
    one, many = torch.tensor([[0.9, 0.0]], dtype=DOUBLE), torch.tensor([[1.0, 1.0], [1.4, -0.5]], dtype=DOUBLE)
    away = ml.geodesic(sphere, one, many, n_steps=32)
    back = ml.geodesic(sphere, many, one, n_steps=32)
    torch.testing.assert_close(away.length, back.length, rtol=1e-6, atol=0)
    torch.testing.assert_close(away.length, (sphere(many) @ sphere(one)[0]).acos(), rtol=1e-3, atol=0)


def test_curves_of_other_ends_and_a_graph_without_codes_are_refused() -> None:
    start, end = pair((0.9, 0.0), (1.3, 1.0))
    with pytest.raises(ValueError, match=r"init: got .* curves of shape"):
        ml.geodesic(sphere, start, end, init=torch.stack([start, start], 1))
    with pytest.raises(ValueError, match="init: got 'spline'"):
        ml.geodesic(sphere, start, end, init="spline")
    with pytest.raises(ValueError, match="data: got NoneType"):
        ml.geodesic(sphere, start, end, init="graph")
    with pytest.raises(ValueError, match="data: got shape"):
        ml.geodesic(sphere, start, end, init="graph", data=torch.rand(9, 3, dtype=DOUBLE))
