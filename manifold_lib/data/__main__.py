"""``python -m manifold_lib.data``: fetch and verify every data set."""

from .datasets import main

main()
