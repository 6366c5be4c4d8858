import copy

import pytest

from manifold_lib.reproduction.verdicts.schema import validate

TOP = ["slug", "profile", "paper", "registration", "claims", "tables", "figures", "provenance"]
PROVENANCE = ["git", "dirty", "seed", "params", "versions", "device", "started", "seconds", "data", "models"]
CLAIM = ["id", "question", "kind", "statement", "source", "estimand", "margin", "why", "unit", "setting", "level"]
CLAIM += ["paper", "family", "value", "ci95", "prediction95", "tau2", "i2", "p", "p_equivalence", "p_holm", "n"]
CLAIM += ["units", "before", "seen", "claim", "exploratory", "verdict", "note"]


def test_what_is_written_passes_and_may_have_more_keys(document):
    content = document()
    validate(content)
    assert sorted(content) == sorted(TOP) and sorted(content["provenance"]) == sorted(PROVENANCE)
    for row in content["claims"]:
        assert sorted(row) == sorted(CLAIM)
    validate(content | {"remark": "an extension"})


def test_a_missing_key_is_named(document):
    whole = document()
    places = [
        (whole, "", TOP),
        (whole["provenance"], "provenance.", PROVENANCE),
        (whole["claims"][0], "claims.2.1.", CLAIM),
    ]
    for place, head, keys in places:
        for key in set(keys) - {"id"}:
            value = place.pop(key)
            with pytest.raises(ValueError) as error:
                validate(whole)
            assert str(error.value) == f"{head}{key}: missing"
            place[key] = value
    validate(whole)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda d: d.update(profile="huge"), "profile"),
        (lambda d: d.update(slug=3), "slug"),
        (lambda d: d.update(paper={"title": "x"}), "paper.arxiv"),
        (lambda d: d.update(registration="abc"), "registration"),
        (lambda d: d.update(figures=["a.svg"]), "figures.0"),
        (lambda d: d.update(figures=["../a.png"]), "figures.0"),
        (lambda d: d.update(tables={"t": [1]}), "tables.t.0"),
        (lambda d: d["claims"].append(d["claims"][0]), "claims"),
        (lambda d: d["claims"].append(3), "claims.?"),
        (lambda d: d["provenance"].update(data={"mnist": "ab"}), "provenance.data.mnist"),
        (lambda d: d["claims"][0].update(kind="bigger"), "claims.2.1.kind"),
        (lambda d: d["claims"][0].update(margin="0"), "claims.2.1.margin"),
        (lambda d: d["claims"][0].update(margin=-0.1), "claims.2.1.margin"),
        (lambda d: d["claims"][0].update(ci95=[1.0]), "claims.2.1.ci95"),
        (lambda d: d["claims"][0].update(ci95=[0.6, 0.4]), "claims.2.1.ci95"),
        (lambda d: d["claims"][0].update(ci95=[float("nan")] * 2), "claims.2.1.ci95"),
        (lambda d: d["claims"][0].update(n={"images": 40}), "claims.2.1.n.networks"),
        (lambda d: d["claims"][0].update(n={"images": 4, "networks": 1, "sets": 1}), "claims.2.1.n"),
        (lambda d: d["claims"][0].update(level="networks"), "claims.2.1.n"),
        (lambda d: d["claims"][0].update(level=None), "claims.2.1.n"),
        (lambda d: d["claims"][1].update(note=""), "claims.2.2.note"),
        (lambda d: d["claims"][3].update(ci95=[0.0, 1.0]), "claims.2.T1.ci95"),
        # what was typed, where it can be noticed
        (lambda d: d["claims"][0].update(verdict="reproduced"), "claims.2.1.verdict"),
        (lambda d: d["claims"][0].update(verdict="inconclusive"), "claims.2.1.verdict"),
        (lambda d: d["claims"][0].update(verdict="not attempted"), "claims.2.1.verdict"),
        (lambda d: d["claims"][1].update(verdict="direction only"), "claims.2.2.verdict"),
        (lambda d: d["claims"][2].update(verdict="not fooled"), "claims.2.C1.verdict"),
        (lambda d: d["claims"][3].update(value=0.1), "claims.2.T1.verdict"),
        (lambda d: d["claims"][0].update(value=None), "claims.2.1.verdict"),
        (lambda d: d["claims"][0].update(value=0.6), "claims.2.1.value"),
        (lambda d: d["claims"][0].update(value=0.1), "claims.2.1.value"),
        (lambda d: d["claims"][0].update(ci95=[-0.1, 0.6]), "claims.2.1.verdict"),
        (lambda d: d["claims"][0].update(ci95=[0.6, 0.7]), "claims.2.1.value"),
        (lambda d: d["claims"][0].update(p_holm=0.2), "claims.2.1.verdict"),
        (lambda d: d["claims"][0].update(seen=[d["claims"][0]["units"][0]]), "claims.2.1.exploratory"),
    ],
)  # fmt: skip
def test_what_is_broken_or_typed_is_named(document, change, name):
    broken = copy.deepcopy(document())
    change(broken)
    with pytest.raises(ValueError) as error:
        validate(broken)
    assert str(error.value).startswith(f"{name}:"), error.value


def test_what_is_no_object(document):
    for content in ([], 3, None):
        with pytest.raises(ValueError, match="is not of type 'object'"):
            validate(content)
