"""What the units of a sweep say together, and what is missing of it."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from manifold_lib.reproduction import execute, report, results as recorder
from manifold_lib.reproduction.sweeps import pooled, sweep

SLUG, PROFILE = "01_first", "small"
CLAIMS = """
claims:
- {id: "1.1", question: "Is A more than B?", statement: A is more than B., kind: expectation, estimand: pooled,
   scores: {metric: DiffID, of: A, minus: B, sets: [a, b]}, level: networks, margin: MARGIN, why: round}
- {id: "1.T1", question: "Exact?", statement: It is exact., kind: identity, estimand: largest, margin: 0.1, why: round}
"""


def record(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    """A unit's run."""
    monkeypatch.setenv("MANIFOLD_UNIT", unit)
    name, seed = unit.split("-")
    found = recorder.Results(SLUG, PROFILE, seed=0, params={}, device="cpu")
    noise = np.random.default_rng([ord(name), int(seed)]).normal(0, 0.1, (2, 30))
    place = {"set": name, "network": f"net.{seed}", "images": int(seed)}
    found.scores("DiffID", {"A": 1 + noise[0], "B": noise[1]}, **place)
    found.scores("DiffID", {"A": np.ones(4)}, set="c", network="none")  # a part that looks at no set
    found.identity("1.T1", [0.01 * int(seed)])
    found.finish()


def test_units_are_pooled_and_what_is_missing_is_said(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    file = folders / "notebooks" / "claims" / f"{SLUG}.yml"
    file.parent.mkdir(parents=True)
    notebook = new_notebook(cells=[new_code_cell(f'slug = "{SLUG}"')], metadata={"kernelspec": execute.KERNEL})
    nbformat.write(notebook, folders / "notebooks" / f"{SLUG}.ipynb")
    file.write_text(CLAIMS.replace("MARGIN", "0.2"))
    units = [f"{name}-{seed}" for name in "ab" for seed in range(3)]
    for unit in units:
        record(monkeypatch, unit)
    page = folders / "figures" / "sweep" / PROFILE
    for unit in units[:-1]:
        stamp = folders / ".build" / "sweep" / PROFILE / unit / f"{SLUG}.done"
        stamp.parent.mkdir(parents=True)
        stamp.write_text(json.dumps({"content": execute.fingerprint(SLUG, PROFILE), "device": "auto", "files": []}))
    (page / "units.json").write_text(json.dumps([f"{SLUG}/a-3", f"{SLUG}/bad-0"]))
    log = folders / ".build" / "sweep" / PROFILE / "bad-0" / f"{SLUG}.failed.ipynb"
    log.parent.mkdir()
    log.touch()

    results = [pooled.read(sweep.Unit(SLUG, *unit.split("-")), PROFILE) for unit in units]
    rows, remarks = pooled.pool(SLUG, PROFILE, results)
    assert rows[0]["n"] == {"images": 180, "networks": 6, "sets": 2} and not remarks
    assert rows[0]["verdict"] == "held" and not rows[0]["exploratory"] and abs(rows[0]["value"] - 1) < 0.05
    assert rows[1]["value"] == 0.02 and rows[1]["verdict"] == "exact" and rows[1]["n"]["images"] == 6

    document, scores = results[0]
    other = document, scores.assign(value=scores["value"].where(scores["set"] != "c", 2))
    assert pooled.pool(SLUG, PROFILE, [*results, other])[1] == [
        "4 scores have another value in another unit; the first counts."
    ]

    text = pooled.render(PROFILE)
    assert "6 of 8 units are here" in text and report.number(rows[0]["value"]) in text and "`small`" in text
    assert "| a | 3 | missing |  |" in text
    assert f"| bad | 0 | failed | log: `.build/sweep/small/bad-0/{SLUG}.log` |" in text
    assert "| b | 2 | out of date | pooled as it is;" in text
    assert 'make sweep NOTEBOOKS=01 SETS="a b bad" SEEDS=0,2,3 PROFILE=small' in text
    file.write_text(CLAIMS.replace("MARGIN", "0.3"))
    assert pooled.pool(SLUG, PROFILE, results)[0][0]["exploratory"], "its words are younger than its numbers"
    (page / SLUG / "a-1" / "scores.parquet").unlink()
    assert "| a | 1 | out of date | not pooled: scores.parquet is missing: run the unit again |" in pooled.render(
        PROFILE
    )
    (page / SLUG / "a-0" / "results.json").write_text("{")
    with pytest.warns(UserWarning, match="not known"):
        assert "| a | 0 | out of date | not pooled:" in pooled.render(PROFILE)
    with pytest.warns(UserWarning, match="not known"):
        record(monkeypatch, "a-0")  # a broken unit is replaced by its next run
