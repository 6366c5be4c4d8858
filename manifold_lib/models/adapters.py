"""Autoencoders of diffusers behind ``encode`` and ``decode``; diffusers is imported only when needed."""

from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core import files
from ..core.files import DataNotFound


class KLAutoencoder(nn.Module):
    """A diffusers ``AutoencoderKL`` as a ``vae`` for images (B, 3, H, W) in [0, 1].

    As in the released code of paper 5, which maps [0, 1] to the autoencoder's [−1, 1] and takes the posterior mean
    without the latent scaling factor. ``autoencoder`` may be anything in eval mode whose ``encode(x).latent_dist.mean``
    and ``decode(z).sample`` are tensors.

    >>> vae = KLAutoencoder(AutoencoderKL.from_pretrained(folder).eval())  # doctest: +SKIP
    """

    autoencoder: Any

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.training = autoencoder.training

    def encode(self, inputs: Tensor) -> Tensor:
        """Posterior mean, never a sample, (B, 3, H, W) -> (B, 4, H/8, W/8)."""
        return self.autoencoder.encode(2 * inputs - 1).latent_dist.mean

    def decode(self, latents: Tensor) -> Tensor:
        """Images, nearly in [0, 1] since not clamped, (B, 4, h, w) -> (B, 3, 8 h, 8 w)."""
        # fused attention kernels have no forward-mode derivative, and geodesics need one
        with sdpa_kernel(SDPBackend.MATH):
            return self.autoencoder.decode(latents).sample / 2 + 0.5


class TinyAutoencoder(KLAutoencoder):
    """A diffusers ``AutoencoderTiny`` (TAESD and its kin) as a ``vae`` for images (B, 3, H, W) in [0, 1].

    A hundredth of the cost of the autoencoder that it imitates; its latents are scaled as diffusion models want them.

    >>> vae = TinyAutoencoder(AutoencoderTiny.from_pretrained(folder).eval())  # doctest: +SKIP
    """

    def encode(self, inputs: Tensor) -> Tensor:
        """Latents, (B, 3, H, W) -> (B, 4, H/8, W/8)."""
        return self.autoencoder.encode(2 * inputs - 1).latents


def load_kl_autoencoder(name: str = "stabilityai/sd-vae-ft-mse", **options: Any) -> KLAutoencoder:
    """A pretrained ``AutoencoderKL`` by its name or folder, in eval mode, its parameters frozen.

    The default has the weights of the VAE of Stable Diffusion 2.1, paper 5's; ``options`` are those of
    ``AutoencoderKL.from_pretrained``. Raises ``ImportError`` without diffusers, and ``DataNotFound`` when the weights
    are neither there nor to be downloaded.

    >>> vae = load_kl_autoencoder(torch_dtype=torch.float16)  # doctest: +SKIP
    """
    return KLAutoencoder(_pretrained("AutoencoderKL", name, options))


def load_tiny_autoencoder(name: str = "madebyollin/taesd", **options: Any) -> TinyAutoencoder:
    """A pretrained ``AutoencoderTiny`` by its name or folder; as :func:`load_kl_autoencoder`.

    >>> vae = load_tiny_autoencoder()  # doctest: +SKIP
    """
    return TinyAutoencoder(_pretrained("AutoencoderTiny", name, options))


def _pretrained(kind: str, name: str, options: dict[str, Any]) -> nn.Module:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(f"{kind} needs the package diffusers: pip install diffusers") from error
    try:
        # low_cpu_mem_usage needs the package accelerate, and warns without it
        with files.impatient():
            autoencoder = getattr(diffusers, kind).from_pretrained(name, **{"low_cpu_mem_usage": False} | options)
    except OSError as error:
        raise DataNotFound(
            f"autoencoder: found no weights of {name!r}, neither as a folder nor by download. Provide them in one of "
            f"two ways: name a folder made by {kind}.save_pretrained, or run where there is a network."
        ) from error
    return autoencoder.eval().requires_grad_(False)
