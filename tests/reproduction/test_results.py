import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from manifold_lib.reproduction import runtime
from manifold_lib.reproduction.claims import claim, not_attempted
from manifold_lib.reproduction.results import Results, bracket, number, validate

TOP = ["slug", "profile", "paper", "claims", "tables", "figures", "provenance"]
PROVENANCE = ["git", "dirty", "seed", "params", "versions", "device", "started", "seconds", "data", "models"]


def start(slug="02_example", **more):
    paper = {"title": "A paper", "arxiv": "2206.07387"}
    return Results(slug, "smoke", **{"seed": 1, "params": {"n": 3, "lr": 0.1}, "device": "cpu", "paper": paper, **more})


def run(value=1.0):
    """A whole small notebook; returns its folder."""
    results = start()
    figure, axes = plt.subplots()
    axes.plot([0, value])
    results.figure("fig1_line", figure, pd.DataFrame({"x": [0, 1], "y": [0.0, value]}))
    plt.close(figure)
    results.table("numbers", pd.DataFrame({"a": [1, 2]}, index=pd.Index(["u", "v"], name="method")))
    results.claim(claim("2.1", "s", "Fig. 1", kind="greater", threshold=0.0, values=[value, value + 1], paper=0.1))
    results.claim(not_attempted("2.2", "s", "Fig. 2", kind="less", threshold=0.0, reason="needs a GPU"))
    results.data("mnist32", "a" * 64)
    results.model("mnist32-vae", "b" * 64)
    results.finish()
    return runtime.FIGURES / "smoke" / "02_example"


def test_a_run_leaves_one_whole_folder(folders, capsys):
    folder = run()
    assert capsys.readouterr().out == "figures/smoke/02_example: 2 claims, 1 figures, 1 tables\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "fig1_line.csv",
        "fig1_line.pdf",
        "fig1_line.png",
        "numbers.csv",
        "results.json",
    ]
    assert folder.stat().st_mode & 0o777 == 0o755
    document = json.loads((folder / "results.json").read_text())
    validate(document)
    assert list(document) == TOP
    assert list(document["provenance"]) == PROVENANCE
    assert document["figures"] == ["fig1_line.png"]
    assert document["tables"] == {"numbers": [{"method": "u", "a": 1}, {"method": "v", "a": 2}]}
    assert document["provenance"]["data"] == {"mnist32": "a" * 64}
    assert document["provenance"]["models"] == {"mnist32-vae": "b" * 64}
    assert list(folder.parent.iterdir()) == [folder], "nothing staged is left"


@pytest.mark.parametrize("linked", ["figures", "figures/smoke", "figures/smoke/02_example"])
def test_figures_on_another_file_system(folders, linked):
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat(folders).st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (folders / linked).parent.mkdir(parents=True, exist_ok=True)
        (folders / linked).symlink_to(Path(elsewhere) / "figures")
        for value in 1.0, 2.0:
            run(value)
        assert (folders / linked).is_symlink()
        assert not [path for path in Path(elsewhere).rglob("*") if path.name.startswith(".")]
        document = json.loads((runtime.FIGURES / "smoke/02_example/results.json").read_text(encoding="utf-8"))
        assert document["claims"][0]["value"] == 2.5


def test_a_measured_claim_is_not_replaced_by_none(folders):
    folder = run()
    results = start()
    missing = not_attempted("2.1", "s", "Fig. 1", kind="greater", threshold=0.0, reason="lacks cifar10: make 02")
    with pytest.raises(RuntimeError, match=r"claim 2\.1: .*lacks cifar10: make 02; figures/smoke/02_example keeps"):
        results.claim(missing)
    (folder / "results.json").write_text("{", encoding="utf-8")  # measured nothing
    assert start().claim(missing) is missing


def test_two_runs_differ_in_time_only(folders):
    def content(folder):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        document = json.loads(files.pop("results.json"))
        assert document["provenance"].pop("started") and document["provenance"].pop("seconds") >= 0
        return files, document

    assert content(run()) == content(run())


def test_a_run_replaces_the_folder_and_what_lay_in_it(folders):
    folder = run()
    (folder / "02_example.ipynb").write_text("{}")
    (folder / "old_figure.png").write_bytes(b"")
    run(value=2.0)
    assert not (folder / "02_example.ipynb").exists() and not (folder / "old_figure.png").exists()


