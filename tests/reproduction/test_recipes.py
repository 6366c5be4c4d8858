"""The table of models: each can be built, and comes after those it is trained from."""

import pytest
import torch

from manifold_lib.data.datasets import LOADERS
from manifold_lib.reproduction.recipes import RECIPES

CODERS = {"vae", "elbo", "autoencoder", "photographs"}
KINDS = {*CODERS, "reconstructions", "generated", "robust", "polarities", "mirrored", "plain"}
SHAPES = {"xray": (1, 64, 64), "cifar10": (3, 32, 32), "photographs": (3, 128, 128)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_takes_the_images_it_is_trained_on(name):
    recipe = RECIPES[name]
    images = torch.rand(2, *SHAPES.get(recipe.data, (1, 32, 32)))
    found = recipe.build().eval()(images)
    assert found.shape == images.shape if recipe.kind in CODERS else found.ndim == 2 and len(found) == 2


def test_recipes_are_of_known_kinds_and_sets_and_after_their_parents():
    seen = set()
    for name, recipe in RECIPES.items():
        assert recipe.kind in KINDS and recipe.text
        assert recipe.data in ("shapes", "photographs") or recipe.data.removesuffix("32") in LOADERS
        assert set(recipe.parents) <= seen, f"{name}: make models would train its parents out of turn"
        seen.add(name)
