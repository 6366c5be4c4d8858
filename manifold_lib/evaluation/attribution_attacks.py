"""Targeted attacks on attributions: the prediction stays, the map becomes another (Dombrowski et al. 2019)."""

import copy
import functools
import math
import warnings
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
    warn_of,
)
from ..core.derivatives import differentiable_kernels
from ..core.progress import progress_bar
from ..core.scorer import Model, Scorer, Target, scoring
from .attacks import ascent_direction, into_ball, radius_of
from .faithfulness import logits
from .sanity import Attribution, takes, with_arguments, with_shared
from .similarity import relevance

Bound = tuple[Tensor, str, tuple[float, float] | None]  # radius, norm and valid range


class Attack(NamedTuple):
    """What a targeted attack on attributions found, judged on the model as it is.

    Attributes
    ----------
    inputs : Tensor
        (B, *shape), the attacked images, within the bound and the valid range.
    attributions : Tensor
        (B, *shape), their maps.
    kept : Tensor
        (B,) bool, whether the predicted class is that of the clean image.
    history : Tensor
        (n_steps, B), the distance to the target map on the softened model, 1 at the distance of a blank map.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), torch.rand(1, 2)
    >>> ml.attribution_attack(model, x, x.flip(1), attribution=ml.input_x_gradient, eps=0.1, n_steps=2).kept
    tensor([True])
    """

    inputs: Tensor
    attributions: Tensor
    kept: Tensor
    history: Tensor


def attribution_attack(
    model: Model,
    inputs: Tensor,
    target_maps: Tensor,
    target: Target = None,
    *,
    attribution: Attribution,
    eps: float | Tensor,
    norm: str = "linf",
    n_steps: int = 200,
    clamp: tuple[float, float] | None = (0.0, 1.0),
    softplus_beta: tuple[float, float] | None = (10.0, 100.0),
    additional_forward_args: Any = None,
    internal_batch_size: int = 16,
    progress: bool = False,
) -> Attack:
    """Move the attribution of each image towards another map, within a ball and with the prediction kept.

    Descends ‖n(A(u)) − n(T)‖² / ‖n(T)‖² + KL(p(x) ‖ p(u)) over u, where n is :func:`relevance`, by projected steps
    with momentum, shorter towards the end. A ReLU network has no second derivative, so its ReLUs act as softplus,
    sharper with each step. Every tenth step is judged on the network as it is. Of the images with the prediction kept,
    the one nearest to the target map is returned.

    Parameters
    ----------
    model, inputs, target, additional_forward_args
        As for :func:`manifold_lib.gradient`; the model gives logits (B, C). Its ``relu`` is replaced during its passes.
    target_maps : Tensor
        (B, *shape), the maps T to imitate, such as attributions of other images.
    attribution : callable
        ``attribution(model, inputs, target)`` -> (B, *shape), differentiable, with ``create_graph=True`` if it takes
        that. Other arguments of each image come as ``additional_forward_args=``; the given model knows shared ones.
    eps, norm, clamp
        The ball and the valid range, as for :func:`pgd`.
    n_steps : int
        Gradient steps. Each costs the attribution and its backward pass.
    softplus_beta : tuple or None
        First and last sharpness of the softplus, in between geometrically; None keeps the ReLUs.
    internal_batch_size, progress
        Images attacked at once, and whether to show a bar over the steps.

    Raises
    ------
    ValueError
        For bad input, or an attribution that has no graph, whose derivative is zero everywhere (as that of a ReLU
        network's gradient), or that does not take the model's other arguments.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model, x = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), torch.rand(1, 2)
    >>> attack = ml.attribution_attack(model, x, x.flip(1), attribution=ml.input_x_gradient, eps=0.1, n_steps=2)
    >>> attack.history.shape, bool((attack.inputs - x).abs().max() <= 0.1 + 1e-6)
    (torch.Size([2, 1]), True)
    """
    check_batch(check_map(target_maps, check_batch(inputs), "target_maps"), "target_maps")
    check_choice(norm, "norm", ("linf", "l2"))
    check_count(n_steps, "n_steps")
    check_count(internal_batch_size, "internal_batch_size")
    check_range(clamp, "clamp")
    betas = _betas(softplus_beta, n_steps)
    radius = radius_of(eps, inputs, "sample").expand(len(inputs), *(1,) * (inputs.ndim - 1))
    if not target_maps.flatten(1).abs().sum(1).all():
        raise ValueError("target_maps: got a map of zeros, wants one that can be scaled to sum 1")
    if not callable(attribution):
        raise ValueError(f"attribution: got {type(attribution).__name__}, wants a callable (model, inputs, target)")
    with_arguments(attribution, additional_forward_args)
    inputs, goals, found = inputs.detach(), relevance(target_maps.detach()), []
    forward = (additional_forward_args, internal_batch_size)
    # each step takes a gradient or more, so that a trial of rows on their own pays
    with scoring(model, inputs, target, 8, *forward) as scorer, warnings.catch_warnings():
        # the attribution would repeat this warning at each step
        warnings.filterwarnings("ignore", message=".*it is used as found")
        for rows in torch.arange(len(inputs), device=inputs.device).split(internal_batch_size):
            bound = (radius[rows], norm, clamp)
            found.append(_attack(scorer.of(rows), inputs[rows], goals[rows], attribution, bound, betas, progress))
    points, maps, kept, history = zip(*found, strict=True)
    attack = Attack(torch.cat(points), torch.cat(maps), torch.cat(kept), torch.cat(history, 1))
    warn_non_finite(attack.attributions, "attribution_attack")
    empty = ~attack.attributions.flatten(1).any(1)
    warn_of("attribution_attack", empty, "images have maps of zeros, which lead nowhere")
    return attack


