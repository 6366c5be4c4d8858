"""Derivatives of the user's functions: kernels that have them, forward mode, and the checks that they are not cut."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .checks import require
from .modules import buffers_as_found, check_mode, modules_behind

Function = Callable[..., Tensor]


@contextlib.contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Run attention by kernels that have forward mode and second derivatives; then put the user's setting back.

    Torch's fused kernels for attention have first derivatives in reverse mode only.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def called(function: Function, points: Tensor, *args: object, name: str) -> Tensor:
    """What the user's function gives, also where it takes gradients inside and gradients are off."""
    try:
        return _usable(function(points, *args))
    except RuntimeError as error:
        parameters = (parameter for module in modules_behind(function) for parameter in module.parameters())
        dtype = next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), points.dtype)
        if dtype != points.dtype and "type" in str(error):
            what = {"decoder": "latents", "vae.decode": "vae: the latents of encode"}.get(name, "inputs")
            message = f"{what}: got {points.dtype}, wants {dtype} like the parameters of the {name}"
            raise ValueError(message) from error
        if torch.is_grad_enabled():
            raise
        with torch.inference_mode(False), torch.enable_grad():
            # inside torch.func this fails too, which is right, since the derivative would be lost
            output = function(points.detach().clone().requires_grad_(), *args)
            return _usable(output.detach() if isinstance(output, Tensor) else output)


def _usable(output: Tensor) -> Tensor:
    """A tensor that may take part in a graph, which one made in inference mode may not."""
    made_there = isinstance(output, Tensor) and output.is_inference() and not torch.is_inference_mode_enabled()
    return output.clone() if made_there else output


def jvp(function: Function, point: Tensor, direction: Tensor, name: str = "decoder") -> tuple[Tensor, Tensor]:
    """Value and directional derivative; by two backward passes where a function has no forward mode.

    A function has none if it takes gradients inside, or holds an operation without a rule for it. In inference mode,
    where torch 2.11 gives zeros, this works as under ``no_grad``.
    """
    keep = torch.is_grad_enabled()  # which leaving inference mode would turn on
    with torch.inference_mode(False), torch.set_grad_enabled(keep), differentiable_kernels(), warnings.catch_warnings():
        # torch's own first use of forward mode is deprecated
        warnings.filterwarnings("ignore", message=".*torch.jit.script")
        try:
            result: Any = torch.func.jvp(function, (point,), (direction,))
            return result
        except RuntimeError:
            return _jvp_backward(function, point, direction, name)


