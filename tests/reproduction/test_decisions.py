import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from example_claims import claim, decide, table

from manifold_lib.reproduction import claims
from manifold_lib.reproduction.verdicts import pooling, scores

ROOT = Path(__file__).parents[2]
SCORES = sorted(file for profile in ("small", "paper") for file in ROOT.glob(f"figures/{profile}/*/scores.parquet"))


def test_a_row_holds_the_claim_and_what_it_rests_upon():
    entry = claim(paper=0.9, setting="paper", unit="accuracy", note="seen first")
    (row,) = decide(entry, on=table(networks=2), profile="paper")
    assert row | {key: value for key, value in entry.items() if key != "scores"} == row
    assert row["claim"] == claims.fingerprint(entry)
    assert row["units"] == ["mnist32 lenet-mnist32.0 0", "mnist32 lenet-mnist32.1 0"]
    assert row["n"] == {"images": 40, "networks": 2, "sets": 1}, "the networks share their images"
    assert row["value"] == pytest.approx(0.5, abs=0.01) and row["verdict"] == "reproduced"
    assert decide(entry, on=table(networks=2))[0]["verdict"] == "direction only", "the paper's setting is profile paper"
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ("level", "layout", "verdict"),
    [
        ("images", {"n": 4}, "not attempted"),
        ("images", {"n": 4, "networks": 3}, "not attempted"),  # the same four images
        ("images", {"n": 4, "networks": 3, "own": True}, "not attempted"),  # images are drawn within each network
        ("images", {"n": 5, "networks": 3, "own": True}, "direction only"),
        ("images", {"n": 5}, "direction only"),
        ("images", {"n": 1, "networks": 6, "own": True}, "not attempted"),
        ("networks", {"n": 40, "networks": 4}, "not attempted"),
        ("networks", {"n": 40, "networks": 4, "own": True}, "not attempted"),
        ("networks", {"n": 40, "networks": 5}, "direction only"),
        ("networks", {"n": 1, "networks": 5, "own": True}, "direction only"),
    ],
)
def test_nothing_from_fewer_than_five_units(level, layout, verdict):
    (row,) = decide(claim(level=level), on=table(**layout))
    assert row["verdict"] == verdict and row["value"] == pytest.approx(0.5, abs=0.1)
    attempted = verdict != "not attempted"
    assert (row["ci95"] is not None) == (row["p"] is not None) == attempted
    assert ("`make 02 PROFILE=paper`" in row["note"]) == (not attempted)


@pytest.mark.parametrize("kind", ["paper", "expectation", "control"])
@pytest.mark.parametrize("lead", [0.5, 0.005, 0.0, -0.005, -0.5])
@pytest.mark.parametrize("level", ["images", "networks"])
def test_a_claim_and_its_mirror_by_other_scores(kind, lead, level):
    entry = claim(kind=kind, level=level)
    mirror = claim("2.2", kind=kind, level=level, scores=entry["scores"] | {"of": "IG", "minus": "MA-GIG"})
    here, there = decide(entry, mirror, on=table(lead, networks=6))
    assert here["value"] == pytest.approx(-there["value"])
    assert here["ci95"] == pytest.approx([-end for end in reversed(there["ci95"])])
    large = {"paper": ("direction only", "not reproduced"), "expectation": ("held", "did not hold")}
    small = ("fooled", "fooled") if kind == "control" else ("equivalent", "equivalent")
    apart = large.get(kind, ("not fooled", "fooled"))
    wanted = small if abs(lead) < 0.02 else apart if lead > 0 else apart[::-1]
    assert (here["verdict"], there["verdict"]) == wanted


@pytest.mark.parametrize("level", ["images", "networks"])
def test_the_order_in_which_scores_were_recorded_changes_nothing(level):
    on = table(networks=6)
    assert decide(claim(level=level), on=on) == decide(claim(level=level), on=on.sample(frac=1, random_state=0))


def test_values_that_are_not_finite_and_sets_that_are_not_there_are_said():
    on = table(of=("mnist32", "fashion32"))
    on.loc[(on["set"] == "mnist32") & on["image"].isin([3, 5]), "value"] = math.nan
    on.loc[on["set"] == "fashion32", "value"] = math.inf
    sets = ["mnist32", "fashion32", "xray"]
    (row,) = decide(claim(scores=claim()["scores"] | {"sets": sets}), on=on)
    assert row["n"] == {"images": 38, "networks": 1, "sets": 1}
    assert row["note"] == "not finite, left out: 2 of 40; without fashion32, xray"
    (row,) = decide(claim(), on=scores.join([]))
    assert (row["value"], row["verdict"], row["units"]) == (None, "not attempted", [])
    assert row["note"] == "no scores of mnist32 at small: `make 02 PROFILE=paper`"
    (row,) = decide({**claim(missing="needs ImageNet", scores=None, level=None)}, on=on)
    assert (row["value"], row["verdict"], row["note"]) == (None, "not attempted", "needs ImageNet")


