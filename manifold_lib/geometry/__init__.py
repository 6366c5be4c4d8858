"""Tangent spaces of a decoder's images, the pullback metric, curves and geodesics."""

from .curves import curve_energy, curve_length, resample
from .geodesics import Geodesic, geodesic
from .metric import exp_map, log_map, magnification_factor, pullback_metric
from .nearest import Nearest, nearest_on_manifold
from .projection import project, project_matrix_free, random_fraction, tangent_fraction, tangent_share
from .tangent import decoder_jacobian, orthonormal_columns, principal_angles, tangent_basis

__all__ = [
    "Geodesic", "Nearest", "curve_energy", "curve_length", "decoder_jacobian", "exp_map", "geodesic", "log_map",
    "magnification_factor", "nearest_on_manifold", "orthonormal_columns", "principal_angles", "project",
    "project_matrix_free", "pullback_metric", "random_fraction", "resample", "tangent_basis", "tangent_fraction",
    "tangent_share",
]  # fmt: skip
