"""The adapters for diffusers' autoencoders, on tiny ones with random weights."""

import sys

import pytest
import torch
from helpers import close, draw, untouched

import manifold_lib as ml
from manifold_lib.core.files import DataNotFound


@pytest.fixture(scope="module")
def tiny():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    ).eval()


@pytest.fixture(scope="module")
def distilled():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()


def test_a_distilled_one_has_the_same_range_and_is_read_from_a_folder(distilled, tmp_path):
    distilled.save_pretrained(tmp_path)
    vae, inputs = ml.load_tiny_autoencoder(str(tmp_path)), draw(2, 3, 16, 16, dtype=torch.float32).sigmoid()
    latents = vae.encode(inputs)
    close(latents, distilled.encode(2 * inputs - 1).latents, 1e-6)
    close(vae.decode(latents), (distilled.decode(latents).sample + 1) / 2, 1e-6)
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())
    assert ml.ma_gig(classifier(), inputs, vae=vae, n_steps=4).isfinite().all()


def classifier():
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(8 * 16, 5)
    ).eval()


def test_the_range_is_zero_to_one_and_the_mean_is_taken(tiny):
    vae, inputs = ml.KLAutoencoder(tiny), draw(2, 3, 16, 16, dtype=torch.float32).sigmoid()
    latents = vae.encode(inputs)
    assert latents.shape == (2, 4, 8, 8)
    close(latents, tiny.encode(2 * inputs - 1).latent_dist.mode(), 1e-6)
    close(vae.decode(latents), (tiny.decode(latents).sample + 1) / 2, 1e-6)
    assert torch.equal(vae.encode(inputs), latents)


def test_every_latent_method_takes_it(tiny):
    vae, model, inputs = ml.KLAutoencoder(tiny), classifier(), draw(2, 3, 16, 16, dtype=torch.float32).sigmoid()
    with untouched(model, inputs), untouched(tiny):
        found, delta = ml.ma_gig(model, inputs, vae=vae, n_steps=20, return_convergence_delta=True)
        others = ml.enhanced_ig(model, inputs, vae=vae), ml.manifold_ig(model, inputs, vae=vae, n_steps=4, max_iter=2)
        published = ml.ma_gig(model, inputs, vae=vae, n_steps=8, published=True)
    assert delta.abs().max() < 0.05
    assert all(maps.shape == inputs.shape and maps.isfinite().all() for maps in (found, published, *others))
    close(ml.ma_gig(model, inputs[:1], vae=vae, n_steps=20), found[:1], 1e-3)


def test_weights_are_read_from_a_folder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    vae, inputs = ml.load_kl_autoencoder(str(tmp_path)), draw(1, 3, 16, 16, dtype=torch.float32).sigmoid()
    close(vae.encode(inputs), ml.KLAutoencoder(tiny).encode(inputs), 1e-6)
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())


def test_missing_weights_are_named(tmp_path):
    pytest.importorskip("diffusers")
    with pytest.raises(DataNotFound, match="nothing-here"):
        ml.load_kl_autoencoder(str(tmp_path / "nothing-here"))
    with pytest.raises(DataNotFound, match=r"nothing-here.*AutoencoderTiny.save_pretrained"):
        ml.load_tiny_autoencoder(str(tmp_path / "nothing-here"))


def test_without_diffusers_the_library_works_and_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match="pip install diffusers"):
        ml.load_kl_autoencoder("anything")