def test_identities_are_the_largest_error_of_those_that_were_tried():
    entry = claim("2.T1", kind="identity", margin=1e-3)
    del entry["scores"], entry["level"]
    (tried,) = decide(entry, on=scores.join([]), identities={"2.T1": (-5e-3, 12)})
    (untried,) = decide(entry, on=scores.join([]))
    assert (tried["verdict"], tried["value"], tried["n"]["images"]) == ("broken", -5e-3, 12)
    assert (untried["verdict"], untried["note"]) == ("not attempted", "not tried at small")


def test_claims_of_a_family_are_corrected_together():
    generator, base = np.random.default_rng(0), np.zeros(30)
    on = scores.join(
        [
            scores.rows_of("DiffID", name, base + lead + generator.normal(size=30), set="s", network="n", images=0)
            for name, lead in (("a", 0.45), ("b", 0.4), ("c", 5.0), ("d", 0.0), ("none", math.nan))
        ]
    )
    of = {"metric": "DiffID", "sets": ["s"]}
    alone = [claim(f"2.{k}", scores=of | {"of": name}) for k, name in enumerate(("a", "b", "c", "d", "none"))]
    before = decide(*alone, on=on)
    after = decide(*({**entry, "family": "f"} for entry in alone), on=on)
    order = sorted(range(4), key=lambda k: before[k]["p"])
    running = 0.0
    for rank, k in enumerate(order):
        running = max(running, (4 - rank) * before[k]["p"])
        assert after[k]["p_holm"] == pytest.approx(min(running, 1.0)) and before[k]["p_holm"] is None
    assert after[4]["p_holm"] is None, "what was not measured does not count"
    for one, other in zip(before, after, strict=True):
        lost = one["verdict"] == "direction only" and other["p_holm"] > 0.025
        assert other["verdict"] == ("undecided" if lost else one["verdict"])
        assert (one["value"], one["ci95"]) == (other["value"], other["ci95"])


def test_few_shared_images_decide_nothing_however_many_networks_there_are():
    for n, expected in ((4, "not attempted"), (5, "direction only"), (1, "direction only")):
        (row,) = decide(claim(level="networks"), on=table(networks=6, n=n))
        assert row["verdict"] == expected and (
            expected != "not attempted" or "4 images, and a verdict wants 5" in row["note"]
        )


def test_a_network_that_lacks_a_method_is_no_network_of_the_claim():
    on = table(networks=7)
    last = on["network"].isin(["lenet-mnist32.5", "lenet-mnist32.6"]) & on["method"].eq("MA-GIG")
    (row,) = decide(claim(level="networks"), on=on[~last])
    assert row["n"]["networks"] == 5 and "not finite" not in row["note"]


# ------------------------------------------------------------------------------------------------ committed, once more


def side_of(frame, side):
    """(set, network, images, image) -> value of one side of a difference, by loops."""
    rule, methods = next(iter(side.items())) if isinstance(side, dict) else ("mean", [side])
    cells = {}
    for row in frame[frame["method"].isin(methods)].itertuples(index=False):
        cells.setdefault((row.set, row.network, row.images, row.image), {})[row.method] = float(row.value)
    reduce = {"largest": max, "smallest": min, "mean": lambda values: sum(values) / len(values)}[rule]
    return {
        place: reduce(list(values.values())) if all(map(math.isfinite, values.values())) else math.nan
        for place, values in cells.items()
        if len(values) == len(methods)
    }


