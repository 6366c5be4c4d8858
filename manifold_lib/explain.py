"""``python -m manifold_lib.explain photo.jpg``: what a network of ImageNet saw in one's own photograph.

Writes a picture (the photograph, a map of each method at unit norm, the five likeliest classes, and the sum of each map
beside the change of the score that it explains) and the maps themselves (``.npz``).
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import attribution, models
from .attribution import baselines
from .core.checks import check_choice, require
from .core.files import CorruptFile, DataNotFound
from .core.progress import progress_bar
from .data.images import read_image

BASELINES = ("black", "grey", "white", "blurred")


class Explained(NamedTuple):
    """What was explained, (3, H, W), the class and its score, and the map of each method, (3, H, W).

    ``changes`` are the score of the photograph less that of the baseline, which is the method's own for Blur IG;
    ``top`` the likeliest classes with their probabilities.
    """

    image: Tensor
    target: int
    score: str
    top: list[tuple[str, float]]
    maps: dict[str, Tensor]
    changes: dict[str, float]


# above each map; those of LATENT need an autoencoder
TITLES = {
    **{"input_x_gradient": "input × gradient", "smoothgrad": "input × SmoothGrad", "ig": "IG", "blur_ig": "Blur IG"},
    **{"guided_ig": "Guided IG", "eig": "EIG", "mig": "MIG", "ma_gig": "MA-GIG"},
}
LATENT = {"eig", "mig", "ma_gig"}


def _map(name: str, model: nn.Module, x: Tensor, target: int, start: Tensor, n_steps: int, vae: Any, bar: bool) -> Any:
    given = (model, x, target)
    walk: dict[str, Any] = {"baselines": start, "n_steps": n_steps}
    match name:
        case "input_x_gradient":
            return (x - start) * attribution.gradient(*given)
        case "smoothgrad":
            generator = torch.Generator().manual_seed(0)
            return (x - start) * attribution.smoothgrad(*given, n_samples=n_steps, generator=generator)
        case "ig":
            return attribution.integrated_gradients(*given, **walk)
        case "blur_ig":
            return attribution.blur_ig(*given, n_steps=n_steps)
        case "guided_ig":  # the settings of paper 5: with the default bound it differs little from IG
            return attribution.guided_ig(*given, **walk, fraction=0.1, max_dist=1.0, progress=bar)
        case "eig":
            return attribution.enhanced_ig(*given, **walk, vae=vae)
        case "mig":
            return attribution.manifold_ig(*given, baselines=start, vae=vae)
        case _:
            return attribution.ma_gig(*given, **walk, vae=vae, progress=bar)


def explain(
    file: str | Path,
    *,
    methods: Sequence[str] = ("ig", "guided_ig", "ma_gig"),
    network: str = "efficientnet_lite0",
    autoencoder: str = "photo-ae",
    target: str | int | None = None,
    baseline: str = "black",
    score: str = "probability",
    size: int = 224,
    n_steps: int = 50,
    device: str = "cpu",
    progress: bool = False,
) -> Explained:
    """Explain the class that a network of ImageNet sees in a photograph, or another one.

    Parameters
    ----------
    file : str or Path
        A photograph of any format, see :func:`manifold_lib.data.images.read_image`; the square in its middle counts.
    methods : sequence of str
        Of ``TITLES``.
    network : str
        See :func:`manifold_lib.imagenet_network`.
    autoencoder : str
        ``photo-ae`` of the zoo, a folder with the weights of TAEF2, or a folder or name of diffusers' ``AutoencoderKL``
        or ``AutoencoderTiny``.
    target : str or int, optional
        A class by number, 0 to 999, or by name; the default is the likeliest.
    baseline : str
        ``black``, ``grey``, ``white`` or ``blurred``.
    score : str
        ``probability`` or ``logit`` of the class.
    size : int
        Side of the square in pixels; a multiple of 8 for methods that need an autoencoder.
    n_steps : int
        Segments of each path.
    device, progress
        As everywhere.

    Returns
    -------
    Explained
        The photograph, its class and the maps.

    Raises
    ------
    ValueError
        A method, network, class or baseline that is not known.
    CorruptFile, FileNotFoundError
        The file is no image, or is not there.
    DataNotFound, ImportError
        Weights, or the package that holds them, are missing.

    Examples
    --------
    >>> found = explain("photo.jpg", target="espresso")  # doctest: +SKIP
    """
    require(bool(methods), "methods", "none", f"some of {', '.join(TITLES)}")
    for name in methods:
        check_choice(name, "methods", tuple(TITLES))
    check_choice(baseline, "baseline", BASELINES)
    check_choice(score, "score", ("probability", "logit"))
    latent = bool(set(methods) & LATENT)
    require(not latent or size % 8 == 0, "size", size, "a multiple of 8 for methods that need an autoencoder")
    require(size >= 32, "size", size, "at least 32")
    inputs = read_image(file, size)[None]
    try:
        inputs = inputs.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: got {device!r}, which is not there: {str(error).splitlines()[0]}") from error
    vae = load_autoencoder(autoencoder).to(device) if latent else None
    model = models.imagenet_network(network).to(device)
    with torch.no_grad():
        probabilities = model(inputs).softmax(1)[0]
    require(probabilities.isfinite().all(), "network", "probabilities that are not finite", "finite ones")
    classes = models.imagenet_classes()
    chosen = int(probabilities.argmax()) if target is None else class_number(target, classes)
    start = _baseline(baseline, inputs)
    scored = nn.Sequential(model, nn.Softmax(1)) if score == "probability" else model
    bar = progress_bar(methods, show=progress, desc="methods")
    given = (scored, inputs, chosen, start, n_steps, vae, progress)
    maps = {name: _map(name, *given)[0].detach().cpu() for name in bar}
    with torch.no_grad():
        whole = scored(inputs)[0, chosen].item()
        from_start, from_blur = (whole - scored(one)[0, chosen].item() for one in (start, _blurred(inputs)))
    changes = {name: from_blur if name == "blur_ig" else from_start for name in methods}
    top = [(classes[int(row)], float(value)) for value, row in zip(*probabilities.topk(5), strict=True)]
    return Explained(inputs[0].cpu(), chosen, score, top, maps, changes)


def _blurred(inputs: Tensor) -> Tensor:
    """Where the path of Blur IG begins."""
    return attribution.blur_path(inputs).sample(1)[:, 0]


def class_number(target: str | int, classes: Sequence[str]) -> int:
    """The number of a class that is given by number or name; part of a name does where one class alone has it."""
    word = str(target).strip().lower()
    if re.fullmatch(r"-?\d+", word):
        if not 0 <= int(word) < len(classes):
            raise ValueError(f"target: got {target}, wants a class from 0 to {len(classes) - 1}, or a name")
        return int(word)
    exact = [row for row, name in enumerate(classes) if name.lower() == word]
    found = exact or [row for row, name in enumerate(classes) if word and word in name.lower()]
    if len(found) != 1:
        several = ", ".join(f"{row} {classes[row]}" for row in found[:10])
        raise ValueError(f"target: got {target!r}, {f'which may be {several}' if found else 'which is no class'}")
    return found[0]


def load_autoencoder(name: str) -> nn.Module:
    """The zoo's ``photo-ae``, TAEF2 from a folder, or an autoencoder of diffusers by folder or name."""
    if name == "photo-ae":
        from .reproduction import zoo

        return zoo.load(name)
    folder = Path(name)
    if [*folder.glob("taef2_*.pth")]:
        return models.load_taef2(folder)
    config = folder / "config.json"
    kinds = {"AutoencoderTiny": models.load_tiny_autoencoder, "AutoencoderKL": models.load_kl_autoencoder}
    if config.is_file():
        kind = str(json.loads(config.read_text(encoding="utf-8")).get("_class_name"))
        if kind in kinds:
            return kinds[kind](name)
    elif "/" in name and not folder.exists():  # a name of diffusers, such as madebyollin/taesd
        return kinds["AutoencoderTiny" if "/tae" in name.lower() else "AutoencoderKL"](name)
    raise ValueError(
        f"autoencoder: got {name!r}, wants photo-ae, a folder with TAEF2, or one of diffusers by folder or name"
    )


