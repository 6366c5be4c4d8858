"""Bad input is refused here, once, in one wording: the argument, what it got, what it wants."""

import math
import warnings
from numbers import Integral, Real

import torch
from torch import Tensor


def check_batch(value: Tensor, name: str = "inputs", *, min_dim: int = 2) -> Tensor:
    """A floating-point tensor (B, *shape) with B ≥ 1 and finite entries."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {type(value).__name__}, wants a tensor (B, *shape)")
    shape = tuple(value.shape)
    if value.ndim < min_dim:
        wanted = "(B, *shape)" if min_dim == 2 else f"at least {min_dim} dimensions"
        raise ValueError(f"{name}: got shape {shape}, wants {wanted}; for one item use {name}[None]")
    if value.numel() == 0:
        raise ValueError(f"{name}: got shape {shape}, wants a batch that is not empty")
    if not value.is_floating_point():
        raise ValueError(f"{name}: got {value.dtype} of shape {shape}, wants floating point")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name}: got NaN or infinity in shape {shape}, wants finite entries")
    return value


def check_like(value: Tensor | float, reference: Tensor, name: str, reference_name: str = "inputs") -> Tensor:
    """A tensor of the reference's shape; a number or a batch of one is expanded to it."""
    shape = tuple(reference.shape)
    if not isinstance(value, Tensor):
        if not isinstance(value, Real):
            raise ValueError(f"{name}: got {type(value).__name__}, wants a number or a tensor {shape}")
        value = torch.full((1,) * reference.ndim, float(value), dtype=reference.dtype, device=reference.device)
        value = value.expand_as(reference)
    check_batch(value, name, min_dim=1)
    if value.ndim != reference.ndim or value.shape[1:] != reference.shape[1:] or len(value) not in (1, shape[0]):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, wants {shape} like {reference_name}")
    if value.device != reference.device:
        raise ValueError(f"{name}: got device {value.device}, wants {reference.device} like {reference_name}")
    if value.dtype != reference.dtype:
        raise ValueError(f"{name}: got {value.dtype}, wants {reference.dtype} like {reference_name}")
    return value.expand_as(reference)


def check_baselines(baselines: Tensor | float | None, inputs: Tensor) -> Tensor:
    """A tensor of the inputs' shape, from one like it, a batch of one, a number, or None for zeros."""
    return check_like(0.0 if baselines is None else baselines, inputs, "baselines")


def check_map(attributions: Tensor, inputs: Tensor, name: str = "attributions") -> Tensor:
    """A floating-point tensor of the inputs' shape; NaN may pass, since an attribution that failed is one."""
    wanted = f"{inputs.dtype} {tuple(inputs.shape)} on {inputs.device} like inputs"
    if not isinstance(attributions, Tensor):
        raise ValueError(f"{name}: got {type(attributions).__name__}, wants {wanted}")
    same = attributions.shape == inputs.shape and attributions.device == inputs.device
    if not same or attributions.dtype != inputs.dtype:
        got = f"{attributions.dtype} {tuple(attributions.shape)} on {attributions.device}"
        raise ValueError(f"{name}: got {got}, wants {wanted}")
    return attributions


def check_count(value: int, name: str, *, least: int = 1) -> int:
    """An integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}: got {value!r}, wants an integer of at least {least}")
    return int(value)


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> str:
    """One of the given words."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, wants one of {', '.join(map(repr, choices))}")
    return value


def check_positive(value: float, name: str, *, zero: bool = False) -> float:
    """A finite number above zero (or, with ``zero``, not below it)."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not (0 < float(value) < float("inf") or (zero and float(value) == 0)):
        raise ValueError(f"{name}: got {value!r}, wants a finite number {'of at least' if zero else 'above'} 0")
    return float(value)


def check_share(value: float, name: str, *, zero: bool = False) -> float:
    """A number in (0, 1] (or, with ``zero``, in [0, 1])."""
    if check_positive(value, name, zero=zero) > 1:
        raise ValueError(f"{name}: got {value!r}, wants at most 1")
    return float(value)


def check_range(value: tuple[float, float] | None, name: str) -> None:
    """None, or a pair (low, high) of numbers with low < high."""
    if value is None:
        return
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(end, Real) for end in value)
    if not pair or not value[0] < value[1]:
        raise ValueError(f"{name}: got {value!r}, wants None or (low, high) with low < high")


def check_generator(value: torch.Generator | None, device: torch.device | str) -> torch.device | str:
    """The device to draw on: the generator's, which need not be the one of the inputs, else ``device``."""
    if value is None:
        return device
    if not isinstance(value, torch.Generator):
        raise ValueError(f"generator: got {type(value).__name__}, wants a torch.Generator or None")
    return value.device


def floor_of(count: float) -> int:
    """⌊count⌋ of a product that rounding, also of a share in single precision, may have left below a whole number."""
    return math.floor(count * (1 + 1e-7) + 1e-9)


def warn_non_finite(values: Tensor, name: str) -> None:
    """One warning that counts the images whose result holds NaN or infinity."""
    bad = int((~torch.isfinite(values.detach().flatten(1)).all(1)).sum())
    if bad:
        warnings.warn(
            f"{name}: {bad} of {len(values)} images have NaN or infinite values", RuntimeWarning, stacklevel=3
        )
