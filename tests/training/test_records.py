import json
import sys
import types

import pytest

from modelzip_jax.errors import MissingExtraError, RunError
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


SOUND = [b'{"step": 1, "loss": 2.0}\n', b'{"step": 2, "loss": 1.0}\n', b'{"step": 3, "loss": 0.5}\n']


@pytest.mark.parametrize(
    "damage", [b"\n", b'{"step": 1, "loss": 2.\n', b"[1]\n", b'{"loss": 2.0}\n', b"\xff\x00\n"]
)
def test_a_damaged_line_is_named_unless_the_run_writes_it_anew(tmp_path, damage):
    path = tmp_path / "log.jsonl"
    path.write_bytes(SOUND[0] + damage + SOUND[2])
    with pytest.raises(RunError, match=r"log.jsonl, line 2, is damaged: .*mend or remove this line") as told:
        records.JsonLines(path, step=3)
    assert "\n" not in str(told.value)
    with pytest.raises(RunError, match="line 2"):
        records.read_records(path)
    with records.JsonLines(path, step=1):
        pass
    assert path.read_bytes() == SOUND[0]


def test_a_line_without_its_end_is_cut_short_however_it_reads(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(SOUND[0] + SOUND[1].rstrip())
    assert [record["step"] for record in records.read_records(path)] == [1]
    with records.JsonLines(path, step=2) as log:
        log({"step": 3, "loss": 0.5})
    assert path.read_bytes() == SOUND[0] + SOUND[2]


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
