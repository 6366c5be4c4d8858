"""The score that is explained: one object calls the user's model, and knows which image each point belongs to."""

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_batch, require, warn, warn_of
from .derivatives import called, differentiable_kernels, require_slope
from .modules import buffers_as_found, fickle_layers, modules_behind, modules_of, tensors_of
from .passes import channels_last, forward_points, plan_passes, tried

Model = Callable[..., Tensor]
Target = int | Tensor | None

# Errors are given as a share of the change of the score; a smaller change than this counts as this.
LEAST_CHANGE = 0.05


class Scorer:
    """A model, the class explained for each image of a batch, and the other arguments of the model.

    Points come with ``rows`` (n,), the images whose classes and arguments they take; without, they are the images of
    the batch, in order. ``classes`` is (B,) int64, or None for a model that returns (B,). Tensors in ``args`` whose
    first dimension is B follow their image. ``size`` and ``forward`` are points per pass with gradients and without.
    """

    def __init__(self, model: Model, batch: int, args: tuple = (), size: int = 16) -> None:
        self.model, self.batch, self.args = model, batch, args
        self.size = self.forward = size
        self.classes: Tensor | None = None
        self.lowest = self.highest = 0
        self.channels_last = self.fickle = False
        self.follows = tuple(isinstance(arg, Tensor) and arg.ndim > 0 and len(arg) == batch for arg in args)

    @contextlib.contextmanager
    def in_use(self, modules: Iterable[nn.Module] = ()) -> Iterator[None]:
        """Allow gradients; at the end put back the buffers of the model, and of other modules."""
        grad_mode, modules = torch.is_grad_enabled(), [*modules_behind(self.model), *modules]
        recurrent = any(isinstance(part, nn.RNNBase) for module in modules for part in module.modules())
        # cuDNN has no derivative of a recurrent layer in eval mode; torch's own kernels have
        kernels = torch.backends.cudnn.flags(enabled=False) if recurrent else contextlib.nullcontext()
        with buffers_as_found(modules), kernels, torch.inference_mode(False), torch.set_grad_enabled(grad_mode):
            yield

    def of(self, rows: Tensor) -> "Scorer":
        """The scorer of some images of the batch."""
        part = copy.copy(self)
        part.batch, part.args = len(rows), self._args(rows)
        part.classes = None if self.classes is None else self.classes[rows]
        return part

    def resolve(self, inputs: Tensor, target: Target) -> None:
        """Take the classes to explain: those given, which the first scores check, or those predicted."""
        if target is None:
            with torch.no_grad():
                rows = torch.arange(len(inputs), device=inputs.device).split(self.forward)
                scores = torch.cat([self.scores(inputs[some], some) for some in rows])
            self.classes = scores.argmax(1) if scores.ndim == 2 else None
        else:
            self.classes = check_target(target, len(inputs), None, inputs.device)
        if self.classes is not None:
            self.lowest, self.highest = torch.stack(torch.aminmax(self.classes)).tolist()

    def explains(self, other: "Scorer") -> bool:
        """Whether both have the same model, classes and arguments."""
        pairs = [(self.classes, other.classes), *zip(self.args, other.args, strict=False)]
        same = all(torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b for a, b in pairs)
        return self.model == other.model and len(self.args) == len(other.args) and same

    def groups(self) -> list[Tensor]:
        """Rows of the images that share class and arguments, group by group."""
        every = [part for part, own in zip(self.args, self.follows, strict=True) if own and part.numel()]
        every += [] if self.classes is None else [self.classes]
        every = [torch.view_as_real(part.resolve_conj()) if part.is_complex() else part for part in every]
        codes = [torch.unique(part.reshape(self.batch, -1), dim=0, return_inverse=True)[1] for part in every]
        if not codes:
            return [torch.arange(self.batch)]
        _, group = torch.unique(torch.stack(codes, 1), dim=0, return_inverse=True)
        return [(group == index).nonzero().squeeze(1) for index in range(int(group.max()) + 1)]

    def scores(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """All scores of some points, as the model gives them: (n, C) or (n,)."""
        if self.fickle and len(points) == 1:  # batch norm without statistics refuses one row
            rows = torch.zeros(2, dtype=torch.int64, device=points.device) if rows is None else rows.expand(2)
            return self.scores(points.expand(2, *points.shape[1:]), rows)[:1]
        # a copy, since a model may begin with an in-place layer
        points = channels_last(points) if self.channels_last else points.clone()
        scores = called(self.model, points, *self._args(rows), name="model")
        if not isinstance(scores, Tensor):
            wants = f"(B, C) or (B,) with B = {len(points)}; of several outputs a wrapper picks one, see the notes of"
            require(False, "model", f"scores {type(scores).__name__}", f"{wants} manifold_lib.gradient")
        met = scores.ndim in (1, 2) and len(scores) == len(points)
        require(met, "model", f"scores {tuple(scores.shape)}", f"(B, C) or (B,) with B = {len(points)}")
        # weights in lower precision than the inputs must not make sums so
        return scores.to(torch.promote_types(scores.dtype, points.dtype)) if scores.is_floating_point() else scores

    def _args(self, rows: Tensor | None) -> tuple:
        if rows is None or not any(self.follows):
            return self.args
        return tuple(arg[rows] if own else arg for arg, own in zip(self.args, self.follows, strict=True))

    def values(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """The explained score of some points, with a graph where they have one: (n,)."""
        scores = self.scores(points, rows)
        if self.classes is None:
            require(scores.ndim == 1, "model", f"scores {tuple(scores.shape)}", "(B,) as for the inputs")
            return scores
        require(scores.ndim == 2, "target", "classes", "None for a model that returns scores (B,)")
        check_class(self.lowest, self.highest, scores.shape[1], "target")
        classes = self.classes if rows is None else self.classes[rows]
        return scores.gather(1, classes[:, None]).squeeze(1)

    def score(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """f at each point, without a graph, some at a time: (n, *shape) -> (n,)."""
        rows = torch.arange(len(points), device=points.device) if rows is None else rows
        with torch.no_grad():
            parts = zip(points.split(self.forward), rows.split(self.forward), strict=True)
            return torch.cat([self.values(some, own) for some, own in parts])

    def look(self, points: Tensor) -> None:
        """Refuse a model that gives other scores or no gradient, for a builder that uses it only later."""
        # a copy, since the points may be of inference mode
        self.gradient(points[:1].clone(), torch.zeros(1, dtype=torch.int64, device=points.device))

    def change(self, inputs: Tensor, baselines: Tensor) -> Tensor:
        """Δf = f(x) − f(x'), what a complete attribution sums to: (B,)."""
        return self.score(inputs) - self.score(baselines)

    def gradient(
        self, points: Tensor, rows: Tensor | None = None, *, weights: Tensor | None = None, create_graph: bool = False
    ) -> Tensor:
        """∂f/∂x at each point, times its weight, if the model treats the rows of a batch independently: (n, *shape).

        It takes one pass forward and one backward. Parameters collect no gradient.
        """
        return self.score_and_gradient(points, rows, weights=weights, create_graph=create_graph)[1]

    def score_and_gradient(
        self, points: Tensor, rows: Tensor | None = None, *, weights: Tensor | None = None, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The scores (n,), detached, and the :meth:`gradient`, of one pass."""
        with torch.enable_grad(), differentiable_kernels() if create_graph else contextlib.nullcontext():
            if not create_graph:
                points = points.detach()
            if not points.requires_grad:
                points = points.requires_grad_()
            values = self.values(points, rows)
            check_differentiable(values)
            weights = torch.ones_like(values) if weights is None else weights.to(values.dtype)
            (gradient,) = torch.autograd.grad(values, points, weights, create_graph=create_graph, allow_unused=True)
        require_slope(gradient is not None, "model")
        return values.detach(), gradient


@contextlib.contextmanager
def scoring(
    model: Model | Scorer,
    inputs: Tensor,
    target: Target = None,
    n_points: int = 0,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    vae: Any = None,
) -> Iterator[Scorer]:
    """The scorer of a batch, while its model is used; at the end the buffers of model and ``vae`` are as found.

    Checks the inputs and the model's device, warns of rows that are not on their own, resolves the classes, chooses how
    many points go at once, and allows gradients; ``n_points`` of each image will go through the model with gradients. A
    scorer in the place of the model is passed on, so that methods can call each other.
    """
    check_batch(inputs)
    modules = [] if vae is None else modules_of(vae)
    if isinstance(model, Scorer):
        with buffers_as_found(modules):
            yield model
        return
    device, args = next(tensors_of(model), inputs).device, additional_forward_args
    wanted = f"{device} like the model's parameters"
    require(device == inputs.device, "inputs", f"device {inputs.device}", wanted)
    kinds, training = fickle_layers(modules_behind(model))
    scorer = Scorer(model, len(inputs), () if args is None else args if isinstance(args, tuple) else (args,))
    scorer.fickle = bool(kinds)
    with scorer.in_use(modules):
        scorer.size = scorer.forward = plan_passes(scorer.scores, inputs, n_points, internal_batch_size)
        if internal_batch_size is None:
            scorer.forward = forward_points(inputs, scorer.size)
        if n_points >= 8 and not kinds:  # three passes of two points
            scorer.channels_last, steady = tried(scorer.scores, inputs, min(2, scorer.size))
            kinds = "" if steady else "no layer known for it"
            scorer.fickle = not steady
        if kinds:
            mode = "is in train mode" if training else "mixes the rows of a batch, or draws at random, in eval mode too"
            message = f"the model {mode} ({kinds}): it is used as found, so attributions are random or depend on the "
            warn(message + ("batch; call model.eval() first" if training else "batch"), 4)
        scorer.resolve(inputs, target)
        yield scorer


def warn_incomplete(attributions: Tensor, change: Tensor, name: str) -> None:
    """One warning that counts the sums which miss the change of the score by half of it or more."""
    missed = (attributions.detach().flatten(1).sum(1) - change).abs() >= 0.5 * change.abs().clamp_min(LEAST_CHANGE)
    what = "sums miss the change of the score by half of it or more"
    warn_of(name, missed, f"{what}; the score is too steep along the path for so few steps", 4)


def check_target(
    target: int | Tensor, batch: int, n_classes: int | None, device: torch.device, name: str = "target"
) -> Tensor:
    """Expand an int, or check a (B,) tensor, of classes in [0, n_classes), where their number is known."""
    if isinstance(target, Tensor):
        whole = target.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
        require(whole, name, target.dtype, f"int or a LongTensor ({batch},)")
        require(target.shape in ((), (batch,)), name, f"shape {tuple(target.shape)}", f"({batch},)")
        classes = target.to(device=device, dtype=torch.int64).expand(batch)
    else:
        whole = isinstance(target, Integral) and not isinstance(target, bool)
        require(whole, name, type(target).__name__, f"int, LongTensor ({batch},) or None")
        # a class beyond 64 bits is refused like any other that is not there
        classes = torch.full((batch,), min(max(int(target), -(2**62)), 2**62), device=device)
    if n_classes is not None:
        low, high = torch.stack(torch.aminmax(classes)).tolist()
        check_class(low, high, n_classes, name)
    return classes


def check_class(low: int, high: int, n_classes: int, name: str) -> None:
    """Refuse classes that the model does not have."""
    require(low >= 0 and high < n_classes, name, f"classes {low} to {high}", f"0 to {n_classes - 1}")


def check_differentiable(scores: Tensor) -> None:
    """Refuse scores that were detached from the inputs."""
    require_slope(scores.requires_grad, "model")
