"""TAEF2, a small autoencoder of photographs whose latents are those of FLUX.2 (madebyollin/taesd, MIT licence).

The published weights are two state dicts of plain sequences; the modules here have the names that these expect.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..core import files
from ..core.files import DataNotFound

_WIDTH = 64
SHA256 = {
    "taef2_encoder.pth": "10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6",
    "taef2_decoder.pth": "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5",
}


class TAEF2(nn.Module):
    """A ``vae`` for images (B, 3, H, W) in [0, 1], H and W multiples of 8, without noise and without a prior.

    Latents are (B, 32, H/8, W/8), of standard deviation 0.85. With random weights until :func:`load_taef2`.

    >>> TAEF2().encode(torch.rand(1, 3, 32, 48)).shape
    torch.Size([1, 32, 4, 6])
    """

    def __init__(self) -> None:
        super().__init__()
        near = [_Block(pool=True) for _ in range(6)]  # the blocks next to the latents also see the whole image
        self.encoder = nn.Sequential(
            *(_conv(3, _WIDTH), _Block()),
            *(_conv(_WIDTH, _WIDTH, stride=2, bias=False), *_blocks(3)),
            *(_conv(_WIDTH, _WIDTH, stride=2, bias=False), *_blocks(3)),
            *(_conv(_WIDTH, _WIDTH, stride=2, bias=False), *near[:3], _conv(_WIDTH, 32)),
        )
        self.decoder = nn.Sequential(
            *(_Bounded(), _conv(32, _WIDTH), nn.ReLU(), *near[3:]),
            *(nn.Upsample(scale_factor=2), _conv(_WIDTH, _WIDTH, bias=False), *_blocks(3)),
            *(nn.Upsample(scale_factor=2), _conv(_WIDTH, _WIDTH, bias=False), *_blocks(3)),
            *(nn.Upsample(scale_factor=2), _conv(_WIDTH, _WIDTH, bias=False), _Block(), _conv(_WIDTH, 3)),
        )

    def encode(self, inputs: Tensor) -> Tensor:
        """Latents, (B, 3, H, W) -> (B, 32, H/8, W/8)."""
        return self.encoder(inputs)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, nearly in [0, 1] since not clamped, (B, 32, h, w) -> (B, 3, 8 h, 8 w)."""
        return self.decoder(latents)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.decode(self.encode(inputs))


def load_taef2(folder: str | Path) -> TAEF2:
    """TAEF2 with its published weights, in eval mode, its parameters frozen.

    Parameters
    ----------
    folder : str or Path
        Holds ``taef2_encoder.pth`` and ``taef2_decoder.pth`` of github.com/madebyollin/taesd.

    Returns
    -------
    TAEF2
        An object with ``encode`` and ``decode``.

    Raises
    ------
    DataNotFound
        One of the two files is missing.
    CorruptFile
        A file is not the published one, by its SHA-256; it is not opened then.

    Examples
    --------
    >>> vae = load_taef2("weights")  # doctest: +SKIP
    """
    model = TAEF2()
    for name, expected in SHA256.items():
        file = Path(folder) / name
        if not file.is_file():
            raise DataNotFound(
                f"TAEF2: looked for {name} in {folder}. Provide it in one of two ways: download both files from "
                "github.com/madebyollin/taesd, or name another folder that holds them."
            )
        if (found := files.file_hash(file)) != expected:
            raise files.CorruptFile(f"{file}: sha256 is {found[:16]}…, expected {expected[:16]}…. Download it again.")
        part = model.encoder if "encoder" in name else model.decoder
        part.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


def _conv(before: int, after: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride, padding=1, bias=bias)


def _blocks(count: int) -> list[nn.Module]:
    return [_Block() for _ in range(count)]


class _Bounded(nn.Module):
    """3 tanh(z / 3): latents beyond ±3 are squeezed."""

    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


class _Block(nn.Module):
    """ReLU(x + three convolutions of x); with ``pool`` first x + a branch that is normalised over the whole image."""

    def __init__(self, *, pool: bool = False) -> None:
        super().__init__()
        parts = [_conv(_WIDTH, _WIDTH), nn.ReLU(), _conv(_WIDTH, _WIDTH), nn.ReLU(), _conv(_WIDTH, _WIDTH)]
        self.conv = nn.Sequential(*parts)
        wide = 4 * _WIDTH
        there, back = nn.Conv2d(_WIDTH, wide, 1, bias=False), nn.Conv2d(wide, _WIDTH, 1, bias=False)
        self.pool = nn.Sequential(there, nn.GroupNorm(4, wide), nn.ReLU(), back) if pool else None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.pool is not None:
            inputs = inputs + self.pool(inputs)
        return torch.relu(inputs + self.conv(inputs))
