"""What happens in a run's folder: another run, damage, and a log that is the same after a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import modelzip_jax as mz
from modelzip_jax.errors import ConfigError, RunError
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment, records
from modelzip_jax.training.run_folder import LOCK, claimed_folder, sole_run
from modelzip_jax.training.snapshots import CheckpointWarning

pytest.importorskip("sklearn")
INT4 = mz.only("**/kernel", mz.quantize(bits=4))


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    script = Path(__file__).with_name("holding_script.py")
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(
            RunError, match=rf"{tmp_path} is in use: process {holder.pid} on .* holds {LOCK};"
        ):
            experiment.run(config(), tmp_path, INT4, quiet=True)
        assert os.listdir(tmp_path) == [LOCK]
        holder.send_signal(signal.SIGKILL)
    with sole_run(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert os.listdir(tmp_path) == []


def config(**more):
    chosen = configs.base()
    chosen.model.options = {"widths": (16,)}
    # Records, evaluations and checkpoints fall on different steps.
    chosen.steps, chosen.block, chosen.record_every, chosen.evaluate_every, chosen.save_every = 24, 2, 5, 9, 4
    chosen.update(more)
    return chosen


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    experiment.run(config(), folder, INT4, quiet=True)
    return folder


def lines(folder):
    """The log, without what depends on the time."""
    found = records.read_records(folder / "log.jsonl")
    return [{name: x for name, x in record.items() if name != "steps_per_second"} for record in found]


def interrupt_at(patch, step):
    def interrupted(self, record, write=records.JsonLines.__call__):
        write(self, record)
        if record["step"] >= step:
            raise KeyboardInterrupt

    patch.setattr(records.JsonLines, "__call__", interrupted)


def same_end(folder, finished):
    assert lines(folder) == lines(finished)
    for name in ("model.mz", "result.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_the_log_of_a_run_stopped_several_times_is_that_of_an_uninterrupted_one(
    tmp_path, finished, monkeypatch
):
    for step in (6, 10, 18):
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                experiment.run(config(), tmp_path, INT4, quiet=True)
        with open(tmp_path / "log.jsonl", "a") as file:
            file.write('{"step": 99, "lo')
    experiment.run(config(), tmp_path, INT4, quiet=True)
    same_end(tmp_path, finished)
    assert LOCK not in os.listdir(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # see test_flipped_bits
def test_a_run_whose_last_checkpoint_is_damaged_says_so_and_ends_the_same(tmp_path, finished):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints" / "24").rglob("*"):
        if path.is_file() and "d" in path.parent.name:
            path.write_bytes(bytes(255 - x for x in path.read_bytes()))
    with pytest.warns(CheckpointWarning, match="24 is damaged: .*, and step 20 taken"):
        experiment.run(config(), tmp_path, INT4, quiet=True)
    same_end(tmp_path, finished)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "seed": 0,\n "epo', r"config.json is no config of a run: .*line 3 .*; mend it, or remove"),
        ("[1]", "holds a list"),
        ("\udcff", "is no config of a run: .*decode"),
    ],
)
def test_a_damaged_config_is_named(tmp_path, finished, text, message):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    for use in (
        lambda: experiment.run(config(), tmp_path, INT4, quiet=True),
        lambda: configs.run_config(tmp_path),
    ):
        with pytest.raises(ConfigError, match=message) as told:
            use()
        assert "\n" not in str(told.value)
    assert json.loads((finished / "config.json").read_text())["seed"] == 0


def test_a_damaged_line_of_the_log_is_named(tmp_path, finished):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    log = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(log.replace(b"{", b"\x7b\x00", 1))
    with pytest.raises(RunError, match=r"log.jsonl, line 1, is damaged"):
        experiment.run(config(), tmp_path, INT4, quiet=True)


def test_a_run_from_before_there_was_a_field_goes_on_with_its_default(tmp_path):
    fields = configs.base()
    stored = json.loads(json.dumps({k: v for k, v in fields.to_dict().items() if k != "distributed"}))
    del stored["patience"], stored["optimizer"]["averaged"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with claimed_folder(tmp_path, fields):
        pass
    (tmp_path / "log.jsonl").write_text("{}\n")  # Else nothing would be lost by beginning anew.
    fields.optimizer.averaged = ("Dense_0/**",)
    with pytest.raises(ConfigError, match="optimizer differ"), claimed_folder(tmp_path, fields):
        pass
