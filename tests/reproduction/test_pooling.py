import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st

from manifold_lib.reproduction.verdicts import pooling
from manifold_lib.reproduction.verdicts.pooling import holm, interval, pool


def rows_of(units):
    """Rows of (set, network, images, values)."""
    sizes = [len(unit[3]) for unit in units]
    head = {name: np.repeat([unit[k] for unit in units], sizes) for k, name in enumerate(("set", "network", "images"))}
    image = np.concatenate([np.arange(size) for size in sizes])
    return pd.DataFrame({**head, "image": image, "value": np.concatenate([unit[3] for unit in units])})


def apart(*values):
    """Networks with images of their own, in two sets."""
    return rows_of([(f"set{k % 2}", f"net{k}", k, unit) for k, unit in enumerate(values)])


def together(table, name="set"):
    """Networks on the same images, (networks, images)."""
    return rows_of([(name, f"net{k}", 0, row) for k, row in enumerate(table)])


def by_hand(values):
    """DerSimonian and Laird, Hartung and Knapp, written out."""
    y = np.array([np.mean(unit) for unit in values])
    v = np.array([np.var(unit, ddof=1) / len(unit) for unit in values])
    k, w = len(y), 1 / v
    q = (w * (y - (w * y).sum() / w.sum()) ** 2).sum()
    tau2 = max(0.0, (q - (k - 1)) / (w.sum() - (w**2).sum() / w.sum()))
    w = 1 / (v + tau2)
    mean = (w * y).sum() / w.sum()
    error = math.sqrt((w * (y - mean) ** 2).sum() / (k - 1) / w.sum())
    half = scipy.stats.t.ppf(0.975, k - 1) * error
    far = scipy.stats.t.ppf(0.975, k - 2) * math.sqrt(tau2 + error**2)
    i2, p = max(0.0, 1 - (k - 1) / q), scipy.stats.t.sf(mean / error, k - 1)
    p_equivalence = max(scipy.stats.t.sf((0.02 + side * mean) / error, k - 1) for side in (1, -1))
    ends = [mean - half, mean + half, mean - far, mean + far]
    return [mean, *ends, tau2, i2, p, p_equivalence]


def numbers(found):
    return [found.value, *found.ci95, *found.prediction95, found.tau2, found.i2, found.p, found.p_equivalence]


@given(st.integers(0, 1000), st.integers(3, 9), st.sampled_from([0.0, 0.1, 1.0]))
def test_random_effects_by_hand(seed, n_networks, spread):
    generator = np.random.default_rng(seed)
    values = [
        generator.normal(0.1 + spread * generator.normal(), generator.uniform(0.1, 2), size=generator.integers(2, 40))
        for _ in range(n_networks)
    ]
    found = pool(apart(*values), level="networks", margin=0.02)
    assert numbers(found) == pytest.approx(by_hand(values), abs=1e-9)
    assert found.n == {"images": sum(map(len, values)), "networks": n_networks, "sets": 2}


def test_networks_of_the_same_mean_have_the_errors_of_their_means():
    spreads = np.array([0.1, 0.2, 0.3, 0.4, 0.5])
    found = pool(apart(*(0.1 + np.array([-s, 0, s]) for s in spreads)), level="networks", margin=0.02)
    assert (found.tau2, found.i2) == (0.0, 0.0)
    half = scipy.stats.t.ppf(0.975, 4) / math.sqrt((3 / spreads**2).sum())  # and not 0, as Hartung and Knapp have it
    assert (found.value, *found.ci95) == pytest.approx([0.1, 0.1 - half, 0.1 + half])


@pytest.mark.parametrize("noise", [None, 0.0, 0.3])
def test_networks_that_vary_alike_have_the_t_interval_of_their_means(noise):
    means = np.array([0.1, 0.2, 0.4, 0.3, 0.15, 0.35])
    # one value a network, the same value on all of its images, or the same spread in all
    values = [[mean] if noise is None else mean + noise * np.array([-1, 0, 1, 0]) for mean in means]
    oracle = scipy.stats.ttest_1samp(means, 0.0, alternative="greater")
    low, high = scipy.stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    layouts = [apart(*values)]
    if noise is None:
        layouts.append(together(values))  # scores of networks, of which no image is shared
    for rows in layouts:
        found = pool(rows, level="networks", margin=0.02)
        assert (found.value, *found.ci95) == pytest.approx((means.mean(), low, high))
        assert found.p == pytest.approx(oracle.pvalue)


# ------------------------------------------------------------------------------------------------------------ bootstrap


def brute_force(tables, *, networks, resamples=4000):
    """Means over drawn networks, and over images drawn once for a set, in a loop; ``tables`` are (networks, images)."""
    generator, means = np.random.default_rng(7), []
    units = [(index, row) for index, table in enumerate(tables) for row in range(len(table))]
    for _ in range(resamples):
        images = [generator.integers(table.shape[1], size=table.shape[1]) for table in tables]
        drawn = [units[k] for k in generator.integers(len(units), size=len(units))] if networks else units
        means.append(np.mean([np.nanmean(tables[index][row, images[index]]) for index, row in drawn]))
    return np.array(means)


def ends_of(draws, n_units):
    tail = scipy.stats.norm.cdf(-math.sqrt(n_units / (n_units - 1)) * scipy.stats.t.ppf(0.975, n_units - 1))
    return np.quantile(draws, [tail, 1 - tail])


