"""What came of registered claims: the rows of ``results.json``, from the scores of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...core import files
from .. import claims, runtime
from . import pooling, scores as tables

Claim = dict[str, Any]
Row = dict[str, Any]
Run = tuple[dict[str, Row], pd.DataFrame]  # the rows of a run, by id, and its scores
_EMPTY = {"value": None, "ci95": None, "prediction95": None, "tau2": None, "i2": None, "p": None, "p_equivalence": None}


def decide(
    registered: list[Claim],
    scores: pd.DataFrame,
    *,
    slug: str,
    profile: str,
    identities: dict[str, tuple[float, int]] | None = None,
    earlier: Sequence[Run] = (),
) -> list[Row]:
    """The rows of some claims of a notebook, which hold every claim of a family or none.

    ``identities`` has the largest error of each identity that was tried, and of how many; ``earlier`` are runs before,
    by which a claim that was changed after one of them is known; the first is that in the same place.
    """
    rows = [_row(claim, scores, (identities or {}).get(claim["id"]), slug, profile) for claim in registered]
    for family in {row["family"] for row in rows} - {None}:
        members = [row for row in rows if row["family"] == family and row["p"] is not None]
        for row, p in zip(members, pooling.holm([row["p"] for row in members]) if members else [], strict=True):
            row["p_holm"] = p
    for claim, row in zip(registered, rows, strict=True):
        found = [_prior(claim, run) for run in earlier]
        priors, seen = [prior for prior, _ in found if prior], set().union(*(units for _, units in found))
        row["exploratory"], row["seen"] = claims.is_exploratory(claim, row["units"], priors, seen)
        prior = found[0][0] if found else None
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
    # where images are drawn, they are drawn within each network, so each wants enough of them
    counts = {"networks": pooled.n["networks"], "images": finite.groupby(["set", "network"]).size().min()}
    shared = finite.duplicated(["set", "images", "image"]).any() and counts["images"] > 1
    for unit in {level, *(["images"] if shared else [])}:
        if counts[unit] < claims.FEWEST:
            row |= {key: None for key in _EMPTY if key != "value"}
            notes.append(f"{counts[unit]} {unit}, and a verdict wants {claims.FEWEST}: `{command}`")
    return notes


def _prior(claim: Claim, run: Run) -> tuple[Row | None, set[str]]:
    """The row of a run before with the same wording, and the units on which the claim could be seen under another."""
    rows, scores = run
    prior = rows.get(claim["id"])
    if prior is not None and prior["claim"] == claims.fingerprint(claim):
        return prior, set()
    seen = {*prior["seen"], *prior.get("before", ()), *prior["units"]} if prior is not None else set()
    if "scores" in claim:
        seen.update(tables.units_of(tables.differences(scores, claim["scores"])))
    return None, seen


def read_earlier(slug: str, target: Path, registered: dict[str, Claim]) -> list[Run]:
    """What runs of a notebook found before: the one in ``target`` first, then other profiles and sweeps, but smoke.

    Scores elsewhere are read where a claim has other words since. Raises ``CorruptFile`` for what cannot be read.
    """
    figures, profiles = runtime.FIGURES, runtime.PROFILES[1:]
    places = [figures / profile / slug for profile in profiles]
    places += sorted(path for profile in profiles for path in (figures / "sweep" / profile / slug).glob("*"))
    words = {id: claims.fingerprint(claim) for id, claim in registered.items()}
    return [_read_run(target, {}), *(_read_run(folder, words) for folder in places if folder != target)]


def _read_run(folder: Path, words: dict[str, str]) -> Run:
    """The rows of a run, and its scores; nothing where there is none, or none with registered claims."""
    file, nothing = folder / "results.json", tables.join([])
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        rows = {row["id"]: row for row in document["claims"] if document["registration"] and row["claim"]}
    except json.JSONDecodeError as error:
        why = f"{error}. It says what was in sight before: restore it (git checkout), or remove it with its folder"
        raise files.CorruptFile(f"{file}: cannot be read: {why}.") from error
    except (OSError, LookupError, TypeError):
        return {}, nothing
    scores, same = file.with_name("scores.parquet"), {id: row["claim"] for id, row in rows.items()} == words
    return rows, tables.read(scores) if scores.exists() and not same else nothing
