"""Results of a notebook: figures, tables and claims, gathered aside and put in place in one step."""

import datetime
import json
import math
import re
import time
from typing import Any

import pandas as pd
import torch
from jsonschema import Draft202012Validator
from matplotlib.figure import Figure

from ..core import files
from . import claims, runtime
from .claims import claim as claim, interval as interval, not_attempted as not_attempted  # for notebooks


def _object(**properties: Any) -> dict[str, Any]:
    """The schema of an object that has all of these keys, and perhaps more."""
    return {"type": "object", "required": [*properties], "properties": properties}


_TEXT, _NUMBER, _OBJECT = {"type": "string"}, {"type": "number"}, {"type": "object"}
_CHECKSUMS = _OBJECT | {"additionalProperties": _TEXT | {"pattern": "^[0-9a-f]{64}$"}}
_CLAIM = _object(
    **dict.fromkeys(("id", "statement", "source"), _TEXT),
    kind={"enum": claims.KINDS},
    threshold=_NUMBER,
    unit=_TEXT,
    paper={"type": ["number", "null"]},
    value={"type": ["number", "null"]},
    ci95={"type": ["array", "null"], "items": _NUMBER, "minItems": 2, "maxItems": 2},
    n={"type": "integer"},
    verdict=_TEXT,
    note=_TEXT,
)
_DOCUMENT = _object(
    slug=_TEXT,
    profile={"enum": runtime.PROFILES},
    paper=_object(title=_TEXT, arxiv=_TEXT) | {"type": ["object", "null"]},
    claims={"type": "array"},
    tables=_OBJECT | {"additionalProperties": {"type": "array", "items": _OBJECT}},
    figures={"type": "array", "items": _TEXT | {"pattern": r"^[^/]+\.png$"}},
    provenance=_object(
        git={"type": ["string", "null"]},
        dirty={"type": ["boolean", "null"]},
        seed={"type": "integer"},
        **dict.fromkeys(("params", "versions"), _OBJECT),
        **dict.fromkeys(("device", "started"), _TEXT),
        seconds=_NUMBER,
        **dict.fromkeys(("data", "models"), _CHECKSUMS),
    ),
)


def validate(document: dict[str, Any]) -> None:
    """Refuse a ``results.json`` that breaks the schema, or whose verdicts do not follow; the error names the key."""
    _check(document, _DOCUMENT)
    for row in document["claims"]:
        validate_claim(row)
    ids = [row["id"] for row in document["claims"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"claims: got the ids {ids}, wants each once")


def validate_claim(row: dict[str, Any]) -> None:
    """Refuse a claim with a missing key, a wrong type, or a verdict that does not follow from its numbers."""
    name = f"claims.{row.get('id', '?') if isinstance(row, dict) else '?'}"
    _check(row, _CLAIM, name)
    if row["verdict"] == "not attempted":
        wanted = {"value": None, "n": 0, "note": row["note"] or "the reason"}
    elif row["value"] is None or row["n"] < 1:
        raise ValueError(f"{name}.{'value' if row['value'] is None else 'n'}: wants a number, and n of at least 1")
    else:
        try:
            wanted = {"verdict": claims.judge(row["kind"], row["threshold"], row["value"], row["ci95"])}
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from error
    for key, value in wanted.items():
        if row[key] != value:
            raise ValueError(f"{name}.{key}: got {row[key]!r}, wants {value!r}")


def _check(value: Any, schema: dict[str, Any], *name: str) -> None:
    """Refuse what breaks a schema, with the place of the first error."""
    for error in Draft202012Validator(schema).iter_errors(value):
        place = [*name, *map(str, error.absolute_path)]
        if error.validator == "required":
            place.append(next(key for key in error.validator_value if key not in error.instance))
        what = "missing" if error.validator == "required" else error.message
        raise ValueError(f"{'.'.join(place)}: {what}")


class Results:
    """Recorder of one run of the notebook ``slug``; nothing appears under ``figures/`` before :meth:`finish`.

    ``params`` are the notebook's parameters, plain JSON values; ``paper`` is the ``{"title", "arxiv"}`` it reproduces.
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
        runtime.check_data(params)
        self._device = runtime.resolve_device(str(device))
        self.slug, self.profile, self.paper, self.seed = slug, profile, paper, seed
        self.params = runtime.own_parameters(slug, params)
        self._claims: list[dict[str, Any]] = []
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._figures: list[str] = []
        self._checksums: dict[str, dict[str, str]] = {"data": {}, "models": {}}
        self._target = runtime.FIGURES / profile / slug
        self._measured = runtime.measured(self._target / "results.json")
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

    def claim(self, row: dict[str, Any]) -> dict[str, Any]:
        """Record a row made by :func:`claims.claim` or :func:`claims.not_attempted`; return it."""
        validate_claim(row)
        if row["id"] in (known["id"] for known in self._claims):
            raise ValueError(f"claim: id {row['id']!r} is already recorded")
        if row["value"] is None and row["id"] in self._measured:
            keeps = f"figures/{self.profile}/{self.slug} keeps the value that was measured (remove it to lose that)"
            raise RuntimeError(f"claim {row['id']}: would no longer be attempted: {row['note']}; {keeps}")
        self._claims.append(row)
        return row

    def data(self, name: str, sha256: str) -> None:
        """Note a data set that the numbers depend on."""
        self._checksums["data"][name] = sha256

    def model(self, name: str, sha256: str) -> None:
        """Note a model that the numbers depend on."""
        self._checksums["models"][name] = sha256

    def verdict(self, id: str) -> str:
        """The verdict on a claim recorded before."""
        return next(row["verdict"] for row in self._claims if row["id"] == id)

    def verdicts(self) -> pd.DataFrame:
        """The claims so far, rounded for reading: what the paper prints beside what this profile gave."""
        # "paper" alone would be the column of the paper's numbers
        titles = ["id", "statement", "paper", f"ours, {self.profile}", "95 % interval", "n", "verdict"]
        keys = ("id", "statement", "paper", "value", "ci95", "n", "verdict")
        shown: dict[str, Any] = {"paper": number, "value": number, "ci95": bracket}
        rows = [[shown[key](row[key]) if key in shown else row[key] for key in keys] for row in self._claims]
        return pd.DataFrame(rows, columns=titles)

    def finish(self) -> None:
        """Write ``results.json`` and put the folder in place of ``figures/<profile>/<slug>``."""
        if not self.folder.is_dir():
            raise RuntimeError(f"finish: {self.slug} is finished already; run the notebook from its first cell")
        document = {
            "slug": self.slug,
            "profile": self.profile,
            "paper": self.paper,
            "claims": [{**row, "note": runtime.portable(row["note"])} for row in self._claims],
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
        with files.locked(runtime.BUILD / self.profile / self.slug):
            files.replace_folder(self.folder, self._target)
        counts = f"{len(self._claims)} claims, {len(self._figures)} figures, {len(self._tables)} tables"
        print(f"figures/{self.profile}/{self.slug}: {counts}")

    def _write_csv(self, name: str, frame: pd.DataFrame) -> None:
        _flat(frame).to_csv(self.folder / f"{name}.csv", index=False, lineterminator="\n")

    @staticmethod
    def _check_name(name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise ValueError(f"name: got {name!r}, wants letters, digits, '_' and '-' (it becomes a file name)")


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
    if isinstance(value, str | bool | int | float):
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
