"""The machinery of the reproduction: folders, profiles, weights, claims, results. Nothing of the library imports it."""
