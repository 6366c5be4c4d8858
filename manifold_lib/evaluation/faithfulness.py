"""How faithful an attribution is to its model: completeness, cancellation, insertion and deletion, per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_like, check_map, floor_of, warn_non_finite
from ..core.passes import plan_passes
from ..core.scorer import LEAST_CHANGE, Model, checked_scores, left_as_found, resolve_target, score_change, target_from
from ..paths.path import column

# shares of the entries that DiffID replaces (paper 5, section 6)
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# a rank is eight bytes and takes as many to find: they are kept for the images of so many passes
_PASSES = 8


class Curves(NamedTuple):
    """Scores of images with some entries filled in.

    ratios : (R,), shares of the entries that are replaced.
    insertion : (B, R), the entries of *least* relevance replaced: good maps keep the score.
    deletion : (B, R), the entries of *most* relevance replaced: good maps lose it.

    A curve that was not asked for is None.
    """

    ratios: Tensor
    insertion: Tensor | None
    deletion: Tensor | None


def completeness_error(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float = 0.0,
    internal_batch_size: int | None = None,
) -> Tensor:
    """|Σ A − Δf| / max(|Δf|, 0.05) with Δf = f(x) − f(x'), per image: (B,)."""
    sums, change = _sums(model, inputs, attributions, target, baselines, internal_batch_size, absolute=False)
    return (sums - change).abs() / change.abs().clamp_min(LEAST_CHANGE)


def cancellation_ratio(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float = 0.0,
    reduction: str = "sum",
    internal_batch_size: int | None = None,
) -> Tensor:
    """How much of an attribution cancels itself out; 1 is none (paper 4's No-Cancellation Completeness).

    Parameters
    ----------
    reduction : {"sum", "none"}
        ``"sum"`` gives Σ Σ|A| / Σ |Δf| over all images, a scalar; a ratio per image would explode where Δf ≈ 0.
        ``"none"`` gives the gap Σ|A| − |Δf| of each image (B,), which is at least 0 up to the quadrature's error.
    """
    check_choice(reduction, "reduction", ("sum", "none"))
    sums, change = _sums(model, inputs, attributions, target, baselines, internal_batch_size, absolute=True)
    change = change.abs()
    return sums - change if reduction == "none" else sums.sum() / change.sum()


def _sums(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None,
    baselines: Tensor | float,
    internal_batch_size: int | None,
    *,
    absolute: bool,
) -> tuple[Tensor, Tensor]:
    """Σ A or Σ|A|, and f(x) − f(x'): each (B,)."""
    check_batch(inputs)
    check_map(attributions, inputs)
    baselines = check_like(baselines, inputs, "baselines")
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, 2, internal_batch_size, backward=False)
        classes = resolve_target(model, inputs, target, size)
        change = score_change(model, inputs, baselines, classes, size)
    flat = attributions.detach().flatten(1)
    return (flat.abs() if absolute else flat).sum(1), change


