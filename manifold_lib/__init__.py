"""Manifold-aware feature attribution: paths and their integrals, tangent spaces and projections."""

from . import baselines
from .adaptive import Info
from .attacks import pgd
from .attribution import expected_gradients, gradient, input_x_gradient, integrated_gradients, smoothgrad
from .attribution_attacks import Attack, attribution_attack
from .blur import blur_ig, blur_path
from .classifiers import PatchNet, labeller, lenet, small_inception, small_resnet, small_vgg, soft_cnn, tiny_cnn
from .curves import curve_energy, curve_length, resample
from .energy import energy_ig, energy_path
from .erasure import comprehensiveness, diffid, log_odds, purity
from .evaluation import Curves, cancellation_ratio, completeness_error, insertion_deletion
from .generated import Samples, sample_generated
from .geodesics import Geodesic, geodesic
from .guided import guided_ig, guided_path
from .integrate import integrate
from .kl_autoencoder import KLAutoencoder, load_kl_autoencoder
from .knn import GraphPaths, geodesic_ig, geodesic_paths
from .latent import enhanced_ig, manifold_ig
from .latent_guided import ma_gig, ma_gig_path
from .matrix_free import project_matrix_free
from .metric import exp_map, log_map, magnification_factor, pullback_metric
from .metrics import map_mse, pearson, relevance, relevance_mass, relevance_rank, spearman, ssim, top_k, total_variation
from .nearest import Nearest, nearest_on_manifold
from .paths import Path, polyline, straight_path
from .roar import remove_top, retrain
from .sanity import max_sensitivity, randomised
from .shapes import ShapeSamples, render_shapes, sample_shapes, shape_decoder
from .shapley import shapley_values
from .tangent import (
    decoder_jacobian,
    orthonormal_columns,
    principal_angles,
    project,
    random_fraction,
    tangent_basis,
    tangent_fraction,
    tangent_share,
)
from .tangential import TangentialBaseline, tangential_baseline, tangential_ig
from .vae import VAE, Autoencoder, ConvVAE, beta_tcvae_loss, elbo_loss

__all__ = [
    "VAE",
    "Attack",
    "Autoencoder",
    "ConvVAE",
    "Curves",
    "Geodesic",
    "GraphPaths",
    "Info",
    "KLAutoencoder",
    "Nearest",
    "PatchNet",
    "Path",
    "Samples",
    "ShapeSamples",
    "TangentialBaseline",
    "attribution_attack",
    "baselines",
    "beta_tcvae_loss",
    "blur_ig",
    "blur_path",
    "cancellation_ratio",
    "completeness_error",
    "comprehensiveness",
    "curve_energy",
    "curve_length",
    "decoder_jacobian",
    "diffid",
    "elbo_loss",
    "energy_ig",
    "energy_path",
    "enhanced_ig",
    "exp_map",
    "expected_gradients",
    "geodesic",
    "geodesic_ig",
    "geodesic_paths",
    "gradient",
    "guided_ig",
    "guided_path",
    "input_x_gradient",
    "insertion_deletion",
    "integrate",
    "integrated_gradients",
    "labeller",
    "lenet",
    "load_kl_autoencoder",
    "log_map",
    "log_odds",
    "ma_gig",
    "ma_gig_path",
    "magnification_factor",
    "manifold_ig",
    "map_mse",
    "max_sensitivity",
    "nearest_on_manifold",
    "orthonormal_columns",
    "pearson",
    "pgd",
    "polyline",
    "principal_angles",
    "project",
    "project_matrix_free",
    "pullback_metric",
    "purity",
    "random_fraction",
    "randomised",
    "relevance",
    "relevance_mass",
    "relevance_rank",
    "remove_top",
    "render_shapes",
    "resample",
    "retrain",
    "sample_generated",
    "sample_shapes",
    "shape_decoder",
    "shapley_values",
    "small_inception",
    "small_resnet",
    "small_vgg",
    "smoothgrad",
    "soft_cnn",
    "spearman",
    "ssim",
    "straight_path",
    "tangent_basis",
    "tangent_fraction",
    "tangent_share",
    "tangential_baseline",
    "tangential_ig",
    "tiny_cnn",
    "top_k",
    "total_variation",
]
