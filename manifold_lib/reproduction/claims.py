"""Claims of the papers and their verdicts, which are computed here and nowhere else."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

KINDS = ("greater", "less", "equivalent", "exact")
VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not attempted")
_CHUNK = 2_000_000


def interval(
    values: ArrayLike,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    groups: ArrayLike | None = None,
) -> tuple[float, float, float]:
    """Mean, lower and upper end of the percentile-bootstrap interval of the finite values (N,).

    With ``groups``, the training seed of each value (N,), the bootstrap draws seeds first and images within them, and
    the mean is that of the seeds' means. Both ends are NaN with fewer than two values, or seeds.
    """
    parts, _ = _finite_parts(values, groups)
    mean = float(np.mean([part.mean() for part in parts]))
    if len(parts) < 2 and (groups is not None or len(parts[0]) < 2):
        return mean, math.nan, math.nan
    generator = np.random.default_rng(seed)
    chosen = np.zeros((n_resamples, 1), dtype=int)
    if groups is not None:
        chosen = generator.integers(len(parts), size=(n_resamples, len(parts)))
    means = np.empty(chosen.shape)
    for index, part in enumerate(parts):
        slots = chosen == index
        means[slots] = _resampled_means(part, int(slots.sum()), generator)
    low, high = np.quantile(means.mean(1), [(1 - level) / 2, (1 + level) / 2])
    return mean, float(low), float(high)


def _resampled_means(values: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Means of ``count`` resamples, drawn in chunks to bound the memory."""
    rows = max(1, _CHUNK // len(values))
    sizes = [min(rows, count - start) for start in range(0, count, rows)]
    return np.concatenate([np.empty(0), *(generator.choice(values, (size, len(values))).mean(1) for size in sizes)])


def _finite_parts(values: ArrayLike, groups: ArrayLike | None) -> tuple[list[np.ndarray], int]:
    """The finite values, as one array or one a group; and how many were left out."""
    if hasattr(values, "detach"):  # a tensor, perhaps on a GPU or with a graph
        values = values.detach().cpu().double()
    array = np.asarray(values, dtype=float).ravel()
    finite = np.isfinite(array)
    if not finite.any():
        raise ValueError(f"values: got {len(array)} of which none is finite, wants at least one")
    if groups is None:
        return [array[finite]], int((~finite).sum())
    labels = np.asarray(groups).ravel()
    if labels.shape != array.shape:
        raise ValueError(f"groups: got {len(labels)} entries, wants {len(array)} like values")
    return [array[finite & (labels == label)] for label in np.unique(labels[finite])], int((~finite).sum())


def judge(kind: str, threshold: float, value: float, ci95: tuple[float, float] | list[float] | None) -> str:
    """The verdict on a claim: ``"reproduced"``, ``"not reproduced"`` or ``"inconclusive"``.

    ``greater`` and ``less`` ask for the whole interval beyond ``threshold``, ``equivalent`` for it within
    ±``threshold`` (all are inconclusive without an interval), and ``exact`` for \\|``value``\\| ≤ ``threshold``.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, wants one of {', '.join(map(repr, KINDS))}")
    if not math.isfinite(threshold) or (threshold < 0 and kind in ("equivalent", "exact")):
        raise ValueError(f"threshold: got {threshold!r}, wants a finite number, of at least 0 for equivalent and exact")
    if not math.isfinite(value):
        raise ValueError(f"value: got {value!r}, wants a finite number")
    if kind == "exact":
        if ci95 is not None:
            raise ValueError("ci95: an exact claim has none")
        return "reproduced" if abs(value) <= threshold else "not reproduced"
    if ci95 is None:
        return "inconclusive"
    low, high = ci95
    if not low <= high:
        raise ValueError(f"ci95: got [{low}, {high}], wants lower end ≤ upper end")
    if kind == "less":
        low, high, threshold = -high, -low, -threshold
    if kind == "equivalent":
        holds, fails = -threshold <= low and high <= threshold, low > threshold or high < -threshold
    else:
        holds, fails = low > threshold, high < threshold
    return "reproduced" if holds else "not reproduced" if fails else "inconclusive"


def claim(
    id: str,
    statement: str,
    source: str,
    *,
    kind: str,
    threshold: float,
    values: ArrayLike | None = None,
    value: float | None = None,
    ci95: tuple[float, float] | list[float] | None = None,
    n: int | None = None,
    groups: ArrayLike | None = None,
    unit: str = "",
    paper: float | None = None,
    note: str = "",
) -> dict[str, Any]:
    """One row of ``results.json``: what a paper says, what was measured, and the verdict.

    ``value``, ``ci95`` and ``n`` are those of the finite per-image ``values``; an ``exact`` claim takes the value of
    largest magnitude, and wants all finite. Or they are given instead, ``n`` being 1 by default. With ``groups``
    ``n`` counts seeds (:func:`interval`). The ``paper``'s number is shown, never used.
    """
    if (values is None) == (value is None):
        raise ValueError(f"claim {id}: wants either values or value")
    notes = [note] if note else []
    if values is not None:
        if ci95 is not None or n is not None:
            raise ValueError(f"claim {id}: ci95 and n are computed from values, wants only one of them")
        parts, left_out = _finite_parts(values, groups)
        n = len(parts) if groups is not None else len(parts[0])
        if kind == "exact":
            if left_out:
                raise ValueError(f"claim {id}: {left_out} values are not finite, an exact claim wants all finite")
            value = float(max(np.concatenate(parts), key=abs))
        else:
            value, low, high = interval(values, groups=groups)
            ci95 = None if math.isnan(low) else (low, high)
        if left_out:
            notes.append(f"not finite, left out: {left_out} of {sum(map(len, parts)) + left_out}")
    elif groups is not None:
        raise ValueError(f"claim {id}: groups wants values")
    assert value is not None
    return {
        "id": id,
        "statement": statement,
        "source": source,
        "kind": kind,
        "threshold": float(threshold),
        "unit": unit,
        "paper": None if paper is None else float(paper),
        "value": float(value),
        "ci95": None if ci95 is None else [float(end) for end in ci95],
        "n": 1 if n is None else int(n),
        "verdict": judge(kind, float(threshold), float(value), ci95),
        "note": "; ".join(notes),
    }


def not_attempted(
    id: str,
    statement: str,
    source: str,
    *,
    kind: str,
    threshold: float,
    reason: str,
    unit: str = "",
    paper: float | None = None,
) -> dict[str, Any]:
    """The row of a claim that was not put to the test, with the reason as its note."""
    if not reason:
        raise ValueError(f"claim {id}: wants the reason why it was not attempted")
    row = claim(id, statement, source, kind=kind, threshold=threshold, value=0.0, unit=unit, paper=paper, note=reason)
    return row | {"value": None, "n": 0, "verdict": "not attempted"}
