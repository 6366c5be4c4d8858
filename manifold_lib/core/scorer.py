"""The score that is explained: one object calls the user's model, and knows which image each point belongs to."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_batch
from .modules import buffers_as_found, module_of, modules_of, train_mode_layers
from .passes import channels_last, forward_points, plan_passes, takes_channels_last

Model = Callable[..., Tensor]
Target = int | Tensor | None

# Errors are given as a share of the change of the score; a smaller change than this counts as this.
LEAST_CHANGE = 0.05


class Scorer:
    """A model, the class explained for each image of a batch, and what else the model is given.

    Points come with ``rows`` (n,), the image that each belongs to: its class is the one explained at the point, and
    its rows of the other arguments go with it. Without ``rows`` the points are the images of the batch, in order.

    Attributes
    ----------
    model : callable
        The user's model.
    classes : Tensor or None
        (B,) int64; None for a model that returns (B,).
    args : tuple
        Other arguments of the model. Tensors whose first dimension is B follow their image.
    size, forward : int
        Points per pass with gradients, and forward only.
    """

    def __init__(self, model: Model, batch: int, args: tuple = (), size: int = 16) -> None:
        self.model, self.batch, self.args = model, batch, args
        self.size = self.forward = size
        self.classes: Tensor | None = None
        self.lowest = self.highest = 0
        self.channels_last = False
        self.follows = tuple(isinstance(arg, Tensor) and arg.ndim > 0 and len(arg) == batch for arg in args)

    @contextlib.contextmanager
    def in_use(self, modules: Iterable[nn.Module] = ()) -> Iterator[None]:
        """Allow gradients; at the end put back the buffers of the model, and of other modules."""
        module, grad_mode = module_of(self.model), torch.is_grad_enabled()
        found = buffers_as_found([*([] if module is None else [module]), *modules])
        with found, torch.inference_mode(False), torch.set_grad_enabled(grad_mode):
            yield

    def of(self, rows: Tensor) -> "Scorer":
        """The scorer of some images of the batch."""
        part = Scorer(self.model, len(rows), self._args(rows), self.size)
        part.forward, part.channels_last = self.forward, self.channels_last
        part.follows, part.lowest, part.highest = self.follows, self.lowest, self.highest
        part.classes = None if self.classes is None else self.classes[rows]
        return part

    def resolve(self, inputs: Tensor, target: Target) -> None:
        """Take the classes to explain: those given, which are held against the model's scores as these come, or
        the predicted ones."""
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
        every = [part for part, own in zip(self.args, self.follows, strict=True) if own]
        every += [] if self.classes is None else [self.classes]
        device = self.classes.device if self.classes is not None else None
        codes = [
            torch.unique(part.flatten(1) if part.ndim > 1 else part, dim=0, return_inverse=True)[1] for part in every
        ]
        if not codes:
            return [torch.arange(self.batch, device=device)]
        _, group = torch.unique(torch.stack([code.flatten() for code in codes], 1), dim=0, return_inverse=True)
        return [(group == index).nonzero().squeeze(1) for index in range(int(group.max()) + 1)]

    def scores(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """All scores of some points, as the model gives them: (n, C) or (n,)."""
        # a copy, since a model may begin with an in-place layer
        points = channels_last(points) if self.channels_last else points.clone()
        scores = self.model(points, *self._args(rows))
        return checked_scores(scores, len(points))

    def _args(self, rows: Tensor | None) -> tuple:
        if rows is None or not any(self.follows):
            return self.args
        return tuple(arg[rows] if own else arg for arg, own in zip(self.args, self.follows, strict=True))

    def values(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """The explained score of some points, with a graph where they have one: (n,)."""
        scores = self.scores(points, rows)
        if self.classes is None:
            if scores.ndim == 2:
                raise ValueError(f"model: got scores {tuple(scores.shape)}, wants (B,) as for the inputs")
            return scores
        if scores.ndim == 1:
            raise ValueError("target: got classes, wants None for a model that returns scores (B,)")
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
        # batch norm in train mode refuses one row; a copy, since the points may be of inference mode
        some = points[:1].expand(min(2, self.size), *points.shape[1:]).clone()
        self.gradient(some, torch.zeros(len(some), dtype=torch.int64, device=points.device))

    def change(self, inputs: Tensor, baselines: Tensor) -> Tensor:
        """Δf = f(x) − f(x'), what a complete attribution sums to: (B,)."""
        return self.score(inputs) - self.score(baselines)

    def gradient(
        self, points: Tensor, rows: Tensor | None = None, *, weights: Tensor | None = None, create_graph: bool = False
    ) -> Tensor:
        """∂f/∂x at each point, times its weight, in one pass forward and one backward: (n, *shape).

        Rows do not mix: the gradient of the weighted sum of scores holds each row's own gradient, as long as
        the model treats the rows of a batch independently. Parameters collect no gradient.
        """
        return self.score_and_gradient(points, rows, weights=weights, create_graph=create_graph)[1]

    def score_and_gradient(
        self, points: Tensor, rows: Tensor | None = None, *, weights: Tensor | None = None, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The scores (n,), detached, that :meth:`gradient` has at hand, and its gradient."""
        with torch.enable_grad():
            if not create_graph:
                points = points.detach()
            if not points.requires_grad:
                points = points.requires_grad_()
            values = self.values(points, rows)
            check_differentiable(values)
            weights = torch.ones_like(values) if weights is None else weights.to(values.dtype)
            (gradient,) = torch.autograd.grad(values, points, weights, create_graph=create_graph, allow_unused=True)
        if gradient is None:
            raise ValueError("model: its scores do not depend on the inputs differentiably")
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
    """The scorer of a batch, while its model is used; at the end the model is as it was found.

    Checks the inputs and the model's device, warns of train mode, resolves the classes, chooses how many points go
    at once, allows gradients, and puts back the buffers that passes change, as those of batch norm in train mode.
    A scorer in the place of the model is passed on, so that methods can call each other.

    Parameters
    ----------
    target : int, Tensor or None
        A class for all, one class per image (B,), or None for the class predicted at ``inputs``.
    n_points : int
        Points of each image that will go through the model with gradients, 0 if none will.
    additional_forward_args : tuple, Tensor or other, optional
        Other arguments of the model, as in Captum.
    vae : object, optional
        A VAE that is used beside the model, whose buffers are put back too.
    """
    check_batch(inputs)
    modules = [] if vae is None else modules_of(vae)
    if isinstance(model, Scorer):
        with buffers_as_found(modules):
            yield model
        return
    module = module_of(model)
    if module is not None:
        tensor = next(iter(module.parameters()), next(iter(module.buffers()), None))
        if tensor is not None and tensor.device != inputs.device:
            raise ValueError(f"inputs: got device {inputs.device}, wants {tensor.device} like the model's parameters")
        if kinds := train_mode_layers(module):
            warnings.warn(
                f"the model is in train mode ({kinds}): it is used as found, so attributions are random or "
                "depend on the batch; call model.eval() first",
                RuntimeWarning,
                stacklevel=4,
            )
    args = additional_forward_args
    scorer = Scorer(model, len(inputs), () if args is None else args if isinstance(args, tuple) else (args,))
    with scorer.in_use(modules):
        scorer.size = scorer.forward = plan_passes(scorer.scores, inputs, n_points, internal_batch_size)
        if internal_batch_size is None:
            scorer.forward = forward_points(inputs, scorer.size)
        if n_points >= 8:  # two points and two scores: a twentieth of so many, at most
            scorer.channels_last = takes_channels_last(scorer.scores, inputs, min(2, scorer.size))
        scorer.resolve(inputs, target)
        yield scorer


def checked_scores(scores: Tensor, batch: int) -> Tensor:
    """What a model returned, if it is (B, C) or (B,)."""
    shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or scores.ndim not in (1, 2) or len(scores) != batch:
        raise ValueError(f"model: got scores {shape}, wants (B, C) or (B,) with B = {batch}")
    return scores


def check_target(
    target: int | Tensor, batch: int, n_classes: int | None, device: torch.device, name: str = "target"
) -> Tensor:
    """Expand an int, or check a (B,) tensor, of classes in [0, n_classes), where their number is known."""
    if isinstance(target, Tensor):
        if target.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
            raise ValueError(f"{name}: got {target.dtype}, wants int or a LongTensor ({batch},)")
        if target.ndim not in (0, 1) or (target.ndim == 1 and len(target) != batch):
            raise ValueError(f"{name}: got shape {tuple(target.shape)}, wants ({batch},)")
        classes = target.to(device=device, dtype=torch.int64).expand(batch)
    elif isinstance(target, Integral) and not isinstance(target, bool):
        # a class beyond 64 bits is refused like any other that is not there
        classes = torch.full((batch,), min(max(int(target), -(2**62)), 2**62), device=device)
    else:
        raise ValueError(f"{name}: got {type(target).__name__}, wants int, LongTensor ({batch},) or None")
    if n_classes is not None:
        low, high = torch.stack(torch.aminmax(classes)).tolist()
        check_class(low, high, n_classes, name)
    return classes


def check_class(low: int, high: int, n_classes: int, name: str) -> None:
    """Refuse classes that the model does not have."""
    if low < 0 or high >= n_classes:
        raise ValueError(f"{name}: got classes {low} to {high}, wants 0 to {n_classes - 1}")


def check_differentiable(scores: Tensor) -> None:
    """Refuse scores that were detached from the inputs."""
    if not scores.requires_grad:
        raise ValueError("model: its scores do not depend on the inputs differentiably")
