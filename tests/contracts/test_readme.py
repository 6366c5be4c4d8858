"""The README and the library's page keep their word: code runs, links lead somewhere, make targets exist."""

import math
import re
import subprocess

import pytest

from manifold_lib.reproduction import runtime

README = (runtime.ROOT / "README.md").read_text(encoding="utf-8")
PAGE = (runtime.ROOT / "notebooks" / "site" / "library.md").read_text(encoding="utf-8")


def run(text):
    """The names that the code of a page leaves, its blocks run in order."""
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S):
        exec(compile(block, "page", "exec"), names)
    return names


def test_the_readme_is_one_page():
    assert len(README.splitlines()) <= 150 and len(README.encode()) <= 12_000


def test_the_code_of_the_readme_runs_in_order():
    names = run(README)
    assert names["maps"].shape == names["images"].shape
    assert names["attributions"].shape == names["digits"].shape and names["basis"].shape == (2, 1024, 10)


def test_the_code_of_the_page_of_the_library_runs_in_order(capsys):
    names = run(PAGE)
    assert names["attributions"].shape == names["digits"].inputs.shape
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
    layout = (
        (runtime.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Packages")[1].split("Imports run")[0]
    )
    assert rooms == set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in layout.splitlines() if "|" in line))
    )


def test_every_public_name_is_documented():
    import manifold_lib as ml

    undocumented = [name for name in ml.__all__ if not (getattr(ml, name).__doc__ or "").strip()]
    assert not undocumented
