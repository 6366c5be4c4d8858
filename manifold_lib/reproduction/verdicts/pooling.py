"""Pooling of per-image differences: networks vary, images vary within them, and the interval holds both."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests

_RESAMPLES = 4000
_ENTRIES = 2_000_000  # of one block of resamples


class Pooled(NamedTuple):
    """A pooled mean, its 95 % intervals, the spread between networks, and the p-values of its tests."""

    value: float
    ci95: tuple[float, float] | None
    prediction95: tuple[float, float] | None
    tau2: float | None
    i2: float | None
    p: float | None
    p_equivalence: float | None
    n: dict[str, int]


def pool(rows: pd.DataFrame, *, level: str, margin: float) -> Pooled:
    """Pool finite differences (set, network, images, image, value), as :func:`scores.differences` gives them.

    At level ``"networks"`` the units are set × network. Where each network has images of its own, or one value,
    their means are pooled by random effects (DerSimonian and Laird's τ², the interval of Hartung and Knapp); where
    networks share images, by a bootstrap that draws units, and images once for all that share them; where there are
    fewer images than units, its interval is as wide as for so few units. Means that agree by chance to a hundredth
    of their own errors have these errors. At level ``"images"`` the networks are those at hand, and only images are
    drawn. ``p`` is of the one-sided test against 0, ``p_equivalence`` of two one-sided tests against ±margin.
    """
    units = [part["value"].to_numpy() for _, part in rows.groupby(["set", "network"], sort=False, observed=True)]
    shared = rows.duplicated(["set", "images", "image"])
    n = {"images": int((~shared).sum()), "networks": len(units), "sets": rows["set"].nunique()}
    means = np.array([unit.mean() for unit in units])
    if level == "images":
        return _of_draws(float(means.mean()), _draws(rows).mean(0), min(map(len, units)), margin, n)
    if len(units) < 2:
        return Pooled(float(means.mean()), None, None, None, None, None, None, n)
    value, error, tau2, i2 = _random_effects(means, units)
    df = len(units) - 1
    if shared.any() and max(map(len, units)) > 1:
        size = len(units)  # and images are few where there are fewer of them
        drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), size=_RESAMPLES)
        draws = (drawn.T * _draws(rows)).sum(0) / size
        fewest = min(size, *map(len, units))
        return _of_draws(float(means.mean()), draws, fewest, margin, n)._replace(tau2=tau2, i2=i2)
    half, reach = float(stats.t.ppf(0.975, df)) * error, None
    if df > 1:
        far = float(stats.t.ppf(0.975, df - 1) * math.sqrt(tau2 + error**2))
        reach = (value - far, value + far)
    return Pooled(value, (value - half, value + half), reach, tau2, i2, *_tests(value, error, df, margin), n)


def _random_effects(means: np.ndarray, units: list[np.ndarray]) -> tuple[float, float, float, float]:
    """The pooled mean, its Hartung–Knapp standard error, τ² and I² (a share)."""
    variances = np.array([unit.var(ddof=1) / len(unit) if len(unit) > 1 else 0.0 for unit in units])
    if (variances <= 1e-12 * max(np.square(means).max(), 1e-300)).any():
        # a unit of one image, or with one value on all, has no variance: in this limit every unit weighs the same
        spread = float(means.var(ddof=1))
        return float(means.mean()), math.sqrt(spread / len(means)), spread, float(spread > 0)
    with np.errstate(invalid="ignore"):  # of a negative τ², which is not used
        fit = combine_effects(means, variances, method_re="dl")
    i2 = max(0.0, 1 - (len(means) - 1) / float(fit.q)) if fit.q > 0 else 0.0
    if fit.tau2 <= 0:  # statsmodels does not stop at 0
        # means that agree to a hundredth of their own errors do so by chance: they have these errors
        error, own = math.sqrt(fit.var_hksj_fe), math.sqrt(1 / (1 / variances).sum())
        return float(fit.mean_effect_fe), error if error > own / 100 else own, 0.0, i2
    return float(fit.mean_effect_re), math.sqrt(fit.var_hksj_re), float(fit.tau2), i2


def _draws(rows: pd.DataFrame) -> np.ndarray:
    """Means of each unit, set × network, over drawn images, (units, resamples): units that share images share draws."""
    groups = rows.groupby(["set", "network"], sort=False, observed=True)
    unit, means = groups.ngroup().to_numpy(), groups["value"].mean().to_numpy()[:, None]
    sums, sizes = np.zeros((2, len(means), _RESAMPLES))
    for seed, (_, part) in enumerate(rows.assign(unit=unit).groupby(["set", "images"], sort=False, observed=True)):
        table = part.pivot(index="unit", columns="image", values="value")
        known = table.notna().to_numpy(float)
        both = _sums_of_resamples(np.concatenate([table.fillna(0.0).to_numpy(float), known]), seed)
        sums[table.index] += both[: len(known)]
        sizes[table.index] += both[len(known) :]
    # a unit of which no image was drawn keeps its mean
    return np.where(sizes > 0, sums / np.maximum(sizes, 1.0), means)


def _sums_of_resamples(table: np.ndarray, seed: int) -> np.ndarray:
    """Sums over bootstrap resamples of the columns, (rows, resamples), drawn in blocks that bound the memory."""
    generator, columns, sums = np.random.default_rng(seed), table.shape[1], []
    size = max(1, _ENTRIES // columns)
    for block in (min(size, _RESAMPLES - start) for start in range(0, _RESAMPLES, size)):
        places = generator.integers(columns, size=(block, columns)) + columns * np.arange(block)[:, None]
        counts = np.bincount(places.ravel(), minlength=block * columns).reshape(block, columns)
        sums.append(table @ counts.T)
    return np.concatenate(sums, axis=1)


def _of_draws(value: float, draws: np.ndarray, n_units: int, margin: float, n: dict[str, int]) -> Pooled:
    """Expanded percentile interval (Hesterberg 2015): percentiles of few units are too narrow by a known factor."""
    if n_units < 2:
        return Pooled(value, None, None, None, None, None, None, n)
    stretch = math.sqrt(n_units / (n_units - 1))
    tail = stats.norm.cdf(-stretch * stats.t.ppf(0.975, n_units - 1))
    low, high = np.quantile(draws, [tail, 1 - tail])
    tests = _tests(value, stretch * float(draws.std(ddof=1)), n_units - 1, margin)
    return Pooled(value, (float(low), float(high)), None, None, None, *tests, n)


def _tests(value: float, error: float, df: int, margin: float) -> tuple[float, float]:
    """p of "above 0", and the larger of those of "above −margin" and "below margin"."""
    error = max(error, 1e-300)
    above, over, under = (float(stats.t.sf(x / error, df)) for x in (value, value + margin, margin - value))
    return above, max(over, under)


def holm(values: list[float]) -> list[float]:
    """Holm's p-values of a family."""
    return [float(p) for p in multipletests(values, method="holm")[1]]


def interval(values: Any) -> tuple[float, float, float]:
    """Mean, lower and upper end of the 95 % bootstrap interval over images, for figures: NaN ends below two values."""
    array = np.asarray(values.detach().cpu().double() if hasattr(values, "detach") else values, dtype=float).ravel()
    array = array[np.isfinite(array)]
    if not len(array):
        raise ValueError("values: none is finite, wants at least one")
    draws = _sums_of_resamples(array[None], 0)[0] / len(array)
    found = _of_draws(float(array.mean()), draws, len(array), 1.0, {})
    return (found.value, *(found.ci95 or (math.nan, math.nan)))
