"""Tangent spaces: Jacobians, bases and their ranks, angles between them."""

import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
import torch.nn.functional as F
from decoders import linear_decoder, planted, projector, ranks, smooth_decoder
from helpers import close, draw, seeded
from torch import nn

import manifold_lib as ml


def reference_jacobian(decoder, latents):
    """One latent at a time, in reverse mode."""
    size = decoder(latents[:1]).numel()
    rows = [torch.autograd.functional.jacobian(decoder, z[None]).reshape(size, -1) for z in latents]
    return torch.stack(rows)


@pytest.mark.parametrize("latent", [(3,), (2, 3), (1, 2, 2)])
def test_jacobian_equals_reverse_mode_and_finite_differences(latent):
    k = math.prod(latent)
    decoder, latents = smooth_decoder(k), draw(4, *latent, seed=1)
    found = ml.decoder_jacobian(decoder, latents)
    assert found.shape == (4, 16, k)
    close(found, reference_jacobian(decoder, latents), 1e-13)
    steps = 1e-6 * torch.eye(k, dtype=torch.float64).view(k, 1, *latent)
    columns = [(decoder(latents + step) - decoder(latents - step)).flatten(1) / 2e-6 for step in steps]
    close(found, torch.stack(columns, 2).detach(), 1e-7)


def test_jacobian_equals_functorchs_reverse_mode():
    decoder, latents = smooth_decoder(), draw(4, 3, seed=1)
    expected = torch.func.vmap(torch.func.jacrev(lambda z: decoder(z[None])[0].flatten()))(latents)
    close(ml.decoder_jacobian(decoder, latents), expected.detach(), 1e-13)


@pytest.mark.parametrize("function", [ml.decoder_jacobian, ml.tangent_basis])
def test_every_chunk_size_gives_the_same_result(function):
    decoder, latents = smooth_decoder(), draw(5, 3, seed=1)
    expected = projector(function(decoder, latents))
    for size in range(1, 17):
        close(projector(function(decoder, latents, internal_batch_size=size)), expected, 1e-12)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_decoder_never_sees_more_points_than_asked_for(size):
    seen, decoder = [], smooth_decoder()

    def spy(latents):
        seen.append(len(latents))
        return decoder(latents)

    ml.decoder_jacobian(spy, draw(9, 3, seed=1), internal_batch_size=size)
    assert max(seen) <= size


def test_no_jacobian_depends_on_its_batch_or_order():
    decoder, latents = smooth_decoder(), draw(5, 3, seed=1)
    order = torch.tensor([3, 0, 4, 2, 1])
    whole = ml.decoder_jacobian(decoder, latents)
    close(ml.decoder_jacobian(decoder, latents[order]), whole[order], 1e-13)
    close(torch.cat([ml.decoder_jacobian(decoder, z[None]) for z in latents]), whole, 1e-13)


