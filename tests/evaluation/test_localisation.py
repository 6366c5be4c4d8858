"""Relevance within a mask, by hand."""

import pytest
import torch

import manifold_lib as ml


def halves():
    mask = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    return mask


def test_relevance_within_a_mask_by_hand():
    maps = torch.zeros(2, 3, 4, 4)
    maps[0, 0, 0, 0], maps[0, 2, 0, 0], maps[0, 1, 3, 3] = -3, 1, 2  # 4 inside, of 6
    maps[1] = 1
    torch.testing.assert_close(ml.relevance_mass(maps, halves()), torch.tensor([4 / 6, 0.5]))
    # of the eight most relevant pixels: (0, 0), (3, 3), then ties in the order of the pixels
    order = torch.arange(16.0).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    torch.testing.assert_close(ml.relevance_rank(order, halves()), torch.tensor([0.5, 0.5]))
    exact = halves().float().expand(2, 3, 4, 4)
    assert ml.relevance_rank(exact, halves()).tolist() == [1, 1] == ml.relevance_mass(exact, halves()).tolist()
    assert ml.relevance_rank(1 - exact, halves()).tolist() == [0, 0]


@pytest.mark.parametrize("measure", [ml.relevance_mass, ml.relevance_rank])
def test_masks_that_do_not_fit_are_refused_and_empty_maps_are_nan(measure):
    maps = torch.ones(2, 1, 4, 4)
    for mask in (halves()[:1], halves().float(), halves()[:, 0], ~halves() & halves(), None):
        with pytest.raises(ValueError, match="mask"):
            measure(maps, mask)
    maps[0] = 0
    with pytest.warns(RuntimeWarning, match=measure.__name__):
        found = measure(maps, halves())
    assert found[0].isnan() and found[1] > 0
