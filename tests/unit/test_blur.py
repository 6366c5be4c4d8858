import numpy as np
import pytest
import torch
from helpers import draw
from scipy import ndimage

from manifold_lib.blur import gaussian_filter


def test_each_image_has_its_own_width_and_the_filter_is_scipys():
    images, widths = draw(3, 2, 12, 9), torch.tensor([0.0, 1.3, 4.0], dtype=torch.float64)
    found = gaussian_filter(images, widths)
    assert torch.equal(found[0], images[0])
    for image, width, blurred in zip(images[1:], widths[1:], found[1:], strict=True):
        expected = [ndimage.gaussian_filter(x.numpy(), width.item(), mode="mirror", truncate=12) for x in image]
        np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-7)


def test_a_flat_image_stays_and_a_wide_filter_gives_something_flat():
    flat = torch.full((2, 1, 6, 5), 0.7, dtype=torch.float64)
    torch.testing.assert_close(gaussian_filter(flat, torch.tensor([0.5, 5.0], dtype=torch.float64)), flat)
    wide = gaussian_filter(draw(1, 1, 6, 6), torch.tensor([8.0], dtype=torch.float64))
    assert wide.std() < 1e-3


def test_one_pixel_and_both_derivatives():
    assert gaussian_filter(torch.ones(1, 1, 1, 1), torch.ones(1)).item() == 1
    images, widths = draw(2, 1, 4, 3).requires_grad_(), torch.tensor([0.8, 2.0], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(gaussian_filter, (images, widths))


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="inputs"):
        gaussian_filter(draw(2, 5), torch.ones(2))
