"""What was in sight before a claim had its words."""

import json

import pytest
from example_claims import claim, decide, table

from manifold_lib.core import files
from manifold_lib.reproduction import runtime
from manifold_lib.reproduction.verdicts import history, scores


def runs(*steps):
    """Whether the claim is exploratory in each of several runs, of (claims, scores)."""
    earlier, found = [], []
    for entries, on in steps:
        told = {entry["id"]: history.sight(entry, earlier) for entry in entries}
        rows = decide(*entries, on=on, history=told)
        earlier = [({row["id"]: row for row in rows}, on)]
        found.append(rows[0]["exploratory"])
    return found


A, B = [claim()], [claim(margin=0.05)]
OLD, NEW = table(), table(images=100)


@pytest.mark.parametrize(
    "change",
    [
        {"margin": 0.05},
        {"statement": "It is not."},
        {"estimand": "means of the middle half"},
        {"family": "f"},
        {"scores": claim()["scores"] | {"of": "IG", "minus": "MA-GIG"}},
        {"id": "2.9"},
        {"id": "2.9", "margin": 0.05},
    ],
)
def test_an_edit_after_a_run_explores_until_there_are_fresh_images(change):
    edited = [claim(**change)]
    assert runs((A, OLD), (edited, OLD), (edited, OLD), (edited, NEW), (edited, NEW)) == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert runs((A, OLD), (edited, NEW)) == [False, False]
    # of fresh networks, though not on both
    fresh = table(networks=2).query("network == 'lenet-mnist32.1'")
    assert runs((A, OLD), (edited, fresh), (edited, table(networks=2))) == [False, False, True]


def test_what_was_seen_is_not_forgotten():
    assert runs((A, OLD), (B, OLD), (A, OLD), (B, OLD)) == [False, True, True, True], "edited back and forth"
    assert runs((A, OLD), (B, OLD), (B, NEW), (B, OLD)) == [False, True, False, True], "back to the images of then"
    assert runs((A, OLD), (A, NEW), (B, OLD)) == [False, False, True], "seen two runs ago, by the same words"
    assert runs((A, OLD), (A, NEW), (A, OLD)) == [False] * 3, "the same words on all images"
    assert runs((A, OLD), ([claim("2.2", margin=0.05)], NEW), (A, NEW)) == [False, False, True]


def test_the_mark_that_is_taken_away_after_a_run_stays_on_its_images():
    marked = [claim(exploratory=True)]
    assert runs((marked, OLD), (A, OLD), (A, OLD), (A, NEW), (A, OLD)) == [True, True, True, False, True]
    assert runs((A, OLD), (marked, OLD), (A, OLD)) == [False, True, True]
    assert runs((marked, OLD), (marked, NEW)) == [True, True]


def test_a_new_claim_on_scores_that_were_there_explores():
    first = [claim("2.5", scores=claim()["scores"] | {"minus": 0.0})]
    assert runs((first, OLD), (A, OLD)) == [False, True]
    other = scores.join([OLD.assign(metric="insertion")])
    assert runs((first, other), (A, scores.join([other, OLD]))) == [False, False], "nobody has seen these scores"


def test_reading_the_runs_before(folders):
    target, registered = runtime.FIGURES / "small/02_example", {"2.1": claim()}
    target.mkdir(parents=True)
    file = target / "results.json"
    for text in (None, "[]", '{"claims": [{"id": "2.1", "value": 1}], "registration": "a"}'):
        if text is not None:
            file.write_text(text)
        ((found, on), (other, _)) = history.read_runs("02_example", target, registered)
        assert found == other == {} and on.empty, "results of before there were registered claims say nothing"
    for broken in (b"{", b"\xff"):
        file.write_bytes(broken)
        with pytest.raises(files.CorruptFile, match=r"results\.json: cannot be read.*restore it"):
            history.read_runs("02_example", target, registered)
        with pytest.warns(UserWarning, match=r"not known: .*small/02_example/results\.json"):
            history.read_runs("02_example", runtime.FIGURES / "paper/02_example", registered)
    rows = decide(claim(), on=OLD)
    file.write_text(json.dumps({"claims": rows, "registration": "a"}))
    scores.write(target / "scores.parquet", OLD)
    found, on = history.read_runs("02_example", target, registered)[0]
    assert found == {"2.1": rows[0]} and len(on) == len(OLD)


@pytest.mark.parametrize("place", ["small/02_example", "sweep/paper/02_example/mnist32-0"])
def test_what_was_in_sight_elsewhere_was_in_sight(folders, place):
    folder, edited = runtime.FIGURES / place, claim(margin=0.5)
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"claims": decide(claim(), on=OLD), "registration": "a"}))
    scores.write(folder / "scores.parquet", OLD)
    for entry, expected in ((edited, True), (claim(), False)):
        runs = history.read_runs("02_example", runtime.FIGURES / "paper/02_example", {"2.1": entry})
        told = {"2.1": history.sight(entry, runs)}
        assert decide(entry, on=OLD, history=told)[0]["exploratory"] == expected
        assert not decide(entry, on=NEW, history=told)[0]["exploratory"]
