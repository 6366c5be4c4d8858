"""What counts as another answer on another processor."""

import json
import subprocess

import pytest

from manifold_lib.reproduction import portable, runtime


def results(value, verdict, kind="paper", id="2.1"):
    row = {"id": id, "kind": kind, "value": value, "margin": 0.02, "verdict": verdict, "ci95": [0.0, 0.105], "note": ""}
    return {"slug": "02_example", "claims": [row]}


@pytest.mark.parametrize(
    ("ours", "other", "moved"),
    [(0.1, 0.101, 0.05), (0.1, 0.11, 0.5), (None, None, None), (0.1, None, None)],
)
def test_values_are_held_against_their_margin(ours, other, moved):
    (row,) = portable.compare(results(ours, "undecided"), results(other, "undecided"))
    assert row["moved"] == (None if moved is None else pytest.approx(moved))
    assert row["in the interval"] == (other != 0.11)


def test_rounding_of_an_identity_is_no_movement():
    (row,) = portable.compare(results(1e-16, "exact", "identity"), results(9e-15, "exact", "identity"))
    assert row["moved"] is None and row["verdict"] == row["other verdict"]


def test_a_claim_that_is_missing_there_counts_as_changed():
    (row,) = portable.compare(results(0.1, "undecided"), results(0.1, "undecided", id="2.9"))
    assert row["other verdict"] == "missing"


def test_the_copy_has_what_git_has_and_keeps_its_results(folders, monkeypatch):
    subprocess.run(["git", "init", "-q", str(folders)], check=True)
    for name in ("notebooks/01_a.ipynb", "manifold_lib/new.py", "figures/small/01_a/results.json", "Makefile"):
        (folders / name).parent.mkdir(parents=True, exist_ok=True)
        (folders / name).write_text(name)
    (folders / ".gitignore").write_text(".build/\n")
    target = runtime.BUILD / "portable"
    old = target / "manifold_lib/old.py"
    old.parent.mkdir(parents=True)
    old.write_text("gone from the repository")
    (target / "figures").mkdir()
    (target / "figures/kept").write_text("a result of the copy")
    portable.copy_repository(target)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {"notebooks/01_a.ipynb", "manifold_lib/new.py", "Makefile", ".gitignore", "figures/kept"}


def test_a_changed_verdict_fails_and_what_moved_is_named(folders, monkeypatch, capsys):
    rows = portable.compare(results(0.03, "direction only"), results(0.01, "undecided"))
    monkeypatch.setattr(portable, "run", lambda profile: portable.pd.DataFrame(rows))
    (runtime.FIGURES / "small").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["portable"])
    with pytest.raises(SystemExit, match="1"):
        portable.main()
    said = capsys.readouterr().out
    assert "2.1: 0.03 → 0.01 (margin 0.02), direction only → undecided" in said
    assert "values that move by more than 10%: 1 of 1" in said
    assert (runtime.FIGURES / "small/portable.csv").read_text().startswith("notebook,claim,value,other,moved")
    assert json.dumps(rows)
