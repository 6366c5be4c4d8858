"""Patterns of published codes that are no packages, rebuilt from their operation counts, to be timed beside ours.

None is the authors' text: each does the same number of decoder and classifier calls in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor


class Tallied:
    """A function that counts its calls and the backward passes through it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.forwards, self.backwards = function, 0, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forwards += 1
        return self.function(x)

    def reset(self) -> None:
        self.forwards = self.backwards = 0

    def gradient(self, output: Tensor, x: Tensor) -> Tensor:
        self.backwards += 1
        return torch.autograd.grad(output, x, retain_graph=True)[0]


def tangent_space_by_pixel(decode: Tallied, latent: Tensor) -> Tensor:
    """Paper 1: one decode, one backward pass for each pixel, and a basis of the Jacobian's columns, for one image."""
    z = latent[None].clone().requires_grad_()
    decode.reset()
    pixels = decode(z).flatten()
    jacobian = torch.stack([decode.gradient(pixel, z)[0] for pixel in pixels])
    left, values, _ = torch.linalg.svd(jacobian, full_matrices=False)
    return left[:, values > 1e-6 * values[0]]


def project_by_vector(vector: Tensor, jacobian: Tensor) -> Tensor:
    """Paper 1: a new basis by SVD for each vector that is projected, then one inner product for each direction."""
    basis = scipy.linalg.orth(jacobian.double().numpy())
    vector = vector.flatten().double().numpy()
    projected = np.zeros_like(vector)
    for direction in basis.T:
        projected += (direction @ vector) * direction
    return torch.from_numpy(projected)


def enhanced_ig_by_step(
    model: Tallied, encode: Tallied, decode: Tallied, image: Tensor, baseline: Tensor, n_points: int
) -> Tensor:
    """Papers 3 and 5: one image, a decoded latent line of n points, decoded one by one, then a gradient at each.

    The sum is the left one: each point's gradient times the step to the next.
    """
    for part in (model, encode, decode):
        part.reset()
    with torch.no_grad():
        start, end = encode(baseline[None]), encode(image[None])
        points = torch.cat([decode(start + k / (n_points - 1) * (end - start)) for k in range(n_points)])
        target = model(image[None]).argmax(1)
    total = torch.zeros_like(image)
    for here, after in itertools.pairwise(points):
        x = here[None].clone().requires_grad_()
        total += model.gradient(model(x)[0, target[0]], x)[0] * (after - here)
    return total


def geodesic_by_node(
    decode: Tallied, start: Tensor, end: Tensor, n_points: int = 20, n_sweeps: int = 2, step: float = 5e-5
) -> Tensor:
    """Paper 3: one pair, nodes moved one after another, each gradient from four decodes and a backward pass.

    The stopping sum over all nodes is taken three times a sweep: in the loop's test, to print it, and in a comparison
    that never holds. The last point is at (n − 1) / n of the way.
    """
    decode.reset()
    nodes = [start[None] + k / n_points * (end - start) for k in range(n_points)]

    def slope(k: int) -> Tensor:
        with torch.no_grad():
            pull = decode(nodes[k + 1]) - 2 * decode(nodes[k]) + decode(nodes[k - 1])
        z = nodes[k].clone().requires_grad_()
        return -n_points * decode.gradient((decode(z) * pull).sum(), z)

    inner = range(1, n_points - 1)
    for _ in range(n_sweeps):
        for _ in range(3):
            sum(slope(k).square().sum().item() for k in inner)
        for k in inner:
            nodes[k] = nodes[k] - step * slope(k)
    return torch.cat(nodes)
