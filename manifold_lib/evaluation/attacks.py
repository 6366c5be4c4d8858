"""Attacks on a model: projected gradient ascent on the cross-entropy inside a norm ball."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.checks import check_batch, check_choice, check_count, check_generator, check_positive, check_range
from ..core.derivatives import require_slope
from ..core.scorer import Model, Target, check_differentiable, scoring
from .faithfulness import logits


def pgd(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    eps: float | Tensor,
    norm: str = "l2",
    n_steps: int = 20,
    step_size: float | None = None,
    norm_scope: str = "sample",
    clamp: tuple[float, float] | None = (0.0, 1.0),
    generator: torch.Generator | None = None,
    additional_forward_args: Any = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018): inputs within ``eps`` that the model gets wrong, (B, *shape).

    Parameters
    ----------
    model, inputs, target, additional_forward_args
        As for :func:`manifold_lib.gradient`; the model gives logits (B, C), and ``target`` is what to move away from.
    eps : float or Tensor
        Radius of the ball in input units, one for all or one per image (B,).
    norm, norm_scope : {"l2", "linf"}, {"sample", "batch"}
        ``"batch"`` takes the L2 norm over the flattened whole batch, as the code of paper 1 does: a single ``eps`` is
        then a budget for the batch, about eps / √B an image.
    n_steps, step_size
        Gradient steps, and the length of one as a share of ``eps``, by default 2.5 / n_steps.
    clamp : tuple or None
        Valid range of the inputs; None leaves them unbounded.
    generator : torch.Generator, optional
        For a random start at half the radius; None starts at ``inputs``.

    Raises
    ------
    ValueError
        For bad input.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.pgd(lambda x: torch.cat([x, -x], 1), torch.tensor([[0.25]]), eps=0.5, clamp=None)
    tensor([[-0.2500]])
    """
    check_batch(inputs)
    check_choice(norm, "norm", ("l2", "linf"))
    check_choice(norm_scope, "norm_scope", ("sample", "batch"))
    check_count(n_steps, "n_steps")
    check_range(clamp, "clamp")
    device = check_generator(generator, inputs.device)
    radius = radius_of(eps, inputs, norm_scope)
    share = 2.5 / n_steps if step_size is None else check_positive(step_size, "step_size")
    if norm_scope == "batch" and norm != "l2":
        raise ValueError("norm_scope: 'batch' is defined for norm='l2' only")
    inputs = inputs.detach()
    with scoring(model, inputs, target, n_points=0, additional_forward_args=additional_forward_args) as scorer:
        delta = torch.zeros_like(inputs)
        if generator is not None:
            noise = torch.randn(inputs.shape, generator=generator, device=device, dtype=inputs.dtype)
            delta = ascent_direction(noise.to(inputs.device), norm, norm_scope) * radius / 2
        for _ in range(n_steps):
            points = (inputs + delta).requires_grad_()
            with torch.enable_grad():
                loss = F.cross_entropy(*logits(scorer, points), reduction="sum")
                check_differentiable(loss)
            (gradient,) = torch.autograd.grad(loss, points, allow_unused=True)
            require_slope(gradient is not None, "model")
            delta = delta + share * radius * ascent_direction(gradient, norm, norm_scope)
            delta = into_ball(delta, radius, norm, norm_scope)
            if clamp is not None:
                delta = (inputs + delta).clamp(*clamp) - inputs
    # once more, since adding the difference rounds
    return inputs + delta if clamp is None else (inputs + delta).clamp(*clamp)


def radius_of(eps: float | Tensor, inputs: Tensor, norm_scope: str) -> Tensor:
    """``eps`` as a tensor that broadcasts over (B, *shape)."""
    ones = (1,) * (inputs.ndim - 1)
    if isinstance(eps, Tensor) and eps.ndim > 0:
        if eps.shape != (len(inputs),):
            raise ValueError(f"eps: got shape {tuple(eps.shape)}, wants a number or ({len(inputs)},)")
        if norm_scope == "batch":
            raise ValueError("eps: wants one number when norm_scope is 'batch'")
        if not (torch.isfinite(eps) & (eps >= 0)).all():
            raise ValueError("eps: wants finite radii of at least 0")
        return eps.to(inputs).view(-1, *ones)
    number = check_positive(eps.item() if isinstance(eps, Tensor) else eps, "eps", zero=True)
    return inputs.new_full((1, *ones), number)


def ascent_direction(gradient: Tensor, norm: str, norm_scope: str) -> Tensor:
    """Steepest ascent of unit norm."""
    return gradient.sign() if norm == "linf" else gradient / _length(gradient, norm_scope)


def into_ball(delta: Tensor, radius: Tensor, norm: str, norm_scope: str) -> Tensor:
    """The nearest point of the ball; in the L2 norm of the batch, in the direction of ``delta``."""
    if norm == "linf":
        return torch.minimum(torch.maximum(delta, -radius), radius)
    return delta * (radius / _length(delta, norm_scope)).clamp_max(1)


def _length(vectors: Tensor, norm_scope: str) -> Tensor:
    """L2 norm per image, or of the whole batch, shaped to broadcast."""
    dims = tuple(range(vectors.ndim)) if norm_scope == "batch" else tuple(range(1, vectors.ndim))
    return torch.linalg.vector_norm(vectors, dim=dims, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
