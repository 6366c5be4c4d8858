"""Latent geodesics: closed forms on surfaces, an ODE solver as oracle, invariances, limits."""

from __future__ import annotations

import contextlib
import math
import warnings

import numpy as np
import pytest
import torch
from decoders import image_decoder, pair, sphere, torus
from helpers import draw
from scipy.integrate import solve_bvp
from torch import Tensor

import manifold_lib as ml
from manifold_lib.geometry import curves, metric
from manifold_lib.reproduction import zoo


def great_circle(start: Tensor, end: Tensor, n_steps: int) -> Tensor:
    a, b = sphere(start)[0], sphere(end)[0]
    angle = (a @ b).acos()
    t = torch.linspace(0, 1, n_steps + 1, dtype=a.dtype)[:, None]
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()


@pytest.mark.parametrize("n_steps", [8, 16, 32, 64, 128])
def test_the_sphere_gives_great_circles(n_steps: int) -> None:
    start, end = pair((0.5, 0.0), (0.7, 2.2))
    found = ml.geodesic(sphere, start, end, n_steps=n_steps, tolerance=1e-8, max_iter=100)
    angle = 1.0593355
    assert found.converged.all()
    assert found.iterations.item() <= 60
    assert found.length.item() == pytest.approx(2 * n_steps * math.sin(angle / 2 / n_steps), rel=1e-5)
    assert (sphere(found.points[0]) - great_circle(start, end, n_steps)).norm(dim=1).max() < 1e-2


def test_the_defaults_come_within_a_thousandth() -> None:
    start, end = pair((0.5, 0.0), (0.7, 2.2))
    assert ml.geodesic(sphere, start, end, n_steps=32).length.item() == pytest.approx(1.0593355, rel=1e-3)


def test_iterations_do_not_grow_with_the_points() -> None:
    start, end = pair((0.5, 0.0), (0.7, 2.2))
    counts = [ml.geodesic(sphere, start, end, n_steps=n, tolerance=1e-6).iterations.item() for n in (16, 32, 64, 128)]
    assert max(counts) <= 60
    assert counts[-1] <= counts[0] + 15


@pytest.mark.parametrize(
    ("ends", "length"),
    [
        (((0.3, -1.0), (0.3, 1.2)), 2.2),  # a meridian: once around part of the tube
        (((-0.4, 0.0), (0.5, 0.0)), 3 * 0.9),  # the outer equator
    ],
    ids=["meridian", "equator"],
)
def test_meridians_and_equators_of_a_torus(ends: tuple, length: float) -> None:
    start, end = pair(*ends)
    found = ml.geodesic(torus, start, end, n_steps=32)
    assert found.length.item() == pytest.approx(length, rel=1e-3)
    assert found.converged.all()


def test_the_speed_is_constant_at_the_optimum() -> None:
    start, end = pair((0.5, 0.0), (0.7, 2.2))
    found = ml.geodesic(sphere, start, end, n_steps=32, tolerance=1e-10, max_iter=200)
    steps = sphere(found.points[0]).diff(dim=0).norm(dim=1)
    assert steps.std() / steps.mean() < 1e-3
    assert (2 * found.energy - found.length**2).abs().max() < 1e-6


def test_it_agrees_with_an_ode_solver() -> None:
    """SciPy's boundary-value solver on the geodesic equation, for a smooth decoder of two latents."""
    decoder = image_decoder(2)
    start, end = draw(1, 2, seed=3), draw(1, 2, seed=4)

    def equation(t: np.ndarray, y: np.ndarray) -> np.ndarray:
        z, v = torch.from_numpy(y.T.copy()).split(2, dim=1)
        return np.concatenate([y[2:], metric.acceleration(decoder, z, v).detach().numpy().T])

    def ends(first: np.ndarray, last: np.ndarray) -> np.ndarray:
        return np.concatenate([first[:2] - start[0].numpy(), last[:2] - end[0].numpy()])

    t = np.linspace(0, 1, 33)
    line = start.numpy().T + t * (end - start).numpy().T
    oracle = solve_bvp(equation, ends, t, np.concatenate([line, np.tile((end - start).numpy().T, 33)]), tol=1e-6)
    assert oracle.success
    expected = torch.from_numpy(oracle.sol(t)[:2].T.copy())
    found = ml.geodesic(decoder, start, end, n_steps=32, tolerance=1e-9, max_iter=200)
    span = (end - start).norm()
    assert (found.points[0] - expected).norm(dim=1).max() < 0.01 * span
    assert found.length.item() == pytest.approx(ml.curve_length(decoder, expected[None]).item(), rel=1e-3)


