"""Named models: loaded from ``data/models`` or ``$MANIFOLD_DATA/models``; the command trains them.

Each is a float16 safetensors file with a card (JSON) beside it, whose numbers were measured after the round trip.
"""

import argparse
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import files
from ..core.progress import predict
from ..data import datasets, folders, generated
from ..data.photographs import crops, photograph_squares
from ..data.shapes import sample_shapes
from ..models.vae import VAE
from . import runtime, training
from .recipes import RECIPES, Recipe, is_generated, recipe as recipe_of, replica


def path(name: str) -> Path:
    """The weight file of a model: the one found, or the one that training writes."""
    recipe_of(name)
    found = (file for place in _places() if _whole(file := place / f"{name}.safetensors"))
    return next(found, _home(name) / f"{name}.safetensors")


def card(name: str) -> dict[str, Any]:
    """The model's card: checksum, recipe, provenance and measured numbers."""
    return json.loads(path(name).with_suffix(".json").read_text(encoding="utf-8"))


def load(name: str, device: str | torch.device = "cpu", *, seed: int = 0) -> Any:
    """A named model on ``device``: float32, in eval mode, frozen. Raises ``DataNotFound`` where it is missing.

    ``seed`` picks the replica of the model: the same recipe, trained with another seed.
    """
    name = replica(name, seed)
    where, file = runtime.resolve_device(str(device)), path(name)
    if not _whole(file):
        raise files.DataNotFound(
            f"{name}: looked for {file.name} and its card in {' and in '.join(map(str, _places()))}. "
            "Get them in one of two ways: clone the repository, which has them, and set MANIFOLD_DATA to its folder "
            f"data; or train them (make models, or python -m manifold_lib.reproduction.zoo {name})."
        )
    model = recipe_of(name).build()
    files.load_weights(file, model, card(name)["sha256"])
    return model.eval().requires_grad_(False).to(where)


def _places() -> list[Path]:
    """Where weights are looked for."""
    given = folders.data_folder()
    return [runtime.MODELS, *([] if given is None else [given / "models"]), folders.CACHE / "models"]


def _home(name: str) -> Path:
    """Where training writes a model: replicas that are not committed go to the cache."""
    return runtime.MODELS if name in RECIPES else folders.CACHE / "models"


def _whole(file: Path) -> bool:
    """Whether weights and card are there; the card is written last."""
    return file.exists() and file.with_suffix(".json").exists()


def samples(
    name: str, n_samples: int, *, seed: int, vae: int = 0, device: str | torch.device = "cpu"
) -> generated.Samples:
    """``mnist32`` or ``fashion32`` images, generated on ``device`` by one of the set's two VAEs and its labeller."""
    decoder, labeller = (load(f"{name}-{part}", device, seed=vae) for part in ("vae", "labeller"))
    generator, k = torch.Generator().manual_seed(seed), decoder.latent_dim
    return generated.sample_generated(decoder.decode, labeller, n_samples, latent_dim=k, generator=generator)


def train(name: str, *, device: torch.device, progress: bool = False, again: bool = False) -> None:
    """Train a model from the real data, or resume it, and write weights and card; one process at a time does.

    The models that it needs are trained first, where they are missing.
    """
    recipe, file = recipe_of(name), _home(name) / path(name).name
    folder = folders.CACHE / "checkpoints"
    with files.locked(folder / name):
        if _whole(path(name)) and not again:
            return
        for parent in recipe.parents:
            train(parent, device=device, progress=progress)
        model, batches, loss, checksum = _prepare(name, device)
        parents = {parent: card(parent)["sha256"] for parent in recipe.parents}
        # a checkpoint of another recipe, other data or other parents is not resumed
        mark = hashlib.sha256(repr((recipe[1:], checksum, parents)).encode()).hexdigest()[:12]
        checkpoint = folder / f"{name}-{mark}.ckpt"
        settings = {key: getattr(recipe, key) for key in ("epochs", "batch_size", "learning_rate", "seed")}
        bf16 = recipe.bf16 and runtime.has_bfloat16(device)
        options: dict[str, Any] = {"bf16": bf16, "checkpoint": checkpoint, "label": name, "progress": progress}
        seconds = training.fit(model, loss, batches, **settings, **options)
        file.with_suffix(".json").unlink(missing_ok=True)  # until the new card, the model counts as not made
        sha256 = files.save_weights(file, model)
        files.load_weights(file, model)
        content = {
            "name": name,
            "sha256": sha256,
            "bytes": file.stat().st_size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "data": {recipe.data: checksum},
            "parents": parents,
            "recipe": recipe.text,
            **settings,
            "precision": "bfloat16 mixed" if bf16 else "float32",
            "seconds": round(seconds),
            "device": runtime.device_name(device),
            "versions": {key: runtime.versions()[key] for key in ("python", "torch")},
            "measures": measure(name, model.eval()),
        }
        files.write_json(file.with_suffix(".json"), content)
        checkpoint.unlink(missing_ok=True)