@pytest.mark.parametrize("level", ["networks", "images"])
def test_the_bootstrap_against_a_loop(level):
    generator = np.random.default_rng(0)
    tables = [
        0.3
        + 0.2 * generator.normal(size=(n, 1))
        + 0.3 * generator.normal(size=(1, m))
        + generator.normal(size=(n, m)) / 9
        for n, m in ((3, 12), (5, 20))
    ]
    tables[1][2, 4] = math.nan
    rows = pd.concat([together(table, f"set{k}") for k, table in enumerate(tables)], ignore_index=True).dropna()
    found = pool(rows, level=level, margin=0.02)
    draws = brute_force(tables, networks=level == "networks")
    width = found.ci95[1] - found.ci95[0]
    assert found.value == pytest.approx(np.mean([np.nanmean(row) for table in tables for row in table]))
    assert found.ci95 == pytest.approx(ends_of(draws, 8 if level == "networks" else 12), abs=0.05 * width)
    assert found.n == {"images": 32, "networks": 8, "sets": 2}
    assert (found.tau2 is not None and found.i2 is not None) == (level == "networks") and found.prediction95 is None


def test_the_bootstrap_against_all_resamples_there_are():
    table = np.array([[0.0, 1.0, 5.0], [2.0, 0.5, 4.0], [-1.0, 1.5, 3.0]])
    all_draws = list(itertools.product(range(3), repeat=3))
    exact = {
        "networks": [table[np.ix_(networks, images)].mean() for networks in all_draws for images in all_draws],
        "images": [table[:, images].mean() for images in all_draws],
    }
    for level, means in exact.items():
        found = pool(together(table), level=level, margin=0.02)
        stretched = math.sqrt(3 / 2) * np.std(means)
        error = found.value / scipy.stats.t.isf(found.p, 2)
        assert error == pytest.approx(stretched, rel=0.04), level
        assert min(means) <= found.ci95[0] <= found.value <= found.ci95[1] <= max(means)


def test_a_resample_is_the_same_in_blocks_of_any_size(monkeypatch):
    rows = together(np.random.default_rng(0).normal(size=(3, 50)))
    whole = pool(rows, level="networks", margin=0.02), interval(rows["value"])
    monkeypatch.setattr(pooling, "_ENTRIES", 700)
    assert (pool(rows, level="networks", margin=0.02), interval(rows["value"])) == whole


@pytest.mark.parametrize("level", ["networks", "images"])
@pytest.mark.parametrize("layout", [apart, together])
def test_a_mirrored_difference_has_the_mirrored_interval(level, layout):
    values = np.random.default_rng(0).gamma(1.0, size=(5, 9))
    here, there = (
        pool(rows, level=level, margin=0.02)
        for rows in ((layout(*values), layout(*-values)) if layout is apart else (layout(values), layout(-values)))
    )
    assert [-there.value, -there.ci95[1], -there.ci95[0]] == pytest.approx([here.value, *here.ci95], abs=1e-12)
    assert there.p == pytest.approx(1 - here.p)


@pytest.mark.parametrize(
    ("level", "sizes", "shared"),
    [
        ("networks", [6], False),
        ("networks", [6], True),
        ("networks", [2, 1, 1, 1, 1], True),
        ("images", [6], True),
    ],
)
def test_intervals_cover_the_mean_in_95_of_100(monkeypatch, level, sizes, shared):
    """Six networks × 30 images; the sets differ too, where there are several."""
    monkeypatch.setattr(pooling, "_RESAMPLES", 800)
    generator, covered, trials = np.random.default_rng(1), 0, 300
    for _ in range(trials):
        units, effects = [], []
        for index, size in enumerate(sizes):
            of_set = 0.15 * generator.normal() if len(sizes) > 1 else 0.0
            images = 0.3 * generator.normal(size=30)
            for k in range(size):
                effects.append(0.3 + of_set + 0.2 * generator.normal())
                own = images if shared else 0.3 * generator.normal(size=30)
                values = effects[-1] + own + 0.1 * generator.normal(size=30)
                units.append((f"set{index}", f"net{k}", 0 if shared else k, values))
        low, high = pool(rows_of(units), level=level, margin=0.02).ci95
        covered += low <= (np.mean(effects) if level == "images" else 0.3) <= high
    assert 0.90 <= covered / trials <= 0.99


def test_too_few_units_have_no_interval():
    for rows, level in ((apart([1.0, 2.0, 3.0]), "networks"), (apart([1.0], [2.0, 3.0]), "images")):
        found = pool(rows, level=level, margin=0.02)
        assert found.value == rows.groupby("network")["value"].mean().mean()
        assert found[1:-1] == (None,) * 6
    pair = pool(apart([1.0, 2.0], [2.0, 4.0]), level="networks", margin=0.02)
    assert pair.ci95[0] < pair.value < pair.ci95[1] and pair.prediction95 is None


# ------------------------------------------------------------------------------------------------- families and figures


@settings(max_examples=5)  # statsmodels collects garbage at each
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_holm_by_hand(values):
    order, found, running = np.argsort(values, kind="stable"), [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        running = max(running, (len(values) - rank) * values[index])
        found[index] = min(running, 1.0)
    assert holm(values) == pytest.approx(found)


def test_interval_of_figures_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=200)
    mean, low, high = interval(values)
    oracle = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(oracle), abs=0.02)
    with_gaps = torch.tensor([*values, math.nan, math.inf], dtype=torch.float64, requires_grad=True)
    assert interval(with_gaps) == (mean, low, high), "the same finite values give the same interval"
    assert interval([2.0, math.nan])[0] == 2.0 and all(map(math.isnan, interval([2.0, math.nan])[1:]))
    for nothing in ([], [math.nan]):
        with pytest.raises(ValueError, match="finite"):
            interval(nothing)
