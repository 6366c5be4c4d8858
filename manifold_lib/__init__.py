"""Manifold-aware feature attribution: paths and their integrals, tangent spaces and projections."""

from . import baselines
from .adaptive import Info
from .attacks import pgd
from .attribution import expected_gradients, gradient, input_x_gradient, integrated_gradients, smoothgrad
from .classifiers import PatchNet, labeller, lenet, small_vgg, tiny_cnn
from .evaluation import Curves, cancellation_ratio, completeness_error, insertion_deletion
from .generated import Samples, sample_generated
from .guided import guided_ig, guided_path
from .integrate import integrate
from .latent import enhanced_ig
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
from .tangential import TangentialBaseline, tangential_baseline, tangential_ig
from .vae import VAE, Autoencoder, beta_tcvae_loss

__all__ = [
    "VAE",
    "Autoencoder",
    "Curves",
    "Info",
    "PatchNet",
    "Path",
    "Samples",
    "ShapeSamples",
    "TangentialBaseline",
    "baselines",
    "beta_tcvae_loss",
    "cancellation_ratio",
    "completeness_error",
    "decoder_jacobian",
    "enhanced_ig",
    "expected_gradients",
    "gradient",
    "guided_ig",
    "guided_path",
    "input_x_gradient",
    "insertion_deletion",
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
    "tangential_baseline",
    "tangential_ig",
    "tiny_cnn",
    "total_variation",
]
