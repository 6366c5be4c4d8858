"""Tangent spaces of a decoder's images, the pullback metric, curves and geodesics."""

from .curves import curve_energy, curve_length, resample
from .geodesics import Geodesic, geodesic
from .maps import fisher_rao, rbf_std, variance_metric
from .means import karcher_mean
from .metric import exp_map, log_map, magnification_factor, pullback_metric
from .nearest import Nearest, nearest_on_manifold
from .projection import project, project_matrix_free, random_fraction, tangent_fraction, tangent_share
from .tangent import decoder_jacobian, orthonormal_columns, principal_angles, tangent_basis
from .transport import parallel_transport

__all__ = [
    "Geodesic", "Nearest", "curve_energy", "curve_length", "decoder_jacobian", "exp_map", "fisher_rao", "geodesic",
    "karcher_mean", "log_map", "magnification_factor", "nearest_on_manifold", "orthonormal_columns",
    "parallel_transport", "principal_angles", "project", "project_matrix_free", "pullback_metric", "random_fraction",
    "rbf_std", "resample", "tangent_basis", "tangent_fraction", "tangent_share", "variance_metric",
]  # fmt: skip
