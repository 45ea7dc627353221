"""Whole runs: killed and resumed, on several devices, in several processes, stopped early."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import CheckpointError, ConfigError
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment, records

SCRIPT = Path(__file__).with_name("run_script.py")
pytest.importorskip("sklearn")


def command(folder, *arguments):
    return [sys.executable, str(SCRIPT), str(folder), *arguments]


@pytest.fixture(autouse=True, scope="module")
def compile_once(tmp_path_factory):
    """Processes share what they compile, and compile it quickly."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    yield
    for name in (
        "COMPILATION_CACHE_DIR",
        "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "DISABLE_MOST_OPTIMIZATIONS",
    ):
        del os.environ[f"JAX_{name}"]


def finish(folder, *arguments, devices=""):
    environment = {**os.environ, "TEST_DEVICES": str(devices)}
    done = subprocess.run(
        command(folder, *arguments), capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def losses(folder):
    return [r["loss"] for r in records.read_records(folder / "log.jsonl") if "loss" in r]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("save", 20), ("compress", 20), ("train", 20), ("parallel", 6)])
def test_kills(kind, kills):
    script = Path(__file__).parents[2] / "scripts" / "kill_check.py"
    done = subprocess.run(
        [sys.executable, str(script), kind, "--kills", str(kills), "--seed", "1"],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_what_a_run_leaves(uninterrupted):
    result = json.loads((uninterrupted / "result.json").read_text())
    packed = mz.load(uninterrupted / "model.mz")
    assert result["file_bytes"] == (uninterrupted / "model.mz").stat().st_size
    assert result["test"]["accuracy"] > 0.8
    assert result["gap"] == result["train"]["accuracy"] - result["test"]["accuracy"]
    kernel = np.asarray(mz.unpack(packed)["Dense_0"]["kernel"])
    assert np.mean(kernel == 0) >= 0.6
    assert [r["step"] for r in records.read_records(uninterrupted / "log.jsonl") if "loss" in r][:3] == [
        4,
        8,
        12,
    ]


@pytest.mark.slow
def test_eight_devices_train_as_one_does(tmp_path, uninterrupted):
    folder = finish(tmp_path / "run", devices=8)
    np.testing.assert_allclose(losses(folder), losses(uninterrupted), atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, uninterrupted):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            command(
                tmp_path / "run", f"--config.distributed.coordinator=localhost:{port}",
                "--config.distributed.processes=2", f"--config.distributed.process={index}",
            ),
            stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [p.returncode for p in processes] == [0, 0], errors
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(uninterrupted), atol=1e-5)


def small(**more):
    config = configs.base()
    config.model.options = {"widths": (16,)}
    config.epochs, config.block, config.record_every = 6.0, 9, 9
    config.update(more)
    return config


@pytest.mark.parametrize("framework", [pytest.param("linen", marks=pytest.mark.slow), "nnx"])
def test_one_line_switches_the_framework(tmp_path, framework):
    config = small()
    config.model.framework = framework
    config.optimizer.schedule.peak = 1e-2
    assert experiment.run(config, tmp_path, quiet=True)["test"]["accuracy"] > 0.8


def test_early_stopping_keeps_the_best(tmp_path):
    config = small(epochs=40.0, patience=2, min_delta=0.05)
    config.optimizer.schedule.peak = 0.05
    result = experiment.run(config, tmp_path, quiet=True)
    evaluations = {
        r["step"]: r["validation_loss"]
        for r in records.read_records(tmp_path / "log.jsonl")
        if "validation_loss" in r
    }
    assert max(evaluations) < 40 * 9
    assert result["steps"] == min(evaluations, key=evaluations.get)
    assert result["validation"]["loss"] == pytest.approx(min(evaluations.values()), abs=1e-6)


INT4 = mz.only("**/kernel", mz.quantize(bits=4))


def accumulating():
    config = small(epochs=3.0)
    config.optimizer.accumulate = 2
    config.optimizer.schedule.peak = 1e-2
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small run of 27 batches, two of them a step."""
    folder = tmp_path_factory.mktemp("finished")
    assert experiment.run(accumulating(), folder, INT4, quiet=True)["steps"] == 27
    return folder


def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path, finished, monkeypatch):
    def interrupted(self, record, write=records.JsonLines.__call__):
        write(self, record)
        if record["step"] == 18 and "loss" in record:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(records.JsonLines, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(accumulating(), tmp_path, INT4, quiet=True)
    experiment.run(accumulating(), tmp_path, INT4, quiet=True)
    assert (tmp_path / "model.mz").read_bytes() == (finished / "model.mz").read_bytes()
    assert losses(tmp_path) == losses(finished)


def test_fine_tuning_from_the_file(tmp_path, finished):
    config = small(epochs=1.0, start=str(finished / "model.mz"))
    config.optimizer.schedule.peak = 1e-9
    result = experiment.run(config, tmp_path, INT4, quiet=True)
    before, after = (mz.unpack(mz.load(folder / "model.mz")) for folder in (finished, tmp_path))
    np.testing.assert_array_equal(before["Dense_0"]["kernel"], after["Dense_0"]["kernel"])
    expected = json.loads((finished / "result.json").read_text())
    assert result["test"]["accuracy"] == expected["test"]["accuracy"]


def test_another_config_in_the_same_folder_is_refused(finished):
    with pytest.raises(ConfigError, match="another config: epochs, optimizer, seed differ"):
        experiment.run(small(epochs=2.0, seed=1), finished, quiet=True)


def test_a_damaged_checkpoint_stops_the_run_and_is_named(tmp_path, finished):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file() and "state" in path.parts:
            os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="checkpoints/27"):
        experiment.run(accumulating(), tmp_path, INT4, quiet=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"batch_size": 5000}}, "5000, but there are 1257"),
        ({"data": {"name": "digit"}}, "digits"),
        ({"model": {"name": "mpl"}}, "did you mean 'mlp'"),
        ({"model": {"options": {"widhts": (3,)}}}, "did you mean 'widths'"),
        ({"start": "nowhere.mz"}, "nowhere.mz"),
    ],
)
def test_a_config_that_cannot_work_is_named(tmp_path, change, message):
    config = small()
    config.update(change)
    with pytest.raises((mz.errors.ModelzipError, OSError), match=message):
        experiment.run(config, tmp_path, quiet=True)
