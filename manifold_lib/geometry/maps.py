"""Other metrics on latents: maps whose pullback metric is Fisher–Rao's, or counts the decoder's uncertainty.

A map is a decoder again, so that :func:`geodesic` and all else take it as they take the decoder.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..core.autoencoder import encoded
from ..core.checks import check_batch, check_choice, check_count, check_positive, check_precise, require
from .tangent import Decoder, decoded

LIKELIHOODS = ("bernoulli", "categorical", "gaussian")
# A probability below this counts as this; its root and the root's slope are ordinary numbers.
_LEAST = 1e-12


def fisher_rao(decoder: Decoder, likelihood: str = "bernoulli", *, least_std: float = 0.05) -> Decoder:
    """A map whose metric JᵀJ is the Fisher information of what a decoder says of each pixel (Arvanitidis et al. 2022).

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> the parameters of the likelihood.
    likelihood : {"bernoulli", "categorical", "gaussian"}
        ``"bernoulli"``: the decoder gives probabilities (B, *shape), and the map is 2 arcsin √p, so that a pixel that
        goes from p to q has come 2 |arcsin √p − arcsin √q| far. ``"categorical"``: probabilities of classes along
        dimension 1, and the map is 2 √p, on a sphere of radius 2. ``"gaussian"``: mean and standard deviation
        (B, 2, *shape), as from :func:`variance_metric`; (dμ² + 2 dσ²) / σ² is the metric of a hyperbolic plane, and
        the map rolls it up to a pseudosphere (B, 3, *shape).
    least_std : float
        Of ``"gaussian"``: a smaller standard deviation counts as this. A segment of a curve should change no mean by
        more, or its chord cuts through the pseudosphere: take ``n_steps`` accordingly.

    Returns
    -------
    callable
        (B, *latent) -> (B, *shape'). Lengths are in units of distinguishable steps, not of pixels.

    Raises
    ------
    ValueError
        For an unknown likelihood; when called, for what are no probabilities, or no means and deviations.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> curve = torch.tensor([[[0.0], [0.5], [1.0]]])
    >>> ml.curve_length(ml.fisher_rao(lambda z: z), curve)
    tensor([3.1416])
    """
    check_choice(likelihood, "likelihood", LIKELIHOODS)
    check_positive(least_std, "least_std")

    def observed(latents: Tensor) -> Tensor:
        said = decoded(decoder, latents)
        said = said.to(torch.promote_types(said.dtype, torch.float32))  # 1 − p of half precision has no digits
        if likelihood == "gaussian":
            require(said.ndim >= 3 and said.shape[1] == 2, "decoder", f"shape {tuple(said.shape)}", "(B, 2, *shape)")
            _refuse(said[:, 1] <= 0, "standard deviations of 0 or less", "means and standard deviations (B, 2, *shape)")
            return _pseudosphere(said[:, 0], said[:, 1], least_std)
        _refuse((said < -1e-6) | (said > 1 + 1e-6), "values outside [0, 1]", f"probabilities for {likelihood!r}")
        root = said.clamp_min(_LEAST).sqrt()
        if likelihood == "categorical":
            _refuse((said.sum(1) - 1).abs() > 1e-3, "sums that are not 1", "probabilities along dimension 1")
            return 2 * root
        return 2 * torch.atan2(root, (1 - said).clamp_min(_LEAST).sqrt())  # arcsin loses its slope at 1

    return observed


def _pseudosphere(mean: Tensor, std: Tensor, least: float) -> Tensor:
    """The tractricoid, stretched so that its rim is at the least deviation: (B, *shape) twice -> (B, 3, *shape)."""
    height = (std / least).clamp_min(1 + 1e-6)
    angle, slant = mean / (least * 2**0.5), (1 - height**-2).sqrt()
    return 2**0.5 * torch.stack([angle.cos() / height, angle.sin() / height, height.acosh() - slant], 1)


def _refuse(bad: Tensor, got: str, wants: str) -> None:
    """Refuse values, except where torch.vmap hides them; they have been seen before, when the decoder was tried."""
    try:
        found = bool(bad.any())
    except RuntimeError:
        return
    require(not found, "decoder", got, wants)


def variance_metric(decoder: Decoder, std: Decoder | Sequence[Decoder]) -> Decoder:
    """Mean and standard deviation as one map, whose metric is J_μᵀJ_μ + J_σᵀJ_σ (Arvanitidis et al. 2018).

    The mean of JᵀJ over a Gaussian decoder. Curves of least energy keep away from where the deviation grows, away from
    the data.

    Parameters
    ----------
    decoder : callable
        (B, *latent) -> (B, *shape), the mean.
    std : callable, or sequence of callables
        (B, *latent) -> what expands to (B, *shape), such as :func:`rbf_std`; or further decoders: then mean and
        deviation are those of all of them and ``decoder``.

    Returns
    -------
    callable
        (B, *latent) -> (B, 2, *shape).

    Raises
    ------
    ValueError
        For an empty sequence; when called, for shapes that do not fit.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> both = ml.variance_metric(lambda z: z, lambda z: z**2)
    >>> ml.pullback_metric(both, torch.tensor([[1.0]]))
    tensor([[[5.]]])
    """
    if callable(std) and not isinstance(std, nn.ModuleList):
        deviation = std

        def stacked(latents: Tensor) -> Tensor:
            mean, spread = decoded(decoder, latents), decoded(deviation, latents)
            fits = spread.ndim == mean.ndim and all(n in (1, m) for n, m in zip(spread.shape, mean.shape, strict=True))
            require(fits, "std", f"shape {tuple(spread.shape)}", f"what expands to {tuple(mean.shape)}")
            return torch.stack([mean, spread.expand_as(mean)], 1)

        return stacked
    wants = "a callable, or one decoder or more beside the first"
    require(isinstance(std, Sequence | nn.ModuleList), "std", type(std).__name__, wants)
    members = [decoder, *std]
    require(len(members) > 1, "std", "no decoders", wants)
    require(all(map(callable, members)), "std", "what is not callable", wants)

    def of_all(latents: Tensor) -> Tensor:
        parts = [decoded(member, latents) for member in members]
        shapes = {tuple(part.shape) for part in parts}
        require(len(shapes) == 1, "std", f"images of shapes {sorted(shapes)}", "images like those of the decoder")
        said = torch.stack(parts, 1)
        mean = said.mean(1)
        spread = (said - mean[:, None]).square().mean(1).clamp_min(_LEAST).sqrt()  # equal members have no slope
        return torch.stack([mean, spread], 1)

    return of_all


def rbf_std(
    vae: object, inputs: Tensor, *, n_centers: int = 64, far: float = 1.0, internal_batch_size: int = 256
) -> Callable[[Tensor], Tensor]:
    """The deviation 1 / √β(z) of an autoencoder, by radial basis functions about its codes (Arvanitidis et al. 2018).

    The precision is β(z) = far⁻² + Σ_k w_k exp(−λ_k ‖z − c_k‖²). The centers c_k are those of k-means, λ_k has the
    width of its cluster, and 1 / w_k is the mean squared error of a pixel there.

    Parameters
    ----------
    vae : object
        With ``encode`` and ``decode``.
    inputs : Tensor
        (N, *shape), images that it was trained on.
    n_centers : int
        Clusters, at most N.
    far : float
        The deviation far from all codes, in units of the images.
    internal_batch_size : int
        Images at once.

    Returns
    -------
    callable
        (B, *latent) -> (B, 1, …), which expands to images.

    Raises
    ------
    ValueError
        For bad input, naming the argument.

    Examples
    --------
    >>> import torch, manifold_lib as ml
    >>> from types import SimpleNamespace
    >>> half = SimpleNamespace(encode=lambda x: x[:, :1], decode=lambda z: torch.cat([z, 0 * z], 1))
    >>> std = ml.rbf_std(half, torch.tensor([[0.0, 0.1], [0.2, -0.1]]), n_centers=1)
    >>> std(torch.tensor([[0.1], [9.0]])).round(decimals=2)
    tensor([[0.0700],
            [1.0000]])
    """
    from sklearn.cluster import KMeans  # here, since it takes seconds to import

    check_precise(check_batch(inputs), "inputs")
    check_positive(far, "far")
    check_count(n_centers, "n_centers")
    size = check_count(internal_batch_size, "internal_batch_size")
    with torch.inference_mode(False), torch.no_grad():
        inputs = inputs.clone()
        decode, (codes,) = encoded(vae, size, inputs, needs="slope")
        parts = zip(inputs.split(size), codes.split(size), strict=True)
        error = torch.cat([(images - decode(some)).flatten(1).square().mean(1) for images, some in parts])
    flat, n_dims = codes.flatten(1), inputs.ndim
    points = flat.cpu().double().numpy()
    n_centers = min(n_centers, len(np.unique(points, axis=0)))
    fitted = KMeans(n_centers, n_init=4, random_state=0).fit(points)
    member = torch.from_numpy(fitted.labels_.astype(np.int64)).to(flat.device)
    centers = torch.from_numpy(fitted.cluster_centers_).to(flat)

    def of_clusters(values: Tensor) -> Tensor:
        total = values.new_zeros(n_centers).index_add_(0, member, values)
        return total / member.bincount(minlength=n_centers).clamp_min(1)

    widths = of_clusters((flat - centers[member]).square().sum(1))
    rates = 0.5 / widths.clamp_min(widths.mean().clamp_min(1e-12) * 1e-2)  # a cluster of one code has no width
    weights = 1 / of_clusters(error).clamp_min(1e-8)

    def std(latents: Tensor) -> Tensor:
        met = latents[0].numel() == centers.shape[1]
        require(met, "latents", f"shape {tuple(latents.shape)}", f"{centers.shape[1]} entries each")
        apart = (latents.flatten(1)[:, None] - centers).square().sum(2)
        precision = far**-2 + (weights * (-rates * apart).exp()).sum(1)
        return precision.rsqrt().view(-1, *(1,) * (n_dims - 1))

    return std