def recomputed(frame, claim):
    """Value, 95 % interval and τ² of a claim, by NumPy alone."""
    wanted, level = claim["scores"], claim["level"]
    frame = frame[(frame["metric"] == wanted["metric"]) & frame["set"].isin(wanted["sets"])]
    if "networks" in wanted:
        frame = frame[[name.split(".")[0] == wanted["networks"] for name in frame["network"]]]
    of, minus = side_of(frame, wanted["of"]), wanted.get("minus", 0.0)
    other = dict.fromkeys(of, minus) if isinstance(minus, int | float) else side_of(frame, minus)
    cells = {place: of[place] - other[place] for place in sorted(of) if place in other}
    cells = {place: value for place, value in cells.items() if math.isfinite(value)}
    units = {}
    for (name, network, *image), value in cells.items():
        units.setdefault((name, network), {})[(name, *image)] = value
    y = np.array([np.mean([*unit.values()]) for unit in units.values()])
    sizes, k = [len(unit) for unit in units.values()], len(units)
    images = [image for unit in units.values() for image in unit]
    shared = len(set(images)) < len(images)
    few = {"images": min(sizes) < 5, "networks": k < 5}
    if few[level] or (shared and 1 < min(sizes) < 5):
        return y.mean(), None, None
    value, error, tau2 = y.mean(), 0.0, None
    if level == "networks":
        v = np.array(
            [np.var([*unit.values()], ddof=1) / len(unit) if len(unit) > 1 else 0.0 for unit in units.values()]
        )
        if v.min() <= 1e-12 * np.square(y).max():
            error, tau2 = y.std(ddof=1) / math.sqrt(k), y.var(ddof=1)
        else:
            w = 1 / v
            q = (w * (y - (w * y).sum() / w.sum()) ** 2).sum()
            tau2 = max(0.0, (q - (k - 1)) / (w.sum() - (w**2).sum() / w.sum()))
            w = 1 / (v + tau2)
            mean = (w * y).sum() / w.sum()
            error = math.sqrt((w * (y - mean) ** 2).sum() / (k - 1) / w.sum())
            value = value if shared else mean
        if not shared or max(sizes) == 1:
            return value, value + scipy.stats.t.ppf(0.975, k - 1) * error * np.array([-1, 1]), tau2
    # the same draws, and all the rest anew: the images of each set and seed are drawn once for all that have them
    resamples, blocks = pooling._RESAMPLES, {}
    for name, seed, image in sorted(set(images)):
        blocks.setdefault((name, seed), []).append(image)
    total, count = np.zeros((k, resamples)), np.zeros((k, resamples))
    of_block = list(dict.fromkeys((name, seed) for name, _, seed, _ in sorted(cells)))
    for number, (name, seed) in enumerate(of_block):
        block = blocks[name, seed]
        draws = np.random.default_rng(number).integers(len(block), size=(resamples, len(block)))
        for index, (place, unit) in enumerate(units.items()):
            if place[0] == name:
                row = np.array([unit.get((name, seed, image), math.nan) for image in block])
                total[index] += np.nan_to_num(row)[draws].sum(1)
                count[index] += np.isfinite(row)[draws].sum(1)
    means = np.where(count > 0, total / np.maximum(count, 1), y[:, None])
    if level == "networks":
        drawn = np.random.default_rng(0).multinomial(k, np.full(k, 1 / k), size=resamples)
        means = k * (drawn.T / k * means)
    n = min(k, *sizes) if level == "networks" else min(sizes)
    tail = scipy.stats.norm.cdf(-math.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1))
    return value, np.quantile(means.mean(0), [tail, 1 - tail]), tau2


def agree(row, found):
    value, ci95, tau2 = found
    assert row["value"] == pytest.approx(value, abs=1e-6, rel=1e-6), row["id"]
    assert (row["ci95"] is None) == (ci95 is None), row["id"]
    if ci95 is not None:
        assert row["ci95"] == pytest.approx(list(ci95), abs=1e-6, rel=1e-6), row["id"]
    if row["tau2"] is not None or tau2 is not None:
        assert row["tau2"] == pytest.approx(tau2, abs=1e-6, rel=1e-6), row["id"]


@pytest.mark.parametrize("level", ["images", "networks"])
@pytest.mark.parametrize("layout", [{}, {"own": True}, {"of": ("mnist32", "xray")}, {"n": 1}, {"networks": 2}])
def test_the_independent_program(level, layout):
    on = table(**{"networks": 6, "n": 12, **layout})
    on.loc[on["image"].eq(3) & on["network"].str.endswith("1"), "value"] = math.nan
    entry = claim(level=level, scores=claim()["scores"] | {"sets": ["mnist32", "xray"]})
    agree(decide(entry, on=on)[0], recomputed(on, entry))


@pytest.mark.parametrize("file", SCORES or [None], ids=lambda file: "/".join(file.parts[-3:-1]) if file else "none yet")
def test_committed_numbers_computed_again(file):
    if file is None:
        pytest.skip("no committed results with scores yet")
    document = json.loads(file.with_name("results.json").read_text(encoding="utf-8"))
    registered = yaml.safe_load((ROOT / f"notebooks/claims/{document['slug']}.yml").read_text(encoding="utf-8"))
    entries, frame = (
        {entry["id"]: entry for entry in registered["claims"]},
        pd.read_parquet(file),
    )
    for row in document["claims"]:
        entry = entries.get(row["id"], {})
        if row["kind"] == "identity" or row["value"] is None or claims.fingerprint(entry) != row["claim"]:
            continue  # has no scores, or is another claim by now
        agree(row, recomputed(frame, entry))
