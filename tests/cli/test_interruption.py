"""Ctrl-C and SIGTERM at chosen places: one line, the exit code, and no half-written file."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("interrupting.py")
CONFIG = Path(__file__).parents[2] / "configs" / "digits_mlp.py"
TRAIN = [
    "train", "--config", CONFIG, "--out", "run", "--config.steps=8", "--config.block=4", "--config.save_every=4",
    "--config.model.options.widths=(16,)",
]  # fmt: skip
CALIBRATED = ["--max-drop", "0.1", "--calibrate", "given_calibration:given"]
MODULE = '''
import gc, os, signal, time
import jax, jax.numpy as jnp, numpy as np

def given():
    return lambda params, x: x @ params["a"]["kernel"], [np.eye(16, dtype="float32")] * 3

def swallowed(params):
    """Interrupted in a callback of the garbage collector, where Python drops exceptions."""
    def stop(phase, info):
        gc.callbacks.remove(stop)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    gc.callbacks.append(stop)
    gc.collect()
    time.sleep(30)

def computing(params):
    """Interrupted while XLA's threads compute, for longer than Python takes to end."""
    wait = jax.jit(lambda x: jax.lax.fori_loop(0, 500, lambda i, x: jnp.tanh(x @ x), x))
    running = [wait(jnp.ones((300, 300))) for _ in range(3)]
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(30)
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "given_calibration.py").write_text(MODULE)
    np.savez(tmp_path / "w.npz", **{"a/kernel": np.eye(16, 8, dtype=np.float32)})
    (tmp_path / "old.mz").write_bytes(b"old")
    return tmp_path


def check(folder, event, text, signal, code, *command):
    """Runs the command in the folder, signalled at an event."""
    done = subprocess.run(
        [sys.executable, SCRIPT, event, text, signal, *map(str, command)],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(folder)])},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    told = done.stderr.strip()
    assert told.startswith("modelzip: interrupted; ")
    assert "\n" not in told
    assert not list(folder.rglob("*.tmp"))
    assert (folder / "old.mz").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("event", "text", "signal", "code", "more"),
    [
        ("import", "jax", "SIGINT", 130, []),
        ("open", "old.mz.", "SIGTERM", 143, []),
        pytest.param("import", "modelzip_jax.packing", "SIGINT", 130, [], marks=pytest.mark.slow),
        pytest.param("os.rename", "old.mz", "SIGINT", 130, [], marks=pytest.mark.slow),
        pytest.param("open", "old.mz.tries", "SIGINT", 130, CALIBRATED, marks=pytest.mark.slow),
        pytest.param("os.rename", "old.mz.", "SIGINT", 130, CALIBRATED, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_compress(folder, event, text, signal, code, more):
    check(folder, event, text, signal, code, "compress", "w.npz", "old.mz", "--force", *more)


@pytest.mark.parametrize("place", [pytest.param("swallowed", marks=pytest.mark.slow), "computing"])
def test_evaluate(folder, place):
    task = f"given_calibration:{place}"
    check(folder, "none", "", "SIGINT", 130, "evaluate", "w.npz", "--task", task)


@pytest.mark.slow
def test_report(folder):
    pytest.importorskip("matplotlib")
    subprocess.run(
        [sys.executable, "-m", "modelzip_jax.cli", "compress", "w.npz", "new.mz"], cwd=folder, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    for event, text in (("import", "matplotlib.figure"), ("open", "new.html.")):
        check(folder, event, text, "SIGINT", 130, "report", "new.mz", "--force")
    assert not (folder / "new.html").exists()


@pytest.mark.slow
def test_train(folder):
    pytest.importorskip("sklearn")
    for event, text, signal, code in (
        ("open", "log.jsonl", "SIGINT", 130),
        ("open", "record.json", "SIGINT", 130),
        ("os.rename", "model.mz", "SIGTERM", 143),
        ("os.rename", "result.json", "SIGINT", 130),
    ):
        check(folder, event, text, signal, code, *TRAIN)
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        "checkpoints", "config.json", "log.jsonl", "model.mz",
    ]  # fmt: skip
