"""The rooms of the package: imports run one way, rooms stay small, the library loads without the reproduction."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "manifold_lib"
TESTS = PACKAGE.parent / "tests"
# a room imports itself and the rooms before it
ROOMS = ("core", "paths", "geometry", "attribution", "evaluation", "models", "data", "reproduction")
MODULES = sorted(PACKAGE.glob("*/**/*.py"))

# the public names before there were rooms
PUBLIC = """
    VAE Attack Autoencoder ConvVAE Curves Geodesic GraphPaths Info KLAutoencoder Nearest PatchNet Path Samples
    ShapeSamples TangentialBaseline attribution_attack baselines beta_tcvae_loss blur_ig blur_path cancellation_ratio
    completeness_error comprehensiveness curve_energy curve_length decoder_jacobian diffid elbo_loss energy_ig
    energy_path enhanced_ig exp_map expected_gradients geodesic geodesic_ig geodesic_paths gradient guided_ig
    guided_path input_x_gradient insertion_deletion integrate integrated_gradients labeller lenet load_kl_autoencoder
    log_map log_odds ma_gig ma_gig_path magnification_factor manifold_ig map_mse max_sensitivity nearest_on_manifold
    orthonormal_columns pearson pgd polyline principal_angles project project_matrix_free purity pullback_metric
    random_fraction randomised relevance relevance_mass relevance_rank remove_top render_shapes resample retrain
    sample_generated sample_shapes shape_decoder shapley_values small_inception small_resnet small_vgg smoothgrad
    soft_cnn spearman ssim straight_path tangent_basis tangent_fraction tangent_share tangential_baseline
    tangential_ig tiny_cnn top_k total_variation
""".split()  # noqa: SIM905
HEAVY = (
    *("papermill", "pandas", "matplotlib", "torchvision", "sklearn", "scipy.stats", "skimage", "captum"),
    "manifold_lib.reproduction",
)


def name_of(path: Path) -> str:
    """``core.files`` for core/files.py, ``core`` for core/__init__.py, and nothing for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, known: set[str]) -> set[str]:
    """The modules of the package that a file imports, wherever in it the import stands."""
    package = ["manifold_lib", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from room import x` imports the module x where there is one
            names = [f"{stem}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "manifold_lib":
                inner = parts[1:]
                while ".".join(inner) not in known:
                    inner = inner[:-1]
                found.add(".".join(inner))
    return found


GRAPH: dict[str, set[str]] = {}
for _path in [PACKAGE / "__init__.py", *MODULES]:
    GRAPH[name_of(_path)] = imports_of(_path, {name_of(path) for path in [PACKAGE / "__init__.py", *MODULES]})


def runs_back(graph: dict[str, set[str]]) -> list[str]:
    """The arrows from a room to a later one; those of the package itself are none."""
    rank = {room: place for place, room in enumerate(ROOMS)}
    return [
        f"{module} imports {other or 'manifold_lib'}"
        for module, others in sorted(graph.items())
        for other in sorted(others)
        if module and (not other or rank[other.split(".")[0]] > rank[module.split(".")[0]])
    ]


def test_the_rooms_are_those_of_the_design() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)
    alone = {path.name for path in PACKAGE.glob("*.py")}
    assert alone == {"__init__.py", "explain.py"}, "every module but the command is in a room"
    parts = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("*/*/*.py")}
    assert parts == {"reproduction/verdicts", "reproduction/sweeps"}, "only the largest room has parts"


def test_no_arrow_runs_back() -> None:
    assert not runs_back(GRAPH)


def test_an_arrow_that_runs_back_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "core").mkdir()
    known = {"", "core", "core.a", "data", "data.b", "paths"}
    for text, wanted in (
        ("def f():\n    from ..data import b", {"data.b"}),
        ("from ..data.b import thing", {"data.b"}),
        ("import manifold_lib.data.b", {"data.b"}),
        ("from manifold_lib import data", {"data"}),
        ("from .. import paths", {"paths"}),
        ("import manifold_lib", {""}),
        ("from . import b", {"core"}),
        ("import torch\nfrom torch import nn", set()),
    ):
        path = tmp_path / "core" / "a.py"
        path.write_text(text)
        found = imports_of(path, known)
        assert found == wanted, text
        assert bool(runs_back({"core.a": found})) == bool(wanted - {"core"})


def test_no_modules_import_each_other_in_a_circle() -> None:
    # a room's __init__ only gathers names: what imports it imports the modules it gathers
    edges = {module: {other for other in others if other and other != module} for module, others in GRAPH.items()}
    del edges[""]
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from error


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_at_most_fourteen_modules(room: str) -> None:
    modules = [path.stem for path in (PACKAGE / room).glob("*.py") if not path.stem.startswith("__")]
    assert 0 < len(modules) <= 14, sorted(modules)


@pytest.mark.parametrize("module", [name_of(path) for path in MODULES if not path.stem.startswith("__")])
def test_every_module_has_its_test_file(module: str) -> None:
    room, name = module.partition(".")[0], module.rpartition(".")[2]
    assert (TESTS / room / f"test_{name}.py").is_file()


def in_a_fresh_interpreter(code: str) -> object:
    """The JSON value that the code prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_import_loads_the_library_alone() -> None:
    loaded = in_a_fresh_interpreter("import json, sys, manifold_lib; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    assert not [name for name in loaded if name.startswith(tuple(f"{heavy}." for heavy in HEAVY)) or name in HEAVY]


def test_every_public_name_is_there_and_the_zoo_on_first_use() -> None:
    names = [*PUBLIC, "attribution", "data", "evaluation", "geometry", "models", "paths"]
    code = f"""
import json, sys
import manifold_lib as ml
missing = [name for name in {names!r} if not hasattr(ml, name) or name not in ml.__all__]
before = "manifold_lib.reproduction.zoo" in sys.modules
print(json.dumps([missing, len(ml.__all__) - len(set(ml.__all__)), before, callable(ml.zoo.load), hasattr(ml, "zo")]))
"""
    assert in_a_fresh_interpreter(code) == [[], 0, False, True, False]
    assert in_a_fresh_interpreter("from manifold_lib import zoo; import json; print(json.dumps(zoo.__name__))") == (
        "manifold_lib.reproduction.zoo"
    )
