import copy
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, strategies as st

from manifold_lib.reproduction import claims
from manifold_lib.reproduction.claims import VERDICTS, fingerprint, judge, register, verdict_of

REGISTERED = sorted(Path(__file__).parents[2].glob("notebooks/claims/*.yml"))
ORDER = ("not reproduced", "equivalent", "undecided", "direction only", "reproduced")
POSITIVE = ("reproduced", "direction only", "held", "not fooled")
WORDS = {"direction only": "held", "not reproduced": "did not hold"}  # of a paper's claim -> of an expectation

ends = st.floats(-10, 10, allow_nan=False, allow_subnormal=False)
margins = st.floats(1e-3, 5)
kinds = st.sampled_from(["paper", "control", "expectation"])
intervals = st.tuples(ends, ends).map(sorted)


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("ci95", "paper", "control"),
    [
        ((0.05, 0.15), "direction only", "not fooled"),
        ((0.005, 0.15), "direction only", "not fooled"),
        ((0.005, 0.015), "equivalent", "fooled"),
        ((-0.015, 0.015), "equivalent", "fooled"),
        ((-0.015, -0.005), "equivalent", "fooled"),
        ((-0.05, 0.015), "not reproduced", "fooled"),
        ((-0.05, -0.03), "not reproduced", "fooled"),
        ((-0.05, 0.05), "undecided", "undecided"),
        ((0.0, 0.05), "undecided", "undecided"),
        ((-0.02, 0.02), "undecided", "undecided"),
        ((-0.05, 0.02), "undecided", "undecided"),
    ],
)
def test_verdicts_at_margin_002(ci95, paper, control):
    middle = sum(ci95) / 2
    assert judge("paper", 0.02, middle, ci95) == paper
    assert judge("expectation", 0.02, middle, ci95) == WORDS.get(paper, paper)
    assert judge("control", 0.02, middle, ci95) == control


@pytest.mark.parametrize(
    ("value", "paper", "same_setting", "verdict"),
    [
        (0.10, 0.20, True, "reproduced"),
        (0.10, 0.21, True, "direction only"),
        (0.10, 0.20, False, "direction only"),
        (0.10, None, True, "direction only"),
        (0.10, -0.10, True, "direction only"),
    ],
)
def test_reproduced_is_half_of_the_papers_size_in_its_setting(value, paper, same_setting, verdict):
    assert judge("paper", 0.02, value, (0.05, 0.15), paper=paper, same_setting=same_setting) == verdict


def test_identities_are_held_against_their_tolerance():
    for sign in (1, -1):
        assert judge("identity", 0.1, sign * 0.1) == "exact"
        assert judge("identity", 0.1, sign * 0.11) == "broken"


@given(margins, intervals, st.floats(0, 5), st.floats(0, 5), ends, st.floats(0, 5), st.booleans())
def test_raising_an_end_never_worsens_a_verdict(margin, ci95, up_low, up_high, value, up, same):
    low, high = ci95
    raised = min(low + up_low, high + up_high), high + up_high
    # `value` says whether the size is the paper's; it may rise as well
    before, after = (
        judge("paper", margin, at, bounds, paper=1.0, same_setting=same)
        for at, bounds in ((value, ci95), (value + up, raised))
    )
    assert ORDER.index(before) <= ORDER.index(after)
    better = {"fooled": 0, "undecided": 1, "not fooled": 2}
    assert better[judge("control", margin, value, ci95)] <= better[judge("control", margin, value, raised)]


@given(kinds, margins, intervals, st.floats(0, 5), st.floats(0, 5))
def test_a_wider_interval_never_turns_a_verdict_round(kind, margin, ci95, down, up):
    narrow = judge(kind, margin, 0.0, ci95)
    wide = judge(kind, margin, 0.0, (ci95[0] - down, ci95[1] + up))
    if narrow in ("equivalent", "fooled"):
        # these may be small differences, or less than none; the width decides nothing of the other side
        assert wide != "reproduced"
    else:
        assert wide in (narrow, "undecided")


