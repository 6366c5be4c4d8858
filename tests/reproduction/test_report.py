import json

import pytest

from manifold_lib.reproduction import report, runtime
from manifold_lib.reproduction.claims import claim, not_attempted

README = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nThe rest.\n"


def document(slug="02_example", profile="small", value=0.5, **more):
    rows = [
        claim("2.1", "a | b\nholds", "Fig. 3", kind="greater", threshold=0.0, values=[value, value + 0.1], paper=0.09),
        claim("2.2", "sums exactly", "eq. 1", kind="exact", threshold=1e-3, value=1e-5, unit="nats"),
        not_attempted("2.3", "on ImageNet", "Table 1", kind="less", threshold=0.0, reason="needs ImageNet"),
    ]
    provenance = {"git": "c0ffee", "dirty": False, "seed": 0, "params": {}, "versions": {}, "device": "CPU"}
    provenance |= {"started": "2025-01-01T00:00:00+00:00", "seconds": 1.0, "data": {}, "models": {}}
    head = {"slug": slug, "profile": profile, "paper": {"title": "A paper", "arxiv": "2206.07387"}}
    return head | {"claims": rows, "tables": {}, "figures": ["fig1_line.png"], "provenance": provenance} | more


def write(content, place=None):
    folder = runtime.FIGURES / (place or f"{content['profile']}/{content['slug']}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(content))
    for name in content["figures"]:
        (folder / name).write_bytes(b"png")
    return folder


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
    assert "No results yet" in readme.read_text() and "No results yet" in (runtime.FIGURES / "README.md").read_text()


def test_report(readme, capsys):
    write(document())
    report.main()
    assert capsys.readouterr().out == "figures/README.md written\nREADME.md written\n"
    text = readme.read_text()
    assert text.startswith("# Title\n\n" + report.BEGIN) and text.endswith(report.END + "\n\nThe rest.\n")
    assert "\nold\n" not in text
    assert "| 02 example | 2 / – | 0 / – | 0 / – | 1 / – | 1 min / – |" in text
    assert not any(line.startswith("- ") for line in text.splitlines()), (
        "a sentence whose claims are missing is left out"
    )


def test_gallery(readme):
    write(document())
    write(document(slug="01_first"))
    write(document(profile="paper", value=-0.5, claims=document(value=-0.5)["claims"][:1]))
    report.main()
    text = (runtime.FIGURES / "README.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| 2.1 |")]
    assert len(lines) == 4, "two notebooks, each at two profiles"
    assert "`small` | 0.55 [0.5, 0.6] | 2 | **reproduced** | `make 02 PROFILE=small`" in lines[2]
    assert "`paper` | -0.45 [-0.5, -0.4] | 2 | **not reproduced** | `make 02 PROFILE=paper`" in lines[3]
    assert "`paper` |  | 0 | **not attempted** | `make 01 PROFILE=paper`" in lines[1]
    assert "needs ImageNet" in text
    assert text.index("### 01_first") < text.index("### 02_example") < text.index("## Profile `paper`")
    for line in text.splitlines():
        if line.startswith("!["):
            assert (runtime.FIGURES / line.split("](")[1].rstrip(")")).is_file()


def test_every_row_has_the_columns_of_its_header():
    documents = [document(), document(profile="paper")]
    for text in (report.render_summary(documents), report.render_gallery(documents)):
        counts = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
        assert len(counts) == 1


def test_counts_and_times_of_each_notebook_and_profile():
    documents = [document(), document(profile="paper"), document(slug="01_first")]
    documents[0]["provenance"]["seconds"], documents[1]["provenance"]["seconds"] = 200.0, 12.0
    lines = [line for line in report.render_summary(documents).splitlines() if line.startswith("| 0")]
    assert lines == [
        "| 01 first | 2 / – | 0 / – | 0 / – | 1 / – | 1 min / – |",
        "| 02 example | 2 / 2 | 0 / 0 | 0 / 0 | 1 / 1 | 3 min / 1 min |",
    ]


def test_what_was_found_is_said_with_the_numbers_of_the_claims(monkeypatch):
    monkeypatch.setattr(report, "FINDINGS", ("It is {2.1}, exactly {2.2}.", "Not {2.3}.", "Nor {9.9}."))
    documents = [document(), document(profile="paper", claims=document(value=-0.5)["claims"][:1])]
    text = report.render_summary(documents)
    assert text.startswith("- It is -0.45 [-0.50, -0.40], exactly 0.00.\n\n"), (
        "the profile nearer to the paper goes first"
    )


def test_a_narrow_interval_gets_a_third_digit():
    assert report._in_words({"value": 0.2702, "ci95": [0.2661, 0.2741]}) == "0.270 [0.266, 0.274]"
    assert report._in_words({"value": 0.2702, "ci95": [0.2, 0.2741]}) == "0.27 [0.20, 0.27]"


def test_smoke_results_are_not_read(readme):
    write(document(profile="smoke"))
    report.main()
    assert "No results yet" in readme.read_text()


def test_nothing_is_written_when_no_number_changed(readme, capsys):
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
    assert "0.75 [0.7, 0.8]" in (runtime.FIGURES / "README.md").read_text()


def test_a_missing_figure_fails(readme):
    folder = write(document())
    (folder / "fig1_line.png").unlink()
    fails("figures/small/02_example/results.json: figures: fig1_line.png missing")
    assert readme.read_text() == README


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"slug": "02_example"})])
def test_a_broken_results_file_fails(readme, text):
    (write(document()) / "results.json").write_text(text)
    fails("figures/small/02_example/results.json: ")


def test_a_typed_verdict_fails(readme):
    content = document()
    content["claims"][0]["verdict"] = "not reproduced"
    write(content)
    fails("claims.2.1.verdict")


def test_results_in_a_folder_of_another_name_fail(readme):
    write(document(), place="paper/02_example")
    fails("wants paper/02_example")


@pytest.mark.parametrize(
    "text",
    [None, "", report.BEGIN, report.END, report.END + report.BEGIN, 2 * (report.BEGIN + report.END)],
)
def test_a_readme_without_its_markers_fails(readme, text):
    write(document())
    if text is None:
        readme.unlink()
    else:
        readme.write_text(text)
    fails("README.md: wants one")


def test_inserting_twice_changes_nothing():
    once = report.insert(README, "table\n")
    assert report.insert(once, "table\n") == once
