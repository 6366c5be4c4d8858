"""Claims, registered in ``notebooks/claims/SLUG.yml`` before a run, and the words for what came of them.

Every verdict is computed here, from an interval and the margin that was registered with the claim.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonschema import Draft202012Validator

VERDICTS = {
    "paper": ("reproduced", "direction only", "equivalent", "not reproduced", "undecided", "not attempted"),
    "control": ("fooled", "not fooled", "undecided", "not attempted"),
    "expectation": ("held", "equivalent", "did not hold", "undecided", "not attempted"),
    "identity": ("exact", "broken", "not attempted"),
}
LEVELS = ("images", "networks")
FEWEST = 5  # units of the level that a claim is about: no verdict from fewer
_ROUNDING = 1e-3  # of the margin: a bound that is met by less is not met

_TEXT = {"type": "string", "minLength": 1}
_SIDE = {
    "anyOf": [
        _TEXT,
        {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "additionalProperties": False,
            "properties": {
                name: {"type": "array", "items": _TEXT, "minItems": 1} for name in ("largest", "smallest", "mean")
            },
        },
    ]
}
_SCORES = {
    "type": "object",
    "required": ["metric", "of", "sets"],
    "additionalProperties": False,
    "properties": {
        "metric": _TEXT,
        "of": _SIDE,
        "minus": {"anyOf": [*_SIDE["anyOf"], {"type": "number"}]},  # type: ignore[misc]
        "sets": {"type": "array", "items": _TEXT, "minItems": 1, "uniqueItems": True},
        "networks": _TEXT,
    },
}
_CLAIM: dict[str, Any] = {
    "type": "object",
    "required": ["id", "question", "statement", "kind", "estimand", "margin", "why"],
    "additionalProperties": False,
    "properties": {
        **dict.fromkeys(("id", "question", "statement", "source", "estimand", "why", "unit", "note", "family"), _TEXT),
        "kind": {"enum": list(VERDICTS)},
        "paper": {"type": "number"},
        "setting": {"enum": ["paper", "ours"]},
        "margin": {"type": "number", "exclusiveMinimum": 0},
        "level": {"enum": list(LEVELS)},
        "scores": _SCORES,
        "missing": _TEXT,
        "exploratory": {"type": "boolean"},
    },
}
_FILE = {
    "type": "object",
    "required": ["claims"],
    "additionalProperties": False,
    "properties": {"claims": {"type": "array", "minItems": 1, "items": _CLAIM}},
}
# what a claim says; the rest are remarks on it
_SAID = ("question", "statement", "kind", "source", "paper", "setting", "estimand")
_SAID += ("margin", "level", "scores", "family", "members")


class _Loader(yaml.SafeLoader):
    """A key that is given twice is refused, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class Registration(NamedTuple):
    """The registered claims of a notebook, by id, and the SHA-256 of their file."""

    sha256: str
    claims: dict[str, dict[str, Any]]


