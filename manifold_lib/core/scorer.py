"""The user's model: its scores and their gradient.

Nothing here converts, moves or keeps anything of the model; buffers that a forward pass changes, as batch norm does
in train mode, are put back.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral

import torch
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]

# a change of the score that is smaller is taken for this one where errors are given as a share of it
LEAST_CHANGE = 0.05


@contextlib.contextmanager
def left_as_found(model: Model, inputs: Tensor, *, warn: bool = True) -> Iterator[None]:
    """Check the model's device, warn of train-mode layers, restore buffers, allow gradients.

    A model wrapped in a plain function cannot be looked into: its train mode is neither seen nor mended.
    """
    module = module_of(model)
    if module is not None:
        tensor = next(iter(module.parameters()), next(iter(module.buffers()), None))
        if tensor is not None and tensor.device != inputs.device:
            raise ValueError(f"inputs: got device {inputs.device}, wants {tensor.device} like the model's parameters")
        if warn and (kinds := train_mode_layers(module)):
            warnings.warn(
                f"the model is in train mode ({kinds}): it is used as found, so attributions are random or "
                "depend on the batch; call model.eval() first",
                RuntimeWarning,
                stacklevel=4,
            )
    grad_mode = torch.is_grad_enabled()
    with (
        buffers_as_found([] if module is None else [module]),
        torch.inference_mode(False),
        torch.set_grad_enabled(grad_mode),
    ):
        yield


@contextlib.contextmanager
def buffers_as_found(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the buffers of these modules at the end."""
    kept = [
        (part, name, buffer, buffer._version, buffer.clone())
        for module in modules
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if not buffer.is_inference()
    ]
    try:
        yield
    finally:
        with torch.inference_mode(False), torch.no_grad():
            for part, name, buffer, version, value in kept:
                part._buffers[name] = buffer
                # batch norm changes them unseen; an unchanged one is left, since a graph that was kept may hold it
                if part.training or buffer._version != version:
                    buffer.copy_(value)


def module_of(function: Callable) -> nn.Module | None:
    """The module that a callable is, or is a method of."""
    owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
    return owner if isinstance(owner, nn.Module) else None


def train_mode_layers(module: nn.Module) -> str:
    """Names of the layers whose output depends on the batch or on chance, in the mode they are in."""
    fickle = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.modules.dropout._DropoutNd)
    # instance norm that keeps no statistics is the same in both modes
    steady = (nn.modules.instancenorm._InstanceNorm,)
    parts = [part for part in module.modules() if part.training and isinstance(part, fickle)]
    return ", ".join(
        sorted({type(part).__name__ for part in parts if not isinstance(part, steady) or part.track_running_stats})
    )


