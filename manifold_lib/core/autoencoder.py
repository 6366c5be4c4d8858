"""The user's autoencoder, an object with ``encode`` and ``decode``: checked, and left as it was found."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checks import check_batch, require
from .derivatives import called, check_decoder, check_images, check_rows, require_slope
from .modules import buffers_as_found, check_mode, modules_of

Decode = Callable[[Tensor], Tensor]


def encoded(vae: Any, size: int, *images: Tensor, needs: str = "rows") -> tuple[Decode, list[Tensor]]:
    """``vae.decode``, and latent means of some batches of images, ``size`` at a time: (B, *shape) -> (B, *latent).

    Latents and images have the precision of ``images``, also where the VAE works in a lower one. ``needs`` is the
    derivative that the decoder must have, see :func:`manifold_lib.core.derivatives.check_decoder`.
    """
    for part in ("encode", "decode"):
        if not callable(getattr(vae, part, None)):
            raise ValueError(f"vae: got {type(vae).__name__} without {part}, wants an object with encode and decode")
    for module in modules_of(vae):
        check_mode(module, "vae")
    found = [_encode(vae, batch, size) for batch in images]
    check_rows(vae.encode, images[0].detach(), "vae.encode", size)
    decode = _decoder_of(vae, images[0], found[0].dtype)
    latents = [part.to(images[0].dtype) for part in found]
    check_decoder(decode, torch.cat([latents[0][:1], latents[-1][-1:]]), "vae.decode", needs=needs, size=size)
    return decode, latents


def _encode(vae: Any, inputs: Tensor, size: int) -> Tensor:
    if inputs.stride(0) == 0 and len(inputs) > 1:  # one baseline for all, encoded once
        latents = _encode(vae, inputs[:1], size)
        return latents.expand(len(inputs), *latents.shape[1:])
    parts = []
    for some in inputs.split(size):
        # a copy, since an encoder may begin with an in-place layer
        parts.append(check_images(called(vae.encode, some.clone(), name="vae.encode"), some, "vae.encode"))
    latents = check_batch(torch.cat(parts), "vae.encode")
    if torch.is_grad_enabled() and inputs.requires_grad:
        point = inputs[:1].detach().clone().requires_grad_()
        mean = called(vae.encode, point.clone(), name="vae.encode").sum()
        slope = torch.autograd.grad(mean, point, allow_unused=True)[0] if mean.requires_grad else None
        require_slope(slope is not None, "vae.encode")
    return latents


def _decoder_of(vae: Any, inputs: Tensor, dtype: torch.dtype) -> Decode:
    """``vae.decode`` on copies of its buffers, refused where it gives anything but images like the inputs."""
    modules = modules_of(vae)

    def decode(latents: Tensor) -> Tensor:
        with buffers_as_found(modules):
            images = called(vae.decode, latents.to(dtype), name="vae.decode")
        wants = (len(latents), *inputs.shape[1:])
        got = tuple(check_images(images, latents, "vae.decode").shape)
        require(got == wants, "vae.decode", f"shape {got}", f"{wants} like inputs")
        return images.to(inputs.dtype)

    return decode