def insertion_deletion(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None = None,
    *,
    ratios: Sequence[float] | Tensor = TENTHS,
    fill: str | float | Tensor = "mean",
    score: str = "accuracy",
    rank: str = "abs",
    unit: str = "entry",
    curves: str = "both",
    internal_batch_size: int | None = None,
) -> Curves:
    """Scores while the least (insertion) or the most (deletion) relevant entries are replaced, as DiffID counts them.

    Parameters
    ----------
    model, inputs, target
        As for :func:`manifold_lib.gradient`; the model gives logits (B, C).
    attributions : Tensor
        (B, *shape).
    ratios : sequence of float
        Shares in [0, 1]; ⌊r · D⌋ entries are replaced (with ``unit="pixel"``, of H · W pixels).
    fill : {"mean", "zero"}, float or Tensor
        ``"mean"`` is the mean of the entries that are left in that image; a tensor (B, *shape) is another image,
        such as a blurred one.
    score : {"accuracy", "probability", "log_probability"}
        1 where the target is the predicted class and 0 elsewhere, or the softmax probability of the target, or its log.
    rank : {"abs", "signed"}
        Whether relevance is |A| or A.
    unit : {"entry", "pixel"}
        ``"pixel"`` adds up the relevance of the channels of images (B, C, H, W) and replaces all of them.
    curves : {"both", "insertion", "deletion"}
        One alone costs half.
    internal_batch_size : int, optional
        Images (times ratios) per pass through the model.

    Returns
    -------
    Curves
    """
    check_batch(inputs)
    check_map(attributions, inputs)
    check_choice(score, "score", ("accuracy", "probability", "log_probability"))
    check_choice(curves, "curves", ("both", "insertion", "deletion"))
    n_units = _count_units(inputs, rank, unit)
    shares = check_ratios(ratios)
    counts = torch.tensor([floor_of(share * n_units) for share in shares], device=inputs.device)
    value = 0.0 if isinstance(fill, str) and fill == "zero" else fill
    if isinstance(value, str):
        check_choice(value, "fill", ("mean", "zero"))
    else:
        value = check_like(value, inputs, "fill")
    kinds = ("insertion", "deletion") if curves == "both" else (curves,)
    found: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    with left_as_found(model, inputs), torch.no_grad():
        n_per_image = len(counts) * len(kinds)
        model, size = plan_passes(model, inputs, n_per_image, internal_batch_size, backward=False)
        # classes that are given are checked on the first scores: points of their own are a tenth of one image's time
        classes = resolve_target(model, inputs, None, size) if target is None else None
        for some in torch.arange(len(inputs), device=inputs.device).split(math.ceil(_PASSES * size / len(counts))):
            ranks = _ranks(attributions[some], rank, unit)
            for kind in kinds:
                for pair in torch.arange(len(some) * len(counts), device=inputs.device).split(size):
                    own, n_gone = pair // len(counts), counts[pair % len(counts)]
                    rows = some[own]
                    given = value if isinstance(value, str) else value[rows]
                    logits = checked_scores(model(_replaced(inputs[rows], ranks[own], n_gone, given, kind)), len(rows))
                    if logits.ndim == 1 or logits.shape[1] == 1:
                        got = "(B, 1)" if logits.ndim > 1 else "(B,)"
                        raise ValueError(f"model: got scores {got}, wants logits (B, C)")
                    if classes is None:
                        classes = target_from(logits, target, len(inputs))
                    assert classes is not None
                    found[kind].append(_judged(logits, classes[rows], score))
        finite = torch.isfinite(attributions).flatten(1).all(1, keepdim=True)
        both = {
            kind: torch.cat(values).view(-1, len(counts)).where(finite, torch.nan) for kind, values in found.items()
        }
    warn_non_finite(attributions, "insertion_deletion")
    given_ratios = torch.tensor(shares, dtype=inputs.dtype, device=inputs.device)
    return Curves(given_ratios, both.get("insertion"), both.get("deletion"))


def _replaced(x: Tensor, ranks: Tensor, counts: Tensor, fill: str | Tensor, kind: str) -> Tensor:
    """Some images, ``counts`` units of each replaced."""
    # rank 0 is the most relevant
    gone = ranks < counts[:, None] if kind == "deletion" else ranks >= ranks.shape[1] - counts[:, None]
    gone = gone.view_as(x) if gone.shape[1] == x[0].numel() else gone.view(-1, 1, *x.shape[2:])
    if isinstance(fill, Tensor):
        return torch.where(gone, fill, x)
    left = (~gone).expand_as(x)
    n_left = left.flatten(1).sum(1)
    # half precision ends at 65,504, which a sum over an image passes
    exact = x if x.dtype == torch.float64 else x.float()
    mean = (exact * left).flatten(1).sum(1) / n_left
    mean = torch.where(n_left > 0, mean, exact.flatten(1).mean(1)).to(x.dtype)
    return torch.where(gone, column(mean, x), x)


def _judged(logits: Tensor, classes: Tensor, score: str) -> Tensor:
    """The score of each row: (N, C) -> (N,)."""
    if score == "accuracy":
        right = (logits.argmax(1) == classes).to(logits.dtype)
        return right.masked_fill(logits.isnan().any(1), torch.nan)  # neither right nor wrong
    judged = logits.softmax(1) if score == "probability" else logits.log_softmax(1)
    return judged.gather(1, classes[:, None])[:, 0]


def _count_units(inputs: Tensor, rank: str, unit: str) -> int:
    check_choice(rank, "rank", ("abs", "signed"))
    if check_choice(unit, "unit", ("entry", "pixel")) == "entry":
        return inputs[0].numel()
    if inputs.ndim != 4:
        raise ValueError(f"attributions: got shape {tuple(inputs.shape)}, wants (B, C, H, W) for unit='pixel'")
    return inputs[0, 0].numel()


def _ranks(attributions: Tensor, rank: str, unit: str) -> Tensor:
    """Place of each unit in the order of falling relevance, ties in the order of the units: (B, units) int."""
    relevance = attributions.abs() if rank == "abs" else attributions
    relevance = relevance.sum(1) if unit == "pixel" else relevance
    order = relevance.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def check_ratios(ratios: Sequence[float] | Tensor) -> list[float]:
    """One or more shares in [0, 1]."""
    try:
        shares = torch.as_tensor(ratios, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        shares = torch.empty(0)
    if shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"ratios: got {ratios!r}, wants one or more numbers in [0, 1]")
    return shares.tolist()
