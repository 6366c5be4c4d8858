import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from manifold_lib.core.files import CorruptFile
from manifold_lib.reproduction import claims, runtime
from manifold_lib.reproduction.results import Results, bracket, number, size
from manifold_lib.reproduction.verdicts import scores
from manifold_lib.reproduction.verdicts.schema import validate

TOP = ["slug", "profile", "paper", "registration", "claims", "tables", "figures", "provenance"]
PROVENANCE = ["git", "dirty", "seed", "params", "versions", "device", "started", "seconds", "data", "models"]
PLACE = {"set": "mnist32", "network": "lenet-mnist32"}


@pytest.fixture(autouse=True)
def registration(registered):
    """The claims of the example are registered before each test."""
    registered()


def start(slug="02_example", **more):
    paper = {"title": "A paper", "arxiv": "2206.07387"}
    return Results(slug, "small", **{"seed": 1, "params": {"n": 3, "lr": 0.1}, "device": "cpu", "paper": paper, **more})


@pytest.fixture
def run(scored):
    """``run(value)`` is a whole small notebook, in which MA-GIG leads by ``value``; it returns its folder."""

    def whole(value=0.5, images=0):
        results = start()
        figure, axes = plt.subplots()
        axes.plot([0, value])
        results.figure("fig1_line", figure, pd.DataFrame({"x": [0, 1], "y": [0.0, value]}))
        plt.close(figure)
        results.table("numbers", pd.DataFrame({"a": [1, 2]}, index=pd.Index(["u", "v"], name="method")))
        results.scores("DiffID", scored(value), **PLACE, images=images)
        assert results.identity("2.T1", [1e-5, -2e-5]) == "exact"
        results.data("mnist32", "a" * 64)
        results.model("mnist32-vae", "b" * 64)
        results.finish()
        return runtime.FIGURES / "small" / "02_example"

    return whole


def rows_of(folder):
    return {row["id"]: row for row in json.loads((folder / "results.json").read_text(encoding="utf-8"))["claims"]}


def test_a_run_leaves_one_whole_folder(folders, run, capsys):
    folder = run()
    assert capsys.readouterr().out == "figures/small/02_example: 4 claims, 1 figures, 1 tables\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("fig1_line.csv", "fig1_line.pdf", "fig1_line.png", "numbers.csv", "results.json", "scores.parquet")
    ]
    assert folder.stat().st_mode & 0o777 == 0o755
    document = json.loads((folder / "results.json").read_text())
    validate(document)
    assert list(document) == TOP
    assert list(document["provenance"]) == PROVENANCE
    assert document["registration"] == claims.register(runtime.claims_file("02_example")).sha256
    assert document["figures"] == ["fig1_line.png"]
    assert document["tables"] == {"numbers": [{"method": "u", "a": 1}, {"method": "v", "a": 2}]}
    assert document["provenance"]["data"] == {"mnist32": "a" * 64}
    assert document["provenance"]["models"] == {"mnist32-vae": "b" * 64}
    assert {row["id"]: row["verdict"] for row in document["claims"]} == {
        **{"2.1": "direction only", "2.2": "not attempted", "2.C1": "fooled", "2.T1": "exact"}
    }
    assert len(scores.read(folder / "scores.parquet")) == 3 * 40
    assert list(folder.parent.iterdir()) == [folder], "nothing staged is left"


def test_there_are_no_results_without_a_registration(folders, registered):
    registered({"1": {"margin": "0.02"}})
    with pytest.raises(ValueError, match=r"02_example\.yml: claims\.2\.1\.margin: "):
        start()
    runtime.claims_file("02_example").unlink()
    with pytest.raises(ValueError, match="claims are registered before a run"):
        start()
    assert not runtime.FIGURES.exists()


