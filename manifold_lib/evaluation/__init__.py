"""How faithful, alike, well placed and robust attributions are."""

from .attacks import pgd
from .attribution_attacks import Attack, attribution_attack
from .erasure import Curves, comprehensiveness, diffid, insertion_deletion, log_odds
from .faithfulness import cancellation_ratio, completeness_error, purity
from .localisation import relevance_mass, relevance_rank
from .roar import remove_top, retrain
from .sanity import max_sensitivity, randomised
from .similarity import map_mse, pearson, relevance, spearman, ssim, top_k, total_variation

__all__ = [
    "Attack", "Curves", "attribution_attack", "cancellation_ratio", "completeness_error", "comprehensiveness", "diffid",
    "insertion_deletion", "log_odds", "map_mse", "max_sensitivity", "pearson", "pgd", "purity", "randomised",
    "relevance", "relevance_mass", "relevance_rank", "remove_top", "retrain", "spearman", "ssim", "top_k",
    "total_variation",
]  # fmt: skip
