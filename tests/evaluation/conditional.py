"""A network with an argument for each image and one that all share, and the check that images do not mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import close, draw, seeded
from torch import Tensor, nn

N_IMAGES, SIZES = 5, [1, 3, 4, 7]


class Conditional(nn.Module):
    """Scores of an image, of a vector of its own, and of a table that is as long as some chunks are."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.head = nn.Linear(16, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, condition: Tensor, table: Tensor, word: str) -> Tensor:
        assert condition.shape == (len(x), 4) and table.shape == (3,) and word == "word"
        return table * self.head(torch.relu(self.body(x.flatten(1)) * self.gate(condition)))


MODEL = seeded(Conditional()).double().eval()
INPUTS, MAPS = draw(N_IMAGES, 1, 4, 4, seed=1).sigmoid(), draw(N_IMAGES, 1, 4, 4, seed=2)
CLASSES = torch.tensor([0, 1, 2, 1, 0])
CONDITION, TABLE = draw(N_IMAGES, 4, seed=3), torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def given(rows: slice | Tensor = slice(None)) -> dict[str, Any]:
    """The other arguments of these images, as a keyword."""
    return {"additional_forward_args": (CONDITION[rows], TABLE, "word")}


def same_alone(function: Callable[..., Tensor], size: int | None = None) -> None:
    """Assert that each image gets in the batch what it gets alone, to 1e-9, and not what another vector gives.

    ``function(model, inputs, maps, target, **options)`` -> (B, ...).
    """
    options = {} if size is None else {"internal_batch_size": size}
    for target in (None, CLASSES):
        whole = function(MODEL, INPUTS, MAPS, target, **given(), **options)
        for i in range(N_IMAGES):
            rows = slice(i, i + 1)
            own = None if target is None else target[rows]
            close(whole[rows], function(MODEL, INPUTS[rows], MAPS[rows], own, **given(rows)), 1e-9)
        other = function(MODEL, INPUTS, MAPS, target, **given(torch.tensor([1, 2, 3, 4, 0])), **options)
        assert not torch.allclose(whole, other)
