"""How faithful an attribution is to the change of the score: completeness, cancellation and purity."""

from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_choice, check_like, check_map, warn_non_finite
from ..core.scorer import LEAST_CHANGE, Model, Scorer, Target, check_class, scoring


def completeness_error(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float = 0.0,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """|Σ A − Δf| / max(|Δf|, 0.05) of each image, with Δf = f(x) − f(x'): (B,), without a unit.

    Parameters
    ----------
    model, inputs, target, additional_forward_args, internal_batch_size
        As for :func:`manifold_lib.gradient`.
    attributions, baselines
        A, (B, *shape), in score units; and x', (B, *shape), (1, *shape) or a number, in input units.

    Raises
    ------
    ValueError
        For bad input.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.completeness_error(lambda x: x.sum(1), torch.tensor([[1.0, 4.0]]), torch.tensor([[1.0, 3.0]]))
    tensor([0.2000])
    """
    with scoring(model, inputs, target, 0, additional_forward_args, internal_batch_size) as scorer:
        check_map(attributions, inputs)
        change = scorer.change(inputs, check_like(baselines, inputs, "baselines"))
    return (attributions.detach().flatten(1).sum(1) - change).abs() / change.abs().clamp_min(LEAST_CHANGE)


def cancellation_ratio(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float = 0.0,
    reduction: str = "sum",
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """How much of an attribution cancels out: 1 is none (paper 4 calls it No-Cancellation Completeness).

    Other arguments and exceptions are those of :func:`completeness_error`.

    Parameters
    ----------
    reduction : {"sum", "none"}
        ``"sum"`` gives Σ Σ|A| / Σ |Δf| over all images, a scalar; the ratio of one image is large where Δf ≈ 0.
        ``"none"`` gives the gap Σ|A| − |Δf| of each image (B,), in score units, at least 0 for a complete map.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.cancellation_ratio(lambda x: x.sum(1), torch.tensor([[1.0, 4.0]]), torch.tensor([[-1.0, 6.0]]))
    tensor(1.4000)
    """
    check_choice(reduction, "reduction", ("sum", "none"))
    with scoring(model, inputs, target, 0, additional_forward_args, internal_batch_size) as scorer:
        check_map(attributions, inputs)
        change = scorer.change(inputs, check_like(baselines, inputs, "baselines")).abs()
    sums = attributions.detach().flatten(1).abs().sum(1)
    return sums - change if reduction == "none" else sums.sum() / change.sum()


def purity(
    model: Model,
    inputs: Tensor,
    attributions: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float = 0.0,
    published: bool = False,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """How well Σ|A| tells the baseline's class from the others (paper 4, section 6.1): a scalar in [0, 1].

    Of the half of the inputs with the larger Σ|A|, the share whose class is not the one predicted for their baseline.
    A maps the predicted class, so f changes little from the baseline to an input of its own class. 1 is best; chance
    gives 0.5 where half of the inputs are of the baseline's class. Other arguments and exceptions are those of
    :func:`completeness_error`; the model gives logits (B, C), and there are two inputs or more.

    Parameters
    ----------
    target : int, Tensor or None
        The class of each input; None means the predicted one.
    published : bool
        The released measure: the mean predicted class (0 or 1) over the half with the *smaller* Σ|A|. Where half of the
        inputs are of either class it is the purity if the baseline's class is 1, and one minus the purity if that is 0.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> ml.purity(lambda x: torch.cat([-x, x], 1), x, x + 2, baselines=-1.0)
    tensor(1.)
    """
    with scoring(model, inputs, target, 0, additional_forward_args, internal_batch_size) as scorer, torch.no_grad():
        check_map(attributions, inputs)
        baselines = check_like(baselines, inputs, "baselines")
        rows = torch.arange(len(inputs), device=inputs.device).split(scorer.forward)
        parts = [logits(scorer, baselines[some], some) for some in rows]
    warn_non_finite(attributions, "purity")
    sums = attributions.detach().flatten(1).abs().sum(1)
    order, half = sums.argsort(descending=True, stable=True), len(inputs) // 2
    if not half:
        raise ValueError(f"inputs: got shape {tuple(inputs.shape)}, wants two or more, to halve")
    predicted, classes = torch.cat([scores.argmax(1) for scores, _ in parts]), torch.cat([own for _, own in parts])
    good = classes[order[-half:]] if published else classes.ne(predicted)[order[:half]]
    return good.to(inputs.dtype).mean().where(torch.isfinite(sums).all(), torch.nan)


def logits(scorer: Scorer, points: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scores (n, C) of some points, whose softmax are probabilities, and the classes explained (n,)."""
    scores, classes = scorer.scores(points, rows), scorer.classes
    if classes is None or scores.ndim == 1 or scores.shape[1] == 1:
        got = "(B,)" if scores.ndim == 1 else "(B, 1)"
        raise ValueError(f"model: got scores {got}, wants logits (B, C), of which the target is one")
    check_class(scorer.lowest, scorer.highest, scores.shape[1], "target")
    return scores, classes if rows is None else classes[rows]
