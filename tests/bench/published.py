"""Patterns of published codes that are no packages, rebuilt from their operation counts, to be timed beside ours.

None is the authors' text: each does the same number of decoder and classifier calls in the same order.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from scipy.special import roots_legendre
from sklearn.neighbors import NearestNeighbors
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


def ma_gig_by_image(
    model: Tallied, encode: Tallied, decode: Tallied, image: Tensor, baseline: Tensor, n_points: int, fraction: float
) -> Tensor:
    """Paper 5: one image; each latent decoded to be kept and again to be guided by, then a gradient at each point.

    Groups of latents move one after the other; the last goes along a great circle.
    """
    for part in (model, encode, decode):
        part.reset()
    with torch.no_grad():
        here, goal = encode(baseline[None]), encode(image[None])
        target = model(image[None]).argmax(1)
    whole, points = (goal - here).abs().sum(), [baseline[None]]
    for k in range(n_points - 1):
        if k:
            with torch.no_grad():
                points.append(decode(here))
        z = here.clone().requires_grad_()
        size = model.gradient(model(decode(z))[0, target[0]], z).abs()
        decode.backwards += 1
        left = whole * (1 - (k + 1) / n_points)
        while not torch.isclose(rest := (goal - here).abs().sum(), left, rtol=1e-9, atol=1e-9):
            size[(goal - here).abs() < 1e-9] = torch.inf
            level = torch.quantile(size, fraction, interpolation="lower")
            chosen = (size <= level) & size.isfinite()
            if not chosen.any():
                break
            gamma = (rest - left) / (goal - here).abs()[chosen].sum()
            here = here.clone()
            if gamma > 1:
                here[chosen] = goal[chosen]
                continue
            start, end = here[chosen], goal[chosen]
            cosine = (start / start.norm()) @ (end / end.norm())
            if min(start.norm(), end.norm()) < 1e-9 or cosine.abs() > 0.9995:
                here[chosen] = start + gamma * (end - start)
            else:
                angle = cosine.arccos()
                here[chosen] = (((1 - gamma) * angle).sin() * start + (gamma * angle).sin() * end) / angle.sin()
            break
    points.append(image[None])
    total = torch.zeros_like(image)
    for point, after in zip(points, [*points[1:], None], strict=True):
        x = point.clone().requires_grad_()
        gradient = model.gradient(model(x)[0, target[0]], x)[0]
        if after is not None:
            total += gradient * (after - point)[0]
    return total


def geodesics_by_search(
    model: Tallied, points: Tensor, baseline: Tensor, n_neighbors: int, n_steps: int, counts: Counter[str]
) -> Tensor:
    """Paper 4: edge integrals in one batch, then for each input a search of its own in Python, without a heuristic.

    As released: neighbours among the inputs, themselves included; a copy of the baseline for each input, joined to the
    inputs nearest to it; lists of neighbours made anew, by way of a set, at each edge; the integral of each edge on a
    path looked up among all edges.
    """
    n_points = len(points)
    nodes = torch.cat([points, baseline.expand_as(points)])
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(points.numpy())
    ends = torch.from_numpy(search.kneighbors(nodes.numpy(), return_distance=False)).flatten()
    starts = torch.arange(len(nodes)).repeat_interleave(n_neighbors)
    times, weights = (torch.from_numpy(part).float() for part in roots_legendre(n_steps))
    here, there = nodes[starts], nodes[ends]
    inner = (here[:, None] + ((times + 1) / 2)[:, None] * (there - here)[:, None]).requires_grad_()
    slopes = model.gradient(model(inner.flatten(0, 1)).sum(), inner) * (weights / 2)[:, None]
    integrals, costs = slopes.sum(1) * (there - here), slopes.norm(dim=2).sum(1) * (there - here).norm(dim=1)
    ahead: dict[int, list[tuple[int, float]]] = {}
    for i, j, cost in zip(starts.tolist(), ends.tolist(), costs.tolist(), strict=True):
        ahead[j] = list({*ahead.get(j, []), (i, cost)})
        ahead[i] = list({*ahead.get(i, []), (j, cost)})
    maps = torch.zeros_like(points)
    for row in range(n_points):
        counts["searches"] += 1
        queue, reached, before = [(0.0, row, -1)], {row: 0.0}, {}
        while queue:
            cost, node, last = heapq.heappop(queue)
            if node in before:
                continue
            before[node] = last
            if node == n_points + row:
                break
            for other, more in ahead[node]:
                if cost + more < reached.get(other, float("inf")):
                    reached[other] = cost + more
                    heapq.heappush(queue, (cost + more, other, node))
        node = n_points + row
        while before[node] >= 0:
            counts["lookups"] += 1
            last = before[node]
            found = ((starts == last) & (ends == node) | (starts == node) & (ends == last)).nonzero()[0, 0]
            maps[row] += integrals[found] if ends[found] == last else -integrals[found]
            node = last
    return maps
