"""Networks: autoencoders, classifiers, networks of ImageNet, adapters for those of others."""

from .adapters import KLAutoencoder, TinyAutoencoder, load_kl_autoencoder, load_tiny_autoencoder
from .classifiers import PatchNet, labeller, lenet, small_inception, small_resnet, small_vgg, soft_cnn, tiny_cnn
from .imagenet import imagenet_classes, imagenet_network
from .taef2 import TAEF2, load_taef2
from .vae import VAE, Autoencoder, ConvVAE, PhotoAutoencoder, beta_tcvae_loss, elbo_loss

__all__ = [
    "TAEF2", "VAE", "Autoencoder", "ConvVAE", "KLAutoencoder", "PatchNet", "PhotoAutoencoder", "TinyAutoencoder",
    "beta_tcvae_loss", "elbo_loss", "imagenet_classes", "imagenet_network", "labeller", "lenet", "load_kl_autoencoder",
    "load_taef2", "load_tiny_autoencoder", "small_inception", "small_resnet", "small_vgg", "soft_cnn", "tiny_cnn",
]  # fmt: skip