def _jvp_backward(function: Function, point: Tensor, direction: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The derivative of u ↦ Jᵀu, which is linear, along the direction."""
    keep = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        point = point if point.requires_grad else point.detach().requires_grad_()
        value = function(point)
        weights = torch.zeros_like(value, requires_grad=True)
        pulled = None
        if value.requires_grad:
            (pulled,) = torch.autograd.grad(value, point, weights, create_graph=True, allow_unused=True)
        if pulled is None:
            require_slope(False, name)
        assert pulled is not None
        (slope,) = torch.autograd.grad(pulled, weights, direction, create_graph=keep, materialize_grads=True)
    return (value, slope) if keep else (value.detach(), slope)


def check_decoder(
    decoder: Function, latents: Tensor, name: str = "decoder", *, needs: str = "slope", size: int | None = None
) -> None:
    """Refuse a decoder whose rows depend on each other or on chance, or that lacks the derivative that is needed.

    It is tried on two rows, or on one where ``size`` is 1. ``needs`` is ``"rows"`` (no derivative), ``"slope"``
    (forward mode, which sees through ``torch.no_grad()``) or ``"graph"`` (reverse mode).
    """
    check_mode(decoder, name)
    with buffers_as_found(modules_behind(decoder)), torch.inference_mode(False), torch.enable_grad():
        latents = latents.detach().clone()
        alone = check_rows(decoder, latents, name, size)
        if needs == "rows":
            return
        point = (latents[:1] if alone else latents).clone().requires_grad_()
        # a copy, since a decoder may begin with an in-place layer
        image = check_images(called(decoder, point.clone(), name=name), point, name)
        attached = image.requires_grad and torch.autograd.grad(image.sum(), point, allow_unused=True)[0] is not None
        if not attached and needs == "slope":
            probe = torch.randn(point.shape, generator=torch.Generator().manual_seed(0)).to(point)
            attached = bool(jvp(lambda z: called(decoder, z.clone(), name=name), point.detach(), probe, name)[1].any())
    require_slope(attached, name)


def check_rows(function: Function, points: Tensor, name: str, size: int | None = None) -> bool:
    """Refuse a function that gives another value for a row if another row stands beside it, or by chance.

    False for one that takes no two rows, since it holds an argument for each row of a batch.
    """
    first, second = points[:1], points[-1:] if not torch.equal(points[:1], points[-1:]) else points[:1] / 2
    second = second if first.any() or second.any() else second + 0.1
    devices = [points.device] if points.device.type == "cuda" else []

    given: list[tuple[Tensor, Tensor]] = []

    def call(pair: Tensor) -> Tensor:
        given.append((called(function, pair.clone(), name=name), pair))
        return check_images(*given[-1], name)

    with torch.no_grad(), torch.random.fork_rng(devices):
        try:
            met = rows_alone(call, first, second, 1 if size == 1 else 2)(call)
        except Exception:  # whatever the user's code refuses two rows with; a real problem shows again
            if given:
                check_images(*given[-1], name)
            return False
    wants = "the means" if name.endswith("encode") else "rows on their own, as in eval mode"
    require(met, name, "rows that depend on each other or on chance", wants)
    return True


def rows_alone(call: Function, first: Tensor, second: Tensor, n_rows: int = 2) -> Callable[[Function], bool]:
    """A test of whether each of two rows keeps its value beside the other one, and when it is drawn again.

    It takes the function to test, which may be ``call`` itself. With ``n_rows`` of 1 only chance is tested.
    """
    pair = torch.cat([first, second])[:n_rows]
    alone = [call(row.expand(n_rows, *row.shape[1:])).detach() for row in (first, second)[:n_rows]]

    def state() -> Tensor:
        states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(first.device)] if first.is_cuda else [])]
        return torch.cat(states)

    def met(function: Function) -> bool:
        before, values = state(), [function(pair)]
        if not torch.equal(state(), before):
            values += [function(pair) for _ in range(16)]  # it draws, perhaps seldom with an effect
        beside = [(own[-1:], value[i : i + 1]) for value in values for i, own in enumerate(alone)]
        return all(close(*two) for two in [*beside, *((own[:1], own[-1:]) for own in alone)])

    return met


def check_images(images: object, points: Tensor, name: str) -> Tensor:
    """The output of a decoder or encoder: a floating-point tensor with a row for each point."""
    n, wants = len(points), "(B, *latent), the means" if name.endswith("encode") else "(B, *shape)"
    require(isinstance(images, Tensor), name, type(images).__name__, f"one tensor {wants}")
    assert isinstance(images, Tensor)
    met = images.ndim >= 2 and len(images) == n and images.is_floating_point()
    what, rows = ("shape" if "." in name else "output"), ("images" if name.endswith("encode") else "latents")
    require(met, name, f"{what} {tuple(images.shape)} of {images.dtype} for {n} {rows}", f"floating point {wants}")
    return images


def require_slope(met: bool, name: str) -> None:
    """Refuse a function whose derivative is cut."""
    if not met:
        owner, _, part = name.partition(".")
        what = f"what {part} gives" if part else "its scores" if name == "model" else "its output"
        do = "do" if name == "model" else "does"
        of = {"model": "the inputs", "vae.encode": "the inputs", "path": "the time"}.get(name, "the latents")
        cut = "it may be computed under no_grad or inference_mode, or detached"
        raise ValueError(f"{owner}: {what} {do} not depend on {of} differentiably; {cut}")


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two values are equal to a thousandth of the largest, NaN like NaN."""
    same = (a - b).abs() <= 1e-3 * torch.nan_to_num(a).abs().max()
    return bool((same | (a == b) | (a.isnan() & b.isnan())).all())
