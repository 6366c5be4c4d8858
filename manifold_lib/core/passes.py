"""How points go through a model: how many at once, and in which memory order. What is here was measured to win 10 % on
two networks or more (``figures/bench/tricks.csv``)."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import check_count

# On a CPU the cache decides: 32 MiB of activations are some 70 points of the paper's LeNet. A network whose weights are
# larger than the cache reads them from memory in every pass: then activations of four times their size go at once. On a
# GPU its free memory decides.
CPU_BYTES, CPU_WEIGHTS, GPU_SHARE = 32 * 2**20, 4, 0.25
# Points are never so many that what is kept of each, beside the activations, fills the cache; a GPU launches fewer
# kernels for more of them, up to this number.
CPU_NUMBERS, GPU_POINTS = 2**18, 8192
# Two trial passes cost five points. With fewer points than these in all that is above one percent, and a rule by the
# size of a point is enough.
WORTH_A_TRIAL = 512


def plan_passes(
    scores: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, n_points: int, internal_batch_size: int | None = None
) -> int:
    """How many points to push through a model at once, forward and backward.

    As many as keep their activations in the cache of a CPU, or in a quarter of a GPU's free memory. What autograd keeps
    is measured on two and on three points: the difference is what one point takes, the rest are the weights.

    Parameters
    ----------
    scores : callable
        ``scores(points, rows)`` with points (n, *shape) and rows (n,), the image that each point belongs to.
    n_points : int
        Points of each image that will go through with gradients.
    internal_batch_size : int, optional
        The user's own number of points, instead of one that fits.
    """
    if internal_batch_size is not None:
        return check_count(internal_batch_size, "internal_batch_size")
    numel, on_gpu = inputs[0].numel(), inputs.device.type == "cuda"
    _keep_freed_memory()
    if not on_gpu and len(inputs) * n_points < WORTH_A_TRIAL:
        return min(max(2 * CPU_NUMBERS // numel, 1), 64 if numel > 64 else WORTH_A_TRIAL)
    if not n_points:
        return GPU_POINTS // 8
    two, three = (_kept(scores, inputs, n) for n in (2, 3))
    # points, gradient, weighted sum and what makes them are alive as well
    per_point = max(three - two, 0) + 5 * numel * inputs.element_size()
    if on_gpu:
        cached = torch.cuda.memory_reserved(inputs.device) - torch.cuda.memory_allocated(inputs.device)
        free = torch.cuda.mem_get_info(inputs.device)[0] + cached
        return min(max(int(GPU_SHARE * free) // per_point, 1), GPU_POINTS)
    budget = max(CPU_BYTES, CPU_WEIGHTS * (3 * two - 2 * three))
    return min(max(budget // per_point, 1), max(CPU_NUMBERS // numel, 256))


@functools.cache
def _keep_freed_memory() -> None:
    """Have the C library keep the activations of one chunk for the next, up to some 60 MB.

    glibc gives freed memory back to the system, to fetch it again page by page: up to a quarter of the time of small
    networks. The largest block freed so far sets how much it keeps, so an untouched one, freed at once, does; with
    other C libraries this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def forward_points(inputs: Tensor, size: int) -> int:
    """How many points to push forward only, where ``size`` go with gradients: a CPU's cache holds some more."""
    return size if inputs.device.type == "cuda" else max(size, min(CPU_NUMBERS * 4 // max(inputs[0].numel(), 1), 64))


def _kept(scores: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, n_points: int) -> int:
    """The bytes that autograd keeps of a pass of some points forward."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    devices = [inputs.device] if inputs.device.type == "cuda" else []
    # without the fork, dropout left in train mode would be drawn otherwise after a trial
    with torch.enable_grad(), torch.random.fork_rng(devices):
        points = inputs.detach()[:1].expand(n_points, *inputs.shape[1:]).clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            scores(points, torch.zeros(n_points, dtype=torch.int64, device=inputs.device))
    return sum(kept.values())


def takes_channels_last(scores: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, n_points: int = 2) -> bool:
    """Whether a model gives the same scores for points in channels-last order, in which a CPU is faster.

    A few points of noise tell, the same for any batch; a blank image would not. A model that relies on the other
    order (``view`` on feature maps) fails or differs. One that pools maxima is left alone: the other order rounds
    otherwise, and where windows nearly tie, other pixels would win.
    """
    if inputs.device.type != "cpu" or inputs.dtype != torch.float32 or inputs.ndim != 4:
        return False
    rows = torch.zeros(n_points, dtype=torch.int64)
    points = torch.rand((n_points, *inputs.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=inputs.dtype)
    with torch.enable_grad(), torch.random.fork_rng([]):
        usual = scores(points.clone().requires_grad_(), rows)
        waiting, seen = [usual.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                if "MaxPool" in node.name():
                    return False
                seen.add(node)
                waiting += [parent for parent, _ in node.next_functions]
        try:
            with torch.no_grad():
                other = scores(channels_last(points), rows)
        except Exception:  # whatever the user's code refuses the other order with
            return False
    return usual.shape == other.shape and bool((usual - other).abs().max() <= 1e-3 * usual.abs().max())


def channels_last(points: Tensor) -> Tensor:
    """A copy in channels-last order; one channel is both orders at once, so its strides must say which."""
    if points.shape[1] == 1:
        return points.clone().reshape(len(points), *points.shape[2:], 1).permute(0, 3, 1, 2)
    return points.clone(memory_format=torch.channels_last)