def test_nothing_is_seen_before_the_end(folders):
    folder = run()
    before = (folder / "results.json").read_bytes()
    results = start()
    results.figure("other", plt.figure())
    assert (folder / "results.json").read_bytes() == before and not (folder / "other.png").exists()
    assert sorted(folders.joinpath("figures/smoke").iterdir()) == [results.folder.parent, folder]
    assert results.folder.parent.name == ".staging"


def test_a_swap_that_fails_puts_the_old_folder_back(folders, monkeypatch):
    folder = run()
    before = (folder / "results.json").read_bytes()
    replace = os.replace

    def fail(source, target):
        if str(source).endswith(".staging"):
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        start().finish()
    assert (folder / "results.json").read_bytes() == before


def test_results_that_break_the_schema_are_not_put_in_place(folders):
    results = start()
    results.model("mnist32-vae", "no checksum")
    with pytest.raises(ValueError, match=r"provenance\.models\.mnist32-vae"):
        results.finish()
    assert not list(runtime.FIGURES.glob("smoke/[!.]*"))


def test_finish_twice(folders):
    results = start()
    results.finish()
    with pytest.raises(RuntimeError, match="finished already"):
        results.finish()


def test_duplicate_claims_are_refused(folders):
    results = start()
    row = claim("2.1", "s", "t", kind="exact", threshold=1.0, value=0.5)
    assert results.claim(row) is row
    with pytest.raises(ValueError, match=r"2\.1"):
        results.claim(row)


def test_typed_verdicts_are_refused(folders):
    row = claim("2.1", "s", "t", kind="exact", threshold=1.0, value=1.5) | {"verdict": "reproduced"}
    with pytest.raises(ValueError, match=r"claims.2\.1.verdict"):
        start().claim(row)


def test_tables_are_plain_json(folders):
    results = start()
    frame = pd.DataFrame(
        {"f": np.array([0.5, np.nan], "float32"), "i": np.array([1, 2]), "b": [True, False], "t": ["x", None]}
    )
    frame["l"] = [np.arange(2), [np.float64(np.inf)]]
    assert results.table("t", frame) is frame
    results.finish()
    document = json.loads((runtime.FIGURES / "smoke/02_example/results.json").read_text())
    assert document["tables"]["t"] == [
        {"f": 0.5, "i": 1, "b": True, "t": "x", "l": [0, 1]},
        {"f": None, "i": 2, "b": False, "t": None, "l": [None]},
    ]
    with pytest.raises(ValueError, match="cell of type object"):
        start().table("t", pd.DataFrame({"o": [object()]}))


def test_a_table_and_a_figure_do_not_share_a_csv(folders):
    frame = pd.DataFrame({"a": [1]})
    results = start()
    results.table("one", frame)
    results.table("one", frame)
    results.figure("two", plt.figure(), frame)
    results.figure("two", plt.figure(), frame)
    with pytest.raises(ValueError, match="taken by the table"):
        results.figure("one", plt.figure(), frame)
    with pytest.raises(ValueError, match="taken by the figure"):
        results.table("two", frame)


@pytest.mark.parametrize(
    "arguments",
    [{"slug": "../up"}, {"slug": ""}, {"params": {"x": float("nan")}}, {"params": {"x": np.arange(2)}}],
)
def test_bad_arguments_are_refused(folders, arguments):
    with pytest.raises(ValueError):
        start(**arguments)
    assert not runtime.BUILD.exists()


def test_bad_profile_and_names_are_refused(folders):
    with pytest.raises(ValueError, match="profile"):
        Results("01_x", "huge", seed=0, params={}, device="cpu")
    for name in ("a/b", "a b", ".hidden", ""):
        with pytest.raises(ValueError, match="name"):
            start().figure(name, plt.figure())


def test_verdicts_are_rounded_for_reading(folders):
    results = start()
    results.claim(claim("2.1", "s", "t", kind="less", threshold=2, value=1.23456, ci95=(1.1111, 1.9999), n=7, paper=1))
    results.claim(not_attempted("2.2", "u", "t", kind="less", threshold=2, reason="r"))
    frame = results.verdicts()
    assert list(frame.columns) == ["id", "statement", "paper", "ours, smoke", "95 % interval", "n", "verdict"]
    assert frame.values.tolist() == [
        ["2.1", "s", "1", "1.23", "[1.11, 2]", 7, "reproduced"],
        ["2.2", "u", "n/a", "n/a", "", 0, "not attempted"],
    ]
    assert list(start().verdicts().columns) == list(frame.columns)


