"""What a score loses with some entries: comprehensiveness, log-odds and purity (paper 4), DiffID (paper 5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.checks import check_batch, check_like, check_map, warn_non_finite
from ..core.passes import plan_passes
from ..core.scorer import Model, left_as_found, resolve_target
from .faithfulness import TENTHS, check_ratios, insertion_deletion

# shares of the entries in paper 4's curves (section 6.3)
RATIOS = (0.01, 0.02, *(round(0.05 * i, 2) for i in range(1, 14)))


def comprehensiveness(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None = None,
    *,
    ratios: Sequence[float] | Tensor = RATIOS,
    fill: str | float | Tensor = 0.0,
    rank: str = "abs",
    unit: str = "entry",
    internal_batch_size: int | None = None,
) -> Tensor:
    """p(x) − p(x without its most relevant entries), p the softmax probability of the target: (B, R).

    The paper's area under it is ``torch.trapezoid(values, ratios)``, not divided by the width; more is better.

    Parameters
    ----------
    ratios : sequence of float
        Shares in [0, 1] of the entries that are replaced; 1 % to 65 % in the paper.
    fill, rank, unit
        As for :func:`manifold_lib.insertion_deletion`; the published code puts 0 in place of single channel entries.
    """
    options = {"fill": fill, "rank": rank, "unit": unit, "internal_batch_size": internal_batch_size}
    return -_losses(model, inputs, attributions, target, ratios, "probability", **options)


def log_odds(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None = None,
    *,
    ratios: Sequence[float] | Tensor = RATIOS,
    fill: str | float | Tensor = 0.0,
    rank: str = "abs",
    unit: str = "entry",
    internal_batch_size: int | None = None,
) -> Tensor:
    """log p(x without its most relevant entries) − log p(x), arguments as for :func:`comprehensiveness`: (B, R).

    Differences of log-probabilities, which the paper calls log-odds; less is better. Its area is taken with a minus.
    """
    options = {"fill": fill, "rank": rank, "unit": unit, "internal_batch_size": internal_batch_size}
    return _losses(model, inputs, attributions, target, ratios, "log_probability", **options)


def _losses(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None,
    ratios: Sequence[float] | Tensor,
    score: str,
    *,
    fill: str | float | Tensor,
    rank: str,
    unit: str,
    internal_batch_size: int | None,
) -> Tensor:
    """Score after replacement less that of the whole image, which is a ratio of 0."""
    curve = insertion_deletion(
        model,
        inputs,
        attributions,
        target,
        ratios=[0.0, *check_ratios(ratios)],
        fill=fill,
        score=score,
        rank=rank,
        unit=unit,
        curves="deletion",
        internal_batch_size=internal_batch_size,
    ).deletion
    assert curve is not None
    return curve[:, 1:] - curve[:, :1]


def diffid(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None = None,
    *,
    ratios: Sequence[float] | Tensor = TENTHS,
    fill: str | float | Tensor = "mean",
    soft: bool = False,
    internal_batch_size: int | None = None,
) -> Tensor:
    """DiffID (paper 5, section 6): insertion − deletion, the mean over the ratios, per image: (B,) in [−1, 1].

    Its two parts are the means over the ratios of :func:`manifold_lib.insertion_deletion`. With n images the mean moves
    in steps of 1 / (9 n); below some thirty images rankings are noise.

    Parameters
    ----------
    model, inputs, target
        As for :func:`manifold_lib.gradient`; the model gives logits (B, C). The paper judges against the true class and
        keeps images that the model gets wrong, which then count for nothing or next to it: give the labels as target.
    attributions : Tensor
        (B, *shape), of which only the order of |A| over all entries counts: a pixel may lose one channel alone.
    ratios : sequence of float
        Shares in [0, 1]; of D entries, r · D truncated are replaced, the product in floating point as in the
        released code (0.7 · 90 gives 62).
    fill
        As for :func:`manifold_lib.insertion_deletion`: the mean of the entries that are left, one number for an image.
    soft : bool
        In the place of right or wrong, p(target) over that of the whole image, at most 1.
    """
    check_batch(inputs)
    check_map(attributions, inputs)
    n_entries = inputs[0].numel()
    shares = check_ratios(ratios)
    if str(getattr(ratios, "dtype", "float64"))[-7:] != "float64":
        shares = [round(share, 7) for share in shares]  # 0.7 in single precision is below 0.7
    shares = [int(share * n_entries) / n_entries for share in shares]
    curves = insertion_deletion(
        model,
        inputs,
        attributions,
        target,
        ratios=[0.0, *shares] if soft else shares,
        fill=fill,
        score="log_probability" if soft else "accuracy",
        internal_batch_size=internal_batch_size,
    )
    assert curves.insertion is not None and curves.deletion is not None
    kept, lost = curves.insertion, curves.deletion
    if soft:
        # a target of no probability keeps none
        kept, lost = (
            (curve[:, 1:] - curve[:, :1]).masked_fill(curve[:, :1].isneginf(), -torch.inf).clamp_max(0).exp()
            for curve in (kept, lost)
        )
    return (kept - lost).mean(1)


def purity(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float = 0.0,
    published: bool = False,
    internal_batch_size: int | None = None,
) -> Tensor:
    """Share of the half with the larger Σ|A| whose class is not the one predicted for their baseline (paper 4, 6.1).

    The predicted class is explained, so that f changes little from the baseline to an input of its own class: the
    measure asks that Σ|A| ranks the inputs as |Δf| does. 1 is best, and 0.5 what chance gives where half the inputs
    are of the baseline's class.

    Parameters
    ----------
    target : int, Tensor or None
        The class of each input; None means the predicted one.
    published : bool
        The released measure: the mean predicted class (0 or 1) over the half with the *smaller* Σ|A|. It is right where
        the baseline falls into class 1, and its complement where into class 0.

    Returns
    -------
    Tensor
        A scalar.
    """
    check_batch(inputs)
    check_map(attributions, inputs)
    baselines = check_like(baselines, inputs, "baselines")
    with left_as_found(model, inputs), torch.no_grad():
        model, size = plan_passes(model, inputs, 2, internal_batch_size, backward=False)
        others = resolve_target(model, baselines, None, size)
        if others is None:
            raise ValueError("model: got scores (B,), wants logits (B, C)")
        classes = resolve_target(model, inputs, target, size)
        assert classes is not None
    warn_non_finite(attributions, "purity")
    sums = attributions.detach().flatten(1).abs().sum(1)
    order, half = sums.argsort(descending=True, stable=True), len(inputs) // 2
    if not half:
        raise ValueError(f"inputs: got shape {tuple(inputs.shape)}, wants two or more, to halve")
    good = classes[order[-half:]] if published else classes.ne(others)[order[:half]]
    return good.to(inputs.dtype).mean().where(torch.isfinite(sums).all(), torch.nan)
