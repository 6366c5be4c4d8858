"""Results on disk, held against their schema, their registration and their scores."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from ...core import files
from .. import claims, runtime
from . import scores as tables
from .decisions import decide
from .schema import validate

Document = dict[str, Any]
COMMITTED = runtime.PROFILES[1:]  # smoke is not kept
_TOLD = {"exploratory", "seen", "before", "note", "why", "unit"}


def command(profile: str, slug: str) -> str:
    """What runs a notebook again."""
    return f"make {slug[:2]} PROFILE={profile}"


def read(figures: Path) -> list[Document]:
    """Every ``results.json`` of the committed profiles, validated, with all of its figures present.

    A claim whose text, margin or estimand is not the registered one any more, or which was exploratory from the start,
    is marked exploratory. All others are decided again from the scores. Raises ``ValueError`` that names the file, the
    claim and the key where the results hold another number.
    """
    documents = []
    for profile in COMMITTED:
        for path in sorted((figures / profile).glob("*/results.json")):
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                validate(document)
                place = (document["profile"], document["slug"])
                if place != (profile, path.parent.name):
                    raise ValueError(f"slug: got {'/'.join(place)}, wants {profile}/{path.parent.name}")
                missing = [name for name in document["figures"] if not (path.parent / name).is_file()]
                if missing:
                    raise ValueError(f"figures: {', '.join(missing)} missing; run `{command(*place)}` again")
                _hold_against_registration(document, path.with_name("scores.parquet"))
            except (ValueError, files.CorruptFile) as error:
                raise ValueError(f"{path.relative_to(figures.parent)}: {error}") from error
            documents.append(document)
    return documents


def _hold_against_registration(document: Document, file: Path) -> None:
    """Mark what was edited after its run as exploratory, add what was registered after it, and pool the rest again."""
    registration, registered = claims.register(runtime.claims_file(document["slug"]))
    rows = {row["id"]: row for row in document["claims"]}
    if document["registration"] == registration and (lacking := {*registered} - {*rows}):
        raise ValueError(f"claims: {', '.join(sorted(lacking))} missing, which the run had")
    _pool_again(document, rows, registered, file)
    for id, row in rows.items():
        row["registered"] = id in registered
        if not row["registered"] or claims.fingerprint(registered[id]) != row["claim"]:
            why = "was edited after its run" if row["registered"] else "is registered no more"
            row["exploratory"], row["note"] = True, "; ".join(filter(None, [why, row["note"]]))
        elif registered[id].get("exploratory"):
            row["exploratory"] = True
    late = [claim for id, claim in registered.items() if id not in rows]
    missed = decide(late, tables.join([]), slug=document["slug"], profile=document["profile"])
    document["claims"] += [row | {"note": "registered after this run", "registered": True} for row in missed]


def _pool_again(document: Document, rows: dict[str, Document], registered: dict[str, Any], file: Path) -> None:
    """Refuse rows with the registered words that the scores of the run do not give.

    What was in sight before a run (``exploratory``, ``seen``, ``before``) no score tells, and remarks may be edited.
    """
    slug, profile = document["slug"], document["profile"]
    again = f"restore it, or, where code has changed, run `{command(profile, slug)}` again"
    scores = scores_of(document, file, again)
    tried = {id: (row["value"], row["n"]["images"]) for id, row in rows.items() if row["kind"] == "identity"}
    identities = {id: found for id, found in tried.items() if found[0] is not None}
    for found in decide([*registered.values()], scores, slug=slug, profile=profile, identities=identities):
        row = rows.get(found["id"], {"claim": ""})
        for key in found if row["claim"] == found["claim"] else ():
            if key not in _TOLD and not _alike(row[key], found[key]):
                what = f"its registration and {file.name} give {found[key]}"
                raise ValueError(f"claims.{row['id']}.{key}: got {row[key]}, but {what}: {again}")


def scores_of(document: Document, file: Path, again: str) -> pd.DataFrame:
    """The scores of a run; none where nothing was scored. Raises ``ValueError`` where they are gone."""
    if file.exists():
        return tables.read(file)
    if any(row["kind"] != "identity" and row["value"] is not None for row in document["claims"]):
        raise ValueError(f"{file.name} is missing: {again}")
    return tables.join([])


def _alike(one: Any, other: Any) -> bool:
    """Equal, numbers to a millionth, text but for its line breaks."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
    return one == other if not isinstance(one, str) else one.split() == str(other).split()
