"""What each trick of the passes is worth: ``python -m pytest tests/bench/test_tricks.py`` writes the table.

A trick is a way to push points through a model sooner: a memory order, a chunk size, a setting of the allocator. Each
is written here once more, so that one which the library has dropped can still be timed. Nothing is asserted about
time. What is asserted is that every contestant finds the same map, to 1e-9 of its maximum in float64 and to 1e-4 in
float32. One exception: channels-last points through a network that pools maxima are held to the first only. In float32
they round otherwise, and where a ReLU or two pixels of a pooled window nearly tie, the gradient takes the other side.
Of 16 images, three maps of the ResNet at 112 pixels differ by 0.6 to 2 % of their maximum for that reason.

The workload is Integrated Gradients on one thread. Each network has three processes, which differ in what their
allocator does with freed memory. All contestants take turns, so other load on the machine slows all of them alike, and
seconds are those of the processor, so waiting for it does not count. Everything but the allocator is timed in the
process with the freed block.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import math
import multiprocessing
import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.overrides import TorchFunctionMode

TABLE = Path(__file__).resolve().parents[2] / "figures" / "bench" / "tricks.csv"
COLUMNS = [
    *("trick", "network", "batch", "seconds_without", "seconds_with", "ratio"),
    *("memory_without_mb", "memory_with_mb"),
]
SECONDS, ROUNDS = 0.3, (3, 9)  # a contestant runs until it has had so many seconds, but this often
SHORT = 0.1  # before a shorter run comes one that does not count, or the others' turns would leave it a cold cache
TOLERANCE, TOLERANCE_DOUBLE = 1e-4, 1e-9
CACHE_BYTES, MOST_POINTS, MOST_NUMBERS, LEAST_POINTS = 32 * 2**20, 256, 2**18, 16
FIXED = (1, 4, 16, 64, 256)
MAKEFILE = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
NODES = 50

Model = Callable[[Tensor], Tensor]

# ------------------------------------------------------------------------------------------- networks


def lenet() -> nn.Module:
    """The paper's LeNet."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(12544, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)),
    )


