import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import files_of_sets
import pytest
import torch
from torch import nn

from manifold_lib.core import files
from manifold_lib.data import datasets, folders as places, photographs
from manifold_lib.models.vae import VAE, Autoencoder
from manifold_lib.reproduction import runtime, training, zoo

CLONE = Path(__file__).resolve().parents[2]
CARD = [
    *("name", "sha256", "bytes", "parameters", "data", "parents", "recipe", "epochs", "batch_size", "learning_rate"),
    *("seed", "precision", "seconds", "device", "versions", "measures"),
]
TINY = zoo.Recipe(
    functools.partial(Autoencoder, 1, 4, 2, 1), "digits", "autoencoder", 2, 64, 1e-2, 0, "a tiny autoencoder"
)


@pytest.fixture
def tiny(folders, monkeypatch):
    monkeypatch.setitem(zoo.RECIPES, "tiny", TINY)
    return "tiny"


def committed(*names):
    """Skip where a model is not trained yet."""
    for name in names:
        if not (zoo.path(name).exists() and zoo.path(name).with_suffix(".json").exists()):
            pytest.skip(f"{name} is not in data/models; make models trains it")


# --- the committed models -------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_committed_model(name, monkeypatch):
    committed(name)
    monkeypatch.setattr(zoo, "train", None)
    card, path, recipe = zoo.card(name), zoo.path(name), zoo.RECIPES[name]
    assert list(card) == CARD and card["name"] == name
    assert card["sha256"] == files.file_hash(path)
    assert card["bytes"] == path.stat().st_size < 5_000_000
    for key in ("epochs", "batch_size", "learning_rate", "seed"):
        assert card[key] == getattr(recipe, key), f"{key}: the card is of another recipe"
    assert list(card["data"]) == [recipe.data] and list(card["parents"]) == list(recipe.parents)
    assert card["measures"] and "/" not in card["device"]
    model = zoo.load(name)
    assert not any(module.training for module in model.modules())
    values = list(model.state_dict().values())
    assert all(value.isfinite().all() and value.dtype in (torch.float32, torch.int64) for value in values)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == card["parameters"]


@pytest.mark.parametrize("name", zoo.RECIPES)
def test_committed_model_comes_from_the_committed_parents(name):
    committed(name, *zoo.RECIPES[name].parents)
    for parent, sha256 in zoo.card(name)["parents"].items():
        assert sha256 == zoo.card(parent)["sha256"]


def test_all_models_fit_into_40_megabytes():
    assert sum(path.stat().st_size for path in runtime.MODELS.glob("*")) <= 40_000_000


def test_the_table_of_models_is_up_to_date():
    committed(*zoo.RECIPES)
    assert (runtime.MODELS / "README.md").read_text().endswith(zoo.model_table())


@pytest.mark.parametrize("name", ["mnist32", "fashion32"])
def test_samples_of_the_committed_generators(name):
    committed(f"{name}-vae", f"{name}-labeller")
    first, second = zoo.samples(name, 20, seed=3), zoo.samples(name, 20, seed=3)
    assert first.inputs.shape == (20, 1, 32, 32) and first.inputs.isfinite().all()
    assert torch.equal(first.inputs, second.inputs) and torch.equal(first.labels, second.labels)
    assert not torch.equal(first.inputs, zoo.samples(name, 20, seed=4).inputs)
    assert first.acceptance > 0.2


# --- loading, training ----------------------------------------------------------------------------


def test_unknown_names_are_refused():
    for call in (zoo.path, zoo.load, zoo.card):
        with pytest.raises(ValueError, match="name: got 'resnet', wants one of mnist32-vae"):
            call("resnet")


FROM_FILES = [name for name, recipe in zoo.RECIPES.items() if recipe.data != "shapes"]  # shapes are drawn


@pytest.mark.parametrize("name", FROM_FILES)
def test_missing_weights_and_missing_data(folders, name):
    with pytest.raises(datasets.DataNotFound):
        zoo.train(name, device=torch.device("cpu"))
    assert not runtime.MODELS.exists()


@pytest.mark.parametrize("call", [zoo.load, functools.partial(zoo.samples, n_samples=1, seed=0)])
def test_loading_never_trains_and_says_how_to_get_the_weights(given_folder, monkeypatch, call):
    monkeypatch.setattr(zoo, "train", None)
    with pytest.raises(datasets.DataNotFound, match=r"^mnist32-vae: ") as caught:
        call("mnist32-vae" if call is zoo.load else "mnist32")
    looked_in = f"{runtime.MODELS} and in {given_folder / 'models'} and in {places.CACHE / 'models'}."
    ways = "clone the repository", "MANIFOLD_DATA", "make models", "python -m manifold_lib.reproduction.zoo mnist32-vae"
    assert all(words in str(caught.value) for words in (looked_in, *ways))
    assert not runtime.MODELS.exists() and not list(given_folder.iterdir())


