"""What was in sight before a claim had its words: runs in the same place, at other profiles and in sweeps."""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ...core import files
from .. import claims, runtime
from . import scores as tables

Claim = dict[str, Any]
Row = dict[str, Any]
Run = tuple[dict[str, Row], pd.DataFrame]  # the rows of a run, by id, and its scores


class Sight(NamedTuple):
    """Of a claim: its row in the same place, all rows with its very words, and units that were seen under others."""

    own: Row | None
    priors: list[Row]
    seen: set[str]


def sight(claim: Claim, runs: list[Run]) -> Sight:
    """What runs before say of a claim; the first of them is that in the same place."""
    words, found, seen = claims.fingerprint(claim), [], set[str]()
    for rows, scores in runs:
        prior = rows.get(claim["id"])
        same = prior is not None and prior["claim"] == words
        found.append(prior if same else None)
        if prior is not None and not same:
            seen.update(prior["seen"], prior.get("before", ()), prior["units"])
        if not same and "scores" in claim:
            seen.update(tables.units_of(tables.differences(scores, claim["scores"])))
    return Sight(found[0] if found else None, [row for row in found if row is not None], seen)


def read_runs(slug: str, target: Path, registered: dict[str, Claim]) -> list[Run]:
    """Runs of a notebook: that in ``target`` first, then those of other profiles but smoke, and of sweeps.

    Scores elsewhere are read where a claim has other words since. Raises ``CorruptFile`` where the results in
    ``target`` cannot be read; a run elsewhere that cannot be read is left out with a warning.
    """
    figures, profiles = runtime.FIGURES, runtime.PROFILES[1:]
    places = [figures / profile / slug for profile in profiles]
    places += sorted(path for profile in profiles for path in (figures / "sweep" / profile / slug).glob("*"))
    words, runs = {id: claims.fingerprint(claim) for id, claim in registered.items()}, []
    for folder in [target, *(place for place in places if place != target)]:
        try:
            runs.append(_read_run(folder, {} if folder == target else words))
        except files.CorruptFile as error:
            if folder == target and "sweep" not in folder.relative_to(figures).parts:  # a unit replaces its own
                raise
            warnings.warn(f"what was in sight there is not known: {error}", stacklevel=2)
            runs.append(({}, tables.join([])))
    return runs


def _read_run(folder: Path, words: dict[str, str]) -> Run:
    """The rows of a run, and its scores; nothing where there is none, or none with registered claims."""
    file, scores = folder / "results.json", folder / "scores.parquet"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        rows = {row["id"]: row for row in document["claims"] if document["registration"] and row["claim"]}
    except FileNotFoundError:
        return {}, tables.join([])
    except (LookupError, TypeError):  # of before there were registered claims
        rows = {}
    except (OSError, ValueError) as error:
        why = f"{error}. It says what was in sight before: restore it (git checkout), or remove it with its folder"
        raise files.CorruptFile(f"{file}: cannot be read: {why}.") from error
    same = {id: row["claim"] for id, row in rows.items()} == words
    return rows, tables.read(scores) if scores.exists() and not same else tables.join([])
