"""Registered claims, scores and results of an example notebook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from manifold_lib.reproduction import claims, runtime
from manifold_lib.reproduction.verdicts import decisions, scores


@pytest.fixture
def registered(folders: Path) -> Callable[..., list[dict[str, Any]]]:
    """``registered({"1": {"margin": 0.5}})`` writes the claims of 02_example, so changed; None drops a claim or a key.

    There are 2.1, MA-GIG − IG by DiffID, 2.2, which cannot be run, the control 2.C1 and the identity 2.T1.
    """

    def write(changes: dict[str, Any] | None = None, slug: str = "02_example") -> list[dict[str, Any]]:
        text = {"question": "Is it a | b?", "statement": "It is.", "estimand": "paired over images", "why": "a guess"}
        given: dict[str, dict[str, Any]] = {
            "1": {"kind": "paper", "source": "Fig. 3", "paper": 0.085, "margin": 0.02, "level": "images"},
            "2": {"kind": "paper", "source": "Table 1", "margin": 0.02, "missing": "needs ImageNet"},
            "C1": {"kind": "control", "margin": 0.02, "level": "images"},
            "T1": {"kind": "identity", "margin": 1e-3, "unit": "nats"},
        }
        for id, minus in (("1", "IG"), ("C1", "noise")):
            given[id]["scores"] = {"metric": "DiffID", "of": "MA-GIG", "minus": minus, "sets": ["mnist32"]}
        for id, change in (changes or {}).items():
            given[id] = {**given.get(id, {}), **change} if change is not None else {}
        entries = [
            {"id": f"{int(slug[:2])}.{id}", **text, **{key: value for key, value in entry.items() if value is not None}}
            for id, entry in given.items()
            if entry
        ]
        file = folders / "notebooks" / "claims" / f"{slug}.yml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump({"claims": entries}, allow_unicode=True), encoding="utf-8")
        return entries

    return write


@pytest.fixture
def scored() -> Callable[..., dict[str, np.ndarray]]:
    """Scores of MA-GIG, IG and noise on 40 images: MA-GIG leads by ``value`` ± 0.01 and is as good as noise."""

    def draw(value: float, n: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
        generator = np.random.default_rng(seed)
        base, lead, other = generator.normal(size=(3, n))
        return {"IG": base, "MA-GIG": base + value + 0.01 * lead, "noise": base + value + 0.01 * other}

    return draw


@pytest.fixture
def document(registered: Callable, scored: Callable) -> Callable[..., dict[str, Any]]:
    """A whole ``results.json`` of registered claims, in which MA-GIG leads by ``value``; its scores are in place."""

    def make(
        slug: str = "02_example", profile: str = "small", value: float = 0.5, changes: dict | None = None, **more: Any
    ) -> dict[str, Any]:
        entries = registered(changes, slug)
        place: dict[str, Any] = {"set": "mnist32", "network": "lenet-mnist32", "images": 0}
        table = scores.join([scores.rows_of("DiffID", name, row, **place) for name, row in scored(value).items()])
        head = {"slug": slug, "profile": profile, "paper": {"title": "A paper", "arxiv": "2206.07387"}}
        identities = {f"{int(slug[:2])}.T1": (1e-5, 64)}
        rows = decisions.decide(entries, table, slug=slug, profile=profile, identities=identities)
        provenance = {"git": "c0ffee", "dirty": False, "seed": 0, "params": {}, "versions": {}, "device": "CPU"}
        provenance |= {"started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "data": {}, "models": {}}
        registration = claims.register(runtime.claims_file(slug)).sha256
        body = {"registration": registration, "claims": rows, "tables": {}, "figures": ["fig1_line.png"]}
        scores.write(runtime.FIGURES / profile / slug / "scores.parquet", table)
        return head | body | {"provenance": provenance} | more

    return make