@given(kinds, margins, intervals)
def test_a_claim_and_its_mirror(kind, margin, ci95):
    low, high = ci95
    middle = (low + high) / 2
    here, there = judge(kind, margin, middle, (low, high)), judge(kind, margin, -middle, (-high, -low))
    assert not (here in POSITIVE and there in POSITIVE)
    assert (here == "equivalent") == (there == "equivalent")
    if here in POSITIVE:
        assert there in ("not reproduced", "did not hold", "fooled")


@given(kinds, margins, intervals, ends, ends, st.integers(-40, 40))
def test_a_verdict_depends_on_interval_and_margin_only_in_any_unit(kind, margin, ci95, value, other, power):
    unit = 2.0**power  # rounds nothing
    more = {"paper": 0.5, "same_setting": True}
    found = judge(kind, margin, value, ci95, **more)
    scaled = [unit * end for end in ci95]
    assert found == judge(kind, unit * margin, unit * value, scaled, paper=unit * 0.5, same_setting=True)
    assert found in VERDICTS[kind]
    changed = judge(kind, margin, other, ci95)
    assert changed == found or {changed, found} == {"direction only", "reproduced"}


@given(kinds, margins, st.floats(0, 1e-3), st.floats(0, 10), st.booleans())
def test_no_bound_is_met_by_rounding(kind, margin, share, far, upper):
    little = share * margin
    if upper:  # an upper end that keeps below the margin by next to nothing
        verdict = judge(kind, margin, 0.0, (-far, margin - little * 0.999))
        assert verdict == "undecided"
    else:
        verdict = judge(kind, margin, 1.0, (little * 0.999, margin + far))
        assert verdict == "undecided"


def test_float_noise_above_zero_is_no_finding():
    assert judge("paper", 0.02, 0.5, (1.2e-9, 1.0)) == judge("control", 0.02, 0.5, (3.3e-9, 1.0)) == "undecided"


def test_without_an_interval_nothing_is_judged():
    for kind in set(VERDICTS) - {"identity"}:
        assert judge(kind, 0.1, 1.0) == "not attempted"


@pytest.mark.parametrize(
    "arguments",
    [
        ("bigger", 0.1, 1.0, (0.0, 2.0)),
        *(("paper", margin, 1.0, (0.0, 2.0)) for margin in (math.nan, math.inf, 0.0, -1.0)),
        ("paper", 0.1, math.nan, (0.0, 2.0)),
        ("paper", 0.1, math.inf, None),
        ("paper", 0.1, 1.0, (2.0, 0.0)),
        ("paper", 0.1, 1.0, (math.nan, 2.0)),
        ("identity", 1.0, math.nan, None),
        ("identity", 1.0, 1.0, (0.0, 2.0)),
    ],
)
def test_judge_refuses(arguments):
    with pytest.raises(ValueError):
        judge(*arguments)


@given(kinds, margins, intervals, st.floats(0, 1))
def test_in_a_family_holm_can_only_take_a_positive_verdict_back(kind, margin, ci95, p_holm):
    row = {"kind": kind, "margin": margin, "value": 0.0, "ci95": ci95, "paper": None, "setting": "ours", "p_holm": None}
    alone, corrected = verdict_of(row, "paper"), verdict_of(row | {"p_holm": p_holm}, "paper")
    assert corrected == ("undecided" if alone in POSITIVE and p_holm > 0.025 else alone)


def test_the_papers_setting_is_that_of_profile_paper():
    row = {"kind": "paper", "margin": 0.02, "value": 0.1, "ci95": [0.05, 0.15], "paper": 0.1, "p_holm": None}
    found = [
        verdict_of(row | {"setting": setting}, profile)
        for setting in ("paper", "ours")
        for profile in ("paper", "small")
    ]
    assert found == ["reproduced", *["direction only"] * 3]


# --------------------------------------------------------------------------------------------------------- registration


