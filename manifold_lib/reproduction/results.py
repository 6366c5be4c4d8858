"""Results of a notebook: figures, tables, scores and claims, gathered aside and put in place in one step."""

import datetime
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from ..core import files
from . import claims, runtime
from .verdicts import decisions, history, scores as tables
from .verdicts.pooling import interval as interval  # for notebooks
from .verdicts.schema import validate


class Results:
    """Recorder of one run of the notebook ``slug``; nothing appears under ``figures/`` before :meth:`finish`.

    ``params`` are the notebook's parameters, plain JSON values; ``paper`` is the ``{"title", "arxiv"}`` it reproduces.
    Its claims are those of ``notebooks/claims/SLUG.yml``, read here: there is no run without a registration.
    """

    def __init__(
        self, slug: str, profile: str, *, seed: int, params: dict, device: str | torch.device, paper: dict | None = None
    ) -> None:
        if profile not in runtime.PROFILES:
            raise ValueError(f"profile: got {profile!r}, wants one of {', '.join(runtime.PROFILES)}")
        self._check_name(slug)
        try:
            json.dumps(params, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"params: wants plain JSON values: {error}") from error
        self._clock = time.perf_counter()
        self._started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        runtime.check_copy()
        self._registration = claims.register(runtime.claims_file(slug))
        runtime.check_data(params)
        self._device = runtime.resolve_device(str(device))
        self.slug, self.profile, self.paper, self.seed = slug, profile, paper, seed
        self.params = runtime.own_parameters(slug, params)
        self._identities: dict[str, tuple[float, int]] = {}
        self._scores: list[pd.DataFrame] = []
        self._told: set[str] = set()  # claims whose verdict was shown, with what else their families hold
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._figures: list[str] = []
        self._checksums: dict[str, dict[str, str]] = {"data": {}, "models": {}}
        self._target = runtime.results_folder(slug, profile)
        runs = history.read_runs(slug, self._target, self._registration.claims)
        self._before, told = runs[0][0], runs if profile != "smoke" else []  # smoke is for tests, and decides nothing
        self._history = {id: history.sight(claim, told) for id, claim in self._registration.claims.items()}
        self.folder = files.staging_folder(self._target)

    def figure(self, name: str, fig: Figure, data: pd.DataFrame | None = None) -> None:
        """Save a figure as ``<name>.png`` and ``<name>.pdf``, and the numbers behind it as ``<name>.csv``."""
        self._check_name(name)
        if data is not None and name in self._tables:
            raise ValueError(f"figure: {name}.csv is taken by the table {name!r}")
        # without dates and versions the same figure has the same bytes
        for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            path = self.folder / f"{name}.{suffix}"
            fig.savefig(path, dpi=160, bbox_inches="tight", facecolor="white", metadata=metadata)
        if data is not None:
            self._write_csv(name, data)
        if f"{name}.png" not in self._figures:
            self._figures.append(f"{name}.png")

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Record a table, write it as ``<name>.csv``, and return it to be shown."""
        self._check_name(name)
        if name not in self._tables and (self.folder / f"{name}.csv").exists():
            raise ValueError(f"table: {name}.csv is taken by the figure {name!r}")
        rows = _flat(frame).to_dict("records")
        self._tables[name] = [{str(key): _plain(value) for key, value in row.items()} for row in rows]
        self._write_csv(name, frame)
        return frame

    def scores(self, metric: str, values: Mapping[str, Any], *, set: str, network: str, images: int = 0) -> None:
        """Record one score an image, method -> (n,): what the claims are decided from, and ``scores.parquet``.

        ``network`` is the name in the zoo, with the replica's number; ``images`` is the seed of the images, so that
        networks which explained the same images have the same. Raises ``ValueError`` for scores of a claim whose
        verdict was shown already: with them it might be another.
        """
        place: dict[str, Any] = {"set": set, "network": network, "images": images}
        parts = [tables.rows_of(metric, method, entries, **place) for method, entries in values.items()]
        rows = tables.join(parts)
        for id in sorted(self._told):
            if len(tables.chosen_by(self._registration.claims[id]["scores"], rows)):
                raise ValueError(f"scores: claim {id} was judged before {metric} of {network} on {set} was recorded")
        self._scores += parts

    def identity(self, id: str, errors: Any) -> str:
        """Record the largest error of an identity, all of them finite; return its verdict."""
        if self._registered(id)["kind"] != "identity":
            raise ValueError(f"claim {id}: is no identity; its scores decide it")
        array = np.asarray(errors.detach().cpu() if hasattr(errors, "detach") else errors, float).ravel()
        if not len(array) or not np.isfinite(array).all():
            left_out = int((~np.isfinite(array)).sum())
            raise ValueError(f"claim {id}: {left_out} of {len(array)} errors are not finite, wants all finite")
        self._identities[id] = float(max(array, key=abs)), len(array)
        return self._decide([id])[0]["verdict"]

    def data(self, name: str, sha256: str) -> None:
        """Note a data set that the numbers depend on."""
        self._checksums["data"][name] = sha256

    def model(self, name: str, sha256: str) -> None:
        """Note a model that the numbers depend on."""
        self._checksums["models"][name] = sha256

    def judge(self, *ids: str) -> pd.DataFrame:
        """What came of the claims (all of them by default) with the scores so far, rounded for reading."""
        return shown(self._decide([self._registered(id)["id"] for id in ids or self._registration.claims]))

    def replications(self, *ids: str) -> list[tuple[dict[str, Any], pd.DataFrame]]:
        """The row of each claim and the means of its units (set, network, mean), for :func:`plotting.forest`."""
        found, scores = [], tables.join(self._scores)
        for row in self._decide([self._registered(id)["id"] for id in ids]):
            if row["value"] is None or row["kind"] == "identity":
                continue
            rows = tables.differences(scores, self._registered(row["id"])["scores"])
            finite = rows[np.isfinite(rows["value"].astype(float))]
            units = finite.groupby(["set", "network"], sort=False, observed=True)["value"].mean()
            found.append((row, units.rename("mean").reset_index()))
        return found

    def verdict(self, id: str) -> str:
        """The verdict on a claim with the scores so far."""
        return self._decide([self._registered(id)["id"]])[0]["verdict"]

    def finish(self) -> None:
        """Write ``results.json`` and put the folder in place of ``figures/<profile>/<slug>``."""
        if not self.folder.is_dir():
            raise RuntimeError(f"finish: {self.slug} is finished already; run the notebook from its first cell")
        rows = self._decide([*self._registration.claims])
        measured = {id for id, row in self._before.items() if row.get("value") is not None}
        lost = [row["id"] for row in rows if row["value"] is None and row["id"] in measured]
        if lost:
            keeps = f"{self._target} keeps the values that were measured (remove it to lose them)"
            raise RuntimeError(f"claim {', '.join(lost)}: would no longer be attempted; {keeps}")
        if self._scores:
            tables.write(self.folder / "scores.parquet", tables.join(self._scores))
        document = {
            "slug": self.slug,
            "profile": self.profile,
            "paper": self.paper,
            "registration": self._registration.sha256,
            "claims": rows,
            "tables": self._tables,
            "figures": self._figures,
            "provenance": {
                **runtime.provenance(seed=self.seed, params=self.params, device=self._device),
                "started": self._started,
                "seconds": round(time.perf_counter() - self._clock, 1),
                **self._checksums,
            },
        }
        validate(document)
        files.write_json(self.folder / "results.json", document)
        with files.locked(runtime.BUILD / self._target.relative_to(runtime.FIGURES)):
            files.replace_folder(self.folder, self._target)
        counts = f"{len(rows)} claims, {len(self._figures)} figures, {len(self._tables)} tables"
        print(f"figures/{self._target.relative_to(runtime.FIGURES)}: {counts}")

    def _registered(self, id: str) -> dict[str, Any]:
        if id not in self._registration.claims:
            known = ", ".join(self._registration.claims)
            raise ValueError(f"claim {id}: is not registered in notebooks/claims/{self.slug}.yml, which has {known}")
        return self._registration.claims[id]

    def _decide(self, ids: list[str]) -> list[dict[str, Any]]:
        """The rows of ``results.json`` of some claims; families are corrected as a whole."""
        registered = self._registration.claims
        families = {registered[id].get("family") for id in ids} - {None}
        wanted = [claim for id, claim in registered.items() if id in ids or claim.get("family") in families]
        self._told |= {claim["id"] for claim in wanted if "scores" in claim}
        more: dict[str, Any] = {"identities": self._identities, "history": self._history}
        found = decisions.decide(wanted, tables.join(self._scores), slug=self.slug, profile=self.profile, **more)
        return [row for row in found if row["id"] in ids]

    def _write_csv(self, name: str, frame: pd.DataFrame) -> None:
        text = _flat(frame).to_csv(index=False, lineterminator="\n")
        files.write_bytes(self.folder / f"{name}.csv", runtime.portable(text).encode())

    @staticmethod
    def _check_name(name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(f"name: got {name!r}, wants letters, digits, '_' and '-' (it becomes a file name)")


def shown(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Claims for reading: what the paper prints beside ours."""
    cells = []
    for row in rows:
        cell = {"claim": row["id"], "statement": row["statement"], "paper": number(row["paper"])}
        cell |= {"ours": number(row["value"]), "95 % interval": bracket(row["ci95"]), "n": size(row["n"])}
        cells.append(cell | {"verdict": row["verdict"] + (" (exploratory)" if row["exploratory"] else "")})
    return pd.DataFrame(cells)


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its index as columns, unless the index only counts rows."""
    return frame if isinstance(frame.index, pd.RangeIndex) else frame.reset_index()


def _plain(value: Any) -> Any:
    """A JSON value: NumPy types converted, missing and non-finite numbers as null."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, str):
        return runtime.portable(value)
    if isinstance(value, bool | int | float):
        return value
    raise ValueError(f"table: got a cell of type {type(value).__name__}, wants numbers, text or lists of them")


def number(value: float | None) -> str:
    """A number to three digits, and n/a for none."""
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value + 0.0:.3g}"


def bracket(ci95: list[float] | None) -> str:
    """An interval as ``[low, high]``, or nothing."""
    return "" if ci95 is None else f"[{number(ci95[0])}, {number(ci95[1])}]"


def size(n: dict[str, int]) -> str:
    """What a claim rests on, in words: 2,560 images of 5 networks."""
    images = f"{n['images']:,} {'image' if n['images'] == 1 else 'images'}"
    networks = f"{n['networks']} {'network' if n['networks'] == 1 else 'networks'}"
    if n["networks"] and n["images"] <= n["networks"]:  # one value each
        return networks
    return f"{images} of {networks}" if n["networks"] else images
