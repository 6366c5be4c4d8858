"""Targeted attacks on attributions: the prediction stays, the map becomes another (Dombrowski et al. 2019)."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..core.checks import (
    check_batch,
    check_choice,
    check_count,
    check_map,
    check_positive,
    check_range,
    warn_non_finite,
)
from ..core.progress import progress_bar
from ..core.scorer import Model, left_as_found, resolve_target
from .attacks import ascent_direction, into_ball, radius_of
from .similarity import relevance

Attribution = Callable[[Model, Tensor, Tensor | None], Tensor]

_MOMENTUM, _STEP_SHARE = 0.9, 2.5
_OUTPUT_WEIGHT = 1.0
_JUDGED_EVERY = 10
_IN_PLACE = (torch.relu_, Tensor.relu_, F.relu_)
_RELUS = (F.relu, torch.relu, Tensor.relu, *_IN_PLACE)


class Attack(NamedTuple):
    """What a targeted attack on attributions found, judged on the model as it is.

    inputs : (B, *shape), the attacked images, within the bound and the valid range.
    attributions : (B, *shape), their maps.
    kept : (B,) bool, whether the predicted class is that of the clean image.
    history : (n_steps, B), the distance to the target map on the softened model, 1 at the distance of a blank map.
    """

    inputs: Tensor
    attributions: Tensor
    kept: Tensor
    history: Tensor


def attribution_attack(
    model: Model,
    inputs: Tensor,
    target_maps: Tensor,
    target: int | Tensor | None = None,
    *,
    attribution: Attribution,
    eps: float | Tensor,
    norm: str = "linf",
    n_steps: int = 200,
    clamp: tuple[float, float] | None = (0.0, 1.0),
    softplus_beta: tuple[float, float] | None = (10.0, 100.0),
    internal_batch_size: int = 16,
    progress: bool = False,
) -> Attack:
    """Move the attribution of each image towards another map, within a ball and with the prediction kept.

    Descends ‖n(A(u)) − n(T)‖² / ‖n(T)‖² + KL(p(x) ‖ p(u)) over u, where n sums |A| over channels and scales the sum
    to 1, by projected steps along the gradient averaged with momentum, shorter towards the end. A ReLU network has no
    second derivative, so its ReLUs act as softplus meanwhile, sharper with each step. Kept is the image that is nearest
    to the target map on the network as it is, of those judged (every tenth) whose prediction is as it was.

    Parameters
    ----------
    model : callable
        Logits (B, C) from inputs (B, *shape). Only while this function runs, and only within the model, ``relu`` is
        replaced; nothing of the model is changed.
    target_maps : Tensor
        (B, *shape), the maps T to imitate, such as attributions of other images.
    target : int, Tensor or None
        The class whose attribution is attacked; None means the class predicted at ``inputs``.
    attribution : callable
        ``attribution(model, inputs, target)`` -> (B, *shape), differentiable. Functions of this library that take
        ``create_graph`` are given it; fix their other arguments with :func:`functools.partial`.
    eps : float or Tensor
        Radius of the ball in the units of ``inputs``, one for all or one per image (B,).
    norm : {"linf", "l2"}
    n_steps : int
        Gradient steps, each as dear as the attribution and its backward pass.
    clamp : tuple or None
        Valid range of the inputs.
    softplus_beta : tuple or None
        First and last sharpness of the softplus, in between geometrically; None keeps the ReLUs.
    internal_batch_size : int
        Images attacked at once.

    Returns
    -------
    Attack

    Raises
    ------
    ValueError
        For bad input; where the attribution carries no gradient, or one that is zero everywhere, as that of a ReLU
        network's gradient is.
    """
    check_batch(inputs)
    check_map(target_maps, inputs, "target_maps")
    check_batch(target_maps, "target_maps")
    check_choice(norm, "norm", ("linf", "l2"))
    check_count(n_steps, "n_steps")
    check_count(internal_batch_size, "internal_batch_size")
    check_range(clamp, "clamp")
    betas = _betas(softplus_beta, n_steps)
    radius = radius_of(eps, inputs, "sample").expand(len(inputs), *(1,) * (inputs.ndim - 1))
    if not target_maps.flatten(1).abs().sum(1).all():
        raise ValueError("target_maps: got a map of zeros, wants one that can be scaled to sum 1")
    inputs, target_maps = inputs.detach(), target_maps.detach()
    explain = _differentiable(attribution)
    with left_as_found(model, inputs), warnings.catch_warnings():
        classes = resolve_target(model, inputs, target, internal_batch_size)
        if classes is None:
            raise ValueError("model: got scores (B,), wants logits (B, C), whose prediction is to be kept")
        found = []
        chunks = torch.arange(len(inputs), device=inputs.device).split(internal_batch_size)
        # the attribution would say once more, and at each step, what has been said
        warnings.filterwarnings("ignore", message="the model is in train mode")
        for rows in chunks:
            bar = progress_bar(betas, show=progress, desc="attribution attack")
            goal = relevance(target_maps[rows])
            bound = (radius[rows], norm, clamp)
            found.append(_attack(model, inputs[rows], goal, classes[rows], attribution, explain, bound, bar))
    points, maps, kept, history = zip(*found, strict=True)
    attack = Attack(torch.cat(points), torch.cat(maps), torch.cat(kept), torch.cat(history, 1))
    warn_non_finite(attack.attributions, "attribution_attack")
    n_empty = int((~attack.attributions.flatten(1).any(1)).sum())
    if n_empty:
        message = f"attribution_attack: {n_empty} of {len(inputs)} images have maps of zeros, which lead nowhere"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return attack


def _attack(
    model: Model,
    inputs: Tensor,
    goal: Tensor,
    classes: Tensor,
    judge: Attribution,
    explain: Attribution,
    bound: tuple[Tensor, str, tuple[float, float] | None],
    betas: Collection[float],
) -> Attack:
    """Some images at once: ``explain`` keeps the graph that ``judge`` needs not; a sharpness for each step."""
    radius, norm, clamp = bound
    with torch.no_grad():
        clean = model(inputs.clone()).log_softmax(1)
    points, best = inputs.clone(), inputs.clone()
    # what lies beyond ``clamp`` already may stay there: to move it would leave the ball
    low, high = (None, None) if clamp is None else (inputs.clamp_max(clamp[0]), inputs.clamp_min(clamp[1]))

    def judged(at: Tensor) -> Tensor:
        with torch.enable_grad():  # an attribution of the user's own may need it, and may mark what it is given
            return judge(model, at.detach().clone(), classes).detach()

    best_maps = judged(inputs)
    # a map of zeros, as IG's of a black image, is at no distance that can be given
    least = torch.nan_to_num(_distance(best_maps, goal), nan=math.inf)
    velocity, history = torch.zeros_like(inputs), []
    n_steps = len(betas)
    for i, beta in enumerate(betas):
        points = points.requires_grad_()
        with torch.enable_grad():
            soft = _softened(model, beta)
            distance = _distance(explain(soft, points, classes), goal)
            change = F.kl_div(soft(points).log_softmax(1), clean, reduction="none", log_target=True).sum(1)
            gradient = _gradient(distance + _OUTPUT_WEIGHT * change, points, distance, i == 0)
        history.append(distance.detach())
        velocity = _MOMENTUM * velocity + ascent_direction(gradient, "l2", "sample")
        share = 2 * (1 - i / n_steps) * _STEP_SHARE / n_steps  # falls to 0, and all add up to _STEP_SHARE radii
        moved = points.detach() - share * radius * ascent_direction(velocity, norm, "sample")
        points = inputs + into_ball(moved - inputs, radius, norm, "sample")
        points = points if clamp is None else points.clamp(low, high)
        if (i + 1) % _JUDGED_EVERY == 0 or i + 1 == n_steps:
            maps = judged(points)
            with torch.no_grad():
                kept = model(points.clone()).argmax(1) == clean.argmax(1)
            distance = _distance(maps, goal)
            better = (kept & (distance < least)).view(-1, *(1,) * (inputs.ndim - 1))
            least = torch.where(better.flatten(), distance, least)
            best, best_maps = torch.where(better, points, best), torch.where(better, maps, best_maps)
    with torch.no_grad():
        kept = model(best.clone()).argmax(1) == clean.argmax(1)
    return Attack(best, best_maps, kept, torch.stack(history))


def _distance(maps: Tensor, goal: Tensor) -> Tensor:
    """‖n(A) − n(T)‖² / ‖n(T)‖², per image."""
    return (relevance(maps) - goal).square().flatten(1).sum(1) / goal.square().flatten(1).sum(1)


def _gradient(objective: Tensor, points: Tensor, distance: Tensor, first: bool) -> Tensor:
    """∂objective/∂points; on the first step, refuse attributions that it does not flow through."""
    if first:
        if not distance.requires_grad:
            raise ValueError("attribution: got a result without a graph, wants one that keeps it (create_graph=True)")
        (flow,) = torch.autograd.grad(distance.sum(), points, retain_graph=True, allow_unused=True)
        if flow is None or not flow.any():
            raise ValueError(
                "attribution: its derivative is zero everywhere, as that of a piecewise linear network's gradient is; "
                "wants softplus_beta=(10, 100), which smooths calls of relu and no other kink, or another attribution"
            )
    return torch.nan_to_num(torch.autograd.grad(objective.sum(), points)[0])


def _differentiable(attribution: Any) -> Attribution:
    """The attribution, asked to keep its graph where it knows how."""
    if not callable(attribution):
        raise ValueError(f"attribution: got {type(attribution).__name__}, wants a callable (model, inputs, target)")
    try:
        knows = "create_graph" in inspect.signature(attribution).parameters
    except (TypeError, ValueError):
        knows = False
    return functools.partial(attribution, create_graph=True) if knows else attribution


def _betas(softplus_beta: tuple[float, float] | None, n_steps: int) -> list[float]:
    """The sharpness at each step, growing geometrically; infinite where ReLUs stay."""
    if softplus_beta is None:
        return [math.inf] * n_steps
    if not isinstance(softplus_beta, tuple | list) or len(softplus_beta) != 2:
        raise ValueError(f"softplus_beta: got {softplus_beta!r}, wants None or (first, last)")
    first, last = (check_positive(beta, "softplus_beta") for beta in softplus_beta)
    return [first * (last / first) ** (i / max(n_steps - 1, 1)) for i in range(n_steps)]


class _Softplus(TorchFunctionMode):
    """While it is entered, ``relu`` is softplus of this sharpness."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in _RELUS or not math.isfinite(self.beta):
            return func(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        if func in _IN_PLACE or kwargs.get("inplace", len(args) > 1 and args[1]):
            return given.copy_(F.softplus(given.clone(), beta=self.beta))  # what it was is seen no more
        return F.softplus(given, beta=self.beta)


def _softened(model: Model, beta: float) -> Model:
    def softened(points: Tensor) -> Tensor:
        with _Softplus(beta):
            return model(points.clone())  # it may begin with an in-place layer

    return softened
