"""What a score loses with some entries: insertion and deletion, comprehensiveness, log-odds (paper 4), DiffID (5)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_like, check_map, floor_of, warn_non_finite
from ..core.scorer import Model, Target, scoring
from .faithfulness import logits
from .roar import ranks_of, replaced

Ratios = Sequence[float] | Tensor

# Shares of the entries that are replaced: in paper 5's DiffID (section 6), and in paper 4's curves (section 6.3).
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RATIOS = (0.01, 0.02, *(round(0.05 * i, 2) for i in range(1, 14)))


class Curves(NamedTuple):
    """Scores of images with some entries replaced; a curve that was not asked for is None.

    Attributes
    ----------
    ratios : Tensor
        (R,), shares of the entries that are replaced.
    insertion : Tensor or None
        (B, R), the entries of *least* relevance replaced: good maps keep the score.
    deletion : Tensor or None
        (B, R), the entries of *most* relevance replaced: good maps lose it.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> x = torch.tensor([[3.0, 2.0, 0.0]])
    >>> ml.insertion_deletion(lambda x: x, x, x, ratios=[0.4], curves="insertion")
    Curves(ratios=tensor([0.4000]), insertion=tensor([[1.]]), deletion=None)
    """

    ratios: Tensor
    insertion: Tensor | None
    deletion: Tensor | None


def insertion_deletion(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: Target = None,
    *,
    ratios: Ratios = TENTHS,
    fill: str | float | Tensor = "mean",
    score: str = "accuracy",
    rank: str = "abs",
    unit: str = "entry",
    curves: str = "both",
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
) -> Curves:
    """Scores while the least (insertion) or the most (deletion) relevant entries are replaced, as DiffID counts them.

    Parameters
    ----------
    model, inputs, target, attributions, additional_forward_args, internal_batch_size
        As for :func:`completeness_error`; the model gives logits (B, C), and attributions may have any unit.
    ratios : sequence of float
        R shares in [0, 1]; ⌊r · D⌋ entries are replaced (with ``unit="pixel"``, of H · W pixels).
    fill : {"mean", "zero"}, float or Tensor
        The mean of that image's entries that are left, 0, a number, or another image (B, *shape), as a blurred one.
    score : {"accuracy", "probability", "log_probability"}
        1 where the target is the predicted class and 0 elsewhere, or the softmax probability of the target, or its log.
    rank, unit : {"abs", "signed"}, {"entry", "pixel"}
        Relevance is |A| or A. That of a pixel (or voxel) is the sum over the channels, which are replaced together.
    curves : {"both", "insertion", "deletion"}
        One alone takes half the time.

    Raises
    ------
    ValueError
        For bad input.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> x = torch.tensor([[3.0, 2.0, 0.0]])
    >>> ml.insertion_deletion(lambda x: x, x, x, ratios=[0.4, 0.8], fill="zero").deletion
    tensor([[0., 1.]])
    """
    check_map(attributions, check_batch(inputs))
    check_choice(score, "score", ("accuracy", "probability", "log_probability"))
    check_choice(curves, "curves", ("both", "insertion", "deletion"))
    relevance, shares = _relevance(attributions, rank, unit), check_ratios(ratios)
    counts = torch.tensor([floor_of(share * relevance.shape[1]) for share in shares], device=inputs.device)
    by_mean = isinstance(fill, str) and check_choice(fill, "fill", ("mean", "zero")) == "mean"
    filled = None if by_mean else check_like(0.0 if isinstance(fill, str) else fill, inputs, "fill")
    found: dict[str, list[Tensor]] = {kind: [] for kind in ("insertion", "deletion") if curves in ("both", kind)}
    with scoring(model, inputs, target, 0, additional_forward_args, internal_batch_size) as scorer, torch.no_grad():
        # ranks take eight bytes, and as many to find: they are kept for the images of eight passes at a time
        for some in torch.arange(len(inputs), device=inputs.device).split(math.ceil(8 * scorer.forward / len(counts))):
            ranks = ranks_of(relevance[some])
            for kind, values in found.items():
                for pair in torch.arange(len(some) * len(counts), device=inputs.device).split(scorer.forward):
                    own, n_gone = pair // len(counts), counts[pair % len(counts)]
                    fills = None if filled is None else filled[some[own]]
                    points = replaced(inputs[some[own]], ranks[own], n_gone, fills, kind)
                    values.append(_judged(*logits(scorer, points, some[own]), score))
        finite = torch.isfinite(attributions).flatten(1).all(1, keepdim=True)
        both = {kind: torch.cat(parts).view(-1, len(counts)).where(finite, torch.nan) for kind, parts in found.items()}
    warn_non_finite(attributions, "insertion_deletion")
    return Curves(inputs.new_tensor(shares), both.get("insertion"), both.get("deletion"))


def comprehensiveness(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: Target = None,
    *,
    ratios: Ratios = RATIOS,
    fill: str | float | Tensor = 0.0,
    **options: Any,
) -> Tensor:
    """p(x) − p(x without its most relevant entries), p the softmax probability of the target: (B, R) in [−1, 1].

    More is better. The paper's area under it is ``torch.trapezoid(values, ratios)``, not divided by the width. By
    default 1 % to 65 % of the entries are replaced by 0, as in the paper's code. Arguments (and ``**options``) and
    exceptions are those of :func:`insertion_deletion`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> x = torch.tensor([[2.0, 2.0, 0.0]])
    >>> ml.comprehensiveness(lambda x: x, x, x, ratios=[0.4, 0.7])
    tensor([[0.3618, 0.1350]])
    """
    return -_change(model, inputs, attributions, target, ratios, score="probability", fill=fill, **options)


def log_odds(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: Target = None,
    *,
    ratios: Ratios = RATIOS,
    fill: str | float | Tensor = 0.0,
    **options: Any,
) -> Tensor:
    """log p(x without its most relevant entries) − log p(x): (B, R), in nats; less is better.

    The paper calls this log-odds, and takes its area with a minus. All else is as for :func:`comprehensiveness`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> x = torch.tensor([[2.0, 2.0, 0.0]])
    >>> ml.log_odds(lambda x: x, x, x, ratios=[0.4, 0.7])
    tensor([[-1.4809, -0.3400]])
    """
    return _change(model, inputs, attributions, target, ratios, score="log_probability", fill=fill, **options)


def _change(model: Model, inputs: Tensor, maps: Tensor, target: Target, ratios: Ratios, **options: Any) -> Tensor:
    """The score after replacement minus that of the whole image, which is a ratio of 0: (B, R)."""
    shares = [0.0, *check_ratios(ratios)]
    curve = insertion_deletion(model, inputs, maps, target, ratios=shares, curves="deletion", **options).deletion
    assert curve is not None
    return curve[:, 1:] - curve[:, :1]


def diffid(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: Target = None,
    *,
    ratios: Ratios = TENTHS,
    fill: str | float | Tensor = "mean",
    soft: bool = False,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """DiffID (paper 5, section 6): insertion − deletion, the mean over the ratios, per image: (B,) in [−1, 1].

    Relevance is |A| of each entry. Other arguments and exceptions are those of :func:`insertion_deletion`. With n
    images the mean of DiffID moves in steps of 1 / (9 n): rankings from fewer than some thirty images are noise.

    Parameters
    ----------
    target : int, Tensor or None
        The paper judges against the true class, and keeps images that the model gets wrong: give the labels.
    ratios : sequence of float
        Shares in [0, 1]; of D entries, r · D truncated are replaced, as in the released code (0.7 · 90 gives 62).
    soft : bool
        Instead of right or wrong, p(target) over that of the whole image, at most 1.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> x = torch.tensor([[3.0, 2.0, 0.0]])
    >>> ml.diffid(lambda x: x, x, x, ratios=[0.4, 0.7])
    tensor([0.5000])
    """
    check_map(attributions, check_batch(inputs))
    n_entries, shares = inputs[0].numel(), check_ratios(ratios)
    if not str(getattr(ratios, "dtype", "float64")).endswith("float64"):
        shares = [round(share, 7) for share in shares]  # 0.7 in single precision is below 0.7
    shares = [int(share * n_entries) / n_entries for share in shares]
    score, shares = ("log_probability", [0.0, *shares]) if soft else ("accuracy", shares)
    options = {"additional_forward_args": additional_forward_args, "internal_batch_size": internal_batch_size}
    curves = insertion_deletion(model, inputs, attributions, target, ratios=shares, fill=fill, score=score, **options)
    kept, lost = curves.insertion, curves.deletion
    assert kept is not None and lost is not None
    if soft:
        # a target of no probability keeps none
        kept, lost = (
            (curve[:, 1:] - curve[:, :1]).masked_fill(curve[:, :1].isneginf(), -torch.inf).clamp_max(0).exp()
            for curve in (kept, lost)
        )
    return (kept - lost).mean(1)


def check_ratios(ratios: Ratios) -> list[float]:
    """One or more shares in [0, 1]."""
    try:
        shares = torch.as_tensor(ratios, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        shares = torch.empty(0)
    if shares.ndim != 1 or not len(shares) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(f"ratios: got {ratios!r}, wants one or more numbers in [0, 1]")
    return shares.tolist()


def _relevance(attributions: Tensor, rank: str, unit: str) -> Tensor:
    """Relevance of each entry or pixel: (B, *shape) -> (B, units)."""
    signed = check_choice(rank, "rank", ("abs", "signed")) == "signed"
    relevance = attributions.detach() if signed else attributions.detach().abs()
    if check_choice(unit, "unit", ("entry", "pixel")) == "entry":
        return relevance.flatten(1)
    if relevance.ndim < 4:
        got = tuple(relevance.shape)
        raise ValueError(f"attributions: got shape {got}, wants (B, C, H, W) or (B, C, D, H, W) for unit='pixel'")
    return relevance.sum(1).flatten(1)


def _judged(scores: Tensor, classes: Tensor, score: str) -> Tensor:
    """Right or wrong, probability, or its log, of each row: (n, C) and (n,) -> (n,)."""
    if score == "accuracy":
        right = (scores.argmax(1) == classes).to(scores.dtype)
        return right.masked_fill(scores.isnan().any(1), torch.nan)  # neither right nor wrong
    judged = scores.softmax(1) if score == "probability" else scores.log_softmax(1)
    return judged.gather(1, classes[:, None])[:, 0]
