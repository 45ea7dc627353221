import json
import sys
import types

import pytest

from modelzip_jax.errors import MissingExtraError
from modelzip_jax.training import records


def test_a_line_cut_short_and_what_follows_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    with records.JsonLines(path, step=1) as log:
        log({"step": 2, "loss": 1.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.5},
    ]


def test_a_new_run_begins_a_new_log(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n')
    with records.JsonLines(path):
        pass
    assert path.read_text() == ""


def test_tensorboard_gets_every_number_under_its_step(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            self.folder = folder

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            written.append("flushed")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    records.TensorBoard(tmp_path)({"step": 7, "loss": 0.5, "accuracy": 0.25})
    assert written == [("loss", 0.5, 7), ("accuracy", 0.25, 7), "flushed"]


def test_tensorboard_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtraError, match="pip install tensorboardX"):
        records.TensorBoard(tmp_path)