def test_a_linear_decoder_returns_the_straight_line_at_once() -> None:
    matrix = draw(5, 9)
    start, end = draw(4, 5, seed=1), draw(4, 5, seed=2)
    found = ml.geodesic(lambda z: z @ matrix, start, end)
    line = torch.stack([start + i / 16 * (end - start) for i in range(17)], 1)
    torch.testing.assert_close(found.points, line, rtol=0, atol=1e-10)
    assert found.converged.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [5, 20, 200])
@pytest.mark.parametrize("n_steps", [1, 4, 16, 33, 128])
def test_a_linear_decoder_takes_one_iteration(n_steps: int, k: int, dtype: torch.dtype) -> None:
    matrix, start, end = (part.to(dtype) for part in (draw(k, 9), draw(3, k, seed=1), draw(3, k, seed=2)))
    found = ml.geodesic(lambda z: z @ matrix, start, end, n_steps=n_steps)
    assert found.converged.all()
    assert (found.iterations <= 1).all()


def test_a_curve_that_is_straight_already_does_not_wait_for_the_others() -> None:
    start, end = pair((0.5, 0.0), (1.3, 2.2))
    meridian = pair((0.4, 0.3), (1.9, 0.3))
    both = ml.geodesic(sphere, *(torch.cat(parts) for parts in zip((start, end), meridian, strict=True)))
    assert both.iterations[1] == 1
    torch.testing.assert_close(both.points[:1], ml.geodesic(sphere, start, end).points)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 9])
def test_any_number_of_segments_will_do(n_steps: int) -> None:
    start, end = pair((0.5, 0.0), (1.3, 2.2))
    found = ml.geodesic(sphere, start, end, n_steps=n_steps, max_iter=60)
    assert found.points.shape == (1, n_steps + 1, 2)
    assert found.energy <= ml.geodesic(sphere, start, end, n_steps=n_steps, max_iter=0).energy + 1e-12
    torch.testing.assert_close(found.points[:, [0, -1]], torch.stack([start, end], 1), rtol=0, atol=0)


@pytest.mark.parametrize("max_iter", [1, 2, 7, 8, 9, 12, 25])
def test_passes_are_never_more_than_asked_for(max_iter: int) -> None:
    start, end = draw(3, 4, seed=1), draw(3, 4, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ml.geodesic(image_decoder(), start, end, n_steps=256, max_iter=max_iter, tolerance=1e-12)
    assert (found.iterations <= max_iter).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [3, 20, 200])
def test_a_dead_decoder_keeps_the_straight_line(k: int, dtype: torch.dtype) -> None:
    start, end = draw(2, k, seed=1).to(dtype), draw(2, k, seed=2).to(dtype)
    found = ml.geodesic(lambda z: 0 * z, start, end)
    assert found.converged.all()
    assert not found.energy.any()


@pytest.mark.filterwarnings("ignore:geodesic")
@pytest.mark.parametrize("k", [2, 20])
def test_a_derivative_that_is_nan_harms_its_curve_only(k: int) -> None:
    def cone(z: Tensor) -> Tensor:
        return torch.cat([z, z.norm(dim=1, keepdim=True)], 1)

    start, end = -torch.ones(2, k, dtype=torch.float64), torch.ones(2, k, dtype=torch.float64)
    start[1, 0] = 3.0  # the first line runs through the apex
    both = ml.geodesic(cone, start, end, max_iter=60)
    alone = ml.geodesic(cone, start[1:], end[1:], max_iter=60)
    assert torch.isfinite(both.points).all()
    torch.testing.assert_close(both.energy[1:], alone.energy)


