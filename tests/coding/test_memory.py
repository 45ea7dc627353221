"""A sound file that this machine has too little memory for: an error that says so, and not that it is damaged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import modelzip_jax as mz

HERE = Path(__file__).parent


def test_what_leaves_the_readers_where_memory_is_used_up(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to know how much memory is used")
    found = subprocess.run(
        [sys.executable, HERE / "short_of_memory.py", tmp_path],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(HERE.parents[1])},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["OutOfMemoryError"] * 5
    assert all(
        "model.mz: tensor 'params/w': there is not enough memory for the" in line for line in lines[:3]
    )
    assert all(name in line for name, line in zip((".npz", ".safetensors"), lines[3:], strict=True))


def test_it_is_caught_as_either():
    assert issubclass(mz.errors.OutOfMemoryError, (mz.errors.ModelzipError))
    assert issubclass(mz.errors.OutOfMemoryError, MemoryError)
