"""Per-image scores of a run, ``scores.parquet``: what its claims are decided from, and what anyone can pool again.

One row for each set, network, image, metric and method (:data:`COLUMNS`). ``images`` is the seed of the images:
networks that explained the same images have the same.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from ...core import files

COLUMNS = ("set", "network", "images", "image", "metric", "method", "value")
_KEY = [*COLUMNS[:4]]
_COMPRESSED: Any = {"compression": "zstd", "compression_level": 9, "write_page_checksum": True}


def rows_of(metric: str, method: str, values: Any, *, set: str, network: str, images: int) -> pd.DataFrame:
    """The rows of one score an image, (n,)."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, np.float32)
    if array.ndim > 1:
        raise ValueError(f"scores: {metric} of {method}: got shape {array.shape}, wants one value an image, (n,)")
    array = array.ravel()
    place = {"set": set, "network": network, "images": images, "image": np.arange(len(array), dtype=np.int32)}
    return pd.DataFrame({**place, "metric": metric, "method": method, "value": array})


def join(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows. Raises ``ValueError`` where a score was recorded twice."""
    if not parts:
        return pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    table = pd.concat(parts, ignore_index=True)
    twice = table[table.duplicated([*COLUMNS[:-1]])]
    if len(twice):
        first = ", ".join(str(value) for value in twice.iloc[0][[*COLUMNS[:-1]]])
        raise ValueError(f"scores: {len(twice)} are recorded twice, the first is {first}")
    return table


def write(file: Path, table: pd.DataFrame) -> None:
    """Write the scores, whole or not at all; the same scores give the same bytes."""
    columns: dict[str, pyarrow.Array] = {}
    for name in COLUMNS:
        array = pyarrow.array(table[name].to_numpy())
        columns[name] = array.dictionary_encode() if table[name].dtype == object or array.type == "string" else array
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, **_COMPRESSED)
    files.write_bytes(file, buffer.getvalue())


def read(file: Path) -> pd.DataFrame:
    """The scores of a file. Raises ``CorruptFile`` where they cannot be read, or stand there twice."""
    try:
        table = pyarrow.parquet.read_table(file, page_checksum_verification=True).to_pandas()[[*COLUMNS]]
        types = dict.fromkeys(("set", "network", "metric", "method"), str) | {"images": np.int64, "image": np.int32}
        return join([table.astype(types | {"value": np.float32})])
    except (pyarrow.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise files.CorruptFile(f"{file}: cannot be read: {error}. Remove it and run its notebook again.") from error


def differences(scores: pd.DataFrame, estimand: dict[str, Any]) -> pd.DataFrame:
    """The rows (set, network, images, image, value) that a registered estimand names; empty where scores are missing.

    ``estimand`` has ``metric``, ``sets`` and ``of``, a method or the largest, smallest or mean of several, image by
    image; from it ``minus``, another of these or a number, is taken.
    """
    chosen = chosen_by(estimand, scores)
    if not _both(estimand) <= {*chosen["method"]}:
        return pd.DataFrame(columns=[*_KEY, "value"])
    # what is not finite stays a row, and what was never recorded is none
    chosen = chosen.assign(value=chosen["value"].astype(float).fillna(np.inf))
    wide = chosen.pivot(index=_KEY, columns="method", values="value").dropna()
    of, minus = (_side(wide, side) for side in (estimand["of"], estimand.get("minus", 0.0)))
    return (of - minus).rename("value").reset_index()


def chosen_by(estimand: dict[str, Any], scores: pd.DataFrame) -> pd.DataFrame:
    """The scores that a registered estimand takes: of its metric, sets, methods and, where it names some, networks."""
    taken = (scores["metric"] == estimand["metric"]) & scores["set"].isin(estimand["sets"])
    taken &= scores["method"].isin(_both(estimand))
    if "networks" in estimand:
        taken &= scores["network"].astype(str).str.split(".").str[0] == estimand["networks"]
    return scores[taken]


def units_of(rows: pd.DataFrame) -> list[str]:
    """What was looked at, "set network images", each once: by these a claim knows whether its numbers are fresh."""
    places = rows[["set", "network", "images"]].drop_duplicates()
    return sorted(" ".join(map(str, place)) for place in places.itertuples(index=False))


def _both(estimand: dict[str, Any]) -> set[str]:
    """The methods on the two sides of an estimand."""
    return {method for side in (estimand["of"], estimand.get("minus")) for method in _methods(side)}


def _methods(side: Any) -> list[str]:
    """The methods that one side of a difference takes."""
    if isinstance(side, dict):
        return next(iter(side.values()))
    return [side] if isinstance(side, str) else []


def _side(wide: pd.DataFrame, side: Any) -> Any:
    """One side of a difference, image by image; not finite where a method of it is not."""
    if isinstance(side, int | float):
        return side
    values = wide[_methods(side)]
    rules = {"largest": "max", "smallest": "min", "mean": "mean"}
    found = getattr(values, rules[next(iter(side))] if isinstance(side, dict) else "mean")(axis=1)
    return found.where(np.isfinite(values).all(axis=1))
