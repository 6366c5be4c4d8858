"""How points go through the model: how many at once, and in which memory order."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from .checks import check_count
from .scorer import Model, module_of

# On a CPU the cache decides: 32 MiB of activations are some 70 points of the paper's LeNet.
# Small points go more at a time, or the calls themselves would take most of the time.
_CPU_BYTES, _CPU_POINTS, _CPU_NUMBERS = 32 * 2**20, 256, 2**18
_GPU_SHARE, _GPU_POINTS = 0.25, 8192
_LEAST_POINTS = 16
_CPU_FORWARD_POINTS, _GPU_FORWARD_POINTS = 64, 1024
# with fewer points of an image a trial does not pay; a rule by the whole batch would make rounding depend on it
_WORTH_A_TRIAL = 8
_TOLERANCE = 1e-3
# oneDNN works on blocks of 16 channels: in the usual order the gradient of fewer takes two to three times as long
_BLOCK = 16


class _Trial(NamedTuple):
    """What a few points showed: scores and gradient, the bytes that autograd kept, whether any maximum was pooled."""

    results: list[Tensor | None]
    n_bytes: int
    pools_maxima: bool


class _Finding(NamedTuple):
    """What the trials of a model came to: whether it pools maxima, takes channels-last points, and their bytes."""

    pools_maxima: bool
    takes_order: bool
    bytes_per_point: int


# Trials cost as much as five points, a fifth of the time for one image, so a module's findings stay as long as it does.
_FINDINGS: weakref.WeakKeyDictionary[nn.Module, dict[tuple, _Finding]] = weakref.WeakKeyDictionary()


def plan_passes(
    model: Model,
    inputs: Tensor,
    n_per_image: int,
    internal_batch_size: int | None = None,
    *,
    backward: bool = True,
    exact: bool = False,
) -> tuple[Model, int]:
    """The model in the memory order that suits the machine, and how many points to push through it at once.

    On a CPU, points of images in float32 go in channels-last order: convolutions take a tenth to a half less time so.
    Nothing of the model is converted; one that relies on the other order (``view`` on feature maps) is found out by
    trial and fed as before. As many points go at once as keep their activations in the cache of a CPU, or in a quarter
    of a GPU's free memory: these are measured on two and on three points, whose difference leaves the weights out.

    Parameters
    ----------
    n_per_image : int
        Points of each image that will go through; trials are made only where they pay, and once for each module.
    internal_batch_size : int, optional
        The user's own number of points, instead of one that fits.
    backward : bool
        Whether gradients are wanted.
    exact : bool
        Whether the scores must be those of the usual order to the last bit where the model pools maxima: the other
        order rounds otherwise, and where windows nearly tie, other pixels win and are given the gradient. Then only
        gradients are taken in a faster way.
    """
    size = None if internal_batch_size is None else check_count(internal_batch_size, "internal_batch_size")
    if size is None and not backward:
        size = _GPU_FORWARD_POINTS if inputs.device.type == "cuda" else _CPU_FORWARD_POINTS
    if size is None and len(inputs) * n_per_image <= _LEAST_POINTS:
        size = _LEAST_POINTS
    orderable = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and inputs.ndim == 4
    orderable &= n_per_image >= _WORTH_A_TRIAL
    if size is not None and not orderable:
        return model, size
    most = 3 if internal_batch_size is None else internal_batch_size
    finding = _examine(model, inputs, most, orderable=orderable, backward=backward, exact=exact)
    if orderable:
        _keep_freed_memory()
        if finding.takes_order:
            model = _channels_last(model)
        elif exact and finding.pools_maxima:
            model = _narrow_gradients_last(model)
    return model, size or _fitting(inputs, finding.bytes_per_point)


def _examine(model: Model, inputs: Tensor, most: int, *, orderable: bool, backward: bool, exact: bool) -> _Finding:
    """Try a few points, at most ``most`` at once; what a module showed before holds while its parts are the same."""
    module = module_of(model)
    known = {} if module is None else _FINDINGS.setdefault(module, {})
    parts = () if module is None else tuple(_looks(part) for part in module.modules())
    case = (getattr(model, "__func__", None), parts, inputs.shape[1:], inputs.dtype, inputs.device)
    case += (orderable, backward, exact, min(most, 3))
    if case in known:
        return known[case]
    fewer, more = (inputs.detach()[:1].expand(min(n, most), *inputs.shape[1:]) for n in (2, 3))
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # else dropout, left in train mode, would be drawn otherwise the first time
        first, second, takes_order = _try(model, fewer, backward), None, False
        if orderable and not (exact and first.pools_maxima):
            with contextlib.suppress(RuntimeError):
                second = _try(_channels_last(model, strict=True), more, backward)
                takes_order = _agree(first.results, second.results)
        if second is None or not takes_order:
            second = _try(model, more, backward)
    finding = _Finding(first.pools_maxima, takes_order, second.n_bytes - first.n_bytes)
    if all(result is not None and result.isfinite().all() for result in first.results):
        known[case] = finding  # a damaged image says nothing of the next one
    return finding


def _looks(part: nn.Module) -> tuple:
    """What tells a part from what it was at an earlier trial."""
    return type(part), part.training, tuple(part._forward_hooks), tuple(part._forward_pre_hooks)


def _fitting(inputs: Tensor, bytes_per_point: int) -> int:
    """Points whose activations, given in bytes for each, fit the cache or the free memory."""
    # points, gradient, weighted sum and what makes them are alive as well
    per_point = max(bytes_per_point, 0) + 5 * inputs[0].numel() * inputs.element_size()
    budget, most = _CPU_BYTES, max(_CPU_POINTS, _CPU_NUMBERS // inputs[0].numel())
    if inputs.device.type == "cuda":
        cached = torch.cuda.memory_reserved(inputs.device) - torch.cuda.memory_allocated(inputs.device)
        budget = int(_GPU_SHARE * (torch.cuda.mem_get_info(inputs.device)[0] + cached))
        most = _GPU_POINTS
    return min(max(budget // per_point, _LEAST_POINTS), most)


@functools.cache
def _keep_freed_memory() -> None:
    """Have the C library keep the activations of one chunk for the next, up to some 60 MB.

    glibc gives freed memory back to the system, to fetch it again page by page: a fifth of the time here. The largest
    block freed so far sets how much it keeps, so an untouched one, freed at once, does; elsewhere this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _channels_last(model: Model, *, strict: bool = False) -> Model:
    """The model behind a change of its input's memory order; unless ``strict``, the usual one where that fails."""

    def ordered(x: Tensor) -> Tensor:
        try:
            scores = model(_ordered(x))
        except RuntimeError:
            if strict:
                raise
            return model(x)  # it has changed since its trial, or fails either way
        for node in _nodes(scores):
            # the gradient of a flattened map comes in the other order, with which pooling takes five times as long;
            # the hooks sit on the graph of this one pass, not on the model
            if node.name().startswith("MaxPool2D"):
                node.register_prehook(lambda gradients: tuple(g if g is None else _ordered(g) for g in gradients))
        return scores

    return ordered