def test_a_decoder_without_derivative_is_named() -> None:
    with pytest.raises(ValueError, match="decoder: its output does not depend"):
        ml.geodesic(lambda z: z.detach().square(), draw(1, 3), draw(1, 3, seed=1))


def test_inference_mode_and_its_tensors_are_no_obstacle() -> None:
    decoder, start, end = image_decoder(), draw(2, 4, seed=1), draw(2, 4, seed=2)
    usual = ml.geodesic(decoder, start, end, max_iter=20)
    with torch.inference_mode():
        inside = ml.geodesic(decoder, start.clone(), end.clone(), max_iter=20)
    torch.testing.assert_close(inside.points, usual.points)


def test_a_decoder_that_works_in_place_leaves_the_points_alone() -> None:
    matrix = draw(4, 9)

    def decoder(z: Tensor) -> Tensor:
        return z.tanh_() @ matrix

    points = draw(2, 5, 4)
    kept = points.clone()
    ml.curve_energy(decoder, points)
    assert torch.equal(points, kept)
    found = ml.geodesic(decoder, points[:, 0], points[:, -1], max_iter=20)
    expected = ml.geodesic(lambda z: z.tanh() @ matrix, points[:, 0], points[:, -1], max_iter=20)
    torch.testing.assert_close(found.points, expected.points)


@pytest.mark.filterwarnings("ignore:geodesic")
@pytest.mark.parametrize("size", [1, 4, 50])
def test_no_more_images_than_asked_for_are_decoded_at_once(size: int) -> None:
    decoder, start, end, most = image_decoder(), draw(3, 4, seed=1), draw(3, 4, seed=2), 0

    def counted(z: Tensor) -> Tensor:
        nonlocal most
        most = max(most, len(z))
        return decoder(z)

    found = ml.geodesic(counted, start, end, max_iter=12, internal_batch_size=size)
    assert most <= size
    torch.testing.assert_close(found.points, ml.geodesic(decoder, start, end, max_iter=12).points)


def test_the_classifier_can_be_counted_in_by_stacking_maps() -> None:
    """Where the score jumps between the ends anyway, the way round its other jumps becomes the shorter."""

    def score(z: Tensor) -> Tensor:
        return 3 * (-((z - z.new_tensor([0.5, 0.0])).square().sum(1, keepdim=True)) / 0.05).exp()

    def stack(z: Tensor) -> Tensor:
        return torch.cat([z, score(z)], 1)

    start, end = pair((0.0, 0.02), (1.0, 0.02))
    plain = ml.geodesic(lambda z: 1.0 * z, start, end, n_steps=32)
    around = ml.geodesic(stack, start, end, n_steps=32, max_iter=200)
    climbed = [score(found.points[0]).diff(dim=0).abs().sum() for found in (plain, around)]
    assert climbed[1] < 0.5 * climbed[0]
    assert around.energy < ml.curve_energy(stack, plain.points)


def test_the_energy_never_rises_and_the_ends_stay() -> None:
    decoder, start, end = image_decoder(), draw(6, 4, seed=1), draw(6, 4, seed=2)
    energies = []
    for max_iter in (0, 2, 5, 10, 20, 40):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = ml.geodesic(decoder, start, end, max_iter=max_iter, tolerance=1e-9)
        energies.append(found.energy)
        assert torch.equal(found.points[:, 0], start)
        assert torch.equal(found.points[:, -1], end)
    # max_iter is shared among the levels, and what is minimised is the energy on twice the points: see the next test
    assert (torch.stack(energies).diff(dim=0) <= 1e-5 * energies[-1]).all()
    assert (energies[-1] < energies[0]).all()


def test_a_coarse_curve_does_not_jump_over_a_barrier() -> None:
    """A ridge between the ends, narrower than a segment: free for four images, dear for what lies between them."""

    def decoder(z: torch.Tensor) -> torch.Tensor:
        height = 4 * torch.exp(-((z[:, :1] / 0.08) ** 2)) * torch.sigmoid(20 * (1.0 - z[:, 1:]))
        return torch.cat([z, height], 1)

    start, end = torch.tensor([[-1.0, 0.0]]).double(), torch.tensor([[1.0, 0.05]]).double()
    found = ml.geodesic(decoder, start, end, n_steps=4, max_iter=60)
    fine = ml.curve_energy(decoder, ml.resample(decoder, found.points, 256))
    assert fine < ml.curve_energy(decoder, curves.line_between(start, end, 256))


