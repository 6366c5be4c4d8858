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
