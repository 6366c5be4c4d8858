import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, strategies as st

from manifold_lib.reproduction.claims import KINDS, VERDICTS, claim, interval, judge, not_attempted

numbers = st.floats(-10, 10, allow_nan=False)
KEYS = ["id", "statement", "source", "kind", "threshold", "unit", "paper", "value", "ci95", "n", "verdict", "note"]


@pytest.mark.parametrize(
    ("kind", "threshold", "ci95", "verdict"),
    [
        ("greater", 0.1, (0.11, 0.2), "reproduced"),
        ("greater", 0.1, (0.1, 0.2), "inconclusive"),
        ("greater", 0.1, (0.0, 0.2), "inconclusive"),
        ("greater", 0.1, (0.0, 0.1), "inconclusive"),
        ("greater", 0.1, (0.0, 0.09), "not reproduced"),
        ("greater", -0.1, (-0.05, 0.0), "reproduced"),
        ("less", 0.1, (0.0, 0.09), "reproduced"),
        ("less", 0.1, (0.0, 0.1), "inconclusive"),
        ("less", 0.1, (0.05, 0.2), "inconclusive"),
        ("less", 0.1, (0.11, 0.2), "not reproduced"),
        ("equivalent", 0.1, (-0.1, 0.1), "reproduced"),
        ("equivalent", 0.1, (-0.05, 0.11), "inconclusive"),
        ("equivalent", 0.1, (-0.2, 0.2), "inconclusive"),
        ("equivalent", 0.1, (0.1, 0.2), "inconclusive"),
        ("equivalent", 0.1, (0.11, 0.2), "not reproduced"),
        ("equivalent", 0.1, (-0.2, -0.11), "not reproduced"),
    ],
)
def test_verdicts_with_an_interval(kind, threshold, ci95, verdict):
    assert judge(kind, threshold, sum(ci95) / 2, ci95) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(0.0, "reproduced"), (0.1, "reproduced"), (0.11, "not reproduced")])
def test_verdicts_of_exact_claims(value, verdict):
    assert judge("exact", 0.1, value, None) == verdict
    assert judge("exact", 0.1, -value, None) == verdict


def test_without_an_interval_only_exact_claims_are_judged():
    for kind in set(KINDS) - {"exact"}:
        assert judge(kind, 0.0, 1.0, None) == "inconclusive"


@given(numbers, numbers, numbers)
def test_verdicts_are_consistent(threshold, low, high):
    low, high = sorted((low, high))
    middle = (low + high) / 2
    greater = judge("greater", threshold, middle, (low, high))
    less = judge("less", threshold, middle, (low, high))
    assert less == judge("greater", -threshold, -middle, (-high, -low))
    opposite = {"reproduced": "not reproduced", "not reproduced": "reproduced", "inconclusive": "inconclusive"}
    assert less == opposite[greater]
    bound = abs(threshold)
    equivalent = judge("equivalent", bound, middle, (low, high))
    assert equivalent == judge("equivalent", bound, -middle, (-high, -low))
    if "reproduced" in (judge("greater", bound, middle, (low, high)), judge("less", -bound, middle, (low, high))):
        assert equivalent == "not reproduced"


@given(st.sampled_from(["greater", "less", "equivalent"]), numbers, numbers, numbers, st.floats(0, 5))
def test_a_wider_interval_never_turns_a_verdict_round(kind, threshold, low, high, more):
    low, high = sorted((low, high))
    threshold = abs(threshold) if kind == "equivalent" else threshold
    narrow = judge(kind, threshold, low, (low, high))
    wide = judge(kind, threshold, low, (low - more, high + more))
    assert wide in (narrow, "inconclusive")


@pytest.mark.parametrize(
    "arguments",
    [
        ("bigger", 0.0, 1.0, (0.0, 2.0)),
        ("greater", math.nan, 1.0, (0.0, 2.0)),
        ("equivalent", -1.0, 1.0, (0.0, 2.0)),
        ("exact", -1.0, 1.0, None),
        ("exact", 1.0, 1.0, (0.0, 2.0)),
        ("exact", 1.0, math.nan, None),
        ("greater", 0.0, 1.0, (2.0, 0.0)),
        ("greater", 0.0, 1.0, (math.nan, math.nan)),
    ],
)
def test_judge_refuses(arguments):
    with pytest.raises(ValueError):
        judge(*arguments)


def test_interval_agrees_with_scipy():
    values = np.random.default_rng(0).gamma(2.0, size=200)
    mean, low, high = interval(values)
    oracle = scipy.stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=1).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(oracle), abs=0.02)
    assert interval(values) == (mean, low, high), "the same seed gives the same interval"
    assert interval(values, seed=1) != (mean, low, high)
    assert interval(values, level=0.5)[1] > low


