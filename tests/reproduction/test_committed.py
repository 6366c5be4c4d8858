"""Results on disk are what their registration and their scores give."""

import json

import pytest

from manifold_lib.reproduction import runtime
from manifold_lib.reproduction.verdicts import committed, scores


def write(content):
    folder = runtime.FIGURES / content["profile"] / content["slug"]
    (folder / "results.json").write_text(json.dumps(content))
    for name in content["figures"]:
        (folder / name).write_bytes(b"png")
    return folder


def fails(message):
    with pytest.raises(ValueError) as error:
        committed.read(runtime.FIGURES)
    assert message in str(error.value)


def test_what_a_run_wrote_passes(folders, document):
    write(document())
    (found,) = committed.read(runtime.FIGURES)
    assert [row["exploratory"] for row in found["claims"]] == [False] * 4
    assert all(row["registered"] for row in found["claims"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"statement": "It is much more."}, "claims.2.1.statement"),
        ({"margin": 0.3}, "claims.2.1.margin"),
        ({"paper": 0.5}, "claims.2.1.paper"),
        ({"value": 0.4, "ci95": [0.3, 0.5]}, "claims.2.1.value"),
        ({"ci95": [0.1, 0.9]}, "claims.2.1.ci95"),
        ({"question": "Is it not?"}, "claims.2.1.question"),
        ({"n": {"images": 999, "networks": 9, "sets": 1}}, "claims.2.1.n"),
        ({"family": "f", "p_holm": 1e-9}, "claims.2.1.family"),
    ],
)
def test_a_row_edited_by_hand_in_the_results_is_refused(folders, document, row, said):
    content = document()
    content["claims"][0] |= row
    write(content)
    fails(f"{said}: ")


def test_scores_that_are_gone_or_edited_are_named(folders, document):
    folder = write(document())
    table = scores.read(folder / "scores.parquet")
    scores.write(folder / "scores.parquet", table.assign(value=2 * table["value"]))
    fails("claims.2.1.value: ")
    (folder / "scores.parquet").write_bytes(b"PAR1")
    fails("scores.parquet: cannot be read")
    (folder / "scores.parquet").unlink()
    fails("scores.parquet is missing: restore it, or, where code has changed, run `make 02 PROFILE=small` again")