@pytest.mark.parametrize("linked", ["figures", "figures/small", "figures/small/02_example"])
def test_figures_on_another_file_system(folders, run, linked):
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat(folders).st_dev:
        pytest.skip("there is no second file system")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (folders / linked).parent.mkdir(parents=True, exist_ok=True)
        (folders / linked).symlink_to(Path(elsewhere) / "figures")
        for value in 1.0, 2.0:
            run(value)
        assert (folders / linked).is_symlink()
        assert not [path for path in Path(elsewhere).rglob("*") if path.name.startswith(".")]
        document = json.loads((runtime.FIGURES / "small/02_example/results.json").read_text(encoding="utf-8"))
        assert document["claims"][0]["value"] == pytest.approx(2.0, abs=0.01)


def test_a_measured_claim_is_not_replaced_by_none(folders, run):
    folder = run()
    before = (folder / "results.json").read_bytes()
    with pytest.raises(RuntimeError, match=r"claim 2\.1, 2\.C1, 2\.T1: .*02_example keeps the values"):
        start().finish()
    assert (folder / "results.json").read_bytes() == before
    (folder / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorruptFile, match=r"results\.json: cannot be read"):
        start()
    (folder / "results.json").unlink()  # measured nothing
    start().finish()


def test_a_file_of_scores_that_cannot_be_read_is_named(folders, run):
    file = run() / "scores.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CorruptFile, match=r"scores\.parquet: cannot be read"):
        start()


def test_scores_that_are_recorded_twice_are_refused(folders, scored):
    results = start()
    for images in (0, 1, 0):
        results.scores("DiffID", scored(0.5), **PLACE, images=images)
    for act in (results.judge, results.finish):
        with pytest.raises(ValueError, match=r"scores: 120 are recorded twice, the first is mnist32, lenet-mnist32, 0"):
            act()
    assert not list(runtime.FIGURES.glob("small/[!.]*"))


@pytest.mark.parametrize("show", ["judge", "verdict", "replications"])
def test_a_claim_has_one_verdict_in_a_run(folders, scored, show):
    results = start()
    results.scores("DiffID", scored(0.5), **PLACE)
    getattr(results, show)("2.1")
    with pytest.raises(ValueError, match=r"claim 2\.1 was judged before DiffID of lenet-mnist32\.1 on mnist32"):
        results.scores("DiffID", scored(0.5), set="mnist32", network="lenet-mnist32.1")
    results.scores("DiffID", {"of no claim": np.zeros(9)}, **PLACE)
    results.scores("another metric", scored(0.5), **PLACE)
    results.scores("DiffID", scored(0.5), set="of no claim", network="lenet-mnist32.1")


# what decides must not have been in sight: the whole way, over the files of one run and the next


@pytest.mark.parametrize(
    "changes",
    [
        {"1": {"margin": 0.5}},
        {"1": {"statement": "It is not."}},
        {"1": {"estimand": "over the best images"}},
        {"1": {"scores": {"metric": "DiffID", "of": "noise", "minus": "IG", "sets": ["mnist32"]}}},
    ],
)
def test_a_claim_that_was_edited_after_its_run_wants_fresh_images(folders, run, registered, changes):
    assert not rows_of(run())["2.1"]["exploratory"]
    registered(changes)
    for _ in range(2):
        rows = rows_of(run())
        assert [id for id, row in rows.items() if row["exploratory"]] == ["2.1"]
    registered()  # and back
    assert rows_of(run())["2.1"]["exploratory"]
    assert not rows_of(run(images=1))["2.1"]["exploratory"]
    assert rows_of(run(images=0))["2.1"]["exploratory"]


def test_a_claim_of_another_name_wants_fresh_images(folders, run, registered):
    entry = registered()[0]
    run()
    registered({"1": None, "9": {key: value for key, value in entry.items() if key != "id"}})
    assert rows_of(run())["2.9"]["exploratory"]
    assert not rows_of(run(images=1))["2.9"]["exploratory"]


