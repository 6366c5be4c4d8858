import numpy as np
import pytest
import torch
from helpers import close, draw, smooth_model
from scipy import ndimage

import manifold_lib as ml
from manifold_lib.attribution.blur import blur_ig, blur_path, gaussian_filter


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
    for sigma in (torch.ones(3), torch.tensor([1.0, -1.0]), torch.tensor([1.0, torch.nan])):
        with pytest.raises(ValueError, match="sigma"):
            gaussian_filter(draw(2, 1, 3, 3), sigma)


def test_the_path_goes_from_the_blurred_image_to_the_image():
    images, rows = draw(3, 1, 4, 4), torch.arange(3)
    path = blur_path(images, sigma=2.0)
    wide = gaussian_filter(images, torch.full((3,), 2.0, dtype=torch.float64))
    close(path.at(rows, torch.zeros(3, dtype=torch.float64)), wide, 1e-12)
    assert torch.equal(path.at(rows, torch.ones(3, dtype=torch.float64)), images)


@pytest.mark.parametrize("method", ["trapezoid", "gausslegendre"])
def test_blur_ig_sums_to_the_change_of_the_score(method):
    model, images = smooth_model(), draw(3, 1, 4, 4)
    blurred = gaussian_filter(images, torch.full((3,), 3.0, dtype=torch.float64))
    found = blur_ig(model, images, 1, sigma=3.0, method=method, n_steps=400)
    close(found.flatten(1).sum(1), (model(images) - model(blurred))[:, 1].detach(), 1e-4)
    alone = torch.cat([blur_ig(model, one, 1, sigma=3.0, method=method, n_steps=400) for one in images.split(1)])
    close(found, alone, 1e-12)


def test_of_an_affine_score_it_is_the_weight_times_what_the_filter_took():
    weights, images = draw(16, seed=1), draw(2, 1, 4, 4)
    blurred = gaussian_filter(images, torch.full((2,), 3.0, dtype=torch.float64))
    found = blur_ig(lambda x: x.flatten(1) @ weights, images, sigma=3.0)
    close(found, (images - blurred) * weights.view(1, 4, 4), 1e-12)


def test_a_flat_image_has_nothing_to_attribute_and_bad_input_is_named():
    assert not blur_ig(smooth_model(), torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64), 0).abs().gt(1e-12).any()
    for sigma in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="sigma"):
            blur_ig(smooth_model(), draw(1, 1, 4, 4), 0, sigma=sigma)
    with pytest.raises(ValueError, match="inputs"):
        blur_ig(lambda x: x, draw(2, 5), 0)
    info = blur_ig(smooth_model(), draw(1, 1, 4, 4), 0, tolerance=1e-3, return_info=True)[1]
    assert isinstance(info, ml.Info) and info.converged.all()
