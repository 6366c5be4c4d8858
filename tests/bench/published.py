"""Patterns of published codes that are no packages, rebuilt from their operation counts, to be timed beside ours.

None is the authors' text: each does the same number of decoder and classifier calls in the same order.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Tallied:
    """A function that counts its calls and the backward passes through it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.forwards, self.backwards = function, 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.function(x)

    def gradient(self, output: Tensor, x: Tensor) -> Tensor:
        self.backwards += 1
        return torch.autograd.grad(output, x, retain_graph=True)[0]


def tangent_space_by_pixel(decode: Tallied, latent: Tensor) -> Tensor:
    """Paper 1: one decode, one backward pass for each pixel, and a basis of the Jacobian's columns, for one image."""
    z = latent[None].clone().requires_grad_()
    decode.forwards = decode.backwards = 0
    pixels = decode(z).flatten()
    jacobian = torch.stack([decode.gradient(pixel, z)[0] for pixel in pixels])
    left, values, _ = torch.linalg.svd(jacobian, full_matrices=False)
    return left[:, values > 1e-6 * values[0]]
