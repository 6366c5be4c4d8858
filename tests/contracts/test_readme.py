"""The README keeps its word: its code runs, its links lead somewhere, its make targets exist."""

import math
import re
import subprocess

import pytest

from manifold_lib.reproduction import runtime

README = (runtime.ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_the_code_of_the_readme_runs_in_order(capsys):
    names: dict = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert names["attributions"].shape == names["digits"].inputs.shape
    assert names["maps"].shape == names["images"].shape
    assert len(names["scores"]) == 8 and all(math.isfinite(score) for score in names["scores"])
    for measured in (names["unfaithful"], names["unsteady"]):
        assert measured.shape == (8,) and measured.isfinite().all()
    assert "0.09" in capsys.readouterr().out


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_somewhere(link):
    if link.startswith("figures/") and not (runtime.FIGURES / "README.md").exists():
        pytest.skip("figures/ is generated: make all")
    assert link.startswith("https://") or (runtime.ROOT / link).exists()


def test_the_make_targets_it_names_exist():
    targets = set(re.findall(r"`make ([a-z0-9]+)", README)) | set(re.findall(r"^make ([a-z0-9]+)", README, flags=re.M))
    known = subprocess.run(["make", "-pRrq", "help"], cwd=runtime.ROOT, capture_output=True, text=True).stdout
    missing = [target for target in targets if not re.search(rf"^{target}:", known, flags=re.M)]
    assert not missing


def test_every_room_is_in_the_layout():
    rooms = {path.parent.name for path in (runtime.ROOT / "manifold_lib").glob("*/__init__.py")}
    assert rooms == set(re.findall(r"^  (\w+)/", README.split("## Layout")[1], flags=re.M))


def test_every_public_name_is_documented():
    import manifold_lib as ml

    undocumented = [name for name in ml.__all__ if not (getattr(ml, name).__doc__ or "").strip()]
    assert not undocumented
