import json

import pytest

from manifold_lib.reproduction import claims, report, runtime
from manifold_lib.reproduction.verdicts import decisions, history, scores

README = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nThe rest.\n"


def write(content, place=None):
    folder = runtime.FIGURES / (place or f"{content['profile']}/{content['slug']}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    for name in content["figures"]:
        (folder / name).write_bytes(b"png")
    return folder


def gallery():
    return (runtime.FIGURES / "README.md").read_text(encoding="utf-8")


def bullets():
    """The sentences on what was found, by id."""
    return {line.split()[1]: line for line in gallery().splitlines() if line.startswith("- ")}


@pytest.fixture
def readme(folders):
    path = folders / "README.md"
    path.write_text(README)
    return path


def fails(message):
    """main() exits 1 with the message, and has written nothing."""
    with pytest.raises(SystemExit) as error:
        report.main()
    assert isinstance(error.value.code, str), "a text as exit code is printed, and the status is 1"
    assert message in error.value.code
    assert not (runtime.FIGURES / "README.md").exists()


def test_no_results(readme):
    report.main()
    assert "No results yet" in readme.read_text() and "No results yet" in gallery()


def test_a_line_a_paper_counts_the_papers_own_claims(readme, document, registered, capsys):
    write(document())
    # a notebook without claims of a paper has no line
    write(document(slug="06_own", changes={"1": {"kind": "expectation", "source": None, "paper": None}, "2": None}))
    noise = {"metric": "DiffID", "of": "noise", "minus": "MA-GIG", "sets": ["mnist32"]}
    more = {"3": {"kind": "paper", "source": "Fig. 4", "margin": 0.02, "level": "images", "scores": noise}}
    for profile, value in (("small", 0.5), ("paper", -0.5)):
        write(document(slug="01_first", profile=profile, value=value, changes=more))
    report.main()
    assert capsys.readouterr().out == "figures/README.md written\nREADME.md written\n"
    text = readme.read_text()
    assert text.startswith("# Title\n\n" + report.BEGIN) and text.endswith(report.END + "\n\nThe rest.\n")
    assert "\nold\n" not in text
    first, second = (line for line in text.splitlines() if line.startswith("- "))
    # each claim once, at the profile nearer to the paper; controls, expectations and identities do not count
    assert first.startswith(
        "- **01 first**: of 3 claims of the paper 1 equivalent, 1 not reproduced, 1 not attempted."
        " It is: *not reproduced*, -0.497 [-0.501, -0.494], at `paper`. It is: *fooled*, "
    )
    assert second.startswith("- **02 example**: of 2 claims of the paper 1 direction only, 1 not attempted. It is: *d")
    registered({"1": {"margin": 0.03}})
    report.main()
    assert "It is: *direction only (exploratory)*, 0.503 [" in readme.read_text()


def test_the_gallery_opens_with_what_was_found(readme, document):
    write(document())
    write(document(profile="paper", value=-0.5))
    write(document(slug="01_first"))
    report.main()
    text = gallery()
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == [
        *("# What was found", "## 01 first", "## 02 example", "# Claims", "## 01_first", "## 02_example"),
        *("# Figures at profile `small`", "### 01_first, profile `small`", "### 02_example, profile `small`"),
        *("# Figures at profile `paper`", "### 02_example, profile `paper`"),
    ]
    found = bullets()
    assert list(found) == ["1.1", "1.2", "1.C1", "2.1", "2.2", "2.C1"], "a sentence a claim, and identities apart"
    # the profile nearer to the paper goes first
    assert found["2.1"].startswith("- 2.1 **Is it a | b?** *not reproduced*: It is (-0.497 [")
    assert found["2.1"].endswith("; 40 images of 1 network; the paper has 0.085), at `paper`.")
    assert (
        found["1.1"].startswith("- 1.1 **Is it a | b?** *direction only*: It is (0.") and "at `small`" in found["1.1"]
    )
    assert found["1.2"] == "- 1.2 **Is it a | b?** *not attempted*: It is, at `small`."
    assert "A paper (arXiv 2206.07387)." in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (runtime.FIGURES / line.split("](")[1].rstrip(")")).is_file()


def test_the_claims_beside_the_paper(readme, document):
    write(document(changes={"1": {"note": "a | b\nc"}}))
    report.main()
    tables = gallery().split("\n# Claims\n")[1].split("\n\n")
    rows = [[cell.strip() for cell in line.replace("\\|", "/").split("|")[1:-1]] for line in tables[1].splitlines()]
    first = dict(zip(rows[0], rows[2], strict=True))
    assert first["ours"].startswith("`small` 0.5") and first["of"] == "the paper, Fig. 3: 0.085"
    assert first["margin, and why"] == "0.02: a guess" and first["n"] == "40 images of 1 network"
    assert first["verdict"] == "**direction only**; a / b c" and rows[4][2] == "control"
    assert [row[0] for row in rows[2:]] == ["2.1", "2.2", "2.C1"] and rows[3][-1].endswith("; needs ImageNet")
    assert "| 2.T1 | It is. | `small` | 1e-05 | 0.001 | nats | 64 | **exact** |" in tables[2]
    for table in tables[1:3]:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_every_verdict_is_explained(readme, document):
    words = {word for kind in claims.VERDICTS if kind != "identity" for word in claims.VERDICTS[kind]}
    assert words == set(report.WORDS)
    write(document())
    report.main()
    assert all(f"*{word}*: {meaning}" in gallery() for word, meaning in report.WORDS.items())


def test_smoke_results_are_not_read(readme, document):
    write(document(profile="smoke"))
    report.main()
    assert "No results yet" in readme.read_text()


# what decides must not have been in sight


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"1": {"margin": 0.5}}, "was edited after its run"),
        ({"1": {"statement": "It is not."}}, "was edited after its run"),
        ({"1": {"estimand": "over the best images"}}, "was edited after its run"),
        ({"1": {"scores": {"metric": "DiffID", "of": "noise", "sets": ["mnist32"]}}}, "was edited after its run"),
        ({"1": {"family": "f"}}, "was edited after its run"),
        ({"1": None}, "is registered no more"),
        ({"1": {"exploratory": True}}, ""),
    ],
)
def test_a_claim_that_is_not_as_registered_explores_at_once(readme, document, registered, changes, note):
    write(document())
    report.main()
    assert not any("exploratory" in line for line in bullets().values())
    registered(changes)
    report.main()
    assert [id for id, line in bullets().items() if "*direction only (exploratory)*" in line] == ["2.1"]
    (line,) = (line for line in gallery().splitlines() if line.startswith("| 2.1 |"))
    assert line.endswith("; ".join(filter(None, ["**direction only** (exploratory)", note])) + " |")
    registered()  # and back, without a run in between
    report.main()
    assert not any("exploratory" in line for line in bullets().values())


