"""Bad input is refused here, once, in one wording: the argument, what it got, what it wants."""

import math
import warnings
from numbers import Integral, Real

import torch
from torch import Tensor


class AttributionWarning(RuntimeWarning, UserWarning):
    """A result that should not be taken as it is: random, incomplete, not converged or not finite."""


def warn(message: str, stacklevel: int = 2) -> None:
    """A warning of the library's own category, to the caller's caller."""
    warnings.warn(message, AttributionWarning, stacklevel=stacklevel + 1)


def warn_of(name: str, rows: Tensor, what: str, stacklevel: int = 3) -> None:
    """One warning to the user of a public function, which counts the rows that are true."""
    if n_rows := int(rows.sum()):
        warn(f"{name}: {n_rows} of {len(rows)} {what}", stacklevel)


def require(met: bool | Tensor, name: str, got: object, wants: object) -> None:
    """Refuse an argument, or what a part of one gives, such as ``vae.decode``, unless a condition is met."""
    if not met:
        owner, _, part = name.partition(".")
        raise ValueError(f"{owner}: {f'{part} gave' if part else 'got'} {got}, wants {wants}")


def check_batch(value: Tensor, name: str = "inputs", *, min_dim: int = 2) -> Tensor:
    """A floating-point tensor (B, *shape) with B ≥ 1 and finite entries."""
    wanted = "a tensor (B, *shape); for several inputs see the notes of manifold_lib.gradient"
    require(isinstance(value, Tensor), name, type(value).__name__, wanted)
    shape = tuple(value.shape)
    wanted = "(B, *shape)" if min_dim == 2 else f"at least {min_dim} dimensions"
    require(value.ndim >= min_dim, name, f"shape {shape}", f"{wanted}; for one item use {name}[None]")
    require(value.numel() > 0, name, f"shape {shape}", "a batch that is not empty")
    require(value.is_floating_point(), name, f"{value.dtype} of shape {shape}", "floating point")
    require(torch.isfinite(value).all(), name, f"NaN or infinity in shape {shape}", "finite entries")
    return value


def check_precise(value: Tensor, name: str) -> Tensor:
    """Single or double precision, in which linear systems are solved and small steps are told from rounding."""
    require(value.dtype in (torch.float32, torch.float64), name, value.dtype, "float32 or float64")
    return value


def check_like(value: Tensor | float, reference: Tensor, name: str, reference_name: str = "inputs") -> Tensor:
    """A tensor of the reference's shape; a number, or a tensor with dimensions of 1, is expanded to it."""
    shape, like = tuple(reference.shape), f"like {reference_name}"
    if not isinstance(value, Tensor):
        require(isinstance(value, Real), name, type(value).__name__, f"a number or a tensor {shape}")
        value = reference.new_full((1,) * reference.ndim, float(value)).expand_as(reference)
    check_batch(value, name, min_dim=1)
    pairs = zip(value.shape, shape, strict=False)
    fits = value.ndim == reference.ndim and all(size in (1, wanted) for size, wanted in pairs)
    require(fits, name, f"shape {tuple(value.shape)}", f"{shape} {like}")
    require(value.device == reference.device, name, f"device {value.device}", f"{reference.device} {like}")
    require(value.dtype == reference.dtype, name, value.dtype, f"{reference.dtype} {like}")
    return value.expand_as(reference)


def check_baselines(baselines: Tensor | float | None, inputs: Tensor) -> Tensor:
    """A tensor of the inputs' shape, from one that expands to it, a number, or None for zeros."""
    return check_like(0.0 if baselines is None else baselines, inputs, "baselines")


def check_map(attributions: Tensor, inputs: Tensor, name: str = "attributions") -> Tensor:
    """A floating-point tensor of the inputs' shape; NaN may pass, since an attribution that failed is one."""
    wanted = f"{inputs.dtype} {tuple(inputs.shape)} on {inputs.device}"
    require(isinstance(attributions, Tensor), name, type(attributions).__name__, f"{wanted} like inputs")
    got = f"{attributions.dtype} {tuple(attributions.shape)} on {attributions.device}"
    require(got == wanted, name, got, f"{wanted} like inputs")
    return attributions


def check_count(value: int, name: str, *, least: int = 1) -> int:
    """An integer of at least ``least``."""
    met = isinstance(value, Integral) and not isinstance(value, bool) and value >= least
    require(met, name, repr(value), f"an integer of at least {least}")
    return int(value)


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> str:
    """One of the given words."""
    require(value in choices, name, repr(value), f"one of {', '.join(map(repr, choices))}")
    return value


def check_positive(value: float, name: str, *, zero: bool = False) -> float:
    """A finite number above zero (or, with ``zero``, not below it)."""
    met = isinstance(value, Real) and not isinstance(value, bool)
    met = met and (0 < float(value) < math.inf or (zero and float(value) == 0))
    require(met, name, repr(value), f"a finite number {'of at least' if zero else 'above'} 0")
    return float(value)


def check_share(value: float, name: str, *, zero: bool = False) -> float:
    """A number in (0, 1] (or, with ``zero``, in [0, 1])."""
    require(check_positive(value, name, zero=zero) <= 1, name, repr(value), "at most 1")
    return float(value)


def check_range(value: tuple[float, float] | None, name: str) -> None:
    """None, or a pair (low, high) of numbers with low < high."""
    if value is not None:
        pair = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(end, Real) for end in value)
        require(pair and value[0] < value[1], name, repr(value), "None or (low, high) with low < high")


def check_generator(value: torch.Generator | None, device: torch.device | str) -> torch.device | str:
    """The device to draw on: the generator's, which need not be the one of the inputs, else ``device``."""
    if value is None:
        return device
    require(isinstance(value, torch.Generator), "generator", type(value).__name__, "a torch.Generator or None")
    return value.device


def floor_of(count: float) -> int:
    """⌊count⌋ of a product that rounding, also of a share in single precision, may have left below a whole number."""
    return math.floor(count * (1 + 1e-7) + 1e-9)


def warn_non_finite(values: Tensor, name: str) -> None:
    """One warning that counts the images whose result holds NaN or infinity."""
    warn_of(name, ~torch.isfinite(values.detach().flatten(1)).all(1), "images have NaN or infinite values", 4)