def test_in_profile_paper_our_value_does_not_take_the_place_of_the_papers(folders):
    results = Results("02_example", "paper", seed=0, params={}, device="cpu")
    results.claim(claim("2.1", "s", "t", kind="less", threshold=2, value=1.23456, ci95=(1.1, 1.9), n=7))
    (row,) = results.verdicts().to_dict("records")
    assert row["paper"] == "n/a" and row["ours, paper"] == "1.23"


def test_numbers_for_reading():
    assert [number(value) for value in (None, -0.0, 0.12345, 1234.5, 999.9, 1e-9, -12)] == [
        *("n/a", "0", "0.123", "1,234", "1,000", "1e-09", "-12"),
    ]
    assert bracket(None) == "" and bracket([0.0, 1 / 3]) == "[0, 0.333]"


def document():
    row = claim("2.1", "s", "t", kind="greater", threshold=0.0, values=[1.0, 2.0])
    provenance = {"git": None, "dirty": None, "seed": 0, "params": {}, "versions": {}, "device": "CPU"}
    provenance |= {"started": "2025-01-01T00:00:00+00:00", "seconds": 1.0, "data": {}, "models": {}}
    head = {"slug": "02_example", "profile": "small", "paper": None}
    return head | {"claims": [row], "tables": {}, "figures": ["a.png"], "provenance": provenance}


@pytest.mark.parametrize(
    "key", [*TOP, *(f"provenance.{key}" for key in PROVENANCE), "claims.2.1.unit", "claims.2.1.ci95"]
)
def test_validate_names_a_missing_key(key):
    broken = document()
    validate(broken)
    *_, last = key.split(".")
    place = broken["provenance"] if key.startswith("provenance.") else broken
    place = broken["claims"][0] if key.startswith("claims.") else place
    del place[last]
    with pytest.raises(ValueError, match=f"{key.replace('.', '[.]')}: missing"):
        validate(broken)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda d: d.update(profile="huge"), "profile"),
        (lambda d: d.update(slug=3), "slug"),
        (lambda d: d.update(paper={"title": "x"}), "paper.arxiv"),
        (lambda d: d.update(figures=["a.svg"]), "figures.0"),
        (lambda d: d.update(figures=["../a.png"]), "figures.0"),
        (lambda d: d.update(tables={"t": [1]}), "tables.t.0"),
        (lambda d: d["claims"].append(d["claims"][0]), "claims"),
        (lambda d: d["claims"].append(3), "claims.?"),
        (lambda d: d["claims"][0].update(kind="bigger"), "claims.2.1.kind"),
        (lambda d: d["claims"][0].update(value=None), "claims.2.1.value"),
        (lambda d: d["claims"][0].update(n=0), "claims.2.1.n"),
        (lambda d: d["claims"][0].update(ci95=[1.0]), "claims.2.1.ci95"),
        (lambda d: d["claims"][0].update(threshold="0"), "claims.2.1.threshold"),
        (lambda d: d["claims"][0].update(verdict="inconclusive"), "claims.2.1.verdict"),
        (lambda d: d["claims"][0].update(verdict="not attempted"), "claims.2.1.value"),
        (lambda d: d["provenance"].update(data={"mnist": "ab"}), "provenance.data.mnist"),
    ],
)
def test_validate_names_a_broken_key(change, name):
    broken = document()
    change(broken)
    with pytest.raises(ValueError) as error:
        validate(broken)
    assert str(error.value).startswith(f"{name}:")


def test_validate_allows_more_keys():
    validate(document() | {"remark": "an extension"})


def test_no_note_names_the_folder_of_the_data(folders, monkeypatch, tmp_path):
    monkeypatch.setenv("MANIFOLD_DATA", str(tmp_path / "sets"))
    results = start()
    reason = f"looked for x in {tmp_path / 'sets'} and in data/cache"
    results.claim(not_attempted("2.1", "s", "t", kind="less", threshold=0, reason=reason))
    results.finish()
    text = (runtime.FIGURES / "smoke" / "02_example" / "results.json").read_text()
    assert str(tmp_path) not in text and "looked for x in $MANIFOLD_DATA and in data/cache" in text
