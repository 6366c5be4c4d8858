"""A claim, scores of networks that explained the same images or their own, and what comes of them."""

import numpy as np

from manifold_lib.reproduction.verdicts import decisions, scores


def claim(id="2.1", **more):
    return {
        **{"id": id, "question": "Is it?", "statement": "It is.", "kind": "paper", "source": "Fig. 3"},
        **{"estimand": "paired over images", "margin": 0.02, "why": "a guess", "level": "images"},
        **{"scores": {"metric": "DiffID", "of": "MA-GIG", "minus": "IG", "sets": ["mnist32"]}},
        **more,
    }


def table(lead=0.5, *, n=40, networks=1, images=0, of=("mnist32",), own=False, seed=0):
    """Scores of networks that explained the same images, or their own."""
    parts = []
    for name in of:
        for k in range(networks):
            generator = np.random.default_rng(seed + k)
            place = {"set": name, "network": f"lenet-{name}.{k}", "images": images + k * own}
            base, noise = generator.normal(size=(2, n))
            for method, values in {"IG": base, "MA-GIG": base + lead + 0.02 * noise}.items():
                parts.append(scores.rows_of("DiffID", method, values, **place))
    return scores.join(parts)


def decide(*entries, on, profile="small", **more):
    return decisions.decide([*entries], on, slug="02_example", profile=profile, **more)
