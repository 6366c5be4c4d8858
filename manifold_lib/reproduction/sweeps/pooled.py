"""``python -m manifold_lib.reproduction.sweeps.pooled``: ``figures/sweep/PROFILE/README.md``, what units say together.

The claims of a notebook are decided anew from the scores of all of its units that are there. What is missing is said.
"""

import contextlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from ...core import files
from .. import claims, execute, report, runtime
from ..verdicts import decisions, schema, scores as tables
from . import sweep

Result = tuple[dict[str, Any], pd.DataFrame]
REMARKS = {
    "failed": "log: `{log}`",
    "out of date": "pooled as it is; code, parameters or weights have changed since",
}


def known(profile: str) -> list[sweep.Unit]:
    """The units that sweeps have asked for, and others that are there."""
    folder = sweep.SWEEPS / profile
    names = sweep.asked(folder) | {
        path.parent.relative_to(folder).as_posix() for path in folder.glob("*/*/results.json")
    }
    found = (re.fullmatch(r"(\d\d_\w+)/([\w-]+)-(\d+)", name) for name in names)
    return sorted(sweep.Unit(unit[1], unit[2], int(unit[3])) for unit in found if unit)


def read(unit: sweep.Unit, profile: str) -> Result | None:
    """The results and the scores of a unit; None where it has none. Raises ``ValueError`` where they are broken."""
    file = execute.places(unit.slug, profile, unit.name)[1] / "results.json"
    if not file.exists():
        return None
    document = json.loads(file.read_text(encoding="utf-8"))
    schema.validate(document)
    scores = file.with_name("scores.parquet")
    if not scores.exists() and any(
        row["kind"] != "identity" and row["value"] is not None for row in document["claims"]
    ):
        raise ValueError(f"{scores.name} is missing")
    try:
        return document, tables.read(scores) if scores.exists() else tables.join([])
    except files.CorruptFile as error:
        raise ValueError(str(error)) from error


def pool(slug: str, profile: str, results: list[Result]) -> tuple[list[dict[str, Any]], list[str]]:
    """The claims of a notebook by the scores of all units, and remarks on these.

    What units share, such as the part of a notebook that looks at no set, counts once.
    """
    registered = claims.register(runtime.claims_file(slug)).claims
    found = pd.concat([scores for _, scores in results], ignore_index=True)
    scores = found.drop_duplicates([*tables.COLUMNS[:-1]], ignore_index=True)
    twice = len(found.drop_duplicates(ignore_index=True)) - len(scores)
    remarks = [f"{twice} scores have another value in another unit; the first counts."] if twice else []
    identities, earlier = {}, {}
    for id, claim in registered.items():
        rows = [{row["id"]: row for row in document["claims"]}.get(id) for document, _ in results]
        errors = [(row["value"], row["n"]["images"]) for row in rows if row and row["value"] is not None]
        if claim["kind"] == "identity" and errors:
            identities[id] = max((value for value, _ in errors), key=abs), sum(n for _, n in errors)
        seen, words = set[str](), claims.fingerprint(claim)
        for row, (_, part) in zip(rows, results, strict=True):
            seen |= {*row["seen"]} if row else set()
            # a claim that was worded after a unit has run was in sight in it
            if row is None or row["exploratory"] or row["claim"] != words:
                seen.update(tables.units_of(part))
        earlier[id] = {"claim": words, "units": [], "exploratory": False, "seen": sorted(seen)}
    runs = [(earlier, tables.join([])), *decisions.read_earlier(slug, runtime.FIGURES / profile / slug, registered)]
    more: dict[str, Any] = {"identities": identities, "earlier": runs}
    return decisions.decide([*registered.values()], scores, slug=slug, profile=profile, **more), remarks


def render(profile: str) -> str:
    """The page of a profile: what is missing, and the claims, notebook by notebook."""
    units, sections, n_there = known(profile), "", 0
    for slug in sorted({unit.slug for unit in units}):
        mine = [unit for unit in units if unit.slug == slug]
        results, due, lines = [], [], ""
        content = _content(slug, profile)
        for unit in mine:
            found, remark, result = _look(unit, profile, content)
            results += [result] if result else []
            if found != "up to date":
                due.append(unit)
                lines += report.line(unit.set, unit.seed, found, remark)
        n_there += len(results)
        sections += f"\n## {slug}\n\n{len(results)} of {len(mine)} units are here.\n"
        if due:
            sets, seeds = " ".join(sorted({unit.set for unit in due})), sorted({unit.seed for unit in due})
            command = (
                f'make sweep NOTEBOOKS={slug[:2]} SETS="{sets}" SEEDS={",".join(map(str, seeds))} PROFILE={profile}'
            )
            sections += f"\nThese want a run, by `{command}`:\n\n{report.header('set', 'seed', 'state', '')}{lines}"
        if results:
            sections += f"\n{_claims(slug, profile, results)}"
    text = f"# What sweeps found at profile `{profile}`\n\nGenerated by `make sweep` and `make report`; do not edit. "
    text += (
        f"{n_there} of {len(units)} units are here. Each claim is decided from the images and networks of all of them "
    )
    return text + "together; [the report](../../README.md) explains the words.\n" + sections


def _content(slug: str, profile: str) -> str:
    """What a notebook's stamps have to hold; nothing where the notebook is gone."""
    try:
        return execute.fingerprint(slug, profile)
    except execute.Failed:
        return ""


def _look(unit: sweep.Unit, profile: str, content: str) -> tuple[str, str, Result | None]:
    """The state of a unit, on the device that it ran on, a remark, and what it has."""
    build, device = execute.places(unit.slug, profile, unit.name)[0], "auto"
    with contextlib.suppress(OSError, ValueError, LookupError):
        device = json.loads((build / f"{unit.slug}.done").read_text(encoding="utf-8"))["device"]
    found = sweep.state(unit, profile, content, device)
    try:
        return found, REMARKS.get(found, "").format(log=build / f"{unit.slug}.log"), read(unit, profile)
    except ValueError as error:
        return "out of date", f"not pooled: {error}", None


def _claims(slug: str, profile: str, results: list[Result]) -> str:
    """The table of the claims, as the report has it."""
    try:
        rows, remarks = pool(slug, profile, results)
    except ValueError as error:
        return f"No claims: {error}\n"
    return "\n\n".join([report.table({profile: rows}), *remarks]).rstrip() + "\n"


def main() -> None:
    """Write the pages of the named profiles, or of all that have units, where a number changed."""
    os.chdir(execute.ROOT)
    for profile in sys.argv[1:] or [name for name in execute.PROFILES if known(name)]:
        page, text = Path(sweep.SWEEPS / profile / "README.md"), render(profile)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            files.write_bytes(page, text.encode())
            print(f"{page} written")


if __name__ == "__main__":
    main()
