"""Exact Shapley values, for inputs of a few entries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.checks import check_batch, check_like, warn_non_finite
from ..core.passes import plan_passes
from ..core.scorer import Model, left_as_found, resolve_target, score

_MOST_ENTRIES = 16


def shapley_values(
    model: Model,
    inputs: Tensor,
    target: int | Tensor | None = None,
    *,
    baselines: Tensor | float | None = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """What Kernel SHAP (Lundberg and Lee 2017) estimates, by all 2^D subsets of the entries.

    ``φ_i = Σ_S |S|! (D − |S| − 1)! / D! (f(S ∪ i) − f(S))`` over the subsets S without i, where the entries in S are
    the input's and the others the baseline's. Two entries take four evaluations.

    Parameters
    ----------
    inputs : Tensor
        (B, *shape) with D = prod(shape) of at most 16.

    Returns
    -------
    Tensor
        (B, *shape) in score units; sums to f(x) − f(x').
    """
    check_batch(inputs)
    n_entries = inputs[0].numel()
    if n_entries > _MOST_ENTRIES:
        raise ValueError(f"inputs: got {n_entries} entries each, wants at most {_MOST_ENTRIES} for all subsets of them")
    inputs = inputs.detach()
    baselines = check_like(0.0 if baselines is None else baselines, inputs, "baselines").detach()
    subsets = torch.arange(2**n_entries, device=inputs.device)
    members = (subsets[:, None] >> torch.arange(n_entries, device=inputs.device)) & 1 == 1
    with left_as_found(model, inputs):
        model, size = plan_passes(model, inputs, len(subsets), internal_batch_size, backward=False)
        classes = resolve_target(model, inputs, target, size)
        values = []
        for pair in torch.arange(len(inputs) * len(subsets), device=inputs.device).split(size):
            rows, subset = pair // len(subsets), pair % len(subsets)
            kept = members[subset].view(-1, *inputs.shape[1:])
            points = torch.where(kept, inputs[rows], baselines[rows])
            values.append(score(model, points, None if classes is None else classes[rows], size))
    # the share of each subset in φ_i: with i in it as the larger of its pair, without i as the smaller
    n_members = members.sum(1).tolist()
    ways = [math.factorial(k) * math.factorial(n_entries - 1 - k) / math.factorial(n_entries) for k in range(n_entries)]
    joining = torch.tensor([ways[n - 1] if n else 0.0 for n in n_members]).to(inputs)
    missing = torch.tensor([ways[n] if n < n_entries else 0.0 for n in n_members]).to(inputs)
    weights = torch.where(members, joining[:, None], -missing[:, None])
    attributions = (torch.cat(values).view(len(inputs), -1).to(inputs.dtype) @ weights).view_as(inputs)
    warn_non_finite(attributions, "shapley_values")
    return attributions