def lenet5() -> nn.Module:
    """LeCun et al. 1998: tanh and averages."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )


def tiny_cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)),
    )


def mlp() -> nn.Module:
    layers = nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    return nn.Sequential(nn.Flatten(), *layers)


class Case(NamedTuple):
    """A network, the shape of its images, and the nodes of each batch size."""

    network: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    nodes: dict[int, int]


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(weights=None)


# 50 nodes everywhere would take an hour. More than a few chunks of points say nothing new, so the ResNet has 50 or 64
# points at 112 pixels and 20 at 224, where 16 and 64 images are too slow. Its points are then as many at each batch
# size, so chunks are timed for one image only. At 512 only the chunk size is of interest.
CASES = {
    "LeNet": Case(lenet, (1, 32, 32), {1: 50, 16: 50, 64: 50}),
    "LeNet-5": Case(lenet5, (1, 28, 28), {1: 50, 16: 50, 64: 50}),
    "tiny CNN": Case(tiny_cnn, (1, 32, 32), {1: 50, 16: 50, 64: 50}),
    "MLP": Case(mlp, (1, 28, 28), {1: 50, 16: 50, 64: 50}),
    "ResNet-18, 112": Case(resnet18, (3, 112, 112), {1: 50, 16: 4, 64: 1}),
    "ResNet-18, 224": Case(resnet18, (3, 224, 224), {1: 20, 4: 5}),
    "ResNet-18, 512": Case(resnet18, (3, 512, 512), {1: 8}),
}

POOLS_MAXIMA = ("LeNet", "ResNet-18, 112", "ResNet-18, 224")

# --------------------------------------------------------------------------------------------- tricks


def ordered(x: Tensor) -> Tensor:
    """The same values in channels-last order. One channel is both orders at once, so its strides must say which."""
    if x.ndim == 4 and x.shape[1] == 1:
        return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def nodes_of(scores: Tensor) -> set[Node]:
    """All nodes of the graph behind the scores."""
    waiting, seen = [scores.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [parent for parent, _ in node.next_functions]
    return seen


def channels_last(model: Model, *, prehooks: bool) -> Model:
    """Points in channels-last order. The prehooks give max pooling its gradient in that order too."""

    def scores(x: Tensor) -> Tensor:
        values = model(ordered(x))
        for node in nodes_of(values) if prehooks else ():
            if node.name().startswith("MaxPool2D"):
                node.register_prehook(lambda gradients: tuple(g if g is None else ordered(g) for g in gradients))
        return values

    return scores


class NarrowGradientsLast(TorchFunctionMode):
    """What convolutions of fewer than 16 channels save is put in channels-last order, for their backward pass."""

    def __torch_function__(
        self, function: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        narrow = function is torch.conv2d and len(args) > 1 and len(args[1]) < 16
        with saved_tensors_hooks(lambda x: x, ordered) if narrow else contextlib.nullcontext():
            return function(*args, **(kwargs or {}))


def narrow_gradients_last(model: Model) -> Model:
    def scores(x: Tensor) -> Tensor:
        with NarrowGradientsLast():
            return model(x)

    return scores


class Saved:
    """The bytes that autograd keeps while this is open. The storages of ``but`` do not count."""

    def __init__(self, but: nn.Module | None = None) -> None:
        tensors = () if but is None else (*but.parameters(), *but.buffers())
        self.left_out = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.storages: dict[int, int] = {}
        self.hooks = saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.left_out:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> Saved:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    @property
    def n_bytes(self) -> int:
        return sum(self.storages.values())


def one_trial(model: Model, points: Tensor) -> tuple[list[Tensor], int]:
    """Scores and gradient of a few points, and the bytes that were kept for them."""
    points = points.clone().requires_grad_()
    with Saved() as saved:
        scores = model(points.clone())
    any("MaxPool" in node.name() for node in nodes_of(scores))  # the library asks this here
    return [scores.detach(), *torch.autograd.grad(scores.sum(), points)], saved.n_bytes


def trials(model: nn.Module, images: Tensor) -> int:
    """Both trials: two points as usual, three in the other order. The difference is the bytes of one point."""
    two, three = (images[:1].expand(n, *images.shape[1:]) for n in (2, 3))
    with torch.random.fork_rng([]):
        usual, fewer = one_trial(model, two)
        other, more = one_trial(channels_last(model, prehooks=True), three)
    for a, b in zip(usual, other, strict=True):
        (a - b[: len(a)]).abs().max().item()
    return more - fewer


class Findings:
    """The cache of trials: by module, as long as it lives, and by what its parts look like."""

    def __init__(self) -> None:
        self.known: weakref.WeakKeyDictionary[nn.Module, dict[tuple, int]] = weakref.WeakKeyDictionary()

    def look_up(self, model: nn.Module, images: Tensor) -> int:
        parts = tuple((type(part), part.training, tuple(part._forward_hooks)) for part in model.modules())
        case = parts, images.shape[1:], images.dtype, images.device
        known = self.known.setdefault(model, {})
        if case not in known:
            known[case] = trials(model, images)
        return known[case]


def fitting(shape: tuple[int, ...], bytes_per_point: float, least: int) -> int:
    """Points whose activations fill 32 MiB."""
    n_numbers = math.prod(shape)
    per_point = bytes_per_point + 5 * 4 * n_numbers
    return min(max(int(CACHE_BYTES // per_point), least), max(MOST_POINTS, MOST_NUMBERS // n_numbers))


def integrated_gradients(model: Model, images: Tensor, n_nodes: int, size: int, measure: nn.Module | None = None):
    """The map, ``size`` points at a time.

    With ``measure``, the module behind the model, the first pass of ``size`` points is measured and the later chunks
    are as large as fits by it.
    """
    total, n_points, start = torch.zeros_like(images), len(images) * n_nodes, 0
    while start < n_points:
        pairs = torch.arange(start, min(start + size, n_points))
        start += size
        rows, times = pairs // n_nodes, (pairs % n_nodes + 0.5) / n_nodes
        points = (images[rows] * times[:, None, None, None]).requires_grad_()
        with contextlib.nullcontext() if measure is None else Saved(measure) as saved:
            values = model(points.clone())[:, 3]
        (gradient,) = torch.autograd.grad(values, points, torch.ones_like(values))
        total.index_add_(0, rows, gradient)
        if saved is not None:
            size, measure = fitting(images.shape[1:], saved.n_bytes / len(points), 1), None
    return images * total / n_nodes


# ------------------------------------------------------------------------------------------ processes


class Memory:
    """Growth of the resident memory of this process, in MB: at its peak, and what is still there at the end."""

    def __enter__(self) -> Memory:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.before = self.read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.peak, self.kept = (self.read(name) - self.before for name in ("VmHWM", "VmRSS"))

    @staticmethod
    def read(name: str) -> float:
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024 / 1e6
        return float("nan")


def serve(pipe: Connection, name: str, block: bool) -> None:
    """A process of one network: it runs what it is sent, and sends back seconds, or megabytes and the map, or a map."""
    torch.set_num_threads(1)
    if block:
        torch.empty(31 * 2**20, dtype=torch.uint8)  # freed at once: glibc keeps twice as much from now on
    torch.manual_seed(0)
    case = CASES[name]
    model = case.network().eval()
    images = {batch: torch.rand(batch, *case.shape) for batch in case.nodes}
    findings = Findings()

    def run(model: nn.Module, x: Tensor, contestant: str, size: int, n_nodes: int) -> Tensor | int:
        match contestant:
            case "trial":
                return trials(model, x)
            case "looked up":
                return findings.look_up(model, x)
            case "measured":
                return integrated_gradients(model, x, n_nodes, size, measure=model)
        return integrated_gradients(
            {
                "usual": model,
                "channels last": channels_last(model, prehooks=True),
                "channels last, no prehooks": channels_last(model, prehooks=False),
                "narrow gradients": narrow_gradients_last(model),
            }[contestant],
            x,
            n_nodes,
            size,
        )

    while (request := pipe.recv()) is not None:
        task, contestant, batch, size = request
        arguments = model, images[batch], contestant, size, case.nodes[batch]
        if task == "weigh":
            with Memory() as memory:
                result = run(*arguments)
            pipe.send((memory.peak, memory.kept, result.numpy() if isinstance(result, Tensor) else result))
        elif task == "double":
            exact = run(copy.deepcopy(model).double(), images[batch][:1].double(), contestant, min(size, 3), 4)
            pipe.send(exact.numpy() if isinstance(exact, Tensor) else exact)
        else:
            seconds = 0.0
            for _ in range(2):
                if seconds < SHORT:
                    start = time.process_time()
                    run(*arguments)
                    seconds = time.process_time() - start
            pipe.send(seconds)


@contextlib.contextmanager
def processes(name: str) -> Iterator[dict[str, Connection]]:
    """The three processes of a network: as glibc is, with the block freed, and in the Makefile's environment."""
    context, pipes, started = multiprocessing.get_context("spawn"), {}, []
    for allocator in ("plain", "block", "makefile"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            for key, value in MAKEFILE.items():
                patch.delenv(key, raising=False)
                if allocator == "makefile":
                    patch.setenv(key, value)
            pipes[allocator], theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, name, allocator == "block"), daemon=True)
            process.start()
            theirs.close()
            started.append(process)
    try:
        yield pipes
    finally:
        for pipe, process in zip(pipes.values(), started, strict=True):
            with contextlib.suppress(OSError):
                pipe.send(None)
            process.join(30)


