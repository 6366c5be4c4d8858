"""The schema of ``results.json``: what is refused before it is written, and again before it is reported."""

from __future__ import annotations

import re
from typing import Any

from . import claims, runtime

_NUMBER = (int, float)
_CLAIM = {
    "id": str,
    "statement": str,
    "source": str,
    "kind": str,
    "threshold": _NUMBER,
    "unit": str,
    "paper": (*_NUMBER, type(None)),
    "value": (*_NUMBER, type(None)),
    "ci95": (list, type(None)),
    "n": int,
    "verdict": str,
    "note": str,
}
_DOCUMENT = {
    "slug": str,
    "profile": str,
    "paper": (dict, type(None)),
    "claims": list,
    "tables": dict,
    "figures": list,
    "provenance": dict,
}
_PROVENANCE = {
    "git": (str, type(None)),
    "dirty": (bool, type(None)),
    "seed": int,
    "params": dict,
    "versions": dict,
    "device": str,
    "started": str,
    "seconds": _NUMBER,
    "data": dict,
    "models": dict,
}


def validate(document: dict[str, Any]) -> None:
    """Refuse a ``results.json`` that breaks the schema, or whose verdicts do not follow from its numbers.

    Raises
    ------
    ValueError
        Names the key.
    """
    _check_keys(document, _DOCUMENT, "results")
    _require(document["profile"] in runtime.PROFILES, "profile", document["profile"], " or ".join(runtime.PROFILES))
    if document["paper"] is not None:
        _check_keys(document["paper"], {"title": str, "arxiv": str}, "paper")
    for row in document["claims"]:
        validate_claim(row)
    ids = [row["id"] for row in document["claims"]]
    _require(len(set(ids)) == len(ids), "claims", ids, "ids that differ")
    for name, rows in document["tables"].items():
        proper = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        _require(proper, f"tables.{name}", rows, "a list of rows")
    for name in document["figures"]:
        proper = isinstance(name, str) and name.endswith(".png") and "/" not in name
        _require(proper, "figures", name, "the file names of .png figures")
    _check_keys(document["provenance"], _PROVENANCE, "provenance")
    for key in ("data", "models"):
        for name, sha256 in document["provenance"][key].items():
            proper = isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None
            _require(proper, f"provenance.{key}.{name}", sha256, "a sha256 of 64 hexadecimal digits")


def validate_claim(row: dict[str, Any]) -> None:
    """Refuse a claim with a missing key, a wrong type, or a verdict that does not follow from its numbers."""
    name = f"claims.{row.get('id', '?') if isinstance(row, dict) else '?'}"
    _check_keys(row, _CLAIM, name)
    ends = row["ci95"] or []
    proper = row["ci95"] is None or (len(ends) == 2 and all(isinstance(end, _NUMBER) for end in ends))
    _require(proper, f"{name}.ci95", row["ci95"], "two numbers or null")
    if row["verdict"] == "not attempted":
        _require(row["kind"] in claims.KINDS, f"{name}.kind", row["kind"], " or ".join(claims.KINDS))
        _require(row["value"] is None and row["n"] == 0, f"{name}.value", row["value"], "null, and n 0")
        _require(row["note"] != "", f"{name}.note", row["note"], "the reason")
        return
    _require(row["value"] is not None, f"{name}.value", None, "a number")
    _require(row["n"] >= 1, f"{name}.n", row["n"], "at least 1")
    try:
        verdict = claims.judge(row["kind"], row["threshold"], row["value"], row["ci95"])
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error
    _require(row["verdict"] == verdict, f"{name}.verdict", row["verdict"], repr(verdict))


def _check_keys(found: Any, wanted: dict[str, Any], name: str) -> None:
    """All the wanted keys, of their types; more keys are allowed."""
    _require(isinstance(found, dict), name, found, "an object")
    for key, kinds in wanted.items():
        if key not in found:
            raise ValueError(f"{name}.{key}: missing")
        _require(isinstance(found[key], kinds), f"{name}.{key}", found[key], "another type")


def _require(condition: bool, name: str, got: Any, wants: str) -> None:
    if not condition:
        raise ValueError(f"{name}: got {got!r}, wants {wants}")