def jvp(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Value and directional derivative, without the deprecation notice of torch's own first use of forward mode."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        result = torch.func.jvp(function, (point,), (direction,))
    return result[0], result[1]


def resolve_target(model: Model, inputs: Tensor, target: int | Tensor | None, size: int) -> Tensor | None:
    """The class explained for each image: (B,) int64, or None for a model that returns (B,).

    Parameters
    ----------
    target : int, Tensor or None
        A class for all, one class per image (B,), or None for the class predicted at ``inputs``.
    size : int
        Points per pass.
    """
    # two rows, since batch norm in train mode refuses one
    rows = inputs if target is None else inputs[:1].expand(min(2, size), *inputs.shape[1:])
    with torch.no_grad():
        scores = torch.cat([checked_scores(model(chunk.clone()), len(chunk)) for chunk in rows.split(size)])
    return target_from(scores, target, len(inputs))


def target_from(scores: Tensor, target: int | Tensor | None, batch: int) -> Tensor | None:
    """What :func:`resolve_target` returns, of scores at hand: those of all inputs where ``target`` is None."""
    if scores.ndim == 1:
        if target is not None:
            raise ValueError(f"target: got {target!r}, wants None for a model that returns scores (B,)")
        return None
    if target is None:
        return scores.argmax(1)
    return check_target(target, batch, scores.shape[1], scores.device)


def checked_scores(scores: Tensor, batch: int) -> Tensor:
    """What a model returned, if it is (B, C) or (B,)."""
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != batch:
        raise ValueError(f"model: got scores {shape}, wants (B, C) or (B,) with B = {batch}")
    return scores


def check_target(
    target: int | Tensor, batch: int, n_classes: int, device: torch.device, name: str = "target"
) -> Tensor:
    """Expand an int, or check a (B,) tensor, of classes in [0, n_classes)."""
    if isinstance(target, Tensor):
        if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
            raise ValueError(f"{name}: got {target.dtype}, wants int or a LongTensor ({batch},)")
        if target.ndim not in (0, 1) or (target.ndim == 1 and len(target) != batch):
            raise ValueError(f"{name}: got shape {tuple(target.shape)}, wants ({batch},)")
        classes = target.to(device=device, dtype=torch.int64).expand(batch)
    elif isinstance(target, Integral) and not isinstance(target, bool):
        check_class(int(target), int(target), n_classes, name)
        classes = torch.full((batch,), int(target), device=device)
    else:
        raise ValueError(f"{name}: got {type(target).__name__}, wants int, LongTensor ({batch},) or None")
    low, high = torch.stack(torch.aminmax(classes)).tolist()
    check_class(low, high, n_classes, name)
    return classes


def check_class(low: int, high: int, n_classes: int, name: str) -> None:
    """Refuse classes that the model does not have."""
    if low < 0 or high >= n_classes:
        raise ValueError(f"{name}: got classes {low} to {high}, wants 0 to {n_classes - 1}")


def select(scores: Tensor, target: Tensor | None) -> Tensor:
    """The explained score of each row: (B, C) or (B,) -> (B,)."""
    return scores if target is None else scores.gather(1, target[:, None]).squeeze(1)


def score(model: Model, points: Tensor, target: Tensor | None, size: int) -> Tensor:
    """f at each point, without a graph, ``size`` at a time: (B, *shape) -> (B,)."""
    with torch.no_grad():
        return torch.cat(
            [
                select(model(points[i : i + size].clone()), None if target is None else target[i : i + size])
                for i in range(0, len(points), size)
            ]
        )


def score_change(model: Model, inputs: Tensor, baselines: Tensor, target: Tensor | None, size: int) -> Tensor:
    """Δf = f(x) − f(x'), what a complete attribution sums to: (B,)."""
    return score(model, inputs, target, size) - score(model, baselines, target, size)


def score_gradient(
    model: Model,
    points: Tensor,
    target: Tensor | None,
    *,
    weights: Tensor | None = None,
    create_graph: bool = False,
) -> Tensor:
    """∂f/∂x at each point, times its weight, in one forward and one backward pass: (N, *shape).

    Rows do not mix: the gradient of the weighted sum of scores holds each row's own gradient, as long as
    the model treats the rows of a batch independently. Parameters collect no gradient.
    """
    return score_and_gradient(model, points, target, weights=weights, create_graph=create_graph)[1]


def score_and_gradient(
    model: Model,
    points: Tensor,
    target: Tensor | None,
    *,
    weights: Tensor | None = None,
    create_graph: bool = False,
) -> tuple[Tensor, Tensor]:
    """The scores (N,), detached, that :func:`score_gradient` has at hand, and its gradient."""
    with torch.enable_grad():
        if not create_graph:
            points = points.detach()
        if not points.requires_grad:
            points = points.requires_grad_()
        values = select(model(points.clone()), target)  # the model may begin with an in-place layer
        check_differentiable(values)
        if weights is None:
            weights = torch.ones_like(values)
        (gradient,) = torch.autograd.grad(
            values, points, weights.to(values.dtype), create_graph=create_graph, allow_unused=True
        )
    if gradient is None:
        raise ValueError("model: its scores do not depend on the inputs differentiably")
    return values.detach(), gradient


def check_differentiable(scores: Tensor) -> None:
    """Refuse scores that were detached from the inputs."""
    if not scores.requires_grad:
        raise ValueError("model: its scores do not depend on the inputs differentiably")