def _prepare(
    name: str, device: torch.device
) -> tuple[nn.Module, training.Batch | Callable[[int], training.Batch], training.Loss, str]:
    """The fresh model, its batches, its loss, and the checksum of the real data behind it."""
    recipe = recipe_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = recipe.build().to(device).train()
    real = _images(recipe.data, train=True)
    inputs, labels = real.inputs, real.labels
    batches: training.Batch | Callable[[int], training.Batch] = (inputs, labels)
    loss: training.Loss = training.classification_loss
    if recipe.kind == "vae":
        loss = training.vae_loss(len(inputs))
    elif recipe.kind == "elbo":
        # one image in a hundred is black, the baseline of most explanations
        black = inputs.new_zeros(len(inputs) // 100, *inputs.shape[1:])
        batches, loss = (torch.cat([inputs, black]),), training.vae_elbo_loss(recipe.beta)
    elif recipe.kind == "autoencoder":
        loss = training.reconstruction_loss
    elif recipe.kind == "photographs":
        batches, loss = functools.partial(_cropped_epoch, recipe, inputs), training.squared_loss
    elif recipe.kind == "reconstructions":
        batches = (predict(load(recipe.parents[0], device), inputs), labels)
    elif recipe.kind in _CHANGES:
        batches = functools.partial(_changed_epoch, recipe, inputs, labels)
    elif is_generated(recipe):
        draw = functools.partial(_generated_epoch, recipe, device)
        batches = draw(0) if recipe.once else draw
    if recipe.kind == "robust":
        model.load_state_dict(load(recipe.parents[2]).state_dict())
        loss = training.adversarial_loss((0.5, 1.0, 2.0))
    return model, batches, loss, real.checksum


def _images(name: str, *, train: bool) -> datasets.Dataset:
    """A split of a data set; ``shapes`` are drawn, with seeds that no notebook uses."""
    if name == "photographs":
        squares, kinds = photograph_squares(train)
        return datasets.Dataset(squares, kinds, datasets.tensor_hash(squares, kinds))
    if name != "shapes":
        return datasets.load(name, train=train)
    size, seed = (20_000, 2_000_000) if train else (5_000, 2_000_001)
    drawn = sample_shapes(size, generator=torch.Generator().manual_seed(seed))
    return datasets.Dataset(drawn.inputs, drawn.labels, datasets.tensor_hash(drawn.inputs, drawn.labels))


# what is done to one image in two, anew in each epoch
_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {"polarities": lambda x: 1 - x, "mirrored": lambda x: x.flip(3)}


def _changed_epoch(recipe: Recipe, inputs: Tensor, labels: Tensor, epoch: int) -> training.Batch:
    chosen = torch.rand(len(inputs), generator=torch.Generator().manual_seed(recipe.seed * 1_000 + epoch)) < 0.5
    return torch.where(chosen[:, None, None, None], _CHANGES[recipe.kind](inputs), inputs), labels


def _cropped_epoch(recipe: Recipe, inputs: Tensor, epoch: int) -> training.Batch:
    return (crops(inputs, 128, torch.Generator().manual_seed(recipe.seed * 1_000 + epoch)),)


def _generated_epoch(recipe: Recipe, device: torch.device, epoch: int) -> training.Batch:
    """An epoch's own draw of generated images; seeds below 10⁶ are reserved for evaluation."""
    size = 15_000 if recipe.kind == "robust" and not recipe.once else 60_000
    seed = 1_000_000 + recipe.seed * 1_000 + epoch
    drawn = samples(recipe.data, size, seed=seed, vae=recipe.vae, device=device)
    return drawn.inputs, drawn.labels


def measure(name: str, model: Any) -> dict[str, float]:
    """The numbers on a model's card, on test images or fresh generated ones that no training saw."""
    recipe = recipe_of(name)
    if is_generated(recipe):
        drawn = samples(recipe.data, 10_000, seed=0, vae=recipe.vae, device=next(model.parameters()).device)
        return training.measure_classifier(model, drawn, datasets.load(recipe.data, train=False))
    test = _images(recipe.data, train=False)
    if recipe.kind in ("vae", "elbo"):
        return training.measure_vae(model, test.inputs)
    if recipe.kind == "autoencoder":
        error = (predict(model, test.inputs) - test.inputs).abs().mean().item()
        return {"test mean absolute error": round(error, 4)}
    if recipe.kind == "photographs":
        names, found = ("photographs of ImageNet", "flowers"), training.decibels(model, test.inputs)
        means = {name: found[test.labels == row].mean().item() for row, name in enumerate(names)}
        return {f"dB at 128 pixels, held-out {name}": round(mean, 2) for name, mean in means.items()}
    if recipe.kind in ("plain", *_CHANGES):
        images = {"test images": test.inputs}
        if recipe.kind == "polarities":
            images["inverted test images"] = 1 - test.inputs
        return {f"accuracy on {kind}": round(training.accuracy(model, x, test.labels), 4) for kind, x in images.items()}
    device = next(model.parameters()).device
    parent = load(recipe.parents[0], device)
    images = predict(parent, test.inputs)
    numbers = {"accuracy on test reconstructions": round(training.accuracy(model, images, test.labels), 4)}
    if isinstance(parent, VAE):
        latents = torch.randn(10_000, parent.latent_dim, generator=torch.Generator().manual_seed(0))
        confidence = predict(model, predict(parent.decode, latents)).softmax(1).amax(1)
        numbers["share of unfiltered samples with p_max ≥ 0.9"] = round((confidence >= 0.9).float().mean().item(), 4)
        numbers["acceptance rate"] = round((confidence**2).mean().item(), 4)
    return numbers


def model_table() -> str:
    """The Markdown table of ``data/models/README.md``, from the cards."""
    titles = ("model", "parameters", "size", "data", "recipe", "epochs", "seed", "seconds, device")
    lines = [f"| {' | '.join(titles)} | measured after the float16 round trip |", "|---" * (len(titles) + 1) + "|"]
    for name in RECIPES:
        if not path(name).with_suffix(".json").exists():
            continue
        entry = card(name)
        sets = "<br>".join(f"{key}, sha256 `{value[:12]}`" for key, value in entry["data"].items())
        numbers = "<br>".join(f"{key}: {value}" for key, value in entry["measures"].items())
        settings = f"batch {entry['batch_size']}, Adam {entry['learning_rate']:g}, {entry['precision']}"
        cells = (
            *(f"`{name}`<br>sha256 `{entry['sha256'][:12]}`", f"{entry['parameters']:,}"),
            *(f"{entry['bytes'] / 1e6:.1f} MB", sets, f"{entry['recipe']}; {settings}", entry["epochs"], entry["seed"]),
            *(f"{entry['seconds']:,} s, {entry['device']}", numbers),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def write_model_card() -> None:
    """Write ``data/models/README.md``."""
    text = (
        "# The zoo\n\nOur trained weights: float16 safetensors, each with a JSON card. "
        "Generated by `make models`, which trains them again from the real data; do not edit.\n\n" + model_table()
    )
    files.write_bytes(runtime.MODELS / "README.md", text.encode())


def main() -> None:
    """Train the named models, or all of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; none means all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--again", action="store_true", help="train anew even where the file is there")
    arguments = parser.parse_args()
    for name in arguments.names or RECIPES:
        path(name)
        device, progress = runtime.resolve_device(arguments.device), runtime.interactive()
        train(name, device=device, progress=progress, again=arguments.again)
        print(f"{name}: {card(name)['measures']}", flush=True)
    write_model_card()


if __name__ == "__main__":
    main()
