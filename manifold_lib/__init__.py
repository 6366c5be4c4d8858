"""Manifold-aware feature attribution: paths and their integrals, tangent spaces and projections."""

from .attacks import pgd
from .attribution import gradient, input_x_gradient, integrated_gradients, smoothgrad
from .classifiers import PatchNet, labeller, lenet, small_vgg, tiny_cnn
from .generated import Samples, sample_generated
from .integrate import integrate
from .matrix_free import project_matrix_free
from .metrics import total_variation
from .paths import Path, polyline, straight_path
from .roar import remove_top, retrain
from .shapes import ShapeSamples, render_shapes, sample_shapes, shape_decoder
from .tangent import (
    decoder_jacobian,
    orthonormal_columns,
    project,
    random_fraction,
    tangent_basis,
    tangent_fraction,
    tangent_share,
)
from .vae import VAE, Autoencoder, beta_tcvae_loss

__all__ = [
    "VAE",
    "Autoencoder",
    "PatchNet",
    "Path",
    "Samples",
    "ShapeSamples",
    "beta_tcvae_loss",
    "decoder_jacobian",
    "gradient",
    "input_x_gradient",
    "integrate",
    "integrated_gradients",
    "labeller",
    "lenet",
    "orthonormal_columns",
    "pgd",
    "polyline",
    "project",
    "project_matrix_free",
    "random_fraction",
    "remove_top",
    "render_shapes",
    "retrain",
    "sample_generated",
    "sample_shapes",
    "shape_decoder",
    "small_vgg",
    "smoothgrad",
    "straight_path",
    "tangent_basis",
    "tangent_fraction",
    "tangent_share",
    "tiny_cnn",
    "total_variation",
]
