"""Exact Shapley values, for inputs of a few entries."""

import math
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_baselines, check_batch, warn_non_finite
from ..core.scorer import Model, Target, scoring
from ..paths.quadrature import pairs


def shapley_values(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
) -> Tensor:
    """What Kernel SHAP (Lundberg and Lee 2017) estimates, by all 2^D subsets of the entries.

    ``φ_i = Σ_S |S|! (D − |S| − 1)! / D! (f(S ∪ i) − f(S))`` over the subsets S without i, where the entries in S are
    the input's and the others the baseline's. Two entries take four evaluations.

    Parameters
    ----------
    inputs : Tensor
        (B, *shape) with D = prod(shape) of at most 16.
    model, target, baselines, additional_forward_args, internal_batch_size
        As for :func:`manifold_lib.integrated_gradients`.

    Returns
    -------
    Tensor
        (B, *shape) in score units; sums to f(x) − f(x').

    Raises
    ------
    ValueError
        For bad input, and for more than 16 entries.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.shapley_values(lambda x: x[:, :1] * x[:, 1:], torch.tensor([[1.0, 4.0]]), 0)
    tensor([[2., 2.]])
    """
    check_batch(inputs)
    n_entries = inputs[0].numel()
    if n_entries > 16:
        raise ValueError(f"inputs: got {n_entries} entries each, wants at most 16 for all subsets of them")
    inputs = inputs.detach()
    baselines = check_baselines(baselines, inputs).detach()
    subsets = torch.arange(2**n_entries, device=inputs.device)
    members = (subsets[:, None] >> torch.arange(n_entries, device=inputs.device)) & 1 == 1
    with scoring(model, inputs, target, 0, additional_forward_args, internal_batch_size) as scorer:
        values = []
        for rows, subset in pairs(len(inputs), len(subsets), scorer.forward, inputs.device):
            kept = members[subset].view(-1, *inputs.shape[1:])
            values.append(scorer.score(torch.where(kept, inputs[rows], baselines[rows]), rows))
    # the share of each subset in φ_i: with i in it as the larger of its pair, without i as the smaller
    ways = [1 / (n_entries * math.comb(n_entries - 1, k)) for k in range(n_entries)]
    shares, n_members = torch.tensor([0.0, *ways, 0.0], dtype=torch.float64).to(inputs), members.sum(1)
    weights = torch.where(members, shares[n_members, None], -shares[n_members + 1, None])
    attributions = (torch.cat(values).view(len(inputs), -1).to(inputs.dtype) @ weights).view_as(inputs)
    warn_non_finite(attributions, "shapley_values")
    return attributions
