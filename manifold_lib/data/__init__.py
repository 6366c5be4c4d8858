"""Data sets, and generators whose manifold is known."""

from ..core.files import DataNotFound
from .datasets import Dataset, load, split, tensor_hash
from .generated import Samples, sample_generated
from .shapes import ShapeSamples, render_shapes, sample_shapes, shape_decoder

__all__ = [
    "DataNotFound", "Dataset", "Samples", "ShapeSamples", "load", "render_shapes", "sample_generated", "sample_shapes",
    "shape_decoder", "split", "tensor_hash",
]  # fmt: skip
