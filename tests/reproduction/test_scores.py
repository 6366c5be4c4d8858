import math

import numpy as np
import pandas as pd
import pytest
import torch

from manifold_lib.core.files import CorruptFile
from manifold_lib.reproduction.verdicts import scores

PLACE = {"set": "mnist32", "network": "lenet-mnist32", "images": 100}


def table(n=64, seed=0):
    generator = np.random.default_rng(seed)
    parts = [
        scores.rows_of(metric, method, generator.normal(size=n), set=name, network=network, images=seed)
        for metric in ("DiffID", "höchste Wölbung")
        for method in ("IG", "MA-GIG", "input × gradient")
        for name, network in (("mnist32", "lenet-mnist32"), ("mnist32", "lenet-mnist32.1"), ("xray", "vgg-xray"))
    ]
    return scores.join(parts)


def same(one, other):
    pd.testing.assert_frame_equal(one[[*scores.COLUMNS]], other[[*scores.COLUMNS]], check_dtype=False)
    return True


def test_scores_come_back_as_they_were_and_have_the_same_bytes(tmp_path):
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    for file in (one, other):
        scores.write(file, table())
    assert one.read_bytes() == other.read_bytes()
    assert same(scores.read(one), table())
    scores.write(other, scores.read(one))
    assert one.read_bytes() == other.read_bytes(), "what was read gives the same bytes"
    assert scores.read(one)["value"].dtype == np.float32


def test_what_a_tensor_holds():
    rows = scores.rows_of("m", "IG", torch.tensor([0.5, math.nan], requires_grad=True), **PLACE)
    assert list(rows.columns) == ["set", "network", "images", "image", "metric", "method", "value"]
    assert rows["image"].tolist() == [0, 1] and rows["value"][0] == 0.5 and math.isnan(rows["value"][1])
    assert len(scores.rows_of("m", "IG", torch.tensor(0.5), **PLACE)) == 1
    with pytest.raises(ValueError, match=r"m of IG: got shape \(2, 3\), wants one value an image"):
        scores.rows_of("m", "IG", torch.zeros(2, 3), **PLACE)


def test_a_file_with_one_wrong_byte_is_named_or_reads_the_same(tmp_path):
    file = tmp_path / "scores.parquet"
    scores.write(file, table())
    whole, content = scores.read(file), file.read_bytes()
    refused = 0
    for place in range(0, len(content), 29):
        broken = bytearray(content)
        broken[place] ^= 0x55
        file.write_bytes(broken)
        try:
            assert same(scores.read(file), whole)
        except CorruptFile as error:
            assert str(error).startswith(f"{file}: cannot be read")
            refused += 1
    assert refused > len(content) / 29 / 2


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_what_is_no_table_of_scores_is_named(tmp_path, content):
    file = tmp_path / "scores.parquet"
    if content is None:
        table()[["set", "value"]].to_parquet(file)
    else:
        file.write_bytes(content)
    with pytest.raises(CorruptFile, match=rf"{file}: cannot be read.*run its notebook again"):
        scores.read(file)


def test_a_score_that_is_recorded_twice_is_refused():
    parts = [scores.rows_of("DiffID", name, [0.1, 0.2], **PLACE) for name in ("IG", "MA-GIG", "IG")]
    with pytest.raises(
        ValueError, match="2 are recorded twice, the first is mnist32, lenet-mnist32, 100, 0, DiffID, IG"
    ):
        scores.join(parts)
    assert len(scores.join(parts[:2])) == 4 and list(scores.join([]).columns) == [*scores.COLUMNS]


@pytest.mark.parametrize(
    ("of", "minus", "expected"),
    [
        ("a", None, [1, 5, 3]),
        ("a", "b", [-1, 4, 3]),
        ("b", "a", [1, -4, -3]),
        ("a", 0.5, [0.5, 4.5, 2.5]),
        ({"largest": ["a", "b"]}, "c", [0, 2, None]),
        ({"smallest": ["a", "b"]}, "a", [0, -4, -3]),
        ({"mean": ["a", "b"]}, {"largest": ["a", "b"]}, [-0.5, -2, -1.5]),
        ("a", {"mean": ["c", "b"]}, [-1, 3, None]),
        ("a", "absent", []),
        ({"largest": ["a", "absent"]}, "b", []),
    ],
)
def test_differences_image_by_image(of, minus, expected):
    values = {"a": [1.0, 5.0, 3.0], "b": [2.0, 1.0, 0.0], "c": [2.0, 3.0, math.nan]}
    parts = [scores.rows_of("DiffID", name, row, **PLACE) for name, row in values.items()]
    parts.append(scores.rows_of("insertion", "a", [9.0] * 3, **PLACE))
    parts.append(scores.rows_of("DiffID", "a", [9.0] * 3, **PLACE | {"set": "fashion32"}))
    estimand = {"metric": "DiffID", "of": of, "sets": ["mnist32"]} | ({} if minus is None else {"minus": minus})
    found = scores.differences(scores.join(parts), estimand)
    assert list(found.columns) == ["set", "network", "images", "image", "value"]
    assert found["value"].tolist() == pytest.approx([math.nan if x is None else x for x in expected], nan_ok=True)


def test_networks_are_chosen_with_their_replicas():
    names = ("lenet-mnist32", "lenet-mnist32.1", "lenet-mnist32-robust", "robust.1")
    parts = [scores.rows_of("m", "IG", [1.0], **PLACE | {"network": name}) for name in names]
    for wanted, n in (("lenet-mnist32", 2), ("robust", 1), ("lenet", 0)):
        estimand = {"metric": "m", "of": "IG", "sets": ["mnist32"], "networks": wanted}
        assert len(scores.differences(scores.join(parts), estimand)) == n
