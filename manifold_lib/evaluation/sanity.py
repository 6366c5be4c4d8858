"""Sanity of attributions: they should depend on the model's weights, and not on the last digits of the input."""

import copy
import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import check_batch, check_count, check_generator, check_map, check_positive, warn_non_finite
from ..core.scorer import Model, Scorer, Target, scoring

# ``attribution(model, inputs, target, **options)`` -> (B, *shape)
Attribution = Callable[..., Tensor]


def randomised(model: nn.Module, *, n_layers: int | None = None, generator: torch.Generator | None = None) -> nn.Module:
    """A copy of the network with the weights of its last layers drawn anew (Adebayo et al. 2018).

    A map that hardly changes with it depends on the image and not on the network. The copy keeps the mode and the
    frozen parameters; the model is left as it is.

    Parameters
    ----------
    n_layers : int, optional
        How many layers with weights, from the output on (in the order in which they are registered); None means all.
    generator : torch.Generator, optional
        For the new weights, which each layer's own ``reset_parameters`` draws; on the CPU.

    Raises
    ------
    ValueError
        For what is not a module, more layers than there are, and weights that no ``reset_parameters`` draws anew.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    >>> other = ml.randomised(model, n_layers=1)
    >>> [torch.equal(model[i].weight, other[i].weight) for i in (0, 1)]
    [True, False]
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: got {type(model).__name__}, wants an nn.Module, whose layers can be drawn anew")
    check_generator(generator, "cpu")
    copied = copy.deepcopy(model)
    layers: list[Any] = [
        layer
        for layer in copied.modules()
        if callable(getattr(layer, "reset_parameters", None)) and any(True for _ in layer.parameters(recurse=False))
    ]
    if not layers:
        raise ValueError("model: got no layers with reset_parameters, as in a script, wants some to draw anew")
    count = len(layers) if n_layers is None else check_count(n_layers, "n_layers")
    if count > len(layers):
        raise ValueError(f"n_layers: got {n_layers}, wants at most {len(layers)}, the model's layers with weights")
    drawn = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    left = [name for name, parameter in copied.named_parameters() if id(parameter) not in drawn]
    if n_layers is None and left:
        raise ValueError(f"model: {', '.join(left)} would stay, wants layers with reset_parameters; or give n_layers")
    seed = int(torch.randint(2**31, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in layers[-count:]:
            layer.cpu().reset_parameters()
    return copied.to(next(model.parameters()).device)


def max_sensitivity(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    attribution: Attribution,
    radius: float = 0.02,
    n_samples: int = 10,
    maps: Tensor | None = None,
    generator: torch.Generator | None = None,
    additional_forward_args: Any = None,
) -> Tensor:
    """max over δ of ‖A(x + δ) − A(x)‖₂ / ‖A(x)‖₂, per image: (B,), without a unit (Yeh et al. 2019).

    δ is uniform in a cube, one draw for all images, so that no value depends on the batch. A map that does not move at
    all has 0, a map of zeros NaN, with one warning.

    Parameters
    ----------
    model, inputs, target, additional_forward_args
        As for :func:`manifold_lib.gradient`. Give ``target`` to keep it the same at x + δ.
    attribution : callable
        ``attribution(model, inputs, target)`` -> (B, *shape), with ``additional_forward_args=`` where there are some.
    radius : float
        Half the side of the cube, in input units.
    n_samples, generator
        Draws of δ, each at the cost of one attribution, and their generator. More draws find larger values.
    maps : Tensor, optional
        A(x), (B, *shape), where it is known already.

    Raises
    ------
    ValueError
        For bad input, and where the model has other arguments and ``attribution`` does not take them.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model, seed = torch.nn.Linear(2, 2), torch.Generator().manual_seed(0)
    >>> ml.max_sensitivity(model, torch.ones(1, 2), 0, attribution=ml.gradient, generator=seed)
    tensor([0.])
    """
    check_batch(inputs)
    check_positive(radius, "radius")
    check_count(n_samples, "n_samples")
    device = check_generator(generator, inputs.device)
    explain = with_arguments(attribution, additional_forward_args)
    # the attribution finds the class itself, for each draw; class 0 in its place spares a pass
    with scoring(model, inputs, 0 if target is None else target) as scorer, warnings.catch_warnings():
        said = scorer.fickle

        def explained(points: Tensor) -> Tensor:
            nonlocal said
            if said:  # the attribution would repeat this warning for each draw
                warnings.filterwarnings("ignore", message=".*it is used as found")
            said = True
            return check_map(explain(model, points, target), inputs, "attribution")

        maps = explained(inputs) if maps is None else check_map(maps, inputs, "maps")
        size, worst = maps.flatten(1).norm(dim=1), inputs.new_zeros(len(inputs))
        for _ in range(n_samples):
            noise = torch.rand(inputs.shape[1:], generator=generator, device=device, dtype=inputs.dtype)
            moved = explained(inputs + radius * (2 * noise - 1).to(inputs.device))
            worst = torch.maximum(worst, (moved - maps).flatten(1).norm(dim=1))
    found = worst / size
    warn_non_finite(found[:, None], "max_sensitivity")
    return found


def with_arguments(attribution: Attribution, additional_forward_args: Any) -> Attribution:
    """The attribution with other arguments of the model, where there are some."""
    if additional_forward_args is None:
        return attribution
    if not takes(attribution, "additional_forward_args"):
        raise ValueError("attribution: got one without additional_forward_args, wants it to take what the model takes")
    return functools.partial(attribution, additional_forward_args=additional_forward_args)


def with_shared(scorer: Scorer) -> tuple[Model, tuple]:
    """The model that knows the arguments that all images share, and those of each image."""
    if all(scorer.follows):
        return scorer.model, scorer.args
    # a shared tensor as long as this chunk of images would be taken for one of theirs
    pairs = list(zip(scorer.args, scorer.follows, strict=True))

    def model(points: Tensor, *own: Any) -> Tensor:
        left = iter(own)
        return scorer.model(points, *(next(left) if follows else arg for arg, follows in pairs))

    return model, tuple(arg for arg, follows in pairs if follows)


def takes(attribution: Attribution, keyword: str) -> bool:
    """Whether a callable takes this keyword, by name or as one of its ``**options``."""
    try:
        parameters = inspect.signature(attribution).parameters
    except (TypeError, ValueError):
        return False
    return keyword in parameters or any(part.kind is part.VAR_KEYWORD for part in parameters.values())