def test_jacobian_of_modules_with_convolutions_and_batch_norm():
    decoder = nn.Sequential(
        *(nn.Unflatten(1, (3, 1, 1)), nn.ConvTranspose2d(3, 4, 4), nn.BatchNorm2d(4), nn.ReLU()),
        nn.ConvTranspose2d(4, 2, 4, 2, 1),
    )
    seeded(decoder).double().eval()
    latents = draw(3, 3, seed=1)
    found = ml.decoder_jacobian(decoder, latents)
    assert found.shape == (3, 128, 3)
    close(found, reference_jacobian(decoder, latents), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept_and_nothing_holds_a_graph(dtype, capfd):
    decoder, latents = smooth_decoder(dtype=dtype), draw(2, 3, dtype=dtype).requires_grad_()
    basis = ml.tangent_basis(decoder, latents)
    for found in (ml.decoder_jacobian(decoder, latents), basis, ml.tangent_share(basis)):
        assert found.dtype == dtype and not found.requires_grad
    assert latents.grad is None and all(parameter.grad is None for parameter in decoder.parameters())
    assert capfd.readouterr() == ("", "")


def test_the_first_call_of_a_process_says_nothing_on_either_stream():
    """torch's forward mode loads parts of itself on first use and warns of its own deprecations."""
    code = "import torch, manifold_lib as ml; ml.tangent_basis(lambda z: torch.tanh(z), torch.rand(2, 3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_vae_has_a_full_tangent_space():
    vae = ml.VAE(latent_dim=10).eval()
    basis = ml.tangent_basis(vae.decode, draw(3, 10, seed=1, dtype=torch.float32))
    assert basis.shape == (3, 1024, 10)
    identity = torch.eye(10).expand(3, 10, 10)
    assert (basis.mT @ basis - identity).abs().max() < 1e-5


def test_basis_is_orthonormal_and_spans_the_columns_of_the_jacobian():
    decoder, latents = smooth_decoder(), draw(4, 3, seed=1)
    basis, jacobian = ml.tangent_basis(decoder, latents), ml.decoder_jacobian(decoder, latents)
    identity = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    close(basis.mT @ basis, identity, 1e-13)
    close(projector(basis) @ jacobian, jacobian, 1e-13)
    for one, matrix in zip(basis, jacobian.numpy(), strict=True):
        oracle = torch.from_numpy(scipy.linalg.orth(matrix))
        close(projector(one), projector(oracle), 1e-12)


def test_columns_are_ordered_by_falling_singular_value():
    decoder, left = planted([0.3, 5.0, 0.01, 1.0])
    basis = ml.tangent_basis(decoder, draw(2, 4))
    overlap = (basis.mT @ left).abs()
    expected = torch.eye(4, dtype=torch.float64)[torch.tensor([1, 3, 0, 2])].expand(2, 4, 4)
    close(overlap, expected, 1e-11)


@pytest.mark.parametrize(
    ("dtype", "share", "rtol", "kept"),
    [
        (torch.float32, 1e-5, None, True),  # None: max(1e-6, 32 eps) = 3.8e-6
        (torch.float32, 1e-5, 1e-4, False),
        (torch.float32, 1e-5, 5e-6, True),
        (torch.float64, 1e-9, None, False),  # None: 1e-6
        (torch.float64, 1e-9, 1e-10, True),
        (torch.float64, 1e-9, 1e-8, False),
        (torch.float64, 1e-5, None, True),
        (torch.float64, 2e-6, None, True),
        (torch.float64, 5e-7, None, False),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
def test_a_planted_singular_value_is_kept_or_dropped_as_rtol_says(dtype, share, rtol, kept, scale):
    decoder, left = planted([scale, 0.5 * scale, share * scale], dtype=dtype)
    basis = ml.tangent_basis(decoder, draw(2, 3, dtype=dtype), rtol)
    assert ranks(basis) == [2 + kept] * 2
    overlap = (basis.double().mT @ left).abs()[:, 2, 2]
    assert (overlap > 0.98).all() if kept else (overlap == 0).all()


def test_a_small_singular_direction_is_found_to_the_precision_of_a_qr_of_the_jacobian():
    """Through JᵀJ the direction at 1e-9 would be lost altogether."""
    decoder, left = planted([1.0, 0.5, 1e-9], d=40)
    basis = ml.tangent_basis(decoder, draw(1, 3), 1e-12)
    assert 1 - (basis[0, :, 2] @ left[:, 2]).abs() < 1e-6
    close(basis[0].T @ basis[0], torch.eye(3, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exactly_dependent_columns_leave_unused_ones_zero(dtype):
    matrix = draw(12, 4, dtype=dtype)
    matrix[:, 2] = matrix[:, 0]
    matrix[:, 3] = 2 * matrix[:, 1] - matrix[:, 0]
    basis = ml.tangent_basis(linear_decoder(matrix), draw(3, 4, dtype=dtype))
    assert ranks(basis) == [2, 2, 2]
    assert (basis[:, :, 2:] == 0).all()
    close(projector(basis) @ matrix, matrix.expand(3, 12, 4), 1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_a_dead_latent_adds_no_direction(dead):
    matrix = draw(12, 3)
    matrix[:, dead] = 0
    basis = ml.tangent_basis(linear_decoder(matrix), draw(2, 3))
    assert ranks(basis) == [2, 2] and (basis[:, :, 2] == 0).all()


def test_a_constant_decoder_has_an_empty_tangent_space():
    def decoder(latents):
        return latents.flatten(1)[:, :1] * torch.zeros(1, 6, dtype=torch.float64)

    basis = ml.tangent_basis(decoder, draw(2, 3))
    assert (basis == 0).all()
    assert (ml.tangent_fraction(draw(2, 6), basis) == 0).all()


def test_the_rank_is_counted_for_each_image():
    mixing = draw(7, 2)

    def decoder(latents):  # rank 2 where both coordinates differ from zero
        return latents**2 @ mixing.T

    latents = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1e-9, 1.0]], dtype=torch.float64)
    basis = ml.tangent_basis(decoder, latents)
    assert ranks(basis) == [2, 1, 0, 1]


@pytest.mark.parametrize(("k", "d"), [(9, 6), (6, 6), (30, 4)])
def test_with_more_latents_than_pixels_all_of_space_is_tangent(k, d):
    basis = ml.tangent_basis(linear_decoder(draw(d, k)), draw(2, k, seed=1))
    assert basis.shape == (2, d, k) and ranks(basis) == [d, d]
    close(projector(basis), torch.eye(d, dtype=torch.float64).expand(2, d, d), 1e-12)
    close(ml.tangent_fraction(draw(2, d, seed=2), basis), torch.ones(2, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16])
def test_upsampling_keeps_the_rank(factor):
    """T8: bilinear upsampling is injective, so it cannot lose a dimension; a threshold that grows with d does."""
    inner = smooth_decoder(5, (1, 4, 4))

    def decoder(latents):
        return F.interpolate(inner(latents), scale_factor=factor, mode="bilinear", align_corners=False)

    assert ranks(ml.tangent_basis(decoder, draw(3, 5, seed=1))) == [5, 5, 5]


def test_a_decoder_that_gives_nan_for_one_latent_harms_only_that_image():
    inner = smooth_decoder()

    def decoder(latents):
        return inner(latents) * (latents[:, :1, None, None] + 1).sqrt()

    latents = draw(4, 3, seed=1).abs()
    expected = ml.tangent_basis(decoder, latents)
    latents[2, 0] = -2
    vectors = draw(4, 1, 4, 4, seed=2)
    with pytest.warns(RuntimeWarning):
        basis = ml.tangent_basis(decoder, latents)
    keep = torch.tensor([0, 1, 3])
    close(projector(basis)[keep], projector(expected)[keep], 1e-12)
    fraction = ml.tangent_fraction(vectors, basis)
    assert fraction.isnan().tolist() == [False, False, True, False]
    share = ml.tangent_share(basis)
    close(share[keep], ml.tangent_share(expected)[keep], 1e-12)
    assert share[2].isnan().all()


def test_the_tangent_space_does_not_depend_on_the_coordinates_of_the_latents():
    decoder, latents = smooth_decoder(), draw(5, 3, seed=1)
    matrix, shift = draw(3, 3, seed=4) + 3 * torch.eye(3, dtype=torch.float64), draw(3, seed=5)
    moved = (latents - shift) @ torch.linalg.inv(matrix).T
    found = ml.tangent_basis(lambda z: decoder(z @ matrix.T + shift), moved)
    close(projector(found), projector(ml.tangent_basis(decoder, latents)), 1e-11)


def test_principal_angles_are_scipys_small_ones_too():
    a = torch.linalg.qr(draw(4, 30, 5))[0]
    near = a[:, :, :3] + 1e-6 * draw(4, 30, 3, seed=1)
    b = torch.linalg.qr(torch.cat([near, draw(4, 30, 4, seed=2)], 2))[0]
    for first, second in ((a, b), (b, a), (a, a)):
        found = ml.principal_angles(first, second)
        for i in range(4):
            expected = np.sort(scipy.linalg.subspace_angles(first[i].numpy(), second[i].numpy()))
            np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-8)


def test_an_unused_column_is_at_a_right_angle_to_everything():
    a = torch.linalg.qr(draw(1, 9, 3))[0]
    unused = a.clone()
    unused[:, :, 1] = 0
    expected = torch.tensor([[0, 0, math.pi / 2]], dtype=torch.float64)
    for first, second in ((a, unused), (unused, a), (unused, unused)):
        torch.testing.assert_close(ml.principal_angles(first, second), expected, atol=1e-7, rtol=0)


def test_angles_between_other_spaces_are_refused():
    a = torch.linalg.qr(draw(2, 9, 3))[0]
    for other in (a[:1], a[:, :5], a[0], a.float(), 3 * a):
        with pytest.raises(ValueError, match="other"):
            ml.principal_angles(a, other)


def test_angles_of_a_decoder_that_failed_for_one_image_are_nan_there():
    a = torch.linalg.qr(draw(2, 9, 3))[0]
    failed = a.clone()
    failed[0] = torch.nan
    found = ml.principal_angles(failed, a)
    assert found[0].isnan().all() and found[1].abs().max() < 1e-7
