"""The gradient and the Hessian of the energy, and what each level of the descent keeps."""

from __future__ import annotations

import pytest
import torch
from decoders import image_decoder
from helpers import draw
from torch import Tensor

import manifold_lib as ml
from manifold_lib.geometry import curves, solver


@pytest.mark.parametrize("n_knots", [5, 11])
def test_within_a_level_the_energy_never_rises(n_knots: int) -> None:
    decoder, start, end = image_decoder(), draw(6, 4, seed=1), draw(6, 4, seed=2)
    line = curves.line_between(start, end, 12)
    knots, energies = curves.knot_basis(12, n_knots, line), [ml.curve_energy(decoder, line)]
    for max_iter in range(2, 40):
        passes = torch.zeros(6, dtype=torch.int64)
        found = solver.descend(decoder, line, knots, max_iter, 1e-12, passes, None)[0]
        energies.append(ml.curve_energy(decoder, found))
        assert torch.equal(found[:, 0], start) and torch.equal(found[:, -1], end)
    assert (torch.stack(energies).diff(dim=0) <= 1e-13 * energies[-1]).all()


def test_the_gradient_is_that_of_the_energy() -> None:
    decoder = image_decoder()
    base = draw(2, 7, 4)
    knots = curves.knot_basis(6, None, base)
    offset = draw(2, 5, 4, seed=9).requires_grad_()
    points = base + torch.nn.functional.pad(offset, (0, 0, 1, 1))
    images = decoder(points.flatten(0, 1)).flatten(1).view(2, 7, -1)
    energy = 3 * images.diff(dim=1).square().sum((1, 2))
    (expected,) = torch.autograd.grad(energy.sum(), offset)
    value, found = solver.energy_and_gradient(decoder, base, knots, offset.detach())
    torch.testing.assert_close(value, energy.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(ml.curve_energy(decoder, points), energy.detach())


@pytest.mark.parametrize("n_knots", [None, 3])
def test_the_gauss_newton_hessian_is_that_of_a_linear_decoder(n_knots: int | None) -> None:
    matrix, base = draw(3, 7), draw(2, 7, 3, seed=2)
    knots = curves.knot_basis(6, n_knots, base)
    m = knots.shape[1]

    def energy(offset: Tensor) -> Tensor:
        images = (base[:1] + knots @ offset.view(1, m, 3)) @ matrix
        return 3 * images.diff(dim=1).square().sum()

    exact = torch.autograd.functional.hessian(energy, torch.zeros(3 * m, dtype=base.dtype))
    factor = solver.gauss_newton(lambda z: z @ matrix, base, knots)[0]
    ridge = (factor @ factor.T - exact).diagonal().mean()
    torch.testing.assert_close(factor @ factor.T, exact + ridge * torch.eye(3 * m, dtype=base.dtype))
    assert ridge < 0.01 * exact.diagonal().mean()


@pytest.mark.parametrize("k", [16, 17, 129])
def test_every_size_of_latent_space_has_its_preconditioner(k: int) -> None:
    decoder = image_decoder(k)
    start, end = draw(2, k, seed=1), draw(2, k, seed=2)
    found = ml.geodesic(decoder, start, end, n_steps=8, max_iter=80)
    line = ml.geodesic(decoder, start, end, n_steps=8, max_iter=0)
    assert (found.energy < 0.98 * line.energy).all()
    assert found.converged.all() or k > 128  # one number for the metric is a rough preconditioner


@pytest.mark.filterwarnings("ignore:geodesic")
def test_latents_that_change_no_image_do_not_lead_into_a_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve of sixteen latents change the image little, and the deviation grows steeply along them."""
    decoder, mix = image_decoder(4), 0.02 * draw(16, 4, seed=3)

    def mean(z: Tensor) -> Tensor:
        return decoder(z[:, :4] + z[:, 4:] @ mix)

    def std(z: Tensor) -> Tensor:
        return 20 * (1 - (-0.5 * z[:, 4:].square().sum(1)).exp()).view(-1, 1, 1, 1)

    start, end = (torch.nn.functional.pad(2 * draw(6, 4, seed=seed), (0, 16)) for seed in (1, 2))
    both = ml.variance_metric(mean, std)
    found = ml.geodesic(both, start, end, n_steps=12, max_iter=200)
    assert found.converged.all()
    assert not found.points.requires_grad and not found.energy.requires_grad
    monkeypatch.setattr(solver.Preconditioner, "damp", lambda self, rows: None)
    undamped = ml.geodesic(both, start, end, n_steps=12, max_iter=200)
    assert not undamped.converged.all()
    assert (found.energy <= 1.001 * undamped.energy).all()