def _baseline(name: str, inputs: Tensor) -> Tensor:
    if name == "blurred":
        return baselines.blurred(inputs, sigma=inputs.shape[-1] / 16)
    return torch.full_like(inputs, {"black": 0.0, "grey": 0.5, "white": 1.0}[name])


def picture(found: Explained) -> Any:
    """The photograph with its classes and every map, red where a pixel raised the score: a matplotlib figure."""
    import matplotlib.pyplot as plt

    side = max(found.image.shape[1] // 40, 1)  # a map of single pixels cannot be read
    size = found.image.shape[1]
    whole = -(-size // side) * side
    padded = {name: nn.functional.pad(one, (0, whole - size, 0, whole - size)) for name, one in found.maps.items()}
    squares = {name: nn.functional.avg_pool2d(one, side, divisor_override=1) for name, one in padded.items()}
    shown = {name: one.sum(0) / one.sum(0).norm().clamp_min(1e-30) for name, one in squares.items()}
    scale = float(torch.stack([*shown.values()]).abs().flatten().quantile(0.995)) or 1.0
    panels = len(shown) + 2
    rows = 1 if panels <= 4 else 2
    columns = -(-panels // rows)
    fig, axes = plt.subplots(rows, columns, figsize=(2.4 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    photo, bars, *rest = axes.flat
    photo.imshow(found.image.permute(1, 2, 0).numpy())
    photo.set_title("photograph", fontsize=9)
    names, values = zip(*reversed(found.top), strict=True)
    bars.barh(range(len(names)), values, color="0.7")
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        bars.annotate(f" {name} {value:.2f}", (0, row), va="center", fontsize=8)
    bars.set(yticks=[], xlim=(0, 1), xlabel="probability")
    bars.set_title("the likeliest classes", fontsize=9)
    drawn = None
    for axis, (name, one) in zip(rest, shown.items(), strict=False):
        drawn = axis.imshow(one.numpy(), cmap="RdBu_r", vmin=-scale, vmax=scale, extent=(0, whole, whole, 0))
        axis.set(xlim=(0, size), ylim=(size, 0))
        axis.set_title(f"{TITLES[name]}\nsum {found.maps[name].sum():.3g} of {found.changes[name]:.3g}", fontsize=9)
    for axis in [photo, *rest]:
        axis.axis("off")
    if drawn is not None:
        label = f"maps of unit norm, summed over {side} × {side} pixels: red raised the {found.score}, blue lowered it"
        fig.colorbar(drawn, ax=axes, shrink=0.6, aspect=40, orientation="horizontal", label=label)
    return fig


def arrays_of(found: Explained) -> dict[str, Any]:
    """What the ``.npz`` holds: each map by its name, the photograph, the class, and the changes of the score."""
    arrays: dict[str, Any] = {name: one.numpy() for name, one in found.maps.items()}
    arrays |= {"image": found.image.numpy(), "target": found.target}
    return arrays | {"methods": list(found.changes), "changes": list(found.changes.values())}


def _output(given: str | None, photograph: Path) -> Path:
    """Where the picture goes, tried before anything is computed; the maps go beside it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("explain needs matplotlib: pip install 'manifold-lib[photographs]'") from error
    matplotlib.use("Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    name = f"{photograph.stem}.explained.png"
    output = Path(given or name).expanduser()
    output = output / name if output.is_dir() else output
    output = output.with_suffix(".png") if output.suffix in ("", ".npz") else output
    known = FigureCanvasAgg.get_supported_filetypes()
    require(output.suffix[1:].lower() in known, "output", output.suffix, f"one of {', '.join(known)}")
    for file in (output, output.with_suffix(".npz")):
        require(file.resolve() != photograph.resolve(), "output", str(file), "another file than the photograph")
    output.parent.mkdir(parents=True, exist_ok=True)
    require(os.access(output.parent, os.W_OK), "output", str(output), "a place that may be written")
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """Explain one photograph and write the picture and the maps; 2 where something is missing or wrong."""
    parser = argparse.ArgumentParser(prog="python -m manifold_lib.explain", description=main.__doc__)
    parser.add_argument("file", metavar="PHOTO", help="an image file of any format")
    for name, default, about in (
        ("methods", "ig,guided_ig,ma_gig", f"with commas between them, of {', '.join(TITLES)}"),
        ("network", "efficientnet_lite0", f"of {', '.join(models.imagenet.NETWORKS)}"),
        ("autoencoder", "photo-ae", "photo-ae, a folder with TAEF2, or a folder or name of diffusers"),
        ("target", None, "a class by number or name; the likeliest by default"),
        ("baseline", "black", f"of {', '.join(BASELINES)}"),
        ("score", "probability", "probability or logit"),
        ("size", 224, "side of the square in pixels"),
        ("steps", 50, "segments of each path"),
        ("device", "cpu", "cpu or cuda"),
        ("output", None, "the picture, by default PHOTO.explained.png in this folder; the maps are put beside it"),
    ):
        parser.add_argument(f"--{name}", default=default, type=type(default) if default else str, help=about)
    given = parser.parse_args(arguments)
    try:
        output = _output(given.output, Path(given.file))
        found = explain(
            given.file,
            methods=[name.strip() for name in given.methods.split(",") if name.strip()],
            network=given.network,
            autoencoder=given.autoencoder,
            target=given.target,
            baseline=given.baseline,
            score=given.score,
            size=given.size,
            n_steps=given.steps,
            device=given.device,
            progress=sys.stderr.isatty(),
        )
        np.savez_compressed(output.with_suffix(".npz"), **arrays_of(found))
        picture(found).savefig(output, dpi=150)
    except (ValueError, OSError, ImportError, CorruptFile, DataNotFound) as error:
        print(f"explain: {error}", file=sys.stderr)
        return 2
    for name, value in found.top:
        print(f"{value:6.3f}  {name}")
    for name, one in found.maps.items():
        print(f"{name}: its sum is {one.sum():.3g}, the {found.score} changes by {found.changes[name]:.3g}")
    print(f"written: {output} and {output.with_suffix('.npz')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
