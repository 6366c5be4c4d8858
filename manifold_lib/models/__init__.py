"""Networks: autoencoders, classifiers, adapters for those of others."""

from .adapters import KLAutoencoder, load_kl_autoencoder
from .classifiers import PatchNet, labeller, lenet, small_inception, small_resnet, small_vgg, soft_cnn, tiny_cnn
from .vae import VAE, Autoencoder, ConvVAE, beta_tcvae_loss, elbo_loss

__all__ = [
    "VAE", "Autoencoder", "ConvVAE", "KLAutoencoder", "PatchNet", "beta_tcvae_loss", "elbo_loss", "labeller", "lenet",
    "load_kl_autoencoder", "small_inception", "small_resnet", "small_vgg", "soft_cnn", "tiny_cnn",
]  # fmt: skip