def _narrow_gradients_last(model: Model) -> Model:
    """The model, with the gradients of its narrow convolutions taken in channels-last order."""

    def scores(x: Tensor) -> Tensor:
        with _NarrowGradientsLast():
            return model(x)

    return scores


class _NarrowGradientsLast(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        narrow = function is torch.conv2d and len(args) > 1 and len(args[1]) < _BLOCK
        # a backward pass goes by the order of what the forward pass saved
        with saved_tensors_hooks(lambda x: x, _ordered) if narrow else contextlib.nullcontext():
            return function(*args, **(kwargs or {}))


def _ordered(x: Tensor) -> Tensor:
    """The same values in channels-last order; one channel is both orders at once, so its strides must say which."""
    if x.ndim == 4 and x.shape[1] == 1:
        return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _nodes(scores: object) -> set[torch.autograd.graph.Node]:
    """All nodes of the graph behind the scores."""
    waiting, seen = [scores.grad_fn] if isinstance(scores, Tensor) else [], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return seen


def _try(model: Model, points: Tensor, backward: bool) -> _Trial:
    """The scores of a few points, and their gradient where it is wanted and there is one."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.set_grad_enabled(backward):
        points = points.clone().requires_grad_(backward)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores = model(points.clone())  # it may begin with an in-place layer
        pools_maxima = False
        results: list[Tensor | None] = [scores.detach() if isinstance(scores, Tensor) else None]
        if results[0] is not None and scores.requires_grad:
            pools_maxima = any("MaxPool" in node.name() for node in _nodes(scores))
            results += torch.autograd.grad(scores.sum(), points, allow_unused=True)
    return _Trial(results, sum(kept.values()), pools_maxima)


def _agree(usual: list[Tensor | None], other: list[Tensor | None]) -> bool:
    """Whether the rows that both have are the same."""
    for a, b in zip(usual, other, strict=False):
        if a is None or b is None or not a.ndim or a.shape[1:] != b.shape[1:]:
            return False
        if not (a - b[: len(a)]).abs().max() <= _TOLERANCE * a.abs().max():
            return False
    return len(usual) == len(other)
