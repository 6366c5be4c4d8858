"""What came of registered claims: the rows of ``results.json``, from the scores of a run."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from .. import claims
from . import pooling, scores as tables
from .history import Claim, Row, Sight

_EMPTY = {"value": None, "ci95": None, "prediction95": None, "tau2": None, "i2": None, "p": None, "p_equivalence": None}


def decide(
    registered: list[Claim],
    scores: pd.DataFrame,
    *,
    slug: str,
    profile: str,
    identities: dict[str, tuple[float, int]] | None = None,
    history: Mapping[str, Sight] | None = None,
) -> list[Row]:
    """The rows of some claims of a notebook, which hold every claim of a family or none.

    ``identities`` has the largest error of each identity that was tried, and of how many; ``history`` what runs before
    say of each claim, by which one that was changed after them is known.
    """
    rows = [_row(claim, scores, (identities or {}).get(claim["id"]), slug, profile) for claim in registered]
    for family in {row["family"] for row in rows} - {None}:
        members = [row for row in rows if row["family"] == family and row["p"] is not None]
        for row, p in zip(members, pooling.holm([row["p"] for row in members]) if members else [], strict=True):
            row["p_holm"] = p
    for claim, row in zip(registered, rows, strict=True):
        own, priors, seen = (history or {}).get(claim["id"], Sight(None, [], set()))
        row["exploratory"], row["seen"] = claims.is_exploratory(claim, row["units"], priors, seen)
        row["before"] = sorted({*own.get("before", ()), *own["units"]} - {*row["units"]}) if own else []
        row["verdict"] = claims.verdict_of(row, profile)
        if row["verdict"] != claims.verdict_of(row | {"p_holm": None}, profile):
            said = f"taken back by Holm's correction in its family, p = {row['p_holm']:.2g}"
            row["note"] = "; ".join(filter(None, [row["note"], said]))
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
    sizes = finite.groupby(["set", "network"]).size()
    shared = finite.duplicated(["set", "images", "image"]).any() and sizes.max() > 1
    counts = {"networks": pooled.n["networks"], "images": sizes.min()}
    for unit in [level, *(["images"] if shared and level == "networks" else [])]:
        if counts[unit] < claims.FEWEST:
            row |= {key: None for key in _EMPTY if key != "value"}
            notes.append(f"{counts[unit]} {unit}, and a verdict wants {claims.FEWEST}: `{command}`")
    return notes
