"""The models of the zoo: how each is built, and from which data and models it is trained.

``NAME.k`` is the replica k of a model: the same recipe with another seed. Replicas of odd k come from the second VAE or
autoencoder of their set, so that networks and manifolds vary together.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..models import classifiers
from ..models.vae import VAE, Autoencoder, ConvVAE, PhotoAutoencoder


class Recipe(NamedTuple):
    """How a model is built, from which models and data it is trained, and what is measured on it."""

    build: Callable[[], nn.Module]
    data: str
    kind: str
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    text: str
    parents: tuple[str, ...] = ()
    bf16: bool = False
    beta: float = 1.0
    vae: int = 0  # which of the two VAEs of the set the images come from
    once: bool = False  # one draw of generated images, the same in each epoch


RECIPES: dict[str, Recipe] = {}  # those in data/models


def is_generated(recipe: Recipe) -> bool:
    """Whether a model is trained on images that the zoo's own VAE generates."""
    return recipe.kind in ("generated", "robust")


def replica(name: str, seed: int) -> str:
    """The name of a replica; 0 is the model itself."""
    return f"{name}.{seed}" if seed else name


def recipe(name: str) -> Recipe:
    """The recipe of a model or of a replica. Raises ``ValueError`` for a name that is not in the zoo."""
    base, dot, seed = name.partition(".")
    if base not in RECIPES or (dot and not (seed.isdecimal() and seed == str(int(seed)) != "0")):
        raise ValueError(f"name: got {name!r}, wants one of {', '.join(key for key in RECIPES if '.' not in key)}")
    if not seed:
        return RECIPES[base]
    found, number = RECIPES[base], int(seed)
    parents = (replica(key, number if is_generated(RECIPES[key]) else number % 2) for key in found.parents)
    changed: dict[str, Any] = _OF_REPLICAS.get(base, {})
    return found._replace(seed=found.seed + 100 * number, parents=tuple(parents), vae=number % 2, **changed)


def _add(name: str, build: Callable[[], nn.Module], data_: str, kind: str, *rest: Any, **more: Any) -> None:
    RECIPES[name] = Recipe(build, data_, kind, *rest, **more)


# The paper trains on 60,000 images, the same in each epoch. Its LeNets here come in fives, so they see them less often.
_OF_REPLICAS: dict[str, dict[str, Any]] = {
    "lenet-mnist32-robust": {"epochs": 4},
    **{
        f"lenet-{name}": {"epochs": 4, "once": True, "text": "the paper's LeNet, 60,000 generated images"}
        for name in ("mnist32", "fashion32")
    },
}

# epochs, batch size, learning rate. Long training with large batches makes prior samples of digits clearer: the share
# with p_max ≥ 0.9 grows from 67 to 75 %.
_VAE_SCHEDULES = {"mnist32": (72, 256, 2e-3), "fashion32": (28, 128, 1e-3)}

for _name in ("mnist32", "fashion32"):
    _vae_text = "β-TCVAE loss (α = 1, β = 6, γ = 1), Burgess architecture, k = 10, He initialisation, all real images"
    _add(f"{_name}-vae", VAE, _name, "vae", *_VAE_SCHEDULES[_name], 1, _vae_text)
    _add(
        f"{_name}-vae-b",
        functools.partial(VAE, width=24, hidden=192),
        *(_name, "vae", 16, 128, 1e-3, 2, _vae_text + "; other seed, width 24 and 192, for explainers"),
    )
    _add(
        f"{_name}-labeller",
        classifiers.labeller,
        *(_name, "reconstructions", 12, 128, 2e-3, 3, "CNN of 0.4 M parameters on the reconstructions of real images"),
        parents=(f"{_name}-vae",),
        bf16=True,
    )
    _add(
        f"lenet-{_name}",
        classifiers.lenet,
        *(_name, "generated", {"mnist32": 14, "fashion32": 10}[_name], 64, 1e-3, 4),
        "the paper's LeNet, 60,000 fresh generated images an epoch",
        parents=(f"{_name}-vae", f"{_name}-labeller"),
        bf16=True,
    )
    _add(
        f"small-lenet-{_name}",
        functools.partial(classifiers.lenet, width=8),
        *(_name, "generated", 12, 64, 2e-3, 22),
        "the paper's LeNet at a quarter of its width, 60,000 generated images, as in the paper the same in each epoch",
        parents=(f"{_name}-vae", f"{_name}-labeller"),
        once=True,
    )
_ROBUST = ("15,000 fresh generated images an epoch", "60,000 generated images")
for _small, _epochs, _drawn in (("", 8, _ROBUST[0]), ("small-", 2, _ROBUST[1])):
    _add(
        f"{_small}lenet-mnist32-robust",
        functools.partial(classifiers.lenet, width=8 if _small else 32),
        *("mnist32", "robust", _epochs, 64, 5e-4, 23 if _small else 5),
        f"starts from {_small}lenet-mnist32; {_drawn} under L2-PGD: 10 steps, norms per image, "
        "ε drawn from {0.5, 1, 2}",
        parents=("mnist32-vae", "mnist32-labeller", f"{_small}lenet-mnist32"),
        bf16=not _small,
        once=bool(_small),
    )
