"""Speed beside the peers, in the same run: ``make bench`` prints the table and writes ``figures/bench/``.

Nothing is asserted about time. What is asserted is that all contestants compute the same thing.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import captum.attr
import numpy as np
import pandas as pd
import pytest
import torch
from published import (
    Tallied,
    enhanced_ig_by_step,
    geodesic_by_node,
    geodesics_by_search,
    ma_gig_by_image,
    project_by_vector,
    tangent_space_by_pixel,
)
from torch import Tensor, nn

import manifold_lib as ml
from manifold_lib.core import files
from manifold_lib.data import moons
from manifold_lib.data.photographs import find_photos, read_photos
from manifold_lib.reproduction import plotting, runtime

ROUNDS = 5
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
Contestant = Callable[[], object]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def lenet5() -> nn.Module:
    """LeCun et al. 1998, as most write it today."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"LeNet": ml.lenet, "LeNet-5": lenet5, "tiny CNN": ml.tiny_cnn, "MLP": mlp}


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every race is run on the processor, and on the GPU where there is one."""
    return request.param


@pytest.fixture(scope="module")
def rows() -> Iterator[list[dict]]:
    """Collects the rows of all races; the table and its figure are written at the end."""
    found: list[dict] = []
    yield found
    table = pd.DataFrame(found)
    if table.empty:
        return
    print("\n\n" + table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    folder = runtime.FIGURES / "bench"
    files.write_bytes(folder / "bench.csv", table.to_csv(index=False, float_format="%.4g").encode())
    draw(table, folder)


def draw(table: pd.DataFrame, folder: Path) -> None:
    """Time of each peer over ours, a line for each task and peer, a mark for each batch; right of 1 we are faster."""
    import matplotlib.pyplot as plt

    plotting.setup_style()
    others = table[table["contestant"] != "ours"].copy()
    chunked = others["contestant"].str.endswith(" points")
    others.loc[chunked, "contestant"] = "captum, its best chunk"
    others["line"] = others["task"] + ": " + others["contestant"].str.replace(" (one image, scaled)", "")
    others["line"] += others["device"].map(lambda name: "" if name == "cpu" else ", GPU")
    best = others.groupby(["line", "B"], sort=False)["ratio"].min().reset_index()
    lines = list(dict.fromkeys(best["line"]))[::-1]
    fig, axis = plt.subplots(figsize=(plotting.WIDTH, 0.19 * len(lines) + 0.9))
    marks = zip(
        (1, 4, 8, 16, 32, 64, 200, 500),
        "opPsD^vX",
        ("gradient", "EIG", "MIG", "averaged gradient", "robust gradient", "SmoothGrad", "IG", "input × gradient"),
        strict=True,
    )
    for n_images, marker, colour in marks:
        part = best[best["B"] == n_images]
        places = [lines.index(line) for line in part["line"]]
        axis.plot(part["ratio"], places, marker, ms=4.5, color=plotting.colour(colour), label=f"B = {n_images}")
    axis.axvline(1, color="0.4", lw=0.8)
    axis.set(
        xscale="log",
        xlabel="time (or gradients) of the peer / ours",
        ylim=(-0.7, len(lines) - 0.3),
    )
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yticks(range(len(lines)), lines, fontsize=7)
    axis.grid(axis="y", lw=0.4, alpha=0.6)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    fig.savefig(folder / "bench.png", dpi=160, metadata={"Software": None})
    plt.close(fig)


class Peak(threading.Thread):
    """Growth of this process's resident memory while it runs, in MB, or of the GPU's; NaN where nobody tells."""

    def __enter__(self) -> Peak:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # else what an earlier contestant gave back hides what this one takes
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self.cuda_bytes = torch.cuda.memory_allocated()
        self.stop, self.start_bytes = False, self.resident()
        self.peak = self.start_bytes
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop = True
        self.join()

    @staticmethod
    def resident() -> float:
        try:
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096.0
        except OSError:
            return float("nan")

    def run(self) -> None:
        while not self.stop:
            self.peak = max(self.peak, self.resident())
            time.sleep(0.001)

    def megabytes(self, device: str) -> float:
        if device == "cuda":
            return (torch.cuda.max_memory_allocated() - self.cuda_bytes) / 1e6
        return (self.peak - self.start_bytes) / 1e6


def timed(contestant: Contestant) -> float:
    """Seconds of one run, the GPU's work included."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    contestant()
    wait()
    return time.perf_counter() - start


