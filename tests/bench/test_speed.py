"""Speed beside the peers, as ratios of runs in turn: ``pytest tests/bench --benchmark-only -s`` prints the tables.

Nothing is asserted about time. What is asserted is that all contestants compute the same thing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import captum.attr
import pytest
import torch
from torch import Tensor

import manifold_lib as ml

ROUNDS = 3
Contestant = Callable[[], Tensor]


@pytest.fixture(scope="module")
def tables() -> Iterator[list[str]]:
    """Collects the tables of all races, printed together at the end."""
    lines: list[str] = []
    yield lines
    print("\n\n" + "\n".join(lines))


def race(
    benchmark, title: str, ours: Contestant, others: dict[str, Contestant], factors: dict[str, int], lines: list[str]
) -> None:
    """Run ours and the others in turn, and append times and ratios; ``factors`` scale a part up to the whole."""
    seconds: dict[str, list[float]] = {name: [] for name in others}
    ours()
    for other in others.values():
        other()

    def run_the_others() -> None:
        for name, other in others.items():
            start = time.perf_counter()
            other()
            seconds[name].append((time.perf_counter() - start) * factors.get(name, 1))

    benchmark.pedantic(ours, setup=run_the_others, rounds=ROUNDS, iterations=1)
    own = list(benchmark.stats.stats.data)
    best, median = min(own), statistics.median(own)
    lines.append(f"{title}; {ROUNDS} rounds in turn, {torch.get_num_threads()} threads, ratio = other / ours")
    lines.append(f"{'':44}{'best s':>10}{'median s':>10}{'ratio of best':>15}{'of median':>11}")
    lines.append(f"{'ours':44}{best:10.3f}{median:10.3f}{1:15.2f}{1:11.2f}")
    for name, values in seconds.items():
        other_best, other_median = min(values), statistics.median(values)
        ratios = other_best / best, other_median / median
        lines.append(f"{name:44}{other_best:10.3f}{other_median:10.3f}{ratios[0]:15.2f}{ratios[1]:11.2f}")
        benchmark.extra_info[name] = {"ratio_of_best": ratios[0], "ratio_of_median": ratios[1]}
    lines.append("")


def test_integrated_gradients_beside_captum(benchmark, tables: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = ml.lenet().eval()
    inputs = torch.rand(64, 1, 32, 32, generator=generator)
    target = torch.randint(10, (64,), generator=generator)
    oracle = captum.attr.IntegratedGradients(model)

    def captums(size: int | None) -> Contestant:
        return lambda: oracle.attribute(inputs, target=target, n_steps=50, internal_batch_size=size)

    def ours() -> Tensor:
        return ml.integrated_gradients(model, inputs, target, n_steps=50)

    expected = captums(64)()
    assert (ours() - expected).abs().max() < 1e-5 * expected.abs().max()
    others = {"captum, default": captums(None)}
    # captum slices steps, never images: below 64 points it still takes 64
    others |= {f"captum, internal_batch_size={size}": captums(size) for size in (32, 64, 128, 256)}
    race(benchmark, "Integrated Gradients, 50 steps, 64 images, LeNet", ours, others, {}, tables)


def test_tangent_basis_beside_one_reverse_pass_per_pixel(benchmark, tables: list[str]) -> None:
    torch.manual_seed(0)
    vae = ml.VAE().eval()
    latents = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))

    def per_pixel() -> Tensor:
        """The Jacobian of one image as the research code takes it, and its basis."""
        latent = latents[:1].clone().requires_grad_()
        pixels = vae.decode(latent).flatten()
        rows = [torch.autograd.grad(pixel, latent, retain_graph=True)[0][0] for pixel in pixels]
        left, values, _ = torch.linalg.svd(torch.stack(rows), full_matrices=False)
        return left[:, values > 1e-6 * values[0]]

    def ours() -> Tensor:
        return ml.tangent_basis(vae.decode, latents)

    one, expected = ours()[0], per_pixel()
    assert (one @ one.T - expected @ expected.T).abs().max() < 1e-4
    others = {"one reverse pass per pixel (1 image × 64)": per_pixel}
    race(
        benchmark,
        "Tangent bases of 64 latents, VAE decoder 10 -> 1×32×32",
        ours,
        others,
        {"one reverse pass per pixel (1 image × 64)": 64},
        tables,
    )
