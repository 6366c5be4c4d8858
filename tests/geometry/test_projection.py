"""Projection onto a tangent space, dense and matrix-free; tangent fractions and their law under chance."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
import torch.nn.functional as F
from decoders import linear_decoder, orthogonal, planted, projector, ranks, smooth_decoder
from helpers import close, draw, no_warning, one_warning
from torch.utils._python_dispatch import TorchDispatchMode

import manifold_lib as ml


@pytest.fixture
def setting():
    decoder, latents = smooth_decoder(), draw(5, 3, seed=1)
    return decoder, latents, ml.tangent_basis(decoder, latents), draw(5, 1, 4, 4, seed=2)


def test_projection_splits_a_vector_into_orthogonal_parts(setting):
    """T1."""
    *_, basis, vectors = setting
    inside = ml.project(vectors, basis)
    assert inside.shape == vectors.shape
    outside = vectors - inside
    close(ml.project(inside, basis), inside, 1e-13)
    assert (basis.mT @ outside.flatten(1)[:, :, None]).abs().max() < 1e-13
    squares = (
        ml.tangent_fraction(vectors, basis) ** 2
        + (outside.flatten(1).norm(dim=1) / vectors.flatten(1).norm(dim=1)) ** 2
    )
    close(squares, torch.ones(5, dtype=torch.float64), 1e-13)
    expected = ml.project(vectors, basis).flatten(1).norm(dim=1) / vectors.flatten(1).norm(dim=1)
    close(ml.tangent_fraction(vectors, basis), expected, 1e-13)


def test_projection_is_that_of_scipys_orth(setting):
    decoder, latents, basis, vectors = setting
    for i, matrix in enumerate(ml.decoder_jacobian(decoder, latents).numpy()):
        oracle = scipy.linalg.orth(matrix)
        expected = oracle @ (oracle.T @ vectors[i].numpy().ravel())
        close(ml.project(vectors, basis)[i].flatten(), torch.from_numpy(expected), 1e-12)


@pytest.mark.parametrize("factor", [1e-3, -7.0, 1e6])
def test_the_fraction_does_not_depend_on_scale_or_sign(setting, factor):
    *_, basis, vectors = setting
    close(ml.tangent_fraction(factor * vectors, basis), ml.tangent_fraction(vectors, basis), 1e-13)


@pytest.mark.parametrize("factor", [1e-30, 1e-22, 1e30])
def test_the_fraction_survives_squares_that_leave_float32(setting, factor):
    *_, basis, vectors = setting
    basis, vectors = basis.float(), vectors.float()
    with no_warning():
        found = ml.tangent_fraction(factor * vectors, basis)
    close(found, ml.tangent_fraction(vectors, basis), 1e-4)


def test_the_fraction_does_not_depend_on_an_orthogonal_map_of_input_space():
    decoder, latents, vectors = smooth_decoder(3, (16,)), draw(5, 3, seed=1), draw(5, 16, seed=2)
    turn = orthogonal(16, 16, seed=3)
    expected = ml.tangent_fraction(vectors, ml.tangent_basis(decoder, latents))
    turned = ml.tangent_basis(lambda z: decoder(z) @ turn.T, latents)
    close(ml.tangent_fraction(vectors @ turn.T, turned), expected, 1e-12)


def test_a_tangent_vector_has_fraction_one_and_an_orthogonal_one_zero():
    """T3."""
    decoder, latents = smooth_decoder(), draw(5, 3, seed=1)
    jacobian, basis = ml.decoder_jacobian(decoder, latents), ml.tangent_basis(decoder, latents)
    inside = (jacobian @ draw(5, 3, 1, seed=2)).view(5, 1, 4, 4)
    close(ml.tangent_fraction(inside, basis), torch.ones(5, dtype=torch.float64), 1e-13)
    vectors = draw(5, 1, 4, 4, seed=3)
    outside = vectors - ml.project(vectors, basis)
    assert ml.tangent_fraction(outside, basis).max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fraction_is_never_above_one_by_more_than_rounding(dtype):
    basis = ml.tangent_basis(linear_decoder(draw(8, 8, dtype=dtype)), draw(200, 8, seed=1, dtype=dtype))
    fraction = ml.tangent_fraction(draw(200, 8, seed=2, dtype=dtype), basis)
    assert (fraction >= 0).all() and (fraction <= 1 + 1e-5).all()


def test_an_attribution_of_zeros_has_fraction_nan_with_one_warning(setting):
    *_, basis, vectors = setting
    expected = ml.tangent_fraction(vectors, basis)
    vectors[[1, 3]] = 0
    with one_warning():
        found = ml.tangent_fraction(vectors, basis)
    assert found.isnan().tolist() == [False, True, False, True, False]
    assert torch.equal(found[[0, 2, 4]], expected[[0, 2, 4]])


def test_the_shares_of_the_pixels_sum_to_the_rank(setting):
    """T5, and the share is the squared fraction of a unit vector."""
    *_, basis, _ = setting
    share = ml.tangent_share(basis)
    assert share.shape == (5, 16) and (share >= 0).all() and (share <= 1 + 1e-12).all()
    close(share.sum(1), torch.full((5,), 3.0, dtype=torch.float64), 1e-13)
    for pixel in (0, 7):
        unit = torch.zeros(5, 16, dtype=torch.float64)
        unit[:, pixel] = 1
        close(ml.tangent_fraction(unit.view(5, 1, 4, 4), basis) ** 2, share[:, pixel], 1e-12)


def test_the_shares_sum_to_the_true_rank_of_a_deficient_decoder():
    matrix = draw(12, 4)
    matrix[:, 3] = matrix[:, 0]
    share = ml.tangent_share(ml.tangent_basis(linear_decoder(matrix), draw(2, 4)))
    close(share.sum(1), torch.full((2,), 3.0, dtype=torch.float64), 1e-13)


@pytest.mark.parametrize(
    ("k", "d", "mean", "sd"),
    [
        (10, 1024, 0.09641, 0.02170),
        (10, 65_536, 0.01205, 0.00273),
        (8, 65_536, 0.01071, 0.00272),
        (7168, 172_032, 0.20412, 0.00167),
        (6272, 150_528, 0.20412, 0.00178),
    ],
)
def test_random_fraction_equals_the_table_of_the_paper_spec(k, d, mean, sd):
    found = ml.random_fraction(k, d)
    assert found[0] == pytest.approx(mean, abs=6e-6)
    assert found[1] == pytest.approx(sd, abs=6e-6)


@pytest.mark.parametrize(("k", "d"), [(1, 2), (1, 1), (3, 3), (2, 5), (10, 1024), (999, 1000), (7168, 172_032)])
def test_random_fraction_equals_fifty_digits(k, d):
    import mpmath

    with mpmath.workdps(50):
        half = mpmath.mpf(1) / 2
        mean = mpmath.exp(
            mpmath.loggamma(half * (k + 1))
            + mpmath.loggamma(half * d)
            - mpmath.loggamma(half * k)
            - mpmath.loggamma(half * (d + 1))
        )
        sd = mpmath.sqrt(abs(mpmath.mpf(k) / d - mean**2))
    found = ml.random_fraction(k, d)
    assert found[0] == pytest.approx(float(mean), rel=1e-9)
    assert found[1] == pytest.approx(float(sd), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize(("k", "d"), [(3, 16), (10, 64), (1, 5)])
def test_gaussian_attributions_follow_the_law_of_chance(k, d):
    basis = ml.tangent_basis(linear_decoder(draw(d, k)), draw(1, k)).expand(6000, d, k)
    fraction = ml.tangent_fraction(draw(6000, d, seed=7), basis)
    mean, sd = ml.random_fraction(k, d)
    assert abs(float(fraction.mean()) - mean) < 4 * sd / math.sqrt(6000)
    assert float(fraction.std()) == pytest.approx(sd, rel=0.05)
    law = scipy.stats.beta(k / 2, (d - k) / 2)
    assert scipy.stats.kstest((fraction**2).numpy(), law.cdf).pvalue > 1e-3


def test_random_fraction_is_below_the_square_root_of_the_mean_square():
    for k, d in [(1, 10), (10, 1024), (100, 200)]:
        mean, sd = ml.random_fraction(k, d)
        assert mean < math.sqrt(k / d)
        assert mean**2 + sd**2 == pytest.approx(k / d, rel=1e-9)


@pytest.mark.parametrize("weight", [0.0, 1.0, 100.0])
def test_twins_with_equal_predictions_on_the_manifold_have_the_fractions_of_the_closed_form(weight):
    embed, normal = draw(8, 3), draw(8, seed=1)
    inside = embed @ torch.linalg.inv(embed.T @ embed) @ embed.T
    outside = torch.eye(8, dtype=torch.float64) - inside
    mixing = draw(8, seed=2)

    def model(x):
        return torch.tanh(x @ mixing) + (x**2).sum(1)

    def projected(x):
        return model(x @ inside)

    def penalised(x):
        return model(x) + weight * (x @ outside) @ normal

    latents = draw(6, 3, seed=3)
    points = latents @ embed.T
    basis = ml.tangent_basis(linear_decoder(embed), latents)
    close(projected(points), model(points), 1e-12)
    close(penalised(points), model(points), 1e-12)
    close(ml.tangent_fraction(ml.gradient(projected, points), basis), torch.ones(6, dtype=torch.float64), 1e-12)
    gradient = ml.gradient(model, points)
    tangent = (gradient @ inside).norm(dim=1)
    rest = ((gradient + weight * normal) @ outside).norm(dim=1)
    expected = tangent / (tangent**2 + rest**2).sqrt()
    close(ml.tangent_fraction(ml.gradient(penalised, points), basis), expected, 1e-12)


def test_on_a_sphere_the_radial_direction_is_normal_and_every_other_tangent():
    def sphere(angles):
        first, second = angles.unbind(1)
        return torch.stack([first.sin() * second.cos(), first.sin() * second.sin(), first.cos()], 1)

    angles = draw(6, 2, seed=1)
    basis, points = ml.tangent_basis(sphere, angles), sphere(angles)
    assert ml.tangent_fraction(points, basis).max() < 1e-12
    close(projector(basis), torch.eye(3, dtype=torch.float64) - points[:, :, None] * points[:, None], 1e-11)


def deficient(kind, dtype):
    decoder = smooth_decoder(4, (1, 4, 4), dtype=dtype)
    if kind == "full":
        return decoder
    keep = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=dtype)
    if kind == "dead":
        return lambda z: decoder(z.flatten(1) * keep)
    return lambda z: decoder(torch.stack([z[:, 0] + z[:, 1], z[:, 2], z[:, 3], z[:, 0] + z[:, 1]], 1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
@pytest.mark.parametrize("kind", ["full", "dead", "dependent"])
def test_matrix_free_projection_equals_the_dense_one(kind, dtype, tolerance):
    decoder, latents = deficient(kind, dtype), draw(5, 4, seed=1, dtype=dtype)
    vectors = draw(5, 1, 4, 4, seed=2, dtype=dtype)
    expected = ml.project(vectors, ml.tangent_basis(decoder, latents))
    found = ml.project_matrix_free(vectors, decoder, latents)
    assert found.dtype == dtype and found.shape == vectors.shape and not found.requires_grad
    close(found, expected, tolerance)


@pytest.mark.parametrize(
    ("dtype", "decades", "tolerance"),
    [(torch.float32, 2, 1e-3), (torch.float64, 2, 1e-6), (torch.float64, 4, 1e-6), (torch.float64, 5, 1e-6)],
)
def test_matrix_free_projection_reaches_every_singular_value_that_the_basis_keeps(dtype, decades, tolerance):
    decoder, left = planted(torch.logspace(0, -decades, 20, dtype=torch.float64).tolist(), d=60, dtype=dtype)
    latents, vectors = draw(4, 20, dtype=dtype), draw(4, 60, seed=2, dtype=dtype)
    assert ranks(ml.tangent_basis(decoder, latents)) == [20] * 4
    expected = (vectors.double() @ left @ left.T).to(dtype)
    close(ml.project_matrix_free(vectors, decoder, latents), expected, tolerance)


def test_matrix_free_projection_is_as_exact_where_little_of_the_vector_is_tangent():
    decoder, left = planted(torch.linspace(1, 4, 40, dtype=torch.float64).tolist(), d=2000)
    vectors = draw(4, 2000, seed=2)
    close(ml.project_matrix_free(vectors, decoder, draw(4, 40)), vectors @ left @ left.T, 1e-6)


def test_matrix_free_projection_with_latents_of_any_shape_and_more_latents_than_pixels():
    decoder = smooth_decoder(8, (1, 4, 4))
    latents, vectors = draw(3, 2, 2, 2, seed=1), draw(3, 1, 4, 4, seed=2)
    expected = ml.project(vectors, ml.tangent_basis(decoder, latents))
    close(ml.project_matrix_free(vectors, decoder, latents), expected, 1e-6)
    wide = linear_decoder(draw(5, 9))
    vectors = draw(3, 5, seed=3)
    close(ml.project_matrix_free(vectors, wide, draw(3, 9)), vectors, 1e-6)


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_matrix_free_projection_does_not_depend_on_scale(factor):
    decoder, latents, vectors = smooth_decoder(), draw(4, 3, seed=1), draw(4, 1, 4, 4, seed=2)
    expected = ml.project_matrix_free(vectors, decoder, latents)
    close(ml.project_matrix_free(factor * vectors, decoder, latents), factor * expected, 1e-9)
    scaled = ml.project_matrix_free(vectors, lambda z: factor * decoder(z), latents)
    close(scaled, expected, 1e-6)


def test_matrix_free_projection_of_special_vectors():
    decoder, latents = smooth_decoder(), draw(3, 3, seed=1)
    basis = ml.tangent_basis(decoder, latents)
    inside = ml.project(draw(3, 1, 4, 4, seed=2), basis)
    outside = draw(3, 1, 4, 4, seed=3) - ml.project(draw(3, 1, 4, 4, seed=3), basis)
    vectors = torch.stack([inside[0], outside[1], torch.zeros(1, 4, 4, dtype=torch.float64)])
    found = ml.project_matrix_free(vectors, decoder, latents)
    close(found[0], inside[0], 1e-6)
    assert found[1].abs().max() < 1e-6 * outside[1].abs().max() and (found[2] == 0).all()


def test_matrix_free_projection_of_an_image_does_not_depend_on_the_others():
    decoder, latents, vectors = smooth_decoder(), draw(4, 3, seed=1), draw(4, 1, 4, 4, seed=2)
    vectors[1] *= 1e6
    whole = ml.project_matrix_free(vectors, decoder, latents)
    for i in range(4):
        alone = ml.project_matrix_free(vectors[i : i + 1], decoder, latents[i : i + 1])
        close(alone[0], whole[i], 1e-6)


class LargestTensor(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


def test_matrix_free_projection_never_stores_the_jacobian():
    batch, k, d = 6, 40, 2000
    scale = 1 + draw(d, seed=1).abs()

    def decoder(latents):  # full rank k, without a weight matrix of d × k
        padded = F.pad(latents, (0, d - k))
        return scale * (padded + 0.3 * padded.roll(k, 1)) + torch.sin(padded.roll(2 * k, 1))

    latents, vectors = draw(batch, k, seed=3), draw(batch, d, seed=4)
    with LargestTensor() as free:
        found = ml.project_matrix_free(vectors, decoder, latents)
    with LargestTensor() as dense:
        basis = ml.tangent_basis(decoder, latents)
    close(found, ml.project(vectors, basis), 1e-4)
    assert dense.entries >= batch * k * d
    assert free.entries <= 4 * batch * (k + d)


def test_the_projection_is_the_best_approximation():
    decoder, latents, vectors = smooth_decoder(), draw(5, 3, seed=1), draw(5, 1, 4, 4, seed=2)
    jacobian = ml.decoder_jacobian(decoder, latents)
    inside = ml.project(vectors, ml.tangent_basis(decoder, latents))
    for i in range(5):
        solution = np.linalg.lstsq(jacobian[i].numpy(), vectors[i].numpy().ravel(), rcond=None)[0]
        close(inside[i].flatten(), jacobian[i] @ torch.from_numpy(solution), 1e-11)
