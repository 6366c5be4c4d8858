"""Guided IG (Kapishnikov et al. 2021): the greedy path on pixels, and its integral."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_baselines, check_batch, check_choice, check_count, check_share
from ..core.scorer import Model, Scorer, Target, scoring
from ..paths.greedy import Evaluate, greedy_nodes, streamed_path
from ..paths.integral import integrate, path_method, with_delta
from ..paths.path import Path, column
from ..paths.refine import Node


@path_method
def guided_ig(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 200,
    fraction: float = 0.25,
    max_dist: float = 0.02,
    anchors: int = 0,
    method: str = "trapezoid",
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
    progress: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Guided Integrated Gradients (Kapishnikov et al. 2021), the images of a batch in lock-step.

    Parameters
    ----------
    model, inputs, target, baselines, additional_forward_args, return_convergence_delta
        As for :func:`manifold_lib.integrated_gradients`.
    n_steps : int
        Segments of the path, each with a gradient of its own.
    fraction : float
        In (0, 1], share of the coordinates that move together, those with the smallest |∂f/∂x| first.
    max_dist : float
        In [0, 1], how far the progress of a coordinate may be from that of the straight line: 0 gives Integrated
        Gradients, 1 leaves the path free.
    anchors : int
        Points of the straight line that the path must pass, instead of ``max_dist``: the path is free on each of the
        anchors + 1 pieces, which share ``n_steps``, rounded up.
    method : {"trapezoid", "left", "right"}
        The left rule is the released algorithm. The trapezoid is of second order and halves segments whose error, known
        from the scores at their ends, is above 20 / n_steps² of the change of the score: kinks, which more steps hardly
        mend. That adds at most n_steps gradients an image, 32 · n_steps where halving helps; on average 1 to
        2.3 · n_steps on the zoo's LeNet and 0.2 to 8 · n_steps on its deep networks, the path left free.
    internal_batch_size : int, optional
        Images (times pieces) per pass through the model.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,).

    Raises
    ------
    ValueError
        As for :func:`manifold_lib.gradient`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model = lambda x: (x[:, :1] * x[:, 1:]).repeat(1, 2)
    >>> ml.guided_ig(model, torch.tensor([[1.0, 2.0]]), 0, n_steps=20).sum()
    tensor(2.)
    """
    check_choice(method, "method", ("trapezoid", "left", "right"))
    check_count(n_steps, "n_steps")
    options: dict[str, Any] = {"n_steps": n_steps, "fraction": fraction, "max_dist": max_dist, "anchors": anchors}
    with scoring(model, inputs, target, n_steps, additional_forward_args, internal_batch_size) as scorer:
        baselines = check_baselines(baselines, inputs).detach()
        path = guided_path(scorer, inputs, baselines=baselines, progress=progress, **options)
        attributions = integrate(scorer, path, method=method, name="guided_ig")
        return with_delta(scorer, attributions, inputs.detach(), baselines, return_convergence_delta)


def guided_path(
    model: Model | Scorer,
    inputs: Tensor,
    target: Target = None,
    *,
    baselines: Tensor | float | None = None,
    n_steps: int = 200,
    fraction: float = 0.25,
    max_dist: float = 0.02,
    anchors: int = 0,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    progress: bool = False,
) -> Path:
    """The path of :func:`guided_ig`, whose arguments these are, to look at or to integrate.

    Its nodes are found when they are needed. To look at them keeps (n_steps + 1) · B images in memory; the integral of
    the score that guides the path keeps one node at a time.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model = lambda x: (x[:, :1] + 2 * x[:, 1:]).repeat(1, 2)  # the first entry has the smaller gradient
    >>> ml.guided_path(model, torch.ones(1, 2), 0, n_steps=2, max_dist=1.0).sample(2)
    tensor([[[0., 0.],
             [1., 0.],
             [1., 1.]]])
    """
    check_batch(inputs)
    check_count(n_steps, "n_steps")
    check_share(fraction, "fraction")
    check_share(max_dist, "max_dist", zero=True)
    n_pieces = check_count(anchors, "anchors", least=0) + 1
    steps = math.ceil(n_steps / n_pieces)
    starts, ends = check_baselines(baselines, inputs).detach(), inputs.detach()
    with scoring(model, ends, target, n_steps, additional_forward_args, internal_batch_size) as own:
        if own is not model:
            own.look(ends)

        def stream(scorer: Scorer, rows: Tensor, last: bool) -> tuple[Iterator[Node], Evaluate]:
            piece = _piece(ends[rows // n_pieces], starts[rows // n_pieces], rows % n_pieces, n_pieces)
            evaluate = functools.partial(_evaluate, scorer)
            nodes = greedy_nodes(evaluate, *piece, steps, fraction, 1.0 if anchors else max_dist, last=last)
            return nodes, evaluate

        settings: dict[str, Any] = {"n_steps": steps, "n_pieces": n_pieces, "size": own.size, "progress": progress}
        return streamed_path(own, stream, (starts, ends), **settings, name="guided_ig")


def _evaluate(scorer: Scorer, points: Tensor, rows: Tensor, guide: bool) -> tuple[Node, Tensor | None]:
    """Pixels are their own coordinates, and the gradient is the guide."""
    value, gradient = scorer.score_and_gradient(points, rows)
    return Node(points, points, gradient, value), gradient if guide else None


def _piece(inputs: Tensor, baselines: Tensor, index: Tensor, n_pieces: int) -> tuple[Tensor, Tensor]:
    """Ends of some pieces of the straight lines."""
    if n_pieces == 1:
        return baselines, inputs
    displacement = inputs - baselines
    starts, ends = (baselines + column((index + i) / n_pieces, inputs) * displacement for i in (0, 1))
    return starts, torch.where(column(index, inputs) == n_pieces - 1, inputs, ends)
