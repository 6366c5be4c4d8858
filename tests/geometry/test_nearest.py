"""The distance to a decoder's manifold: closed forms, SciPy as oracle, Proposition 3.1 of paper 5 on a sphere."""

import pytest
import torch
from helpers import close, draw, seeded, untouched
from scipy.optimize import least_squares
from torch import nn

import manifold_lib as ml


def sphere(angles):
    """Chart of the unit sphere by polar angle and longitude: (B, 2) -> (B, 3)."""
    polar, longitude = angles.unbind(1)
    return torch.stack([polar.sin() * longitude.cos(), polar.sin() * longitude.sin(), polar.cos()], 1)


def test_a_linear_decoder_gives_the_projection():
    matrix, points = draw(12, 4), draw(6, 12, seed=1)
    found = ml.nearest_on_manifold(lambda z: z @ matrix.T, points, torch.zeros(6, 1, 4).double(), tolerance=1e-9)
    basis = torch.linalg.qr(matrix).Q
    close(found.distance, (points - points @ basis @ basis.T).norm(dim=1), 1e-9)
    close(found.latents @ matrix.T, points @ basis @ basis.T, 1e-6)
    assert found.converged.all() and found.latents.shape == (6, 4)


def test_the_distance_to_a_sphere_is_known():
    points = draw(20, 3, seed=2)
    points = points / points.norm(dim=1, keepdim=True) * torch.linspace(0.4, 3, 20, dtype=torch.float64)[:, None]
    starts = torch.stack([0.3 + 2.5 * draw(20, 4, seed=3).sigmoid(), 6 * draw(20, 4, seed=4).sigmoid() - 3], 2)
    found = ml.nearest_on_manifold(sphere, points, starts, tolerance=1e-8)
    close(found.distance, (points.norm(dim=1) - 1).abs(), 1e-5)


def test_the_best_start_counts_and_the_batch_does_not():
    decoder = seeded(nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 10)).double())
    points, starts = draw(7, 10, seed=1), 2 * draw(7, 5, 3, seed=2)
    with untouched(decoder, points, starts):
        whole = ml.nearest_on_manifold(decoder, points, starts)
    singles = torch.stack([ml.nearest_on_manifold(decoder, points, starts[:, i : i + 1]).distance for i in range(5)])
    close(whole.distance, singles.amin(0), 1e-9)
    parts = ml.nearest_on_manifold(decoder, points, starts, internal_batch_size=3)
    close(parts.distance, whole.distance, 1e-9)
    close((decoder(whole.latents) - points).norm(dim=1), whole.distance, 1e-12)
    for i in range(7):
        runs = [
            least_squares(lambda z, i=i: (decoder(torch.tensor(z)) - points[i]).detach().numpy(), s) for s in starts[i]
        ]
        best = min(run.cost for run in runs)
        assert whole.distance[i].item() <= (2 * best) ** 0.5 * 1.001


def test_an_image_of_the_decoder_is_at_distance_zero_and_unused_latents_do_no_harm():
    decoder = seeded(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 10)).double())
    with torch.no_grad():
        decoder[0].weight[:, 3] = 0
    latents = 0.5 * draw(5, 4)
    found = ml.nearest_on_manifold(decoder, decoder(latents).detach(), (latents + 0.1)[:, None], tolerance=1e-10)
    assert found.distance.max() < 1e-6
    there = ml.nearest_on_manifold(decoder, decoder(latents).detach(), latents[:, None])
    assert there.distance.max() == 0 and there.converged.all()


def test_maps_of_latents_in_single_precision():
    decoder = seeded(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh()))
    points, starts = draw(3, 3, 4, 4, dtype=torch.float32), draw(3, 2, 2, 4, 4, seed=1, dtype=torch.float32)
    found = ml.nearest_on_manifold(decoder, points, starts)
    assert found.latents.shape == (3, 2, 4, 4) and found.distance.dtype == torch.float32
    first = (decoder(starts[:, 0]) - points).flatten(1).norm(dim=1)
    assert (found.distance < first).all()


def test_bad_input_is_named():
    points, starts = draw(3, 10), draw(3, 2, 4)
    decoder = nn.Linear(4, 10).double()
    for bad in (draw(2, 2, 4), draw(3, 2, 4, dtype=torch.float32)):
        with pytest.raises(ValueError, match="starts"):
            ml.nearest_on_manifold(decoder, points, bad)
    with pytest.raises(ValueError, match="decoder"):
        ml.nearest_on_manifold(nn.Linear(4, 9).double(), points, starts)
    for options in ({"max_iter": 0}, {"tolerance": 0.0}, {"internal_batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ml.nearest_on_manifold(decoder, points, starts, **options)


@pytest.mark.parametrize("step", [0.05, 0.1, 0.2])
def test_steps_along_axes_leave_a_sphere_and_steps_along_its_chart_do_not(step):
    """X13: past Proposition 3.1's bound (‖Δ⊥‖ > ‖Δ‖²/τ, reach τ = 1) points are off; chart steps are by O(‖Δ‖²)."""
    angles = torch.stack([0.4 + 2.2 * draw(50, seed=5).sigmoid(), 6 * draw(50, seed=6).sigmoid() - 3], 1)
    points = sphere(angles)
    for axis in range(3):
        moves = step * torch.eye(3).double()[axis].expand(50, 3)
        normal = (moves * points).sum(1).abs()
        condition = normal > step**2
        away = (points + moves).norm(dim=1).sub(1).abs()
        assert condition.any() and (away[condition] > 0).all()
        assert (away[condition] > normal[condition] - step**2).all()
    for axis in range(2):
        columns = ml.decoder_jacobian(sphere, angles)[:, :, axis]
        tangent = step * columns / columns.norm(dim=1, keepdim=True)
        assert ((points + tangent).norm(dim=1) - 1).abs().max() <= step**2 / 2 + 1e-9


def test_what_did_not_converge_is_not_said_to_have():
    points, starts = draw(2, 3, seed=1), torch.zeros(2, 1, 3).double()
    for decoder in (lambda z: z * torch.nan, lambda z: 0 * z + 1, lambda z: (z - 1).relu()):
        found = ml.nearest_on_manifold(decoder, points, starts)
        assert not found.converged.any()
    with pytest.raises(ValueError, match="points"):
        ml.nearest_on_manifold(lambda z: z, points.half(), starts.half())


def test_a_decoder_in_train_mode_is_refused_before_it_runs():
    decoder = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.BatchNorm1d(16)).double()
    with pytest.raises(ValueError, match="train mode"):
        ml.nearest_on_manifold(decoder, torch.randn(4, 16).double(), torch.randn(4, 2, 3).double())
    assert decoder[1].num_batches_tracked == 0
