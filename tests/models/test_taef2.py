"""TAEF2: its shapes, its published weights where they are, and what is said of other files."""

import hashlib

import pytest
import torch
from helpers import close, draw, untouched

import manifold_lib as ml
from manifold_lib.core import files
from manifold_lib.data import photographs
from manifold_lib.models import taef2


def write(folder, model):
    """State dicts as the published ones; their checksums."""
    for part in ("encoder", "decoder"):
        torch.save(getattr(model, part).state_dict(), folder / f"taef2_{part}.pth")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in taef2.SHA256}


def test_weights_are_read_from_a_folder_and_latents_may_have_any_shape(tmp_path, monkeypatch):
    torch.manual_seed(0)
    own = ml.TAEF2().eval()
    monkeypatch.setattr(taef2, "SHA256", write(tmp_path, own))
    vae = ml.load_taef2(tmp_path)
    images = draw(2, 3, 24, 40, dtype=torch.float32).sigmoid()
    latents = vae.encode(images)
    assert latents.shape == (2, 32, 3, 5) and vae.decode(latents).shape == images.shape
    close(vae(images), own(images), 1e-6)
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())
    far = vae.decode(latents + 1e6)
    assert far.isfinite().all()  # latents are bounded


def test_every_latent_method_takes_it():
    torch.manual_seed(0)
    vae, images = ml.TAEF2().eval().requires_grad_(False), draw(2, 3, 16, 16, dtype=torch.float32).sigmoid()
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.LazyLinear(3)
    )
    model(images)
    with untouched(model, images), untouched(vae):
        maps = [ml.enhanced_ig(model, images, vae=vae, n_steps=8), ml.ma_gig(model, images, vae=vae, n_steps=8)]
        maps.append(ml.ma_gig(model, images, vae=vae, n_steps=8, published=True))
    assert all(one.shape == images.shape and one.isfinite().all() for one in maps)


def test_files_that_are_missing_or_others_are_named(tmp_path):
    with pytest.raises(files.DataNotFound, match=r"looked for taef2_encoder.pth in .*github.com/madebyollin/taesd"):
        ml.load_taef2(tmp_path)
    write(tmp_path, ml.TAEF2())
    with pytest.raises(files.CorruptFile, match=r"taef2_encoder.pth: sha256 is"):
        ml.load_taef2(tmp_path)


def test_the_published_weights_reconstruct_photographs(real_data):
    vae, found = ml.load_taef2(real_data("taef2") / "taef2"), photographs.find_photos("shipped")
    images = photographs.read_photos(found, range(5), size=160, crop=True)
    with torch.no_grad():
        error = (vae(images) - images).flatten(1).square().mean(1)
    assert (-10 * error.log10()).min() > 25
