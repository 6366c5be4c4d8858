"""Progress bars, and a model applied in chunks."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import Counting, close, conv_model, draw, smooth_model
from torch import nn

from manifold_lib.core.progress import predict, progress_bar


def test_no_bar_is_the_iterable_itself_and_a_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [1, 2, 3]
    assert progress_bar(rows, show=False) is rows
    assert capsys.readouterr() == ("", "")
    assert list(progress_bar(rows, show=True, desc="rows")) == rows
    assert "rows: 100%" in capsys.readouterr().err


def test_without_tqdm_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    rows = [1, 2, 3]
    assert progress_bar(rows, show=True) is rows


@pytest.mark.parametrize("size", [1, 4, 256])
def test_predictions_go_in_chunks_without_a_graph(size: int) -> None:
    model, inputs = Counting(smooth_model()), draw(10, 1, 4, 4).requires_grad_()
    found = predict(model, inputs, batch_size=size)
    assert not found.requires_grad and model.largest <= size and model.gradient_rows == 0
    close(found, model.model(inputs), 1e-14)


def test_a_function_and_a_method_will_do() -> None:
    model, inputs = conv_model(), draw(3, 2, 8, 8, dtype=torch.float32)
    close(predict(model.forward, inputs), model(inputs), 1e-6)
    close(predict(lambda x: x + 1, inputs), inputs + 1, 1e-7)


def test_a_module_without_parameters_will_do() -> None:
    inputs = draw(3, 2, 2)
    close(predict(nn.Flatten(), inputs), inputs.flatten(1), 0)