def race(
    benchmark,
    rows: list[dict],
    task: str,
    n_images: int,
    contestants: dict[str, Contestant],
    device: str = "cpu",
    rounds: int = ROUNDS,
    **parts: int,
) -> None:
    """Run "ours" and the others in turn; ``parts`` says of how many images a contestant ran only one."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    memory = {}
    for name, contestant in contestants.items():
        contestant()  # what is loaded or compiled at the first call is not what a call takes
        with Peak() as peak:
            contestant()
        memory[name] = peak.megabytes(device)

    def run_the_others() -> None:
        for name, contestant in contestants.items():
            if name != "ours":
                seconds[name].append(timed(contestant) * parts.get(name.split()[0], 1))

    benchmark.pedantic(lambda: timed(contestants["ours"]), setup=run_the_others, rounds=rounds, iterations=1)
    seconds["ours"] = list(benchmark.stats.stats.data)
    for name, values in seconds.items():
        row = {"task": task, "device": device, "B": n_images, "contestant": name}
        row |= {"ms_per_image": statistics.median(values) / n_images * 1e3, "best_ms": min(values) / n_images * 1e3}
        ratio = statistics.median(other / mine for other, mine in zip(values, seconds["ours"], strict=True))
        rows.append(row | {"ratio": ratio, "peak_MB": memory[name]})


def problem(make: Callable[[], nn.Module], n_images: int, device: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = make().eval().to(device)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(n_images, 1, 32, 32, generator=generator)
    return model, inputs.to(device), torch.randint(10, (n_images,), generator=generator).to(device)


def agree(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("n_steps", [50, 128])
@pytest.mark.parametrize("n_images", [1, 16, 64])
@pytest.mark.parametrize("name", MODELS)
def test_integrated_gradients_beside_captum(benchmark, rows, device, name: str, n_images: int, n_steps: int) -> None:
    if n_steps == 128 and name != "LeNet":
        pytest.skip("one model is enough at 128 steps")
    model, inputs, target = problem(MODELS[name], n_images, device)
    oracle = captum.attr.IntegratedGradients(model)

    def captums(size: int | None) -> Contestant:
        return lambda: oracle.attribute(inputs, target=target, n_steps=n_steps, internal_batch_size=size)

    def ours() -> Tensor:
        return ml.integrated_gradients(model, inputs, target, n_steps=n_steps)

    contestants = {"ours": ours, "captum": captums(None)}
    # captum slices steps, never images, so no chunk is smaller than the batch
    sizes = [size for size in (64, 128, 256) if size >= n_images][: 3 if n_steps == 50 else 2]
    contestants |= {f"captum, {size} points": captums(size) for size in sizes}
    race(benchmark, rows, f"IG {n_steps}, {name}", n_images, contestants, device)
    twin, points = copy.deepcopy(model).double(), inputs[:2].double()
    exact = captum.attr.IntegratedGradients(twin).attribute(points, target=target[:2], n_steps=n_steps)
    agree(ml.integrated_gradients(twin, points, target[:2], n_steps=n_steps), exact, 1e-8)
    agree(ours(), captums(max(64, n_images))())


@pytest.mark.parametrize("n_images", [1, 4, 8])
def test_integrated_gradients_of_photographs_beside_captum(benchmark, rows, device, n_images: int) -> None:
    model, found = ml.imagenet_network("efficientnet_lite0").to(device), find_photos("shipped")
    inputs = read_photos(found, range(n_images), size=224, crop=True).to(device)
    target = found.labels[:n_images].clamp(0).to(device)
    oracle = captum.attr.IntegratedGradients(model)

    def captums(size: int | None) -> Contestant:
        return lambda: oracle.attribute(inputs, target=target, n_steps=50, internal_batch_size=size)

    def ours() -> Tensor:
        return ml.integrated_gradients(model, inputs, target, n_steps=50)

    contestants = {"ours": ours} | {f"captum, {size} points": captums(size) for size in (8, 16, 64)}
    if n_images < 8:  # all 400 points at once take more than 20 GB
        contestants["captum"] = captums(None)
    race(benchmark, rows, "IG 50, EfficientNet-Lite0", n_images, contestants, device, rounds=2)
    agree(ours(), captums(16)(), 1e-3)


@pytest.mark.parametrize("n_images", [1, 16, 64])
def test_smoothgrad_beside_captum(benchmark, rows, device, n_images: int) -> None:
    model, inputs, target = problem(ml.lenet, n_images, device)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))

    def captums() -> Tensor:
        return tunnel.attribute(inputs, nt_samples=25, stdevs=0.02, target=target, abs=False)

    def ours() -> Tensor:
        return ml.smoothgrad(model, inputs, target, n_samples=25, stdevs=0.02)

    race(benchmark, rows, "SmoothGrad 25, LeNet", n_images, {"ours": ours, "captum": captums}, device)


@pytest.mark.parametrize("n_steps", [50, 200])
@pytest.mark.parametrize("n_images", [1, 16, 64])
@pytest.mark.parametrize("name", ["LeNet", "tiny CNN"])
def test_guided_ig_beside_saliency(
    benchmark, rows, device, monkeypatch, name: str, n_images: int, n_steps: int
) -> None:
    saliency = pytest.importorskip("saliency.core")
    quantile = np.quantile
    monkeypatch.setattr(  # it asks for a keyword that NumPy no longer has
        np,
        "quantile",
        lambda a, q, interpolation="linear", **more: quantile(a, q, **({"method": interpolation} | more)),
    )
    model, inputs, target = problem(MODELS[name], n_images, device)

    def gradient(points, call_model_args=None, expected_keys=None):
        x = torch.from_numpy(points).float().to(device).requires_grad_()
        scores = model(x)[:, int(target[0])]
        return {saliency.INPUT_OUTPUT_GRADIENTS: torch.autograd.grad(scores.sum(), x)[0].double().cpu().numpy()}

    image = inputs[0].cpu().numpy()

    def released() -> object:
        return saliency.GuidedIG().GetMask(image, gradient, {}, x_steps=n_steps, x_baseline=0 * image)

    def ours() -> Tensor:
        return ml.guided_ig(model, inputs, target, n_steps=n_steps, method="left")

    contestants = {"ours": ours, "saliency (one image, scaled)": released}
    race(benchmark, rows, f"Guided IG {n_steps}, {name}", n_images, contestants, device, saliency=n_images)


@pytest.mark.parametrize("name", ["LeNet", "LeNet-5"])
@pytest.mark.parametrize("n_images", [1, 16, 64])
def test_deletion_beside_quantus(benchmark, rows, device, n_images: int, name: str) -> None:
    quantus = pytest.importorskip("quantus")
    model, inputs, target = problem(MODELS[name], n_images, device)
    attributions = ml.integrated_gradients(model, inputs, target, n_steps=8)
    metric = quantus.PixelFlipping(
        features_in_step=32,
        perturb_baseline=0.0,
        abs=False,
        normalise=False,
        disable_warnings=True,
        display_progressbar=False,
    )
    arrays = {
        name: value.cpu().numpy()
        for name, value in (("x_batch", inputs), ("y_batch", target), ("a_batch", attributions))
    }

    def flipping() -> Tensor:
        return torch.tensor(np.array(metric(model=model, **arrays, softmax=True, batch_size=n_images, device=device)))

    def ours() -> Tensor:
        curves = ml.insertion_deletion(
            model,
            inputs,
            attributions,
            target,
            ratios=[(i + 1) / 32 for i in range(32)],
            fill="zero",
            score="probability",
            rank="signed",
            curves="deletion",
        )
        assert curves.deletion is not None
        return curves.deletion

    agree(ours().cpu(), flipping().float(), 1e-3)
    race(benchmark, rows, f"deletion, 32 ratios, {name}", n_images, {"ours": ours, "quantus": flipping}, device)


@pytest.mark.parametrize("n_images", [1, 16, 64])
def test_tangent_bases_beside_the_published_pattern(benchmark, rows, device, n_images: int) -> None:
    torch.manual_seed(0)
    vae = ml.VAE().eval().to(device)
    latents = torch.randn(n_images, 10, generator=torch.Generator().manual_seed(0)).to(device)
    tallied = Tallied(vae.decode)

    def published() -> Tensor:
        return tangent_space_by_pixel(tallied, latents[0])

    def ours() -> Tensor:
        return ml.tangent_basis(vae.decode, latents)

    one, expected = ours()[0], published()
    assert (one @ one.T - expected @ expected.T).abs().max() < 1e-4
    assert (tallied.forwards, tallied.backwards) == (1, 1024)
    contestants = {"ours": ours, "published (one image, scaled)": published}
    race(benchmark, rows, "tangent bases, VAE 10 → 32×32", n_images, contestants, device, published=n_images)


@pytest.mark.parametrize("n_images", [1, 16, 64])
def test_projection_beside_the_published_pattern(benchmark, rows, device, n_images: int) -> None:
    torch.manual_seed(0)
    vae = ml.VAE().eval().to(device)
    latents = torch.randn(n_images, 10, generator=torch.Generator().manual_seed(0)).to(device)
    vectors = torch.rand(n_images, 1, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    jacobians, basis = ml.decoder_jacobian(vae.decode, latents), ml.tangent_basis(vae.decode, latents)

    def published() -> Tensor:
        return project_by_vector(vectors[0], jacobians[0])

    def ours() -> Tensor:
        return ml.project(vectors, basis)

    agree(ours()[0].flatten().double(), published(), 1e-3)
    contestants = {"ours": ours, "published (one image, scaled), basis anew": published}
    race(benchmark, rows, "projection, basis kept", n_images, contestants, device, published=n_images)


@pytest.mark.parametrize("n_images", [1, 16, 64])
def test_enhanced_ig_beside_the_published_pattern(benchmark, rows, device, n_images: int) -> None:
    model, inputs, _ = problem(ml.tiny_cnn, n_images, device)
    vae = ml.VAE().eval().to(device)
    tallied = [Tallied(part) for part in (model, vae.encode, vae.decode)]

    def published() -> Tensor:
        return enhanced_ig_by_step(*tallied, inputs[0], 0 * inputs[0], n_points=51)

    def ours() -> Tensor:
        found = ml.enhanced_ig(model, inputs, None, vae=vae, n_steps=50, method="left", bridge=False)
        assert isinstance(found, Tensor)
        return found

    agree(ours()[0], published(), 1e-3)
    assert [(part.forwards, part.backwards) for part in tallied] == [(51, 50), (2, 0), (51, 0)]
    contestants = {"ours": ours, "published (one image, scaled)": published}
    race(benchmark, rows, "Enhanced IG 50, tiny CNN", n_images, contestants, device, published=n_images)


@pytest.mark.parametrize(("n_images", "published"), [(1, True), (16, True), (16, False)])
def test_ma_gig_beside_the_published_pattern(benchmark, rows, device, n_images: int, published: bool) -> None:
    """The zoo's networks, 200 points, 5 % of the latents at once: the released sum, and ours with bridges."""
    from manifold_lib.reproduction import zoo

    vae, model = zoo.load("fashion32-conv-vae", device), zoo.load("lenet-fashion32", device)
    inputs = zoo.samples("fashion32", n_images, seed=1, device=device).inputs.to(device)
    tallied = [Tallied(part) for part in (model, vae.encode, vae.decode)]

    def released() -> Tensor:
        return ma_gig_by_image(*tallied, inputs[0], 0 * inputs[0], 200, 0.05)

    def ours(published: bool = published) -> Tensor:
        found = ml.ma_gig(model, inputs, None, vae=vae, n_steps=200 - published, published=published)
        assert isinstance(found, Tensor)
        return found

    expected = released()
    # the model for the class, the guidance of 199 points and the sum over 200; the decoder for 198 and for 199
    assert [(part.forwards, part.backwards) for part in tallied] == [(1 + 199 + 200, 399), (2, 0), (397, 199)]
    # in single precision latents that nearly tie part ways, so the maps agree as maps
    assert torch.corrcoef(torch.stack([ours(True)[0].flatten(), expected.flatten()]))[0, 1] > 0.9
    contestants = {"ours": ours, "published (one image, scaled)": released}
    task = f"MA-GIG 200, {'released sum' if published else 'with bridges'}"
    race(benchmark, rows, task, n_images, contestants, device, published=n_images)