def register(file: Path) -> Registration:
    """Read ``notebooks/claims/SLUG.yml``. Raises ``ValueError`` that names the file, the claim and the key."""
    try:
        content = file.read_bytes()
        document = yaml.load(content, _Loader)
    except OSError as error:
        raise ValueError(f"{file}: claims are registered before a run: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from error
    for error in Draft202012Validator(_FILE).iter_errors(document):
        place = list(error.absolute_path)
        name = ".".join(map(str, place))
        if len(place) > 1 and isinstance(document["claims"][place[1]], dict):
            name = ".".join(map(str, ["claims", document["claims"][place[1]].get("id", place[1]), *place[2:]]))
        raise ValueError(f"{file}: {name or 'file'}: {error.message}")
    claims = {}
    for claim in document["claims"]:
        if claim["id"] in claims:
            raise ValueError(f"{file}: claims.{claim['id']}: is registered twice")
        _check_consistent(claim, f"{file}: claims.{claim['id']}")
        claims[claim["id"]] = claim
    # Holm's correction depends on what else is in the family: a claim says that, too
    for family in {claim["family"] for claim in claims.values() if "family" in claim}:
        others = [claim for claim in claims.values() if claim.get("family") == family]
        members = [_canonical([claim.get("scores"), claim.get("level")]) for claim in others]
        for claim in others:
            claim["members"] = sorted(json.dumps(member, sort_keys=True) for member in members)
    return Registration(hashlib.sha256(content).hexdigest(), claims)


def _check_consistent(claim: dict[str, Any], name: str) -> None:
    """Refuse a claim that nothing could decide."""
    minus = claim.get("scores", {}).get("minus")
    for key, number in (("margin", claim["margin"]), ("paper", claim.get("paper")), ("scores.minus", minus)):
        if isinstance(number, int | float) and not math.isfinite(number):
            raise ValueError(f"{name}.{key}: got {number}, wants a finite number")
    if claim["kind"] == "identity":
        wrong = [key for key in ("scores", "level", "family", "paper", "missing") if key in claim]
        if wrong:
            raise ValueError(f"{name}: an identity has no {wrong[0]}")
    elif "scores" in claim:
        if "level" not in claim:
            raise ValueError(f"{name}: wants level, one of {', '.join(LEVELS)}")
        if "missing" in claim:
            raise ValueError(f"{name}: has scores, and missing, the reason why it has none; wants one of the two")
    elif "missing" not in claim:
        raise ValueError(f"{name}: wants scores, or missing, the reason why it is not attempted")
    if claim["kind"] == "paper" and "source" not in claim:
        raise ValueError(f"{name}: a claim of the paper wants its source")
    if claim.get("setting") == "paper" and "paper" not in claim:
        raise ValueError(f"{name}: setting: paper wants the paper's number")


def _canonical(value: Any) -> Any:
    """One form for all spellings of a value: 1 and 1.0, sets and methods in any order, lines broken anywhere."""
    if isinstance(value, dict):
        return {key: _canonical(entry) for key, entry in value.items() if (key, entry) != ("minus", 0)}
    if isinstance(value, list):
        return sorted(map(_canonical, value), key=str)
    if isinstance(value, str):
        return " ".join(value.split())
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def fingerprint(claim: dict[str, Any]) -> str:
    """SHA-256 of what a claim says, by which an edit is noticed; remarks and the exploratory mark do not count."""
    said = _canonical({key: claim[key] for key in _SAID if claim.get(key) not in (None, "ours")})
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def judge(
    kind: str,
    margin: float,
    value: float,
    ci95: tuple[float, float] | list[float] | None = None,
    *,
    paper: float | None = None,
    same_setting: bool = False,
) -> str:
    """The verdict on a difference that the claim says is positive.

    ``margin`` is the smallest difference that would matter, in the unit of ``value``. An identity has no interval: its
    largest error is held against the margin. A bound that is met by less than a thousandth of the margin is not met.

    ==============  =====================================================================================
    paper           *equivalent* (the interval lies within ±margin), else *reproduced* (it lies above 0, and
                    the value is at least half of the ``paper``'s, in the ``same_setting``), *direction only* (above 0
                    otherwise), *not reproduced* (below the margin), *undecided*
    control         *fooled* (the method's lead lies below the margin), *not fooled* (above 0), *undecided*
    expectation     *equivalent*, *held*, *did not hold* and *undecided*, as for paper
    identity        *exact*, *broken*
    ==============  =====================================================================================

    >>> judge("paper", 0.02, 0.10, (0.05, 0.15), paper=0.12, same_setting=True)
    'reproduced'
    >>> judge("paper", 0.02, 0.001, (-0.01, 0.01)), judge("control", 0.02, 0.001, (-0.01, 0.01))
    ('equivalent', 'fooled')
    """
    if kind not in VERDICTS:
        raise ValueError(f"kind: got {kind!r}, wants one of {', '.join(map(repr, VERDICTS))}")
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"margin: got {margin!r}, wants a positive number")
    if not math.isfinite(value):
        raise ValueError(f"value: got {value!r}, wants a finite number")
    if kind == "identity":
        if ci95 is not None:
            raise ValueError("ci95: an identity has none")
        return "exact" if abs(value) <= margin else "broken"
    if ci95 is None:
        return "not attempted"
    low, high = ci95
    if not low <= high:
        raise ValueError(f"ci95: got [{low}, {high}], wants lower end ≤ upper end")
    slack = _ROUNDING * margin
    above, below = low > slack, high < margin - slack
    if kind == "control":
        return "fooled" if below else "not fooled" if above else "undecided"
    if below and low > slack - margin:
        return "equivalent"
    if above:
        whole = same_setting and paper is not None and paper > 0 and value >= paper / 2
        return "held" if kind == "expectation" else "reproduced" if whole else "direction only"
    if below:
        return "did not hold" if kind == "expectation" else "not reproduced"
    return "undecided"


def verdict_of(row: dict[str, Any], profile: str) -> str:
    """The verdict that follows from a row of ``results.json``.

    In a family a positive word wants Holm's one-sided p to be at most .025, the level of an interval of 95 %.
    """
    if row["value"] is None:
        return "not attempted"
    same = profile == "paper" and row["setting"] == "paper"
    found = judge(row["kind"], row["margin"], row["value"], row["ci95"], paper=row["paper"], same_setting=same)
    positive = found in ("reproduced", "direction only", "held", "not fooled")
    return "undecided" if positive and row["p_holm"] is not None and row["p_holm"] > 0.025 else found


def is_exploratory(
    claim: dict[str, Any], units: list[str], priors: list[dict[str, Any]], seen: set[str]
) -> tuple[bool, list[str]]:
    """Whether numbers on ``units`` only explore; and the units on which the claim was in sight before it had its words.

    They do where the claim says so itself, and on units that were ``seen`` under another text, margin or estimand, or
    by runs before, whose rows with these same words are ``priors``. Fresh images or networks confirm.
    """
    seen = set(seen)
    for prior in priors:
        seen.update(prior["seen"])
        if prior["exploratory"]:
            seen.update(prior["units"])
    return bool(claim.get("exploratory")) or bool(seen & set(units)), sorted(seen)
