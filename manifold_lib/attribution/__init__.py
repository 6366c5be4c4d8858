"""Attributions: each says how much every input entry moves a model's score."""

from ..core.checks import AttributionWarning
from . import baselines
from .blur import blur_ig, blur_path
from .energy import energy_ig, energy_path
from .gradients import expected_gradients, gradient, input_x_gradient, smoothgrad
from .guided import guided_ig, guided_path
from .idgi import idgi
from .integrated import integrated_gradients
from .knn import GraphPaths, geodesic_ig, geodesic_paths
from .latent import enhanced_ig, enhanced_path, manifold_ig, manifold_path
from .latent_guided import ma_gig, ma_gig_path
from .shapley import shapley_values
from .tangential import TangentialBaseline, tangential_baseline, tangential_ig

__all__ = [
    "AttributionWarning", "GraphPaths", "TangentialBaseline", "baselines", "blur_ig", "blur_path", "energy_ig",
    "energy_path", "enhanced_ig", "enhanced_path", "expected_gradients", "geodesic_ig", "geodesic_paths", "gradient",
    "guided_ig", "guided_path", "idgi", "input_x_gradient", "integrated_gradients", "ma_gig", "ma_gig_path",
    "manifold_ig", "manifold_path", "shapley_values", "smoothgrad", "tangential_baseline", "tangential_ig",
]  # fmt: skip
