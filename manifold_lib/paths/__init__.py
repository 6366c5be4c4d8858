"""Paths between a baseline and an input, and the line integral of a model's gradient along them."""

from .integral import Info, integrate
from .path import Path, polyline, straight_path

__all__ = ["Info", "Path", "integrate", "polyline", "straight_path"]