def pairs(n_pairs: int, device: str, name: str = "mnist32-vae") -> tuple[nn.Module, Tensor, Tensor]:
    """One of the zoo's VAEs, by default that of ten latents, and pairs of prior draws."""
    from manifold_lib.reproduction import zoo

    vae = zoo.load(name, device)
    shape = vae.encode(torch.zeros(1, 1, 32, 32, device=device)).shape[1:]
    drawn = torch.randn(2, n_pairs, *shape, generator=torch.Generator().manual_seed(1))
    return vae, drawn[0].to(device), drawn[1].to(device)


@pytest.mark.parametrize("n_pairs", [1, 16])
@pytest.mark.filterwarnings("ignore:geodesic")
def test_geodesic_path_beside_the_published_pattern(benchmark, rows, device, n_pairs: int) -> None:
    """Two sweeps over 20 points against two passes of ours."""
    vae, start, end = pairs(n_pairs, device)
    tallied = Tallied(vae.decode)

    def published() -> Tensor:
        return geodesic_by_node(tallied, start[0], end[0])

    def ours() -> Tensor:
        return ml.geodesic(vae.decode, start, end, n_steps=19, max_iter=2).energy

    published()
    # 18 inner nodes, 2 sweeps, 4 gradients of 4 decodes each
    assert (tallied.forwards, tallied.backwards) == (2 * 288, 2 * 72)
    line = torch.stack([start + i / 19 * (end - start) for i in range(20)], 1)
    assert (ours() < ml.curve_energy(vae.decode, line)).all()
    contestants = {"ours": ours, "published (one pair, scaled)": published}
    race(benchmark, rows, "geodesic, 2 sweeps of 20 points", n_pairs, contestants, device, published=n_pairs)