def test_reversal_and_affine_reparametrisation() -> None:
    decoder, start, end = image_decoder(), draw(3, 4, seed=1), draw(3, 4, seed=2)
    options = {"tolerance": 1e-10, "max_iter": 300}
    forth = ml.geodesic(decoder, start, end, **options)
    back = ml.geodesic(decoder, end, start, **options)
    torch.testing.assert_close(forth.points, back.points.flip(1), rtol=0, atol=1e-3)
    turn, shift = draw(4, 4, seed=5) + 2 * torch.eye(4, dtype=torch.float64), draw(4, seed=6)
    inverse = torch.linalg.inv(turn)
    other = ml.geodesic(
        lambda y: decoder(y @ turn + shift), (start - shift) @ inverse, (end - shift) @ inverse, **options
    )
    torch.testing.assert_close(other.points @ turn + shift, forth.points, rtol=0, atol=1e-3)
    torch.testing.assert_close(other.energy, forth.energy, rtol=1e-6, atol=0)


def test_a_batch_is_its_curves_one_by_one() -> None:
    decoder, start, end = image_decoder(), draw(5, 4, seed=1), draw(5, 4, seed=2)
    whole = ml.geodesic(decoder, start, end)
    for i in range(5):
        single = ml.geodesic(decoder, start[i : i + 1], end[i : i + 1])
        torch.testing.assert_close(single.points[0], whole.points[i], rtol=0, atol=1e-6)
        assert single.iterations[0] == whole.iterations[i]
    chunked = ml.geodesic(decoder, start, end, internal_batch_size=20)
    torch.testing.assert_close(chunked.points, whole.points, rtol=0, atol=1e-6)


def test_a_spline_curve_comes_close_with_few_knots() -> None:
    decoder, start, end = image_decoder(), draw(4, 4, seed=1), draw(4, 4, seed=2)
    free = ml.geodesic(decoder, start, end, n_steps=32, tolerance=1e-7, max_iter=200)
    spline = ml.geodesic(decoder, start, end, n_steps=32, n_knots=6, tolerance=1e-7, max_iter=200)
    assert (spline.energy >= free.energy * (1 - 1e-4)).all()
    assert (spline.energy <= free.energy * 1.005).all()


def test_identical_ends_stay_where_they_are() -> None:
    z = draw(2, 4)
    found = ml.geodesic(image_decoder(), z, z)
    assert found.converged.all()
    torch.testing.assert_close(found.points, z[:, None].expand_as(found.points))


def test_a_decoder_that_gives_nan_is_named() -> None:
    with pytest.raises(ValueError, match=r"decoder: got NaN .* curves \[1\]"):
        ml.geodesic(lambda z: z.log(), torch.ones(2, 3), torch.tensor([[2.0, 2, 2], [-1.0, 2, 2]]))


@pytest.mark.parametrize("name", ["mnist32-vae", "fashion32-vae"])
@pytest.mark.filterwarnings("ignore:geodesic")
def test_two_passes_already_shorten_most_curves_between_images(name: str) -> None:
    vae, (start, end) = zoo.load(name), torch.randn(2, 32, 10, generator=torch.Generator().manual_seed(3))
    straight = ml.curve_energy(vae.decode, curves.line_between(start, end, 19))
    found = ml.geodesic(vae.decode, start, end, n_steps=19, max_iter=2)
    assert (found.iterations <= 2).all()
    ratio = found.energy / straight
    assert ratio.max() <= 1
    assert ratio.mean() < 0.95
    assert (ratio < 1 - 1e-6).float().mean() > 0.6


def test_what_has_not_converged_is_flagged_and_warned_once() -> None:
    start, end = pair((0.5, 0.0), (0.7, 2.2))
    with pytest.warns(RuntimeWarning, match="1 of 1 curves had not converged") as caught:
        found = ml.geodesic(sphere, start, end, max_iter=3, tolerance=1e-9)
    assert len(caught) == 1
    assert not found.converged.any()


