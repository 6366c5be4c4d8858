"""Several methods on the same images: mean ranks, whether they differ at all, and which pairs do (Demšar 2006)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor


class Ranks(NamedTuple):
    """Mean ranks of M methods on N images, 1 the best.

    mean : (M,), ties at their mean rank.
    p_value : of Friedman's test, that the methods do not differ.
    critical_difference : two mean ranks farther apart than this differ at 95 % (Nemenyi's test, all pairs at once).
    n : images that every method has a finite value of.
    """

    mean: np.ndarray
    p_value: float
    critical_difference: float
    n: int


def mean_ranks(values: Tensor, *, larger_is_better: bool = True) -> Ranks:
    """Friedman's test and Nemenyi's critical difference of ``values`` (N, M): M ≥ 3 methods on N ≥ 2 images.

    Images with a value that is not finite are left out. Rank 1 is the largest value, or the smallest.
    """
    array = np.asarray(values.detach().cpu().double())
    if array.ndim != 2 or array.shape[1] < 3:
        raise ValueError(f"values: got shape {array.shape}, wants (N, M) with M of at least 3 methods")
    array = array[np.isfinite(array).all(1)]
    n, m = array.shape
    if n < 2:
        raise ValueError(f"values: got {n} images with finite values of all methods, wants at least 2")
    mean = stats.rankdata(-array if larger_is_better else array, axis=1).mean(0)
    # the test is not defined where all methods tie on every image
    p_value = stats.friedmanchisquare(*array.T).pvalue if np.ptp(array, axis=1).any() else 1.0
    q = stats.studentized_range.ppf(0.95, m, math.inf) / math.sqrt(2)
    return Ranks(mean, float(p_value), float(q * math.sqrt(m * (m + 1) / (6 * n))), n)


def cliques(ranks: Ranks) -> list[list[int]]:
    """The largest groups of neighbours in rank that do not differ, best first; each a list of methods by rank."""
    order = np.argsort(ranks.mean, kind="stable")
    groups: list[list[int]] = []
    for first in range(len(order)):
        group = [int(i) for i in order[first:] if ranks.mean[i] - ranks.mean[order[first]] <= ranks.critical_difference]
        if len(group) > 1 and (not groups or group[-1] != groups[-1][-1]):
            groups.append(group)
    return groups


def correlation_over_methods(
    first: Tensor, second: Tensor, *, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's correlation of two measures (N, M) over the means of M ≥ 3 methods, and its 95 % interval's two ends.

    The bootstrap draws methods and images, both with replacement: images alone would say nothing about other methods.
    Images with a value that is not finite are left out.
    """
    a, b = _pair(first, second)
    finite = np.isfinite(a + b).all(1)
    if not finite.any():
        raise ValueError("first, second: no image has finite values of all methods")
    a, b = a[finite], b[finite]
    generator, (n, m), found = np.random.default_rng(seed), a.shape, []
    for _ in range(n_resamples):
        rows, columns = generator.integers(n, size=n), generator.integers(m, size=m)
        found.append(_spearman(a[rows].mean(0)[columns], b[rows].mean(0)[columns]))
    low, high = np.quantile(found, [0.025, 0.975])
    return _spearman(a.mean(0), b.mean(0)), float(low), float(high)


def correlation_by_image(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's correlation of two measures (N, M) over M ≥ 3 methods, image by image: (N,).

    It is about these methods alone. 0 where a measure is the same for all of them, NaN where one has no finite value.
    """
    a, b = _pair(first, second)
    finite = np.isfinite(a + b).all(1)
    return torch.tensor([_spearman(*row) if known else math.nan for *row, known in zip(a, b, finite, strict=True)])


def _pair(first: Tensor, second: Tensor) -> list[np.ndarray]:
    """Two measures as arrays. Raises ``ValueError`` where they are not (N, M) both, with M ≥ 3."""
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] < 3:
        got = tuple(first.shape), tuple(second.shape)
        raise ValueError(f"first, second: got shapes {got}, wants (N, M) twice with M of at least 3 methods")
    return [np.asarray(values.detach().cpu().double()) for values in (first, second)]


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """0 where one of them is constant."""
    a, b = (stats.rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    size = math.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else 0.0


def plot_critical_difference(names: Sequence[str], ranks: Ranks, *, ax: Axes) -> None:
    """Demšar's diagram: the methods on an axis of mean ranks, the best on the left, those that do not differ joined."""
    if len(names) != len(ranks.mean):
        raise ValueError(f"names: got {len(names)}, wants {len(ranks.mean)} like ranks")
    order, m = np.argsort(ranks.mean, kind="stable"), len(names)
    low, high = 1, m
    bars = cliques(ranks)
    half = (m + 1) // 2
    top = 0.45 + 0.28 * len(bars)
    ax.set(xlim=(low - 0.5, high + 0.5), ylim=(-top - 0.55 * half, 1.1), yticks=[])
    ax.spines[["left", "right", "bottom", "top"]].set_visible(False)
    ax.xaxis.set_visible(False)
    ax.plot([low, high], [0, 0], color="0.1", lw=1)
    for tick in range(low, high + 1):
        ax.plot([tick, tick], [0, 0.15], color="0.1", lw=1)
        if m <= 10 or tick % 2:
            ax.text(tick, 0.22, str(tick), ha="center", va="bottom", fontsize=7)
    for place, index in enumerate(order):
        left = place < half
        line = -top - 0.55 * (place if left else m - 1 - place)
        side, edge = ("right", low - 0.3) if left else ("left", high + 0.3)
        rank = float(ranks.mean[index])
        ax.plot([rank, rank, edge], [0, line, line], color="0.45", lw=0.8)
        gap = (-0.02 if left else 0.02) * m
        ax.text(edge + gap, line, f"{names[index]}  {rank:.1f}", ha=side, va="center", fontsize=7.5)
    for level, group in enumerate(bars):
        ends = [float(ranks.mean[group[0]]) - 0.06, float(ranks.mean[group[-1]]) + 0.06]
        ax.plot(ends, [-0.25 - 0.28 * level] * 2, color="0.1", lw=3, solid_capstyle="butt")
    width = ranks.critical_difference
    ax.plot([low, low + width], [0.85, 0.85], color="0.1", lw=1.2, marker="|", ms=6)
    ax.text(low + width + 0.03 * m, 0.85, f"critical difference {width:.1f}", ha="left", va="center", fontsize=7.5)