@pytest.mark.parametrize("n_nodes", [200, 500])
def test_knn_geodesics_beside_the_published_pattern(benchmark, rows, n_nodes: int) -> None:
    """Half-moons, all nodes explained: one search in SciPy against one search for each input in Python."""
    points = moons.half_moons(0.2, 0, 4 * n_nodes)[2]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 10), nn.Tanh(), nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 1), nn.Flatten(0))
    tallied, baseline, counts = Tallied(net), torch.tensor([[-0.5, -0.5]]), Counter()

    def published() -> Tensor:
        return geodesics_by_search(tallied, points, baseline, 10, 5, counts)

    def ours() -> Tensor:
        nodes = torch.cat([points, baseline])
        found = ml.geodesic_ig(net, points, nodes=nodes, baselines=baseline, n_neighbors=10, n_nodes=5)
        assert isinstance(found, Tensor)
        return found

    change = (net(points) - net(baseline)).detach()
    found = published()
    assert counts["searches"] == len(points) == n_nodes and counts["lookups"] > n_nodes
    assert (tallied.forwards, tallied.backwards) == (1, 1)
    for maps in (found, ours()):
        agree(maps.sum(1), change, 1e-3)
    contestants = {"ours": ours, "published": published}
    race(benchmark, rows, f"k-NN geodesics, {n_nodes} nodes", n_nodes, contestants)