def test_weights_of_a_clone_are_found_by_an_installed_package(given_folder, monkeypatch):
    monkeypatch.setattr(zoo, "train", None)
    (given_folder / "models").symlink_to(CLONE / "data/models")
    assert zoo.load("shapes-vae-4").latent_dim == 4 and zoo.path("shapes-vae-4").parent == given_folder / "models"


def test_an_installed_package_writes_into_the_cache_of_the_user(tmp_path):
    shutil.copytree(CLONE / "manifold_lib", tmp_path / "site-packages/manifold_lib")
    code = "from manifold_lib.data import folders; from manifold_lib.reproduction import runtime; "
    code += "print(folders.CACHE, runtime.MODELS, sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site-packages"), "XDG_CACHE_HOME": str(tmp_path / "u")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [str(tmp_path / "u/manifold_lib" / name) for name in ("cache", "models")]


def test_an_autoencoder_of_photographs_is_measured_on_those_held_out(folders, monkeypatch):
    files_of_sets.write_archives(places.CACHE, monkeypatch)
    recipe = TINY._replace(build=functools.partial(Autoencoder, 3, 8, 4, 1), data="photographs", kind="photographs")
    monkeypatch.setitem(zoo.RECIPES, "tiny", recipe._replace(epochs=3))
    zoo.train("tiny", device=torch.device("cpu"))
    measured = zoo.card("tiny")["measures"]
    assert list(measured) == [f"dB at 128 pixels, held-out {kind}" for kind in ("photographs of ImageNet", "flowers")]
    squares, kinds = photographs.photograph_squares(False)
    error = (zoo.load("tiny")(squares[kinds == 1]).clamp(0, 1) - squares[kinds == 1]).flatten(1).square().mean(1)
    assert measured["dB at 128 pixels, held-out flowers"] == round(-10 * error.log10().mean().item(), 2)


def test_a_missing_model_is_trained_after_its_parents_then_loaded(tiny, monkeypatch):
    child = TINY._replace(
        kind="reconstructions", parents=(tiny,), build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    )
    monkeypatch.setitem(zoo.RECIPES, "child", child)
    zoo.train("child", device=torch.device("cpu"))
    assert zoo.card("child")["parents"] == {tiny: zoo.card(tiny)["sha256"]}
    model = zoo.load(tiny)
    card = zoo.card(tiny)
    assert list(card) == CARD
    assert card["data"] == {"digits": datasets.load("digits").checksum}
    images = datasets.load("digits", train=False).inputs
    error = (training.predict(model, images) - images).abs().mean().item()
    assert card["measures"] == {"test mean absolute error": round(error, 4)}
    assert not list(places.CACHE.rglob("*.ckpt")), "no checkpoint is left of a finished training"
    monkeypatch.setattr(zoo, "train", None)
    assert torch.equal(zoo.load(tiny).decoder[0].weight, model.decoder[0].weight)


def test_models_of_drawn_images_need_no_files(folders, monkeypatch):
    assert {name for name in zoo.RECIPES if name.startswith("shapes")} == set(zoo.RECIPES) - set(FROM_FILES)
    few = datasets.Dataset(torch.rand(40, 1, 32, 32), torch.arange(40) % 4, "0" * 64)
    monkeypatch.setattr(zoo, "_images", lambda name, train: few)
    monkeypatch.setitem(zoo.RECIPES, "shapes-softplus", zoo.RECIPES["shapes-softplus"]._replace(epochs=1))
    zoo.train("shapes-softplus", device=torch.device("cpu"))
    assert zoo.load("shapes-softplus")(few.inputs).shape == (40, 4)


def test_training_again_gives_the_same_file(tiny):
    zoo.train(tiny, device=torch.device("cpu"))
    first = zoo.path(tiny).read_bytes()
    zoo.train(tiny, device=torch.device("cpu"), again=True)
    assert zoo.path(tiny).read_bytes() == first