def claim(**more):
    return {
        **{"id": "2.1", "question": "Is it?", "statement": "It is.", "kind": "paper", "source": "Fig. 3"},
        **{"estimand": "paired over images", "margin": 0.02, "why": "a guess", "level": "images"},
        **{"scores": {"metric": "DiffID", "of": "MA-GIG", "minus": "IG", "sets": ["mnist32"]}},
        **more,
    }


def file_of(tmp_path, *entries):
    file = tmp_path / "02_example.yml"
    file.write_text(yaml.safe_dump({"claims": [*entries]}), encoding="utf-8")
    return file


@pytest.mark.parametrize("file", REGISTERED, ids=lambda file: file.stem)
def test_every_registered_file(file):
    found = register(file).claims
    assert len(register(file).sha256) == 64
    letters = {"C": "control", "E": "expectation", "T": "identity"}
    for id, entry in found.items():
        number, letter, _ = re.fullmatch(r"(\d+)\.([CET]?)(\d+)", id).groups()
        assert int(number) == int(file.stem[:2]), f"{id} is of another notebook"
        assert letters.get(letter, entry["kind"]) == entry["kind"] and (entry["kind"] != "paper" or not letter), id
        assert entry["question"].endswith("?") and entry["statement"].endswith(".")
    # the same finding is not claimed twice
    for key in ("statement", "scores"):
        said = [yaml.safe_dump(entry[key]) for entry in found.values() if key in entry]
        assert len(set(said)) == len(said), key


@pytest.mark.parametrize("side", ["IG", {"largest": ["IG", "MA-GIG"]}, {"smallest": ["IG"]}, {"mean": ["a", "b"]}, 0.5])
def test_what_may_be_subtracted(tmp_path, side):
    given_ = claim(scores=claim()["scores"] | {"minus": side})
    assert register(file_of(tmp_path, given_)).claims == {"2.1": given_}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        *(({key: None}, key) for key in ("id", "question", "statement", "kind", "estimand", "margin", "why")),
        ({"kind": "finding"}, "kind"),
        ({"margn": 1}, "margn"),
        ({"id": 2.1}, "id"),
        ({"statement": ""}, "statement"),
        *(({"margin": margin}, "margin") for margin in (0, -0.1, "0.02", True, math.inf, math.nan)),
        *(({"paper": paper}, "paper") for paper in ("0.1", math.nan)),
        ({"source": None}, "source"),
        ({"setting": "theirs", "paper": 0.1}, "setting"),
        ({"setting": "paper"}, "setting"),
        ({"level": None}, "level"),
        ({"level": "pixels"}, "level"),
        ({"exploratory": "yes"}, "exploratory"),
        ({"scores": None}, "scores"),
        ({"missing": "needs ImageNet"}, "missing"),
        ({"scores": {}}, "scores"),
        *(({"scores": claim()["scores"] | {key: value}}, key) for key, value in (
            *(("metric", 3), ("of", 3), ("of", {"best": ["IG"]}), ("of", {"mean": []}), ("minus", {"mean": "IG"})),
            *(("minus", math.nan), ("sets", []), ("sets", ["a", "a"]), ("netwroks", "a")),
        )),
        *(({"kind": "identity", "source": None, "scores": None, "level": None, **more}, key) for key, more in (
            *(("level", {"level": "images"}), ("scores", {"scores": claim()["scores"]}), ("paper", {"paper": 0.1})),
            ("family", {"family": "f"}),
        )),
    ],
)  # fmt: skip
def test_a_broken_claim_is_refused_by_file_claim_and_key(tmp_path, change, key):
    broken = {name: value for name, value in claim(**change).items() if value is not None}
    file = file_of(tmp_path, claim(id="2.2"), broken)
    with pytest.raises(ValueError) as error:
        register(file)
    head, _, rest = str(error.value).partition(": claims.")
    assert head == str(file)
    assert rest.startswith(str(broken.get("id", 1))) and key in rest, error.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "file: None is not of type 'object'"),
        (b"[]", "file: "),
        (b"claims: []", "claims: "),
        (b"claims: {a: 1}", "claims: "),
        (b"claims: [3]", "claims.0: "),
        (b"claims: [{id: '2.1'}]\nmore: 1", "'more' was unexpected"),
        (b"claims: [", "02_example.yml: "),
        (b"\xff\xfe\x00", "02_example.yml: "),
    ],
)
def test_a_broken_file_is_refused(tmp_path, text, message):
    file = tmp_path / "02_example.yml"
    file.write_bytes(text)
    with pytest.raises(ValueError) as error:
        register(file)
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)


