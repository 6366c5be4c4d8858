"""Models, decoders and counters that the unit tests share."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from manifold_lib.core.checks import AttributionWarning
from manifold_lib.paths import Path

# The chunk is sized on a few probe points; a count of evaluations may be above the law by no more than this.
PROBES = 6


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that depend on the seed only."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Refill the weights from a seed of their own, so that no test depends on the global one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
    return model


def smooth_model(
    shape: tuple[int, ...] = (1, 4, 4), n_classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> nn.Module:
    """A small network whose scores are smooth in the inputs."""
    size = torch.Size(shape).numel()
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(size, 12), nn.Tanh(), nn.Linear(12, n_classes)), seed).to(dtype)


def conv_model(n_classes: int = 4, channels: int = 2, seed: int = 0) -> nn.Sequential:
    """Convolution, batch norm and dropout, in eval mode, with running statistics that are not the initial ones."""
    model = nn.Sequential(
        *(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, n_classes)),
    )
    seeded(model, seed)
    model[1].running_mean.copy_(draw(6, seed=seed + 1))
    model[1].running_var.copy_(draw(6, seed=seed + 2).abs() + 0.5)
    return model.eval()


def relu_net(seed: int, shape: tuple[int, ...] = (64, 64, 64, 5)) -> nn.Module:
    """Layers of ReLU, whose score is full of kinks."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(shape):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return seeded(nn.Sequential(*layers[:-1]).double(), seed)


class Quadratic(nn.Module):
    """f_c(x) = ½ xᵀ A_c x + w_c·x with symmetric A_c; one class gives scores (B,)."""

    def __init__(self, size: int, n_classes: int | None = 2, seed: int = 0) -> None:
        super().__init__()
        matrices = draw(n_classes or 1, size, size, seed=seed)
        self.register_buffer("matrices", matrices + matrices.mT)
        self.register_buffer("weights", draw(n_classes or 1, size, seed=seed + 1))
        self.single = n_classes is None

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        scores = 0.5 * torch.einsum("bi,cij,bj->bc", flat, self.matrices, flat) + flat @ self.weights.mT
        return scores[:, 0] if self.single else scores

    def gradient(self, points: Tensor, target: int = 0) -> Tensor:
        """The gradient in closed form."""
        return points @ self.matrices[target] + self.weights[target]


class Counting(nn.Module):
    """Passes everything on to a model and notes how many points it sees, and whether a gradient is wanted."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.calls: list[tuple[int, bool]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls.append((len(inputs), torch.is_grad_enabled() and inputs.requires_grad))
        return self.model(inputs)

    @property
    def largest(self) -> int:
        return max(rows for rows, _ in self.calls)

    @property
    def gradient_rows(self) -> int:
        return sum(rows for rows, graded in self.calls if graded)


def snapshot(model: nn.Module) -> dict:
    """All that a caller could notice of a model."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "storage": {
            name: (tensor.data_ptr(), tensor.stride(), tensor.dtype, tensor.requires_grad)
            for name, tensor in tensors.items()
        },
        "grads": {name: None if tensor.grad is None else tensor.grad.clone() for name, tensor in tensors.items()},
        "modes": [module.training for module in model.modules()],
        "hooks": [
            copy.copy(hooks)
            for module in model.modules()
            for hooks in (
                module._forward_hooks,
                module._forward_pre_hooks,
                module._backward_hooks,
                module._backward_pre_hooks,
            )
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


@contextlib.contextmanager
def untouched(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    """Assert that the model and these tensors come out exactly as they went in."""

    def state_of(tensor: Tensor) -> tuple:
        return tensor.data_ptr(), tensor.stride(), tensor.requires_grad, tensor._version, tensor.grad is None

    before, states = snapshot(model), [state_of(tensor) for tensor in tensors]
    yield
    after = snapshot(model)
    for kind in ("values", "grads"):
        for name, value in before[kind].items():
            same = after[kind][name] is None if value is None else torch.equal(after[kind][name], value)
            assert same, f"{kind} of {name} changed"
    for kind in ("storage", "modes", "hooks", "attributes"):
        assert after[kind] == before[kind], f"{kind} changed"
    assert [state_of(tensor) for tensor in tensors] == states


@contextlib.contextmanager
def one_warning() -> Iterator[None]:
    """Assert that exactly one warning is given, and that it is the library's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [item.category for item in caught] == [AttributionWarning], [str(item.message) for item in caught]


@contextlib.contextmanager
def no_warning() -> Iterator[None]:
    """Turn every warning into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def wavy_path(inputs: Tensor, baselines: Tensor) -> Path:
    """From baselines to inputs, with a bump across that vanishes at both ends."""
    bump = draw(*inputs.shape[1:], seed=9)

    def at(rows: Tensor, t: Tensor) -> Tensor:
        s = t.view(-1, *(1,) * (inputs.ndim - 1))
        start, end = baselines[rows], inputs[rows]
        return start + s * (end - start) + torch.sin(math.pi * s) * bump

    return Path(at, end=inputs)


def arc(radius: float = 1.0, start: float = 0.2, sweep: float = 1.3) -> tuple[Path, Tensor, float, float]:
    """Circle arcs (B = 2) of two radii, and their first and last angle."""
    radii = torch.tensor([radius, 2 * radius], dtype=torch.float64)

    def at(rows: Tensor, t: Tensor) -> Tensor:
        angle = start + sweep * t
        return radii[rows, None] * torch.stack([angle.cos(), angle.sin()], 1)

    return Path(at), radii, start, start + sweep


def product(inputs: Tensor) -> Tensor:
    """f = x·y, as scores (B,)."""
    return inputs[:, 0] * inputs[:, 1]


class IdentityVAE:
    """Latents that are the inputs."""

    encode = decode = staticmethod(lambda x: x)


class CurvedVAE(nn.Module):
    """A smooth decoder of a map of 2 × 2 × 2 latents, an encoder that is not its inverse, images (1, 4, 4)."""

    def __init__(self, seed: int = 1, scale: float = 1.0) -> None:
        super().__init__()
        self.up = seeded(nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 16)).double(), seed)
        self.down = seeded(nn.Linear(16, 8).double(), seed + 1)
        self.scale = scale

    def encode(self, x: Tensor) -> Tensor:
        return self.down(x.flatten(1)).view(-1, 2, 2, 2)

    def decode(self, z: Tensor) -> Tensor:
        return self.scale * self.up(z.flatten(1)).view(-1, 1, 4, 4)


def root_model(inputs: Tensor) -> Tensor:
    """Scores √(Σx²)·(1, 2), whose gradient at x = 0 is NaN."""
    return inputs.flatten(1).pow(2).sum(1, keepdim=True).sqrt() * torch.tensor([1.0, 2.0], dtype=inputs.dtype)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Assert equality to ``tolerance``, relative to the largest entry expected."""
    actual, expected = actual.detach(), expected.detach()
    scale = max(float(expected.abs().max()), 1e-300)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    error = float((actual - expected).abs().max()) / scale
    assert error <= tolerance, f"relative error {error:.3g} above {tolerance:.3g}"
