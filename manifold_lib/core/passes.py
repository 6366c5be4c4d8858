"""How points go through a model: how many at once, and in which memory order.

Each trick was measured to win 10 % on two networks or more (``figures/bench/tricks.csv``)."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .checks import check_count
from .derivatives import rows_alone

# On a CPU the cache limits the activations: 32 MiB are some 70 points of the paper's LeNet. Weights larger than the
# cache are read in every pass, so activations of four times their size go at once. On a GPU the free memory limits.
CPU_BYTES, CPU_WEIGHTS, GPU_SHARE = 32 * 2**20, 4, 0.25
# Most numbers of all points, since gradients and sums need the cache too; most points of a GPU, for fewer kernels.
CPU_NUMBERS, GPU_POINTS = 2**18, 8192
# With fewer points in all, two trial passes (five points) cost more than 1 %, and the size of a point must do.
WORTH_A_TRIAL = 512


def plan_passes(
    scores: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, n_points: int, internal_batch_size: int | None = None
) -> int:
    """How many points to push through a model at once, forward and backward.

    As many as keep their activations in the cache of a CPU, or in a quarter of a GPU's free memory; or the user's
    ``internal_batch_size``. ``n_points`` of each image will go through with gradients. What autograd keeps is measured
    on two and on three points: the difference is what one point takes, the rest are the weights.
    """
    if internal_batch_size is not None:
        return check_count(internal_batch_size, "internal_batch_size")
    numel, on_gpu = inputs[0].numel(), inputs.device.type == "cuda"
    # Freed untouched, it has glibc keep up to some 60 MB of freed memory, whose pages take a quarter of a small
    # network's time to fetch again. Other C libraries ignore it.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    untried = min(max(3 * CPU_NUMBERS // numel, 1), 64 if numel > 64 else WORTH_A_TRIAL)
    if not on_gpu and len(inputs) * n_points < WORTH_A_TRIAL:
        return untried
    if not n_points:
        return forward_points(inputs)
    try:
        two, three = (_kept(scores, inputs, n) for n in (2, 3))
    except RuntimeError:  # a model that takes gradients inside may allow no hooks
        return untried
    # points, gradient, weighted sum and what makes them are alive as well
    per_point = max(three - two, 0) + 5 * numel * inputs.element_size()
    if on_gpu:
        cached = torch.cuda.memory_reserved(inputs.device) - torch.cuda.memory_allocated(inputs.device)
        free = torch.cuda.mem_get_info(inputs.device)[0] + cached
        return min(max(int(GPU_SHARE * free) // per_point, 1), GPU_POINTS)
    budget = max(CPU_BYTES, CPU_WEIGHTS * (3 * two - 2 * three))
    return min(max(budget // per_point, 1), max(CPU_NUMBERS // numel, 256))


def forward_points(inputs: Tensor, size: int | None = None) -> int:
    """How many points to push forward only, where ``size`` go with gradients: a CPU's cache holds more of them."""
    if inputs.device.type == "cuda":
        return GPU_POINTS // 8 if size is None else size
    return max(size or 1, min(CPU_NUMBERS * 4 // max(inputs[0].numel(), 1), 64))


def _kept(scores: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, n_points: int) -> int:
    """The bytes that autograd keeps of a pass of some points forward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # without the fork, dropout left in train mode would be drawn otherwise after a trial
    with torch.enable_grad(), torch.random.fork_rng(_devices(inputs)):
        points = inputs.detach()[:1].expand(n_points, *inputs.shape[1:]).clone().requires_grad_()
        rows = torch.zeros(n_points, dtype=torch.int64, device=inputs.device)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores(points, rows)
    return sum(kept.values())


def tried(scores: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, n_rows: int = 2) -> tuple[bool, bool]:
    """Whether a model may be given channels-last order, and whether each row is on its own; tried at points of noise.

    On a CPU that order is faster. A model that relies on the other order (``view`` on feature maps) fails or differs.
    Maximum pooling is refused: the order changes the rounding, and with it which pixel wins a window that nearly ties.
    """
    rows = torch.zeros(n_rows, dtype=torch.int64, device=inputs.device)
    points = torch.rand((2, *inputs.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=inputs.dtype)
    points = points.to(inputs.device)
    worth = inputs.device.type == "cpu" and inputs.dtype == torch.float32 and inputs.ndim == 4
    graphs: list[Tensor] = []

    def call(pair: Tensor) -> Tensor:
        graphs.append(scores(pair.clone().requires_grad_(worth), rows))
        return graphs[-1]

    with torch.enable_grad(), torch.random.fork_rng(_devices(inputs)):
        steady = rows_alone(call, points[:1], points[1:] / 2, n_rows)
        with torch.no_grad():
            if worth and not _pools_maxima(graphs[0]):
                with contextlib.suppress(Exception):  # whatever the user's code refuses the order with
                    if steady(lambda pair: scores(channels_last(pair), rows)):
                        return True, True
            return False, steady(lambda pair: scores(pair, rows))


def _pools_maxima(scores: Tensor) -> bool:
    """Whether a maximum pooling led to these scores."""
    waiting: list[Any] = [scores.grad_fn]
    seen = {None}
    while waiting:
        if (node := waiting.pop()) not in seen:
            if "MaxPool" in node.name():
                return True
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return False


def _devices(inputs: Tensor) -> list[torch.device]:
    """The devices beside the CPU whose random numbers a trial must not use up."""
    return [inputs.device] if inputs.device.type == "cuda" else []


def channels_last(points: Tensor) -> Tensor:
    """A copy in channels-last order; one channel is both orders at once, so its strides must say which."""
    if points.shape[1] == 1:
        return points.clone().reshape(len(points), *points.shape[2:], 1).permute(0, 3, 1, 2)
    return points.clone(memory_format=torch.channels_last)