def test_an_interrupted_training_resumes(tiny, monkeypatch):
    zoo.train(tiny, device=torch.device("cpu"))
    whole = zoo.card(tiny)["sha256"]
    save = files.save_checkpoint

    def interrupt(path, state):
        save(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            zoo.train(tiny, device=torch.device("cpu"), again=True)
    epochs = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_checkpoint", lambda path, state: epochs.append(state["epoch"]))
        zoo.train(tiny, device=torch.device("cpu"), again=True)
    assert epochs == [2] and zoo.card(tiny)["sha256"] == whole


def test_changed_weights_are_refused(tiny):
    zoo.train(tiny, device=torch.device("cpu"))
    zoo.path(tiny).write_bytes(zoo.path(tiny).read_bytes()[:-2] + b"??")
    with pytest.raises(files.CorruptFile, match=r"tiny\.safetensors"):
        zoo.load(tiny)


def test_weights_without_a_card_are_trained_again(tiny):
    zoo.train(tiny, device=torch.device("cpu"))
    zoo.path(tiny).with_suffix(".json").unlink()
    with pytest.raises(datasets.DataNotFound):
        zoo.load(tiny)
    zoo.train(tiny, device=torch.device("cpu"))
    zoo.load(tiny)


def test_load_on_the_automatic_device(tiny):
    zoo.train(tiny, device=torch.device("cpu"))
    zoo.load(tiny, "auto")


def train_tiny(root, log):
    """In another process: the tiny recipe, and a line in ``log`` for each training that runs."""
    runtime.MODELS, places.CACHE = root / "data/models", root / "data/cache"
    zoo.RECIPES["tiny"] = TINY
    fit = training.fit

    def logged(*arguments, **more):
        with open(log, "a") as stream:
            stream.write("trained\n")
        return fit(*arguments, **more)

    training.fit = logged
    zoo.train("tiny", device=torch.device("cpu"))


def test_two_processes_train_once(folders, tmp_path, processes):
    log = tmp_path / "log"
    both = [processes.Process(target=train_tiny, args=(folders, log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert log.read_text() == "trained\n"


@pytest.mark.parametrize(
    "kind",
    [
        *("vae", "elbo", "plain", "reconstructions", "polarities", "mirrored"),
        *("generated", "generated once", "robust", "robust once"),
    ],
)
def test_every_kind_of_recipe_is_prepared(folders, monkeypatch, kind):
    """The batches and the loss of each kind give a finite loss with a gradient."""
    kind, _, once = kind.partition(" ")
    torch.manual_seed(0)
    images = nn.functional.interpolate(datasets.load("digits").inputs[:40], size=(32, 32))
    real = datasets.Dataset(images, datasets.load("digits").labels[:40], "0" * 64)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    vae = VAE(4, 4, 16)
    zoo_models, parents = {"lenet-mnist32": classifier, "a-vae": vae}, ("a-vae", "a-labeller", "lenet-mnist32")
    monkeypatch.setattr(datasets, "load", lambda name, train: real)
    monkeypatch.setattr(zoo, "load", lambda name, *_: zoo_models[name].eval())
    monkeypatch.setattr(zoo, "samples", lambda name, n_samples, seed, vae, device: real)
    build = (
        (lambda: VAE(4, 4, 16)) if kind in ("vae", "elbo") else lambda: nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    )
    monkeypatch.setitem(zoo.RECIPES, "one", zoo.Recipe(build, "a", kind, 1, 20, 1e-3, 0, "", parents, once=bool(once)))
    model, batches, loss, checksum = zoo._prepare("one", torch.device("cpu"))
    drawn = kind in ("polarities", "mirrored", "generated", "robust")
    assert callable(batches) == (drawn and not once), "a draw for each epoch, or one for all"
    tensors = batches(0) if callable(batches) else batches
    value = loss(model, tensors, training.Moment(0.5, 1, torch.Generator().manual_seed(0)))
    value.backward()
    assert checksum == "0" * 64 and value.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())
    if kind == "reconstructions":
        assert torch.equal(tensors[0], training.predict(vae, images))
    if kind == "elbo":
        assert torch.equal(tensors[0][:40], images) and not tensors[0][40:].any(), "and one black image in a hundred"
    if kind in ("polarities", "mirrored"):
        changed = 1 - images if kind == "polarities" else images.flip(3)
        same, other = ((tensors[0] == x).flatten(1).all(1) for x in (images, changed))
        assert (same | other).all() and 5 < other.sum() < 35
        assert not torch.equal(batches(1)[0], tensors[0]), "each epoch has a draw of its own"
    if kind == "robust":
        assert torch.equal(model[1].weight, classifier[1].weight), "it starts from the standard model"


def test_shapes_are_drawn_where_no_notebook_draws():
    train, test = (zoo._images("shapes", train=train) for train in (True, False))
    assert train.inputs.shape == (20_000, 1, 32, 32) and test.inputs.shape == (5_000, 1, 32, 32)
    assert not torch.equal(train.inputs[:10], test.inputs[:10]) and train.checksum != test.checksum
    assert torch.equal(zoo._images("shapes", train=False).inputs, test.inputs)
    assert set(train.labels.tolist()) == {0, 1, 2, 3}


def test_each_epoch_draws_its_own_samples(monkeypatch):
    seeds = []
    monkeypatch.setattr(
        zoo,
        "samples",
        lambda name, n_samples, seed, vae, device: seeds.append((name, vae, seed)) or datasets.load("moons"),
    )
    names = ("lenet-mnist32", "lenet-mnist32-robust", "lenet-mnist32.2", "lenet-mnist32.4", "lenet-fashion32")
    for name in names:
        for epoch in range(3):
            zoo._generated_epoch(zoo.recipe_of(name), torch.device("cpu"), epoch)
    assert min(seed for _, _, seed in seeds) >= 1_000_000 and len(set(seeds)) == 3 * len(names)


def test_the_command(tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zoo", tiny, "--device", "cpu"])
    zoo.main()
    assert capsys.readouterr().out == f"tiny: {zoo.card(tiny)['measures']}\n"
    table = (runtime.MODELS / "README.md").read_text()
    assert table.count("\n|") == 3 and "`tiny`" in table and zoo.card(tiny)["sha256"][:12] in table
    json.loads(zoo.path(tiny).with_suffix(".json").read_text())


# --- replicas -------------------------------------------------------------------------------------


def test_a_replica_has_another_seed_and_odd_ones_come_from_the_second_vae():
    base, odd, even = (zoo.recipe_of(name) for name in ("lenet-mnist32", "lenet-mnist32.3", "lenet-mnist32.4"))
    assert len({base.seed, odd.seed, even.seed}) == 3
    assert (base.vae, odd.vae, even.vae) == (0, 1, 0)
    assert odd.parents == ("mnist32-vae.1", "mnist32-labeller.1") and even.parents == base.parents
    assert zoo.recipe_of("lenet-mnist32-robust.3").parents == (*odd.parents, "lenet-mnist32.3"), "a pair of one seed"
    same = zoo.recipe_of("small-lenet-mnist32.3"), zoo.recipe_of("small-lenet-mnist32")
    assert same[0]._replace(seed=same[1].seed, parents=same[1].parents, vae=0) == same[1]
    assert odd.once and odd.epochs < base.epochs, "the large ones see one draw of images, for fewer epochs"


@pytest.mark.parametrize(
    "name",
    [
        "lenet-mnist32.0",
        "lenet-mnist32.01",
        "lenet-mnist32.",
        "lenet-mnist32.-1",
        "lenet-mnist32.a",
        "lenet-mnist32.1.2",
        ".1",
    ],
)
def test_a_replica_that_cannot_be_is_refused(name):
    with pytest.raises(ValueError, match=r"^name: got '.*', wants one of mnist32-vae, "):
        zoo.path(name)


def test_replicas_are_trained_into_the_cache_and_loaded_by_their_seed(tiny):
    for name in (tiny, f"{tiny}.2"):
        zoo.train(name, device=torch.device("cpu"))
    assert zoo.path(tiny).parent == runtime.MODELS and zoo.path(f"{tiny}.2").parent == places.CACHE / "models"
    assert zoo.card(f"{tiny}.2")["seed"] == TINY.seed + 200
    first, second = zoo.load(tiny), zoo.load(tiny, seed=2)
    assert not torch.equal(first.decoder[0].weight, second.decoder[0].weight)
    with pytest.raises(datasets.DataNotFound, match=r"zoo tiny\.1\)"):
        zoo.load(tiny, seed=1)


@pytest.mark.parametrize("name", ["small-lenet-mnist32", "small-lenet-fashion32", "small-lenet-mnist32-robust"])
def test_five_small_networks_a_set_and_two_vaes_are_committed(name):
    names = [zoo.replica(name, seed) for seed in range(5)]
    committed(*names)
    assert len({zoo.card(each)["sha256"] for each in names}) == 5
    generators = {next(iter(zoo.card(each)["parents"].values())) for each in names}
    assert len(generators) == 2, "networks and manifolds vary together"