def test_a_claim_of_another_name_explores_and_the_new_one_is_not_attempted(readme, document, registered):
    write(document())
    entry = {key: value for key, value in registered()[0].items() if key != "id"}
    registered({"1": None, "9": entry})
    report.main()
    assert "*direction only (exploratory)*" in bullets()["2.1"] and "*not attempted*" in bullets()["2.9"]
    assert "registered after this run" in gallery()


def test_after_a_run_again_an_edited_claim_still_explores(readme, document, registered, scored):
    first = document()
    (edited, *_) = registered({"1": {"margin": 0.5}})
    place = {"set": "mnist32", "network": "lenet-mnist32"}
    for images, expected in ((0, True), (1, False)):
        parts = [scores.rows_of("DiffID", name, row, **place, images=images) for name, row in scored(0.5).items()]
        told = history.sight(edited, [({row["id"]: row for row in first["claims"]}, scores.join([]))])
        entries, joined = claims.register(runtime.claims_file("02_example")).claims.values(), scores.join(parts)
        about = {"slug": "02_example", "profile": "small", "history": {"2.1": told}, "identities": {"2.T1": (1e-5, 64)}}
        rows = decisions.decide([*entries], joined, **about)
        scores.write(write(first | {"claims": rows}) / "scores.parquet", joined)
        report.main()
        assert ("exploratory" in bullets()["2.1"]) == expected


