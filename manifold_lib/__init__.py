"""Manifold-aware feature attribution: paths and their integrals, tangent spaces and projections."""

from typing import Any

from . import attribution, data, evaluation, geometry, models, paths
from .attribution import *
from .data.generated import Samples, sample_generated
from .data.shapes import ShapeSamples, render_shapes, sample_shapes, shape_decoder
from .evaluation import *
from .geometry import *
from .models import *
from .paths import *

__all__ = [
    *(*attribution.__all__, *evaluation.__all__, *geometry.__all__, *models.__all__, *paths.__all__),
    *("Samples", "ShapeSamples", "render_shapes", "sample_generated", "sample_shapes", "shape_decoder"),
    *("attribution", "data", "evaluation", "geometry", "models", "paths"),
]


def __getattr__(name: str) -> Any:
    """``manifold_lib.zoo``, the weights of the reproduction, loaded on first use."""
    if name == "zoo":
        from .reproduction import zoo

        return zoo
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