def test_interval_covers_the_mean_in_95_of_100():
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(400):
        _, low, high = interval(generator.normal(1.0, 2.0, size=60), n_resamples=500, seed=seed)
        covered += low <= 1.0 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_interval_over_seeds_is_wider_than_over_images():
    generator = np.random.default_rng(0)
    seeds = np.repeat(np.arange(6), 100)
    values = generator.normal(size=6)[seeds] + 0.1 * generator.normal(size=600)
    mean, low, high = interval(values, groups=seeds)
    _, low_images, high_images = interval(values)
    assert mean == pytest.approx(values.mean())
    assert high - low > 3 * (high_images - low_images)


def test_interval_over_seeds_covers():
    generator = np.random.default_rng(0)
    seeds = np.repeat(np.arange(12), 10)
    covered = 0
    for trial in range(200):
        values = generator.normal(size=12)[seeds] + generator.normal(size=120)
        _, low, high = interval(values, groups=seeds, n_resamples=400, seed=trial)
        covered += low <= 0 <= high
    assert 0.88 <= covered / 200 <= 1.0


def test_seeds_of_unequal_size_weigh_the_same():
    assert interval([0.0, 0.0, 0.0, 3.0], groups=[0, 0, 0, 1])[0] == 1.5


def test_interval_is_drawn_in_chunks(monkeypatch):
    monkeypatch.setattr("manifold_lib.reproduction.claims._CHUNK", 700)
    values = np.random.default_rng(0).normal(size=100)
    mean, low, high = interval(values)
    assert low < mean < high


def test_interval_needs_two_values():
    for arguments in ({"values": [2.0, math.nan]}, {"values": [1.0, 3.0], "groups": [0, 0]}):
        mean, low, high = interval(**arguments)
        assert mean == 2.0 and math.isnan(low) and math.isnan(high)


@pytest.mark.parametrize("values", [[], [math.nan, math.inf]])
def test_interval_refuses_nothing_finite(values):
    with pytest.raises(ValueError, match="finite"):
        interval(values)


def test_claim_from_values():
    values = torch.tensor([0.2, 0.3, 0.4, math.nan, 0.25], requires_grad=True)
    row = claim(
        "1.S1", "above chance", "Fig. 3", kind="greater", threshold=0.0, values=values, paper=0.31, unit="share"
    )
    assert list(row) == KEYS
    assert row["n"] == 4 and row["verdict"] == "reproduced" and row["paper"] == 0.31
    assert row["value"] == pytest.approx(0.2875)
    assert row["ci95"][0] < row["value"] < row["ci95"][1]
    assert row["note"] == "not finite, left out: 1 of 5"


def test_claim_over_seeds_counts_seeds():
    values = np.linspace(1.0, 2.0, 12)
    row = claim("1.S4", "s", "t", kind="less", threshold=3.0, values=values, groups=np.arange(12) % 3, note="why")
    assert row["n"] == 3 and row["verdict"] == "reproduced" and row["note"] == "why"
    row = claim("1.S4", "s", "t", kind="less", threshold=3.0, values=values, groups=[0] * 12)
    assert row["n"] == 1 and row["ci95"] is None and row["verdict"] == "inconclusive"


def test_exact_claim_takes_the_worst_value():
    row = claim("3.1", "s", "t", kind="exact", threshold=1e-3, values=[1e-4, -5e-3, 2e-3])
    assert row["value"] == -5e-3 and row["ci95"] is None and row["n"] == 3 and row["verdict"] == "not reproduced"
    with pytest.raises(ValueError, match="not finite"):
        claim("3.1", "s", "t", kind="exact", threshold=1e-3, values=[1e-4, math.nan])


def test_claim_from_a_number():
    row = claim("3.2", "s", "t", kind="exact", threshold=1, value=0)
    assert row["value"] == 0.0 and row["n"] == 1 and row["verdict"] == "reproduced"
    row = claim("3.3", "s", "t", kind="greater", threshold=0, value=2, ci95=(1, 3), n=40)
    assert row["ci95"] == [1.0, 3.0] and row["n"] == 40 and row["verdict"] == "reproduced"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"values": [1.0, 2.0], "value": 1.0},
        {"values": [1.0, 2.0], "ci95": (0, 1)},
        {"values": [1.0, 2.0], "n": 2},
        {"values": [1.0, 2.0], "groups": [1]},
        {"values": [math.nan]},
        {"value": math.nan},
        {"value": 1.0, "groups": [1]},
        {"value": 1.0, "kind": "bigger"},
    ],
)
def test_claim_refuses(arguments):
    with pytest.raises(ValueError):
        claim("1", "s", "t", **{"kind": "greater", "threshold": 0.0, **arguments})


def test_not_attempted():
    row = not_attempted("5.1", "s", "Table 2", kind="greater", threshold=0.5, reason="needs ImageNet", paper=0.7)
    assert list(row) == KEYS
    assert (row["value"], row["ci95"], row["n"]) == (None, None, 0)
    assert (row["verdict"], row["note"]) == ("not attempted", "needs ImageNet")
    assert row["verdict"] in VERDICTS
    for broken in ({"kind": "bigger"}, {"reason": ""}):
        with pytest.raises(ValueError):
            not_attempted("5.1", "s", "t", **{"kind": "greater", "threshold": 0.5, "reason": "r", **broken})
