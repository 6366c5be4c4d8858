"""The user's autoencoder: encoded in parts, decoded on copies of its buffers, in its own precision."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from helpers import close, draw
from torch import Tensor, nn

from manifold_lib.core.autoencoder import encoded


class Counting(nn.Module):
    """Decodes, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, latents: Tensor) -> Tensor:
        self.calls += 1
        return latents.repeat(1, 2)


def test_latents_come_in_parts_and_images_have_the_shape_of_the_inputs() -> None:
    sizes: list[int] = []

    def encode(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return images[:, :2] + images[:, 2:]

    images, black = draw(5, 4), torch.zeros(1, 4).double().expand(5, 4)
    decode, (latents, origin) = encoded(SimpleNamespace(encode=encode, decode=Counting()), 2, images, black)
    close(latents, images[:, :2] + images[:, 2:], 1e-15)
    assert sizes == [2, 2, 1, 1, 2, 2, 2], "each batch in parts, one baseline for all, and pairs to see rows mix"
    assert origin.shape == (5, 2) and origin.stride(0) == 0
    close(decode(latents), latents.repeat(1, 2), 1e-15)


def test_buffers_are_those_that_were_found() -> None:
    decoder = Counting()
    decode, (latents,) = encoded(SimpleNamespace(encode=lambda x: x[:, :2], decode=decoder), 3, draw(3, 4))
    decode(latents)
    assert decoder.calls == 0


def test_an_autoencoder_gets_its_own_precision_and_gives_that_of_the_images() -> None:
    seen: list[torch.dtype] = []

    def decode(latents: Tensor) -> Tensor:
        seen.append(latents.dtype)
        return latents.repeat(1, 2)

    vae = SimpleNamespace(encode=lambda x: x[:, :2].half(), decode=decode)
    decoder, (latents,) = encoded(vae, 3, draw(3, 4))
    assert latents.dtype == decoder(latents).dtype == torch.float64 and set(seen) == {torch.float16}
