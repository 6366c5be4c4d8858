"""The JSON schema of ``results.json``, and the check that its verdicts follow from its numbers."""

from typing import Any

from jsonschema import Draft202012Validator

from .. import claims, runtime


def _object(**properties: Any) -> dict[str, Any]:
    """The schema of an object that has all of these keys, and perhaps more."""
    return {"type": "object", "required": [*properties], "properties": properties}


def _or_null(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], **more}


_TEXT, _NUMBER, _OBJECT, _COUNT = ({"type": name} for name in ("string", "number", "object", "integer"))
_TEXTS = {"type": "array", "items": _TEXT}
_SHA256 = _TEXT | {"pattern": "^[0-9a-f]{64}$"}
_CHECKSUMS = _OBJECT | {"additionalProperties": _SHA256}
_INTERVAL = _or_null("array", items=_NUMBER, minItems=2, maxItems=2)
_CLAIM = _object(
    **dict.fromkeys(("id", "question", "statement", "source", "estimand", "why", "unit", "note"), _TEXT),
    kind={"enum": list(claims.VERDICTS)},
    setting={"enum": ["paper", "ours"]},
    level={"enum": [*claims.LEVELS, None]},
    margin=_NUMBER,
    **dict.fromkeys(("paper", "value", "tau2", "i2", "p", "p_equivalence", "p_holm"), _or_null("number")),
    **dict.fromkeys(("ci95", "prediction95"), _INTERVAL),
    family=_or_null("string"),
    n=_object(images=_COUNT, networks=_COUNT, sets=_COUNT),
    verdict=_TEXT,
    exploratory={"type": "boolean"},
    claim=_SHA256,
    units=_TEXTS,
    before=_TEXTS,
    seen=_TEXTS,
)
_DOCUMENT = _object(
    slug=_TEXT,
    profile={"enum": runtime.PROFILES},
    paper=_object(title=_TEXT, arxiv=_TEXT) | {"type": ["object", "null"]},
    registration=_SHA256,
    claims={"type": "array"},
    tables=_OBJECT | {"additionalProperties": {"type": "array", "items": _OBJECT}},
    figures={"type": "array", "items": _TEXT | {"pattern": r"^[^/]+\.png$"}},
    provenance=_object(
        git=_or_null("string"),
        dirty=_or_null("boolean"),
        seed=_COUNT,
        **dict.fromkeys(("params", "versions"), _OBJECT),
        **dict.fromkeys(("device", "started"), _TEXT),
        seconds=_NUMBER,
        **dict.fromkeys(("data", "models"), _CHECKSUMS),
    ),
)


def validate(document: dict[str, Any]) -> None:
    """Refuse a ``results.json`` that breaks the schema, or whose verdicts do not follow; the error names the key."""
    check(document, _DOCUMENT)
    for row in document["claims"]:
        validate_claim(row, document["profile"])
    ids = [row["id"] for row in document["claims"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claims: got the ids {ids}, wants each once")


def validate_claim(row: dict[str, Any], profile: str) -> None:
    """Refuse a claim with a missing key, a wrong type, or a verdict that does not follow from its numbers."""
    name = f"claims.{row.get('id', '?') if isinstance(row, dict) else '?'}"
    check(row, _CLAIM, name)
    try:
        wanted = {"verdict": claims.verdict_of(row, profile)}
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error
    if row["verdict"] == "not attempted":
        wanted["note"] = row["note"] or "the reason"
    elif row["ci95"] is not None and row["n"].get(row["level"], 0) < claims.FEWEST:
        raise ValueError(f"{name}.n: got {row['n']}, wants {claims.FEWEST} {row['level']} for a verdict")
    for key, value in wanted.items():
        if row[key] != value:
            raise ValueError(f"{name}.{key}: got {row[key]!r}, wants {value!r}")
    if row["value"] is not None and row["ci95"] is not None:
        (low, high), rounding = row["ci95"], 1e-9 * (abs(row["value"]) + row["margin"])
        if not low - rounding <= row["value"] <= high + rounding:
            raise ValueError(f"{name}.value: got {row['value']}, wants one in its interval {row['ci95']}")
    if not row["exploratory"] and set(row["seen"]) & set(row["units"]):
        raise ValueError(f"{name}.exploratory: got false, wants true: its units were seen under other words")


def check(value: Any, schema: dict[str, Any], *name: str) -> None:
    """Refuse what breaks a schema, with the place of the first error."""
    for error in Draft202012Validator(schema).iter_errors(value):
        place = [*name, *map(str, error.absolute_path)]
        if error.validator == "required":
            place.append(next(key for key in error.validator_value if key not in error.instance))
        what = "missing" if error.validator == "required" else error.message
        raise ValueError(f"{'.'.join(place)}: {what}")
