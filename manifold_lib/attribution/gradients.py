"""Gradients of the score: at the input, times the input, and averaged over noise or over baselines."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_batch, check_count, check_generator, check_like, check_positive, warn_non_finite
from ..core.scorer import Model, Target, scoring, warn_incomplete
from ..paths.integral import path_method
from ..paths.path import column
from ..paths.quadrature import empty_sum, pairs, summed_gradients


def gradient(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
) -> Tensor:
    """∂f/∂x, signed, of the logit.

    Parameters
    ----------
    model : callable
        Scores (B, C), or (B,), from inputs (B, *shape).
    inputs : Tensor
        (B, *shape).
    target : int, Tensor or None
        Class explained, for all or for each image (B,); None means the predicted class.
    additional_forward_args : tuple, Tensor or other, optional
        Other arguments of the model, as in Captum: a tensor or a tuple. Tensors whose first dimension is B follow
        their image; everything else is passed on as it is.
    internal_batch_size : int, optional
        Points per pass through the model. By default they are sized to the cache of a CPU or the memory of a GPU.
    create_graph : bool
        Keep the graph, to differentiate the attribution itself, as attacks on it do.

    Returns
    -------
    Tensor
        (B, *shape), score units per input unit.

    Raises
    ------
    ValueError
        For bad input, naming the argument, what it got and what it wants.

    Notes
    -----
    One tensor is explained, of a model with one tensor of scores; this holds for all methods. A model of several inputs
    is explained one input at a time, the others given as ``additional_forward_args``; or, all at once, by a wrapper
    that takes them joined. A wrapper also picks one of several outputs:

    >>> import torch, manifold_lib as ml
    >>> def model(image, text):  # two inputs, a tuple of two outputs
    ...     return (image * text).sum(1, keepdim=True), text
    >>> image, text = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])
    >>> ml.gradient(lambda x, other: model(x, other)[0], image, 0, additional_forward_args=text)
    tensor([[3., 5.]])
    >>> ml.gradient(lambda both: model(both[:, :2], both[:, 2:])[0], torch.cat([image, text], 1), 0)
    tensor([[3., 5., 1., 2.]])

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.gradient(lambda x: (x**2).sum(1, keepdim=True), torch.tensor([[1.0, 2.0]]), 0)
    tensor([[2., 4.]])
    """
    with scoring(model, inputs, target, 1, additional_forward_args, internal_batch_size) as scorer:
        ones, graph = inputs.new_ones(1), {"create_graph": create_graph}
        attributions = summed_gradients(scorer, lambda rows, _: inputs[rows], ones, inputs, **graph)
    warn_non_finite(attributions, "gradient")
    return attributions


def input_x_gradient(model: Model, inputs: Tensor, target: Target = None, **options: Any) -> Tensor:
    """x ⊙ ∂f/∂x (Shrikumar et al. 2016): (B, *shape) in score units; arguments are those of :func:`gradient`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.input_x_gradient(lambda x: (x**2).sum(1, keepdim=True), torch.tensor([[1.0, 2.0]]), 0)
    tensor([[2., 8.]])
    """
    slopes = gradient(model, inputs, target, **options)
    return (inputs if options.get("create_graph") else inputs.detach()) * slopes


def smoothgrad(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    n_samples: int = 25,
    stdevs: float = 0.02,
    generator: torch.Generator | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    create_graph: bool = False,
) -> Tensor:
    """Mean signed gradient over noisy copies x + N(0, σ²) (Smilkov et al. 2017).

    The class is that of the clean image. The images share the noise, so no attribution depends on its batch.

    Parameters
    ----------
    model, inputs, target, additional_forward_args, internal_batch_size, create_graph
        As for :func:`gradient`.
    n_samples : int
        Noisy copies; 25 in paper 1.
    stdevs : float
        σ in input units; 0.02 for the digits of paper 1, 0.2 for its medical images.
    generator : torch.Generator, optional
        For the noise; torch's default one otherwise.

    Returns
    -------
    Tensor
        (B, *shape), score units per input unit.

    Raises
    ------
    ValueError
        As for :func:`gradient`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> ml.smoothgrad(lambda x: (x**2).sum(1, keepdim=True), torch.tensor([[1.0, 2.0]]), 0, stdevs=0.0)
    tensor([[2.0000, 4.0000]])
    """
    check_batch(inputs)
    check_count(n_samples, "n_samples")
    check_positive(stdevs, "stdevs", zero=True)
    noise = stdevs * drawn(torch.randn, (n_samples, *inputs.shape[1:]), inputs, generator)
    with scoring(model, inputs, target, n_samples, additional_forward_args, internal_batch_size) as scorer:
        weights, graph = inputs.new_full((n_samples,), 1 / n_samples), {"create_graph": create_graph}
        attributions = summed_gradients(scorer, lambda rows, i: inputs[rows] + noise[i], weights, inputs, **graph)
    warn_non_finite(attributions, "smoothgrad")
    return attributions


@path_method
def expected_gradients(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    references: Tensor,
    n_samples: int = 100,
    generator: torch.Generator | None = None,
    additional_forward_args: Any = None,
    internal_batch_size: int | None = None,
    return_convergence_delta: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Expected Gradients (Erion et al. 2021): Integrated Gradients averaged over baselines, by Monte Carlo.

    Each sample is a reference and a time t ~ U(0, 1), drawn once and shared by the images.

    Parameters
    ----------
    model, inputs, target, generator, additional_forward_args, internal_batch_size
        As for :func:`smoothgrad`.
    references : Tensor
        (N, *shape), the images that baselines are drawn from.
    n_samples : int
        Gradients of each image.
    return_convergence_delta : bool
        Also return Σ A − (f(x) − mean f(references drawn)), of order 1/√n_samples.

    Returns
    -------
    Tensor, or (Tensor, Tensor)
        (B, *shape) in score units; with the flag also the deltas (B,).

    Raises
    ------
    ValueError
        As for :func:`gradient`.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> model = lambda x: x.sum(1, keepdim=True)
    >>> ml.expected_gradients(model, torch.tensor([[1.0, 2.0]]), 0, references=torch.zeros(1, 2)).round(decimals=4)
    tensor([[1., 2.]])
    """
    check_batch(inputs)
    check_batch(references, "references")
    if references.shape[1:] != inputs.shape[1:]:
        raise ValueError(f"references: got shape {tuple(references.shape)}, wants (N, *{tuple(inputs.shape[1:])})")
    check_like(references[:1], inputs, "references")
    check_count(n_samples, "n_samples")
    device = check_generator(generator, inputs.device)
    chosen = torch.randint(len(references), (n_samples,), generator=generator, device=device).to(inputs.device)
    times = drawn(torch.rand, (n_samples,), inputs, generator)
    inputs, references = inputs.detach(), references.detach()
    delta = None
    with scoring(model, inputs, target, n_samples, additional_forward_args, internal_batch_size) as scorer:
        sums, change = empty_sum(inputs), scorer.score(inputs) if return_convergence_delta else None
        for rows, index in pairs(len(inputs), n_samples, scorer.size, inputs.device):
            starts = references[chosen[index]]
            displacement = inputs[rows] - starts
            slopes = scorer.gradient(starts + column(times[index], inputs) * displacement, rows)
            sums.index_add_(0, rows, (slopes * displacement).to(sums.dtype) / n_samples)
            if change is not None:
                change.index_add_(0, rows, -scorer.score(starts, rows) / n_samples)
        attributions = sums.to(inputs.dtype)
        if change is not None:
            warn_incomplete(attributions, change, "expected_gradients")
            delta = attributions.flatten(1).sum(1) - change
    warn_non_finite(attributions, "expected_gradients")
    return attributions if delta is None else (attributions, delta)


def drawn(sample: Callable[..., Tensor], shape: tuple, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """``torch.rand`` or ``torch.randn`` on the generator's device, moved to that of ``like``."""
    device = check_generator(generator, like.device)
    return sample(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