@pytest.mark.parametrize(("name", "n_pairs"), [("mnist32-vae", 1), ("mnist32-vae", 32), ("mnist32-conv-vae", 32)])
@pytest.mark.filterwarnings("ignore")
def test_geodesics_beside_stochman(benchmark, rows, device, name: str, n_pairs: int) -> None:
    """Its cubic spline and 150 steps of Adam against ours by default; energies of both drawn with 257 points."""
    curves = pytest.importorskip("stochman.curves")
    solver, manifold = pytest.importorskip("stochman.geodesic"), pytest.importorskip("stochman.manifold")
    vae, start, end = pairs(n_pairs, device, name)
    latent = start.shape[1:]

    class Decoded(manifold.EmbeddedManifold):
        def embed(self, points: Tensor, jacobian: bool = False) -> Tensor:
            return vae.decode(points.flatten(0, 1).unflatten(1, latent)).flatten(1).unflatten(0, points.shape[:2])

    def splines() -> Callable[[Tensor], Tensor]:
        spline = curves.CubicSpline(start.flatten(1), end.flatten(1))
        solver.geodesic_minimizing_energy(spline, Decoded(), max_iter=150)
        return spline

    def ours() -> Tensor:
        return ml.geodesic(vae.decode, start, end).points

    times, spline, points = torch.linspace(0, 1, 257, device=device), splines(), ours()
    with torch.no_grad():
        theirs = ml.curve_energy(vae.decode, spline(times).view(n_pairs, 257, *latent))
        energies = ml.curve_energy(vae.decode, ml.resample(vae.decode, points, 256)) / theirs
    task = f"geodesics, VAE {latent.numel()} → 32×32"
    race(benchmark, rows, task, n_pairs, {"ours": ours, "stochman, spline": splines}, device)
    assert (energies <= 1.001).all(), energies


