"""What came of registered claims: the rows of ``results.json``, from the scores of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import claims
from . import pooling, scores as tables

Claim = dict[str, Any]
Row = dict[str, Any]
_EMPTY = {"value": None, "ci95": None, "prediction95": None, "tau2": None, "i2": None, "p": None, "p_equivalence": None}


def decide(
    registered: list[Claim],
    scores: pd.DataFrame,
    *,
    slug: str,
    profile: str,
    identities: dict[str, tuple[float, int]] | None = None,
    earlier: tuple[dict[str, Row], pd.DataFrame] | None = None,
) -> list[Row]:
    """The rows of some claims of a notebook, which hold every claim of a family or none.

    ``identities`` has the largest error of each identity that was tried, and of how many; ``earlier`` are the rows and
    scores of the run before, by which a claim that was changed after it is known.
    """
    rows = [_row(claim, scores, (identities or {}).get(claim["id"]), slug, profile) for claim in registered]
    for family in {row["family"] for row in rows} - {None}:
        members = [row for row in rows if row["family"] == family and row["p"] is not None]
        for row, p in zip(members, pooling.holm([row["p"] for row in members]) if members else [], strict=True):
            row["p_holm"] = p
    for claim, row in zip(registered, rows, strict=True):
        prior, seen = _prior(claim, earlier)
        row["exploratory"], row["seen"] = claims.is_exploratory(claim, row["units"], prior, seen)
        row["before"] = sorted({*prior.get("before", ()), *prior["units"]} - {*row["units"]}) if prior else []
        row["verdict"] = claims.verdict_of(row, profile)
    return rows


def _row(claim: Claim, scores: pd.DataFrame, identity: tuple[float, int] | None, slug: str, profile: str) -> Row:
    """A row without its verdict."""
    row = {key: claim[key] for key in ("id", "question", "kind", "statement", "estimand", "margin", "why")}
    row |= {key: claim.get(key, other) for key, other in (("source", "ours"), ("unit", ""), ("setting", "ours"))}
    row |= {key: claim.get(key) for key in ("level", "paper", "family")}
    row |= {**_EMPTY, "p_holm": None, "n": {"images": 0, "networks": 0, "sets": 0}, "units": []}
    row["claim"], notes = claims.fingerprint(claim), [claim["note"]] if "note" in claim else []
    command = f"make {slug[:2]} PROFILE=paper"
    if claim["kind"] == "identity":
        if identity is None:
            notes.append(f"not tried at {profile}")
        else:
            row["value"], row["n"]["images"] = identity
    elif "missing" in claim:
        notes.append(claim["missing"])
    else:
        rows = tables.differences(scores, claim["scores"])
        finite = rows[np.isfinite(rows["value"].astype(float))]
        lacking = [name for name in claim["scores"]["sets"] if name not in set(finite["set"])]
        if len(finite):
            tried = int(rows["set"].isin(finite["set"]).sum())
            notes += _measure(row, claim, finite, tried - len(finite), command)
            notes += [f"without {', '.join(lacking)}"] if lacking else []
        else:
            notes.append(f"no scores of {', '.join(lacking)} at {profile}: `{command}`")
    row["note"] = "; ".join(notes)
    return row


def _measure(row: Row, claim: Claim, finite: pd.DataFrame, left_out: int, command: str) -> list[str]:
    """Put the pooled numbers into a row; return remarks on them."""
    level = claim["level"]
    pooled = pooling.pool(finite, level=level, margin=claim["margin"])
    row["units"] = tables.units_of(finite)
    row |= {key: value for key, value in pooled._asdict().items() if key in row}
    for key in ("ci95", "prediction95"):
        row[key] = None if row[key] is None else [float(end) for end in row[key]]
    notes = [f"not finite, left out: {left_out} of {left_out + len(finite)}"] if left_out else []
    # images are drawn within each network, so each wants enough of them
    count = pooled.n["networks"] if level == "networks" else finite.groupby(["set", "network"]).size().min()
    if count < claims.FEWEST:
        row |= {key: None for key in _EMPTY if key != "value"}
        notes.append(f"{count} {level}, and a verdict wants {claims.FEWEST}: `{command}`")
    return notes


def _prior(claim: Claim, earlier: tuple[dict[str, Row], pd.DataFrame] | None) -> tuple[Row | None, set[str]]:
    """The row of the run before with the same wording, and the units on which the claim could be seen under another."""
    if earlier is None:
        return None, set()
    rows, scores = earlier
    prior = rows.get(claim["id"])
    if prior is not None and prior["claim"] == claims.fingerprint(claim):
        return prior, set()
    seen = {*prior["seen"], *prior.get("before", ()), *prior["units"]} if prior is not None else set()
    if "scores" in claim:
        seen.update(tables.units_of(tables.differences(scores, claim["scores"])))
    return None, seen


def read_earlier(results: Path) -> tuple[dict[str, Row], pd.DataFrame] | None:
    """The rows, by id, and the scores of an earlier run; None where there is none, or none with registered claims."""
    try:
        document = json.loads(results.read_text(encoding="utf-8"))
        rows = {row["id"]: row for row in document["claims"] if document["registration"] and row["claim"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None
    file = results.with_name("scores.parquet")
    return rows, tables.read(file) if file.exists() else tables.join([])
