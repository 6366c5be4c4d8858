"""Files of every kind: what is seen in them is what comes out, in [0, 1]."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from manifold_lib.core.files import CorruptFile
from manifold_lib.data import images
from manifold_lib.data.images import read_image

# red on the left, green at the upper right, black below it
PICTURE = np.zeros((40, 60, 3), np.uint8)
PICTURE[:, :30, 0] = 255
PICTURE[:20, 30:, 1] = 255
EXPECTED = torch.from_numpy(PICTURE).permute(2, 0, 1) / 255
ORIENTATIONS = {
    **{1: lambda x: x, 2: lambda x: x.flip(2), 3: lambda x: x.flip(1, 2), 4: lambda x: x.flip(1)},
    **{
        5: lambda x: x.mT,
        6: lambda x: x.rot90(-1, (1, 2)),
        7: lambda x: x.flip(1, 2).mT,
        8: lambda x: x.rot90(1, (1, 2)),
    },
}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("mode", "name", "error"),
    [
        *(("RGB", name, 0) for name in ("a.png", "a.bmp", "a.tif", "a.ppm")),
        *(("P", name, 0) for name in ("a.png", "a.gif")),
        *(("CMYK", "a.tif", 0), ("YCbCr", "a.tif", 0.01), ("LAB", "a.tif", 0.05)),
        *(("RGB", "a.jpg", 0.1), ("RGB", "a.webp", 0.1), ("CMYK", "a.jpg", 0.1)),
    ],
)
def test_colours_are_kept_in_every_mode(tmp_path, mode, name, error):
    more = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / name, **more)
    image = read_image(tmp_path / name)
    assert image.dtype == torch.float32 and image.shape == (3, 40, 60) and image.min() >= 0 and image.max() <= 1
    assert (image - EXPECTED).abs().mean() <= error
    square = read_image(tmp_path / name, 40)
    assert (square - EXPECTED[:, :, 10:50]).abs().mean() <= error + 1e-6


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "I", "F"])
def test_grey_is_three_times_the_same_at_its_own_depth(tmp_path, mode):
    ramp = np.linspace(0, 1, 2400).reshape(40, 60)
    values = {
        "I;16": (65535 * ramp).astype(np.uint16),
        "I": (65535 * ramp).astype(np.int32),
        "F": ramp.astype("float32"),
    }
    grey = values.get(mode)
    image = Image.fromarray((255 * ramp).astype(np.uint8)).convert(mode) if grey is None else Image.fromarray(grey)
    image.save(tmp_path / "a.tif")
    found = read_image(tmp_path / "a.tif")
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (found[0] - torch.from_numpy(ramp)).abs().max() <= (1 / 255 if grey is None else 2e-5)


def test_sixteen_bits_of_a_png_are_not_cut_to_eight(tmp_path):
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 4).mean().item() == pytest.approx(300 / 65535, rel=1e-4)


@pytest.mark.parametrize(
    ("top", "whole"), [(1.0, 1.0), (1.02, 1.0), (255.0, 255.0), (257.0, 255.0), (4000.0, 65535.0), (1e6, 1e6)]
)
def test_the_largest_tells_what_floats_mean(tmp_path, top, whole):
    Image.fromarray(np.array([[0, top, top / 2, np.nan, -top, np.inf]], np.float32)).save(tmp_path / "a.tif")
    expected = [0, min(top / whole, 1), top / 2 / whole, 0, 0, 0]
    assert read_image(tmp_path / "a.tif")[0, 0].tolist() == pytest.approx(expected)


def test_integers_of_eight_bits_are_not_black(tmp_path):
    Image.fromarray(np.array([[0, 51, 255]], np.int32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, 0].tolist() == pytest.approx([0, 0.2, 1])


def test_what_is_transparent_is_white(tmp_path):
    alpha = np.full((40, 60, 1), 255, np.uint8)
    alpha[:, 30:] = 0
    Image.fromarray(np.concatenate([PICTURE, alpha], 2)).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert torch.equal(image[:, :, :30], EXPECTED[:, :, :30].float()) and (image[:, :, 30:] == 1).all()
    Image.fromarray(PICTURE).convert("P").save(
        tmp_path / "b.png", transparency=Image.fromarray(PICTURE).convert("P").getpixel((0, 0))
    )
    assert (read_image(tmp_path / "b.png")[:, :, :30] == 1).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_the_camera_was_turned(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(tmp_path / name, exif=exif, **({"quality": 100} if name == "a.jpg" else {}))
    turned = ORIENTATIONS[orientation](EXPECTED)
    image = read_image(tmp_path / name)
    assert image.shape == turned.shape and (image - turned).abs().mean() < 0.02
    top, left = ((length - 40) // 2 for length in turned.shape[1:])
    square = turned[:, top : top + 40, left : left + 40]
    assert (read_image(tmp_path / name, 40) - square).abs().mean() < 0.03


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_large_jpeg_of_a_turned_camera_is_read_reduced(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = np.repeat(np.repeat(PICTURE, 10, 0), 10, 1)
    Image.fromarray(large).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    turned = ORIENTATIONS[orientation](EXPECTED)
    top, left = ((length - 40) // 2 for length in turned.shape[1:])
    found = read_image(tmp_path / "a.jpg", 40)
    assert (found - turned[:, top : top + 40, left : left + 40]).abs().mean() < 0.03


def test_a_file_that_claims_more_pixels_than_can_be_is_refused(tmp_path, monkeypatch):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MOST_PIXELS", 2399)
    with pytest.raises(CorruptFile, match=r"a.png: .* 60 × 40 are more than 2,399 pixels"):
        read_image(tmp_path / "a.png")


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 20))
def test_a_constant_image_of_any_size_stays_constant(tmp_path_factory, height, width, size):
    file = tmp_path_factory.mktemp("tiny") / "a.png"
    Image.new("RGB", (width, height), (51, 102, 204)).save(file)
    image = read_image(file, size)
    assert image.shape == (3, size, size)
    torch.testing.assert_close(image, torch.tensor([0.2, 0.4, 0.8]).view(3, 1, 1).expand_as(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_huge_image_is_reduced_not_sampled(tmp_path, name, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # of twice as many Pillow opens none by itself
    stripes = np.zeros((3000, 3000), np.uint8)
    stripes[::2] = 200
    Image.fromarray(stripes).save(tmp_path / name)
    image = read_image(tmp_path / name, 64)
    assert image.shape == (3, 64, 64) and (image - 100 / 255).abs().max() < 0.02
    assert Image.MAX_IMAGE_PIXELS == 100_000  # as it was found


def test_of_a_long_and_thin_image_the_middle_counts(tmp_path):
    Image.new("RGB", (60_000, 1), (255, 0, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", 224)[0].min() > 0.999


def test_what_is_no_image_is_named(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    damaged = content[:60] + bytes(len(content) - 60)
    Image.fromarray(PICTURE).save(tmp_path / "whole.jpg")
    photo = (tmp_path / "whole.jpg").read_bytes()
    bad_files = {"text.jpg": b"hello", "empty.png": b"", "half.png": content[:80], "zeros.png": damaged}
    for name, bad in (bad_files | {"half.jpg": photo[: len(photo) // 2]}).items():
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(CorruptFile, match=f"{name}: not an image that can be read"):
            read_image(tmp_path / name)
    with pytest.raises(CorruptFile, match="not an image that can be read"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing.jpg"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(ValueError, match="size"):
        read_image(tmp_path / "whole.png", 0)
