"""Measures of maps: closed forms, SciPy and scikit-image as oracles, what they do not depend on."""

import pytest
import torch

import manifold_lib as ml


def test_total_variation_of_a_step_and_of_a_constant():
    step = torch.zeros(1, 1, 4, 4)
    step[..., 2:] = 1  # eight ones: norm √8, four unit jumps
    assert ml.total_variation(step).item() == pytest.approx(4 / 8**0.5 / 16)
    assert ml.total_variation(torch.ones(2, 1, 4, 4)).tolist() == [0, 0]


def test_total_variation_does_not_depend_on_scale_or_sign_and_ranks_noise_above_a_ramp():
    noise = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ml.total_variation(noise), ml.total_variation(-7 * noise))
    ramp = torch.linspace(-1, 1, 16).expand(3, 1, 16, 16)
    assert (ml.total_variation(noise) > 5 * ml.total_variation(ramp)).all()


def test_total_variation_of_an_empty_map_is_nan_with_one_warning():
    maps = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    with pytest.warns(RuntimeWarning, match="total_variation: 1 of 2"):
        values = ml.total_variation(maps)
    assert values[0].isnan() and values[1] == 0


MEASURES = {
    "pearson": ml.pearson,
    "spearman": ml.spearman,
    "map_mse": ml.map_mse,
    "top_k": ml.top_k,
    "ssim": ml.ssim,
}


SAME = {"pearson": 1, "spearman": 1, "map_mse": 0, "top_k": 1, "ssim": 1}


def maps(n=3, channels=1, size=16, seed=0):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_relevance_sums_channels_and_is_scaled_to_one():
    some = maps(channels=3)
    found = ml.relevance(some)
    assert found.shape == (3, 16, 16)
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found, some.abs().sum(1) / some.abs().sum((1, 2, 3)).view(3, 1, 1))
    assert ml.relevance(some.flatten(1)).shape == (3, 768)


@pytest.mark.parametrize("name", MEASURES)
def test_a_map_is_like_itself_whatever_its_scale_and_sign(name):
    some = maps()
    found = MEASURES[name](some, -3 * some)
    torch.testing.assert_close(found, torch.full((3,), float(SAME[name]), dtype=torch.float64))


@pytest.mark.parametrize("name", MEASURES)
def test_similarity_is_symmetric_and_per_image(name):
    a, b = maps(), maps(seed=1)
    whole = MEASURES[name](a, b)
    torch.testing.assert_close(whole, MEASURES[name](b, a))
    torch.testing.assert_close(whole, torch.cat([MEASURES[name](a[i : i + 1], b[i : i + 1]) for i in range(3)]))
    if name != "map_mse":
        assert (whole < 0.9).all()


def test_correlations_equal_scipys_ties_included():
    from scipy import stats

    a, b = maps().mul(2).round(), maps(seed=1).mul(2).round()
    x, y = (ml.relevance(part).flatten(1).numpy() for part in (a, b))
    for i in range(3):
        assert ml.pearson(a, b)[i].item() == pytest.approx(stats.pearsonr(x[i], y[i])[0], abs=1e-12)
        assert ml.spearman(a, b)[i].item() == pytest.approx(stats.spearmanr(x[i], y[i])[0], abs=1e-12)


def test_mse_and_top_k_by_hand():
    a = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])
    b = torch.tensor([[[[4.0, -1.0], [3.0, 2.0]]]])
    assert ml.map_mse(a, b).item() == pytest.approx((0 + 4 + 1 + 1) / 100 / 4)
    assert ml.top_k(a, b, share=0.5).item() == pytest.approx(0.5)
    assert ml.top_k(a, b, share=0.01).item() == 1  # one pixel at least


def test_ssim_tells_maps_apart_though_their_entries_are_tiny():
    a, b = maps(size=32), maps(size=32, seed=1)
    assert ml.ssim(a, b).max() < 0.5  # of sum-normalised maps with range 1 it would be 1
    blurred = torch.nn.functional.avg_pool2d(a.abs(), 3, 1, 1)
    assert (ml.ssim(a, blurred) > ml.ssim(a, b)).all()
    with pytest.raises(ValueError, match="maps: got shape"):
        ml.ssim(maps(size=10), maps(size=10))


@pytest.mark.parametrize("name", MEASURES)
def test_a_map_of_zeros_is_nan_with_one_warning(name):
    a, b = maps(), maps(seed=1)
    b[1] = 0
    with pytest.warns(RuntimeWarning, match=f"{name}: 1 of 3"):
        found = MEASURES[name](a, b)
    assert found.isnan().tolist() == [False, True, False]


def test_constant_maps_are_alike_and_their_correlation_is_not_defined():
    flat = torch.ones(2, 1, 12, 12)
    other = torch.stack([flat[0], torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))])
    assert ml.ssim(flat, 3 * flat).tolist() == [1.0, 1.0]
    for measure in (ml.pearson, ml.spearman):
        with pytest.warns(RuntimeWarning, match=f"{measure.__name__}: 2 of 2 pairs hold a constant map"):
            assert measure(flat, other).isnan().all()


def test_ssim_is_scikit_images_of_the_scaled_maps():
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    maps, others = torch.rand(2, 1, 1, 16, 16, generator=generator, dtype=torch.float64)
    maps[0, 0, 3:6] = others[0, 0, 3:6]
    scaled = [(part / part.flatten().quantile(0.99)).clamp_max(1)[0, 0].numpy() for part in (maps, others)]
    span = max(part.max() for part in scaled) - min(part.min() for part in scaled)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(*scaled, data_range=span, **options)
    assert ml.ssim(maps, others).item() == pytest.approx(expected, abs=1e-12)


def test_a_share_counts_whole_pixels_that_rounding_hides():
    """0.29 · 100 is 28.999… in floating point: the 29 strongest, of which 28 are shared here."""
    first = torch.arange(100.0).view(1, 100) + 1
    second = first.clone()
    second[0, 71], second[0, 0] = 0.5, 1000.0
    assert torch.allclose(ml.top_k(first, second, share=0.29), torch.tensor(28 / 29))
