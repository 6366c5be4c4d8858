"""One image file of any kind as a tensor: its orientation, transparency, colours and depth are taken care of."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_count
from ..core.files import CorruptFile

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 500_000_000  # a damaged file may claim any size
_LOCK = threading.Lock()


def read_image(file: str | Path, size: int | None = None) -> Tensor:
    """A photograph as (3, H, W) in [0, 1], as it is to be seen; with ``size`` the square in its middle.

    The camera's orientation (EXIF) is applied, transparent parts are on white, grey and CMYK become RGB, grey of 16
    bits and of floats keeps its depth, and of an animation the first frame counts. Colour profiles are left out.

    Parameters
    ----------
    file : str or Path
        A file of any format that Pillow reads.
    size : int, optional
        Side of the square in pixels; the default keeps the whole image. The square is cut before it is resized, so
        that long and thin images need no memory, and huge ones are read at a lower resolution where the format can.

    Returns
    -------
    Tensor
        float32, (3, H, W), or (3, size, size).

    Raises
    ------
    FileNotFoundError, PermissionError
        There is no such file, or it may not be read.
    CorruptFile
        The file is not an image, is damaged, or has more than 500 million pixels.

    Examples
    --------
    >>> read_image("photo.jpg", 224).shape  # doctest: +SKIP
    torch.Size([3, 224, 224])
    """
    from PIL import Image, ImageOps

    if size is not None:
        check_count(size, "size")
    try:
        with _LOCK, _any_size():
            image = Image.open(file)
        with image:
            if size is not None:
                image.draft(None, (2 * size, 2 * size))  # of JPEG: a half, a quarter or an eighth of the resolution
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} × {image.height} are more than {MOST_PIXELS:,} pixels")
            upright = ImageOps.exif_transpose(image)
            if size is None:
                return _tensor(upright)
            side = min(upright.size)
            left, top = ((length - side) // 2 for length in upright.size)
            square = _tensor(upright.crop((left, top, left + side, top + side)), 2 * size)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # the decoders of some formats raise anything on a damaged file
        raise CorruptFile(f"{file}: not an image that can be read: {error}") from error
    return F.interpolate(square[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0].clamp(0, 1)


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Pillow refuses images of more than 179 million pixels, which a panorama has."""
    from PIL import Image

    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _tensor(image: "Image.Image", least: int | None = None) -> Tensor:
    """(3, H, W) in [0, 1] of an image of any mode; a larger one is reduced, to sides of at least ``least``."""
    from PIL import Image

    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float32)
        values = np.where(np.isfinite(values), values, 0)
        # their largest tells whether numbers without a range are fractions, 8 or 16 bits; a little more is rounding
        wholes = (65535.0,) if image.mode.startswith("I;16") else (1.0, 255.0, 65535.0)
        largest = float(values.max())
        grey = torch.from_numpy(values / next((whole for whole in wholes if largest <= 1.1 * whole), largest))
        return grey.clamp(0, 1).expand(3, *grey.shape).contiguous()
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if least is not None and min(image.size) >= 2 * least:
        image = image.reduce(min(image.size) // least)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