@torch.no_grad()
def _attack(
    scorer: Scorer, inputs: Tensor, goal: Tensor, attribution: Attribution, bound: Bound, betas: list[float], show: bool
) -> Attack:
    """Some images at once; ``betas`` is the sharpness of each step."""
    (radius, norm, clamp), n_steps = bound, len(betas)
    model, own = with_shared(scorer)
    judge = with_arguments(attribution, own or None)
    # the graph is kept for the steps alone
    explain = functools.partial(judge, create_graph=True) if takes(attribution, "create_graph") else judge
    scores, classes = logits(scorer, inputs)
    predicted, clean = scores.argmax(1), scores.log_softmax(1)
    # what is beyond ``clamp`` already may stay there: to move it would leave the ball
    low, high = clamp or (-math.inf, math.inf)
    low, high = inputs.clamp_max(low), inputs.clamp_min(high)

    def judged(at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():  # an attribution of the user's own may need it, and may mark what it is given
            maps = check_map(judge(model, at.detach().clone(), classes), at, "attribution").detach()
        return maps, _distance(maps, goal), logits(scorer, at)[0].argmax(1) == predicted

    points, best = inputs.clone(), inputs.clone()
    best_maps, distance, _ = judged(inputs)
    # a map of zeros, as IG's of a black image, is at no distance that can be given
    least = torch.nan_to_num(distance, nan=math.inf)
    velocity, history = torch.zeros_like(inputs), []
    for i, beta in enumerate(progress_bar(betas, show=show, desc="attribution attack")):
        points = points.requires_grad_()
        with torch.enable_grad():
            soft, softer = _softened(model, beta), copy.copy(scorer)
            softer.model = _softened(scorer.model, beta)
            distance = _distance(explain(soft, points, classes), goal)
            change = F.kl_div(softer.scores(points).log_softmax(1), clean, reduction="none", log_target=True).sum(1)
            gradient = _gradient(distance + change, points, distance, i == 0)
        history.append(distance.detach())
        velocity = 0.9 * velocity + ascent_direction(gradient, "l2", "sample")
        # steps fall to 0 and add up to 2.5 radii, so that an image can cross the ball
        share = 2 * (1 - i / n_steps) * 2.5 / n_steps
        moved = points.detach() - share * radius * ascent_direction(velocity, norm, "sample")
        points = (inputs + into_ball(moved - inputs, radius, norm, "sample")).clamp(low, high)
        if (i + 1) % 10 == 0 or i + 1 == n_steps:
            maps, distance, kept = judged(points)
            better = (kept & (distance < least)).view(-1, *(1,) * (inputs.ndim - 1))
            least = torch.where(better.flatten(), distance, least)
            best, best_maps = torch.where(better, points, best), torch.where(better, maps, best_maps)
    kept = logits(scorer, best)[0].argmax(1) == predicted
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
                "wants softplus_beta=(10, 100), which smooths relu outside scripts and no other kink; or another map"
            )
    return torch.nan_to_num(torch.autograd.grad(objective.sum(), points)[0])


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

    in_place = (torch.relu_, Tensor.relu_, F.relu_)
    relus = (F.relu, torch.relu, Tensor.relu, *in_place)

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.relus or not math.isfinite(self.beta):
            return func(*args, **kwargs)
        given = args[0] if args else kwargs["input"]
        if func in self.in_place or kwargs.get("inplace", len(args) > 1 and args[1]):
            return given.copy_(F.softplus(given.clone(), beta=self.beta))  # nothing else sees the former values
        return F.softplus(given, beta=self.beta)


def _softened(model: Model, beta: float) -> Model:
    def softened(points: Tensor, *args: Any) -> Tensor:
        with _Softplus(beta), differentiable_kernels():
            return model(points.clone(), *args)  # it may begin with an in-place layer

    return softened