_add(
    "cifar-ae",
    functools.partial(Autoencoder, 3, 48, 9),
    *("cifar10", "autoencoder", 30, 64, 1e-3, 6),
    "convolutional autoencoder, stride 8, latent 9×4×4 (k = 144), L1 loss",
    bf16=True,
)
_add(
    "cifar-cnn",
    functools.partial(classifiers.small_vgg, 10),
    *("cifar10", "reconstructions", 12, 64, 2e-3, 7, "small VGG with batch norm on cifar-ae's reconstructions"),
    parents=("cifar-ae",),
    bf16=True,
)
_add(
    "xray-ae",
    functools.partial(Autoencoder, 1, 16, 8),
    *("xray", "autoencoder", 30, 32, 1e-3, 8, "convolutional autoencoder, stride 8, latent 8×8×8 (k = 512), L1 loss"),
    bf16=True,
)
_add(
    "xray-cnn",
    functools.partial(classifiers.small_vgg, 2, 1, 16),
    *("xray", "reconstructions", 12, 32, 1e-3, 9, "small VGG with batch norm on xray-ae's reconstructions"),
    parents=("xray-ae",),
    bf16=True,
)

# Paper 3: a VAE with a map of latents for each set, and families of classifiers on its reconstructions.
_FAMILIES: dict[str, tuple[Callable[..., nn.Module], int]] = {  # and the seed
    "resnet": (classifiers.small_resnet, 11),
    "vgg": (classifiers.small_vgg, 12),
    "inception": (classifiers.small_inception, 13),
}
_FAMILIES_OF = {"fashion32": tuple(_FAMILIES), "xray": tuple(_FAMILIES), "cifar10": ("vgg",)}
# image channels; VAE: widths, latent channels, epochs, batch size, β; classifiers: classes, epochs, batch size
_MAPS = {
    "fashion32": (1, (32, 64, 64), 8, 12, 128, 0.5, 10, 4, 128),
    "xray": (1, (16, 32, 64, 64), 8, 50, 32, 0.2, 2, 10, 32),
    "cifar10": (3, (48, 96), 16, 25, 64, 0.02, 10, 12, 64),
}
for _name, (_channels, _widths, _latents, _epochs, _size, _beta, _classes, _rounds, _batch) in _MAPS.items():
    _add(
        f"{_name}-conv-vae",
        functools.partial(ConvVAE, _channels, _widths, _latents),
        *(_name, "elbo", _epochs, _size, 1e-3, 10),
        f"convolutional VAE, SiLU, {_latents} maps of latents, ELBO with β = {_beta}, 1 % black images",
        bf16=True,
        beta=_beta,
    )
    for _family in _FAMILIES_OF[_name]:
        _build, _seed = _FAMILIES[_family]
        _add(
            f"{_name}-{_family}",
            functools.partial(_build, _classes, _channels, 16 if _channels == 1 else 24),
            *(_name, "reconstructions", _rounds, _batch, 2e-3, _seed),
            f"small {_family} with batch norm on the reconstructions of {_name}-conv-vae",
            parents=(f"{_name}-conv-vae",),
            bf16=True,
        )

# Paper 4: a smooth network. Digits in both polarities, so that some objects are as dark as the baseline.
_add(
    "mnist32-softplus",
    classifiers.soft_cnn,
    *("mnist32", "polarities", 8, 128, 2e-3, 14, "softplus CNN on real images, half of them inverted"),
)

# Paper 5: maps of latents for digits, and narrower ones, to see what a worse VAE does to its explanations.
for _name, _latents, _seed in (("conv-vae", 8, 16), ("conv-vae-2", 2, 17), ("conv-vae-1", 1, 18)):
    _add(
        f"mnist32-{_name}",
        functools.partial(ConvVAE, 1, (32, 64, 64), _latents),
        *("mnist32", "elbo", 12, 128, 1e-3, _seed),
        f"convolutional VAE, SiLU, {_latents} map(s) of latents, ELBO with β = 0.5, 1 % black images",
        bf16=True,
        beta=0.5,
    )

# The comparison: smooth classifiers, so that every method has its path, and VAEs of the rendered shapes, whose tangent
# spaces can be held against the exact ones, by their latents and by their epochs.
_add(
    "fashion32-softplus",
    classifiers.soft_cnn,
    *("fashion32", "generated", 5, 64, 2e-3, 19, "softplus CNN, 60,000 fresh generated images an epoch"),
    parents=("fashion32-vae", "fashion32-labeller"),
)
_add(
    "shapes-softplus",
    functools.partial(classifiers.soft_cnn, 4),
    *("shapes", "plain", 10, 64, 2e-3, 20, "softplus CNN on rendered shapes"),
)
for _latents, _epochs in ((4, 24), (8, 24), (16, 24), (32, 24), (16, 1), (16, 4)):
    _add(
        f"shapes-vae-{_latents}" + ("" if _epochs == 24 else f"-{_epochs}"),
        functools.partial(VAE, _latents, 24, 192),
        *("shapes", "elbo", _epochs, 64, 1e-3, 21),
        f"the VAE of mnist32-vae-b with {_latents} latents, ELBO, 20,000 rendered shapes, 1 % black images",
    )

# One's own photographs.
_add(
    "photo-ae",
    PhotoAutoencoder,
    *("photographs", "photographs", 40, 16, 2e-3, 24),
    "linear map of patches and convolutional network, SiLU, stride 8, 32 maps of latents, squared error, squares of "
    "128 pixels out of 900 photographs of ImageNet and 1,336 of flowers",
    bf16=True,
)

# Replicas that are committed. Those of large networks are kept in the cache.
for _name, _count in (
    *((f"{_set}-{_part}", _count) for _set in ("cifar", "xray") for _part, _count in (("ae", 1), ("cnn", 4))),
    *((f"{_set}-{_part}", 1) for _set in _VAE_SCHEDULES for _part in ("vae", "labeller")),
    *((f"small-lenet-{_model}", 4) for _model in ("mnist32", "mnist32-robust", "fashion32")),
):
    for _seed in range(1, _count + 1):
        RECIPES[replica(_name, _seed)] = recipe(replica(_name, _seed))