def test_a_key_or_an_id_that_is_given_twice_is_refused(tmp_path):
    file = file_of(tmp_path, claim(), claim())
    with pytest.raises(ValueError, match=r"02_example\.yml: claims\.2\.1: is registered twice"):
        register(file)
    file = file_of(tmp_path, claim())
    file.write_text(file.read_text() + "  margin: 0.5\n")
    with pytest.raises(ValueError, match=r"(?s)02_example\.yml: margin is given twice.*line 2"):
        register(file)


def test_no_file_is_no_registration(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.yml: claims are registered before a run"):
        register(tmp_path / "missing.yml")


def test_an_edit_of_what_a_claim_says_is_noticed_and_a_remark_is_not():
    said = claim(paper=0.1)
    more = {"question": "?", "statement": "!", "kind": "expectation", "source": "Fig. 4", "paper": 0.2, "margin": 0.03}
    more |= {"setting": "paper", "estimand": "unpaired", "level": "networks", "family": "f"}
    more |= {"scores": claim()["scores"] | {"sets": ["fashion32"]}}
    changed = [said | {key: value} for key, value in more.items()]
    assert len({fingerprint(entry) for entry in (said, *changed)}) == 1 + len(changed)
    remarks = {"why": "a better reason", "unit": "accuracy", "note": "seen first", "exploratory": True}
    assert fingerprint(said | remarks) == fingerprint(dict(reversed(copy.deepcopy(said).items())))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"margin": 1}, {"margin": 1.0}),
        ({"paper": 2}, {"paper": 2.0}),
        ({}, {"setting": "ours"}),
        ({"statement": "It is so."}, {"statement": "It is\n  so. "}),
        (
            {"scores": {"metric": "m", "of": "a", "sets": ["s", "t"]}},
            {"scores": {"metric": "m", "of": "a", "minus": 0, "sets": ["t", "s"]}},
        ),
        (
            {"scores": {"metric": "m", "of": {"mean": ["a", "b"]}, "sets": ["s"]}},
            {"scores": {"metric": "m", "of": {"mean": ["b", "a"]}, "sets": ["s"]}},
        ),
    ],
)
def test_another_spelling_is_no_edit(one, other):
    assert fingerprint(claim() | one) == fingerprint(claim() | other)


def test_a_family_is_all_of_its_members(tmp_path):
    file = tmp_path / "02_x.yml"

    def words(*margins, scores=("a", "b", "c")):
        entries = [
            claim(id=f"2.{k}", family="f", margin=margin, scores={"metric": "m", "of": of, "sets": ["s"]})
            for k, (margin, of) in enumerate(zip(margins, scores, strict=False))
        ]
        file.write_text(yaml.safe_dump({"claims": entries}))
        return fingerprint(register(file).claims["2.0"])

    whole = words(0.1, 0.1, 0.1)
    assert words(0.1, 0.1) != whole != words(0.1, 0.1, 0.1, scores=("a", "b", "d")), "one dropped, one swapped"
    assert words(0.1, 0.1, 0.3) == whole, "the margin of another member changes no p"


@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")), st.booleans())
def test_units_that_were_seen_under_other_words_only_explore(units, seen, flag):
    found, kept = claims.is_exploratory({"exploratory": flag}, sorted(units), [], seen)
    assert found == (flag or bool(units & seen)) and kept == sorted(seen)
    assume(units)
    prior = {"units": sorted(units), "seen": kept, "exploratory": found}
    # the flag flipped by hand, on the same units, changes nothing
    assert claims.is_exploratory({}, sorted(units), [prior], set())[0] == found