def ask(pipe: Connection, *request: object) -> Any:
    pipe.send(request)
    return pipe.recv()


# ---------------------------------------------------------------------------------------------- table


class Outcome(NamedTuple):
    seconds: float
    peak: float
    kept: float
    found: Any


Entry = tuple[str, str, int]  # allocator, contestant, points at a time


def race(pipes: dict[str, Connection], entries: list[Entry], batch: int) -> dict[Entry, Outcome]:
    """Medians of runs in turn. One more run of each gives its memory and its map."""
    times: dict[Entry, list[float]] = {entry: [] for entry in entries}
    for turn in range(ROUNDS[1]):
        for entry, spent in times.items():
            if turn < ROUNDS[0] or sum(spent) < SECONDS:
                spent.append(ask(pipes[entry[0]], "time", *_order(entry, batch)))
    return {
        entry: Outcome(statistics.median(times[entry]), *ask(pipes[entry[0]], "weigh", *_order(entry, batch)))
        for entry in entries
    }


def furthest(maps: np.ndarray, reference: np.ndarray) -> float:
    """The largest difference of any map, as a share of its maximum."""
    axes = 1, 2, 3
    return (abs(maps - reference).max(axes) / abs(reference).max(axes)).max()


def _order(entry: Entry, batch: int) -> tuple[str, int, int]:
    _, contestant, size = entry
    return contestant, batch, size


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict]]:
    """Collects the rows and writes the table. Networks that were not run keep the rows that they have there."""
    found: list[dict] = []
    yield found
    table = pd.DataFrame(found, columns=COLUMNS)
    print("\n\n" + table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if TABLE.exists():
        before = pd.read_csv(TABLE)
        table = pd.concat([before[~before["network"].isin(table["network"])], table])
    table = table.sort_values("network", key=lambda names: names.map(list(CASES).index), kind="stable")
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(TABLE, index=False, float_format="%.4g")


@pytest.mark.parametrize("name", CASES)
def test_tricks(name: str, rows: list[dict]) -> None:
    """All tricks on one network. Maps agree to rounding."""
    case = CASES[name]
    with processes(name) as pipes:
        for batch, n_nodes in case.nodes.items():
            n_points = batch * n_nodes
            per_point = ask(pipes["block"], "weigh", "looked up", batch, 0)[2]
            rule, no_floor = (min(fitting(case.shape, per_point, least), n_points) for least in (LEAST_POINTS, 1))
            fixed = sorted({min(size, n_points) for size in FIXED})
            usual: Entry = ("block", "usual", rule)
            first: Entry = ("block", "measured", min(LEAST_POINTS, n_points))
            last, bare, narrow = (
                ("block", contestant, rule)
                for contestant in ("channels last", "channels last, no prehooks", "narrow gradients")
            )
            chunks: dict[int, Entry] = {size: ("block", "usual", size) for size in {*fixed, rule, no_floor}}
            chunked = batch == 1 or n_nodes == NODES
            entries = [*chunks.values(), first] if chunked else [usual]
            if name != "ResNet-18, 512":
                entries += [last, bare, narrow, ("block", "trial", 0), ("block", "looked up", 0)]
                entries += [("plain", "usual", rule), ("makefile", "usual", rule)]
            results = race(pipes, entries, batch)

            for entry, result in results.items():
                if entry[1] not in ("trial", "looked up"):
                    error = furthest(result.found, results[usual].found)
                    near_ties = "channels last" in entry[1] and name in POOLS_MAXIMA
                    assert near_ties or error <= TOLERANCE, f"{entry}, {batch} images: {error:.1e}"
                    if batch == 1:
                        exact, other = (ask(pipes[it[0]], "double", *_order(it, 1)) for it in (usual, entry))
                        assert furthest(other, exact) <= TOLERANCE_DOUBLE, entry

            def add(trick: str, without: Outcome, with_it: Outcome, *, kept: bool = False, batch: int = batch) -> None:
                seconds = (without.seconds, with_it.seconds)
                memory = (without.kept, with_it.kept) if kept else (without.peak, with_it.peak)
                rows.append(
                    dict(zip(COLUMNS, (trick, name, batch, *seconds, seconds[1] / seconds[0], *memory), strict=True))
                )

            if last in results:
                add("channels-last points", results[usual], results[last])
                add("prehooks of max pooling", results[bare], results[last])
                add("narrow gradients last", results[usual], results[narrow])
                # of 50 nodes, whatever number was run here
                whole = results[usual].seconds * NODES / n_nodes
                trial, looked_up = (results["block", contestant, 0] for contestant in ("trial", "looked up"))
                add(
                    "cache of trials",
                    results[usual]._replace(seconds=whole + trial.seconds),
                    results[usual]._replace(seconds=whole + looked_up.seconds),
                )
                # the memory here is what stays with the process after the call
                plain, makefile = (results[allocator, "usual", rule] for allocator in ("plain", "makefile"))
                add("freed block", plain, results[usual], kept=True)
                add("Makefile's allocator", plain, makefile, kept=True)
                add("freed block, against the Makefile's", makefile, results[usual], kept=True)
            for size in fixed if chunked else ():
                add(f"chunks of 32 MiB ({rule} points), against {size}", results[chunks[size]], results[usual])
            if chunked:
                add(f"floor of {LEAST_POINTS} points, against {no_floor}", results[chunks[no_floor]], results[usual])
                best = min(fixed, key=lambda size: results[chunks[size]].seconds)
                add(f"first pass measured, against the best fixed ({best})", results[chunks[best]], results[first])
                add("first pass measured, against the rule with trials", results[usual], results[first])