def test_a_row_that_is_gone_is_missed_and_one_that_is_withdrawn_is_said(readme, document, registered):
    content = document()
    write(content | {"claims": content["claims"][1:]})
    fails("claims: 2.1 missing, which the run had")
    write(content)
    registered({"1": None})
    report.main()
    assert "of 1 claims of the paper 1 not attempted, 1 withdrawn after a run." in readme.read_text()
    assert "*direction only" not in readme.read_text()


def test_what_only_explores_does_not_hide_what_is_decided(readme, document, registered):
    write(document(profile="paper", value=-0.5))
    registered({"1": {"margin": 0.03}})
    report.main()
    assert "1 not reproduced (exploratory)" in readme.read_text(), "it counts, and says so"
    write(document(changes={"1": {"margin": 0.03}}))
    report.main()
    assert bullets()["2.1"].endswith("at `small`.") and "*direction only*" in bullets()["2.1"]


# files


def test_nothing_is_written_when_no_number_changed(readme, document, capsys):
    content = document()
    write(content)
    report.main()
    capsys.readouterr()
    times = [path.stat().st_mtime_ns for path in (readme, runtime.FIGURES / "README.md")]
    content["provenance"] |= {"started": "2026-02-02T00:00:00+00:00", "seconds": 99.0, "git": "beef", "dirty": True}
    write(content)
    report.main()
    assert [path.stat().st_mtime_ns for path in (readme, runtime.FIGURES / "README.md")] == times
    assert capsys.readouterr().out == ""
    write(document(value=0.7))
    report.main()
    assert capsys.readouterr().out == "figures/README.md written\nREADME.md written\n"
    assert "(0.703 [" in bullets()["2.1"]


def test_a_missing_figure_fails(readme, document):
    folder = write(document())
    (folder / "fig1_line.png").unlink()
    fails("figures/small/02_example/results.json: figures: fig1_line.png missing; run `make 02 PROFILE=small` again")
    assert readme.read_text() == README


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"slug": "02_example"})])
def test_a_broken_results_file_fails(readme, document, text):
    (write(document()) / "results.json").write_text(text)
    fails("figures/small/02_example/results.json: ")


@pytest.mark.parametrize(
    ("change", "key"),
    [({"verdict": "reproduced"}, "verdict"), ({"value": 0.9}, "value"), ({"ci95": [-1.0, 1.0]}, "verdict")],
)
def test_what_was_typed_fails(readme, document, change, key):
    content = document()
    content["claims"][0] |= change
    write(content)
    fails(f"claims.2.1.{key}: got")


def test_a_registration_that_is_broken_or_gone_fails(readme, document, registered):
    write(document())
    registered({"1": {"margin": "wide"}})
    fails("02_example.yml: claims.2.1.margin")
    runtime.claims_file("02_example").unlink()
    fails("02_example.yml: claims are registered before a run")


def test_results_in_a_folder_of_another_name_fail(readme, document):
    write(document(), place="paper/02_example")
    fails("wants paper/02_example")


@pytest.mark.parametrize(
    "text",
    [None, "", report.BEGIN, report.END, report.END + report.BEGIN, 2 * (report.BEGIN + report.END)],
)
def test_a_readme_without_its_markers_fails(readme, document, text):
    write(document())
    if text is None:
        readme.unlink()
    else:
        readme.write_text(text)
    fails("README.md: wants one")


def test_inserting_twice_changes_nothing():
    once = report.insert(README, "table\n")
    assert report.insert(once, "table\n") == once