def test_the_flag_that_is_flipped_after_a_run_changes_nothing_on_its_images(folders, run, registered):
    registered({"1": {"exploratory": True}})
    assert rows_of(run())["2.1"]["exploratory"]
    registered()
    assert rows_of(run())["2.1"]["exploratory"]
    assert not rows_of(run(images=1))["2.1"]["exploratory"]


def test_two_runs_differ_in_time_only(folders, run):
    def content(folder):
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        document = json.loads(files.pop("results.json"))
        assert document["provenance"].pop("started") and document["provenance"].pop("seconds") >= 0
        return files, document

    assert content(run()) == content(run())


def test_a_run_replaces_the_folder_and_what_lay_in_it(folders, run):
    folder = run()
    (folder / "02_example.ipynb").write_text("{}")
    (folder / "old_figure.png").write_bytes(b"")
    run(value=2.0)
    assert not (folder / "02_example.ipynb").exists() and not (folder / "old_figure.png").exists()


def test_nothing_is_seen_before_the_end(folders, run):
    folder = run()
    before = (folder / "results.json").read_bytes()
    results = start()
    results.figure("other", plt.figure())
    assert (folder / "results.json").read_bytes() == before and not (folder / "other.png").exists()
    assert sorted(folders.joinpath("figures/small").iterdir()) == [results.folder.parent, folder]
    assert results.folder.parent.name == ".staging"


def test_a_swap_that_fails_puts_the_old_folder_back(folders, run, monkeypatch):
    folder = run()
    before = (folder / "results.json").read_bytes()
    replace = os.replace

    def fail(source, target):
        if str(source).endswith(".staging"):
            raise OSError("no space left")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        run(value=0.7)
    assert (folder / "results.json").read_bytes() == before


def test_results_that_break_the_schema_are_not_put_in_place(folders):
    results = start()
    results.model("mnist32-vae", "no checksum")
    with pytest.raises(ValueError, match=r"provenance\.models\.mnist32-vae"):
        results.finish()
    assert not list(runtime.FIGURES.glob("small/[!.]*"))


def test_finish_twice(folders):
    results = start()
    results.finish()
    with pytest.raises(RuntimeError, match="finished already"):
        results.finish()


def test_claims_that_are_not_registered_are_refused(folders):
    results = start()
    for act in (results.judge, results.verdict, results.replications, lambda id: results.identity(id, [0.0])):
        with pytest.raises(
            ValueError, match=r"claim 9\.9: is not registered in notebooks/claims/02_example\.yml, which has 2"
        ):
            act("9.9")


def test_identities_are_finite_and_no_other_claim_is_one(folders):
    results = start()
    assert results.identity("2.T1", torch.tensor([1e-4, -5e-3], requires_grad=True)) == "broken"
    assert results.verdict("2.T1") == "broken"
    with pytest.raises(ValueError, match=r"claim 2\.1: is no identity"):
        results.identity("2.1", [0.0])
    for errors, said in (([1e-4, np.nan], "1 of 2 errors are not finite"), ([], "0 of 0 errors")):
        with pytest.raises(ValueError, match=said):
            results.identity("2.T1", errors)


def test_tables_are_plain_json(folders):
    results = start()
    frame = pd.DataFrame(
        {"f": np.array([0.5, np.nan], "float32"), "i": np.array([1, 2]), "b": [True, False], "t": ["x", None]}
    )
    frame["l"] = [np.arange(2), [np.float64(np.inf)]]
    assert results.table("t", frame) is frame
    results.finish()
    document = json.loads((runtime.FIGURES / "small/02_example/results.json").read_text())
    assert document["tables"]["t"] == [
        {"f": 0.5, "i": 1, "b": True, "t": "x", "l": [0, 1]},
        {"f": None, "i": 2, "b": False, "t": None, "l": [None]},
    ]
    with pytest.raises(ValueError, match="cell of type object"):
        start().table("t", pd.DataFrame({"o": [object()]}))