@pytest.mark.parametrize("decades", [1, 2, 3, 4])
def test_the_units_of_the_latents_do_not_matter(decades: int) -> None:
    """At the default tolerance; the straight line has 15 % more energy than the geodesics here."""
    decoder, start, end = image_decoder(), 2 * draw(6, 4, seed=1), 2 * draw(6, 4, seed=2)
    units = torch.logspace(0, -decades, 4, dtype=torch.float64)
    best = ml.geodesic(decoder, start, end, max_iter=400, tolerance=1e-9).energy
    found = ml.geodesic(lambda y: decoder(y * units), start / units, end / units)
    assert (found.energy <= 1.01 * best).all()


def test_ends_of_one_row_or_a_number_serve_all_curves() -> None:
    decoder, start, end = image_decoder(), draw(3, 4, seed=1), draw(1, 4, seed=2)
    one, expanded = ml.geodesic(decoder, start, end), ml.geodesic(decoder, start, end.expand(3, 4))
    assert torch.equal(one.points, expanded.points)
    to_zero = ml.geodesic(decoder, start, 0.0)
    assert torch.equal(to_zero.points, ml.geodesic(decoder, start, torch.zeros_like(start)).points)
    assert torch.equal(ml.exp_map(decoder, start, 0.0), start)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    start = draw(2, 4).to(dtype)
    with pytest.raises(ValueError, match=f"start: got {dtype}"):
        ml.geodesic(lambda z: z, start, -start)


@pytest.mark.parametrize(("width", "met"), [(1e-6, False), (0.02, True)])  # a coarse curve can step over the first
def test_nan_between_the_points_harms_that_curve_only(width: float, met: bool) -> None:
    def decoder(z: Tensor) -> Tensor:
        spot = ((z[:, :1] - 0.5 / 16).abs() < width) & (z[:, 1:] < 0.5)  # of the first curve only
        return torch.cat([z.tanh(), torch.where(spot, torch.nan, z[:, :1] ** 2)], 1)

    start = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    end = torch.tensor([[1.0, 0.0], [0.9, 2.0]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="1 of 2 curves") if met else contextlib.nullcontext():
        found = ml.geodesic(decoder, start, end)
    alone = ml.geodesic(decoder, start[1:], end[1:])
    torch.testing.assert_close(found.points[1:], alone.points)
    assert (
        found.points.isfinite().all() and found.energy.isfinite().all() and found.converged.tolist() == [not met, True]
    )


@pytest.mark.parametrize("n_latents", [17, 32, 64])
@pytest.mark.parametrize("n_steps", [15, 16])
@pytest.mark.filterwarnings("ignore:geodesic")
def test_a_curve_and_its_reverse_are_alike_with_many_latents(n_latents: int, n_steps: int) -> None:
    matrix = draw(n_latents, 80, seed=3) / n_latents**0.5
    decoder = lambda z: (z @ matrix).tanh()  # noqa: E731
    start, end = draw(2, n_latents, seed=1), draw(2, n_latents, seed=2)
    forth = ml.geodesic(decoder, start, end, n_steps=n_steps)
    back = ml.geodesic(decoder, end, start, n_steps=n_steps)
    torch.testing.assert_close(forth.points, back.points.flip(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_steps", [8, 32])
def test_the_sphere_in_its_chart(n_steps: int) -> None:
    """X1: the discrete geodesic of the great circle a is 2 N sin(a / 2N) long, the straight line of the chart 1.256."""
    start, end = (torch.tensor([z], dtype=torch.float64) for z in ([0.5, 0.0], [0.7, 2.2]))
    found = ml.geodesic(sphere, start, end, n_steps=n_steps, tolerance=1e-10, max_iter=100)
    a = math.acos((sphere(start) * sphere(end)).sum())
    assert abs(a - 1.059336) < 1e-6
    assert abs(found.length.item() / (2 * n_steps * math.sin(a / 2 / n_steps)) - 1) < 1e-5
    line = torch.stack([start + i / 32 * (end - start) for i in range(33)], 1)
    assert round(ml.curve_length(sphere, line).item(), 3) == 1.256