@pytest.mark.filterwarnings("ignore:geodesic")
def test_geodesics_in_a_batch_beside_one_by_one(benchmark, rows, device) -> None:
    vae, start, end = pairs(64, device)

    def singles() -> None:
        for i in range(8):
            ml.geodesic(vae.decode, start[i : i + 1], end[i : i + 1])

    contestants = {"ours": lambda: ml.geodesic(vae.decode, start, end), "ours, one by one (8 of 64, scaled)": singles}
    race(benchmark, rows, "geodesics, batched", 64, contestants, device, **{"ours,": 8})


def test_gradients_to_one_percent(benchmark, rows) -> None:
    """Evaluations, not time: the fewest steps at which Captum's rules bring every image under 1 %.

    And the map: its distance to a fine rule, beside that of fixed rules with as many gradients.
    """
    from manifold_lib.reproduction import zoo

    model, inputs = zoo.load("lenet-mnist32"), zoo.samples("mnist32", 64, seed=5).inputs
    path, scores = ml.straight_path(inputs), model(inputs).detach()
    target = scores.argmax(1)
    found, info = benchmark.pedantic(
        lambda: ml.integrate(model, path, target, tolerance=0.01, return_info=True), rounds=1
    )
    assert info.converged.all()
    fine = ml.integrate(model, path, target, method="midpoint", n_steps=2048)

    def distance(maps: Tensor) -> float:
        return ((maps - fine).flatten(1).norm(dim=1) / fine.flatten(1).norm(dim=1)).median().item()

    change = (scores - model(0 * inputs).detach()).gather(1, target[:, None])[:, 0]
    bound = 0.01 * torch.maximum(change.abs(), 0.05 * (scores.amax(1) - scores.amin(1)))
    taken = int(info.n_gradients.sum())

    def add(contestant: str, n_gradients: int, maps: Tensor) -> None:
        row = {"task": "gradients to 1 %, LeNet", "device": "cpu", "B": 64, "contestant": contestant}
        rows.append(row | {"n_gradients": n_gradients, "ratio": n_gradients / taken, "map_error": distance(maps)})

    add("ours", taken, found)
    oracle = captum.attr.IntegratedGradients(model)
    for method in ("gausslegendre", "riemann_middle"):
        for n_steps in range(24, 129):
            maps = oracle.attribute(inputs, target=target, method=method, n_steps=n_steps, internal_batch_size=256)
            if ((maps.flatten(1).sum(1) - change).abs() <= bound).all():
                break
        add(f"captum {method}, n = {n_steps}", 64 * n_steps, maps)
        n_steps = round(taken / 64)
        maps = oracle.attribute(inputs, target=target, method=method, n_steps=n_steps, internal_batch_size=256)
        add(f"captum {method}, as many gradients", 64 * n_steps, maps)