def test_a_table_holds_no_folder_of_this_machine(given_folder):
    kept = start()
    kept.table("missing", pd.DataFrame({"set": ["pets"], "why": [f"looked for images in {given_folder}."]}))
    text = (kept.folder / "missing.csv").read_text(encoding="utf-8")
    assert text == "set,why\npets,looked for images in $MANIFOLD_DATA.\n"
    kept.finish()
    content = (runtime.FIGURES / "small/02_example/results.json").read_text(encoding="utf-8")
    assert "$MANIFOLD_DATA" in content and str(given_folder) not in content


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


def test_claims_are_rounded_for_reading(folders, scored):
    results = start()
    results.scores("DiffID", scored(0.5), **PLACE)
    frame = results.judge()
    assert list(frame.columns) == ["claim", "statement", "paper", "ours", "95 % interval", "n", "verdict"]
    assert frame.iloc[1:].values.tolist() == [
        ["2.2", "It is.", "n/a", "n/a", "", "0 images", "not attempted"],
        ["2.C1", "It is.", "n/a", *frame.iloc[2][["ours", "95 % interval"]], "40 images of 1 network", "fooled"],
        ["2.T1", "It is.", "n/a", "n/a", "", "0 images", "not attempted"],
    ]
    first = frame.iloc[0]
    assert first["paper"] == "0.085" and first["verdict"] == "direction only" == results.verdict("2.1")
    assert abs(float(first["ours"]) - 0.5) < 0.01 and first["95 % interval"].startswith("[0.4")
    assert results.judge("2.1", "2.C1").values.tolist() == frame.iloc[[0, 2]].values.tolist()


def test_an_exploratory_claim_says_so(folders, registered):
    registered({"1": {"exploratory": True}})
    results = start()
    results.scores("DiffID", {"MA-GIG": np.ones(9), "IG": np.zeros(9)}, **PLACE)
    assert results.judge("2.1")["verdict"].tolist() == ["direction only (exploratory)"]


def test_a_claim_of_a_family_has_one_verdict_alone_and_among_all(folders, registered):
    sets = {"metric": "DiffID", "sets": ["mnist32"], "of": "MA-GIG"}
    registered({key: {"family": "f", "scores": sets | {"minus": minus}, "level": "images", "missing": None}
                for key, minus in (("1", 0.0), ("2", "IG"))})  # fmt: skip
    results, generator = start(), np.random.default_rng(0)
    values = generator.normal(size=12)
    results.scores("DiffID", {"MA-GIG": values - values.mean() + 0.6, "IG": 0 * values}, **PLACE)
    whole = results.judge().set_index("claim")["verdict"]
    for id in ("2.1", "2.2"):
        assert results.judge(id)["verdict"].item() == results.verdict(id) == whole[id]


def test_the_units_of_a_claim_are_given_for_its_forest(folders, scored):
    results = start()
    for k in range(3):
        results.scores("DiffID", scored(0.1 * k), **PLACE | {"network": f"lenet-mnist32.{k}"})
    ((row, units),) = results.replications("2.1", "2.2")
    assert row["id"] == "2.1" and list(units.columns) == ["set", "network", "mean"]
    assert units["mean"].tolist() == pytest.approx([0, 0.1, 0.2], abs=0.01)
    assert row["value"] == pytest.approx(units["mean"].mean())


def test_numbers_for_reading():
    assert [number(value) for value in (None, -0.0, 0.12345, 1234.5, 999.9, 1e-9, -12)] == [
        *("n/a", "0", "0.123", "1,234", "1,000", "1e-09", "-12"),
    ]
    assert bracket(None) == "" and bracket([0.0, 1 / 3]) == "[0, 0.333]"
    cases = {
        "2,560 images of 5 networks": (2560, 5),
        "2 images of 1 network": (2, 1),
        "1 image": (1, 0),
        "8 networks": (8, 8),
    }
    assert [size({"images": images, "networks": networks, "sets": 1}) for images, networks in cases.values()] == [
        *cases
    ]
