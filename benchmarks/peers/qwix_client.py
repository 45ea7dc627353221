"""Asks Qwix, in a process of its own, to quantize matrices or to train a network.

See `qwix_worker.py` and `qwix_qat_worker.py` for what is called and how.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

__all__ = ["QwixResult", "ask_qwix", "train_by_qwix"]

UNOPTIMIZED = (
    "--xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
"""XLA's flags for Qwix's GPTQ, whose unrolled loop would otherwise compile for many minutes a shape."""
STATISTICS = ("weight", "gram", "mean_abs", "gram_quantized", "cross")


class QwixResult(NamedTuple):
    """weights: by layer and method, float32 (in, out), as they decode. seconds: likewise. version: of Qwix."""

    weights: dict[tuple[str, str], np.ndarray]
    seconds: dict[tuple[str, str], float]
    version: str


def ask_qwix(
    layers: Mapping[str, Mapping[str, np.ndarray]],
    bits: int,
    group: int | None,
    methods: Sequence[str] = ("rtn", "gptq", "awq", "qep"),
    repeat: bool = False,
) -> QwixResult | None:
    """Qwix's weights for each layer and each method that the layer's statistics allow.

    Args:
      layers: by name, "weight" (in, out) and what there is of "gram", "mean_abs", "gram_quantized" and "cross".
      bits, group: the grid; `group` inputs share a step, None for all of them.
      methods: which ones to run.
      repeat: run each twice, so that `seconds` are without compiling.

    Returns:
      None where Qwix is not installed: neither in this interpreter nor in $MODELZIP_QWIX_PYTHON.
    """
    arrays = {
        f"{layer}|{s}": np.asarray(a[s], np.float32)
        for layer, a in layers.items()
        for s in STATISTICS
        if s in a
    }
    options = {"bits": bits, "group": group, "methods": list(methods), "repeat": repeat}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out.npz"
        said = _asked(
            "qwix_worker.py", arrays, [str(target), json.dumps(options)], {"XLA_FLAGS": UNOPTIMIZED}
        )
        if said is None:
            return None
        with np.load(target, allow_pickle=False) as archive:
            weights = {_key(name): archive[name] for name in archive.files}
    seconds = {_key(name): value for name, value in said["seconds"].items()}
    return QwixResult(weights, seconds, said["version"])


def train_by_qwix(arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, Any] | None:
    """What Qwix's quantization-aware training came to, as `qwix_qat_worker.py` says; None where it is not installed."""
    return _asked("qwix_qat_worker.py", arrays, [json.dumps(options)])


def _asked(
    worker: str,
    arrays: Mapping[str, np.ndarray],
    arguments: list[str],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any] | None:
    """The line of JSON that a worker prints about the arrays; None where Qwix is not installed."""
    python = os.environ.get("MODELZIP_QWIX_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import qwix"], capture_output=True, check=False).returncode:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.npz"
        np.savez(source, **arrays)  # type: ignore[arg-type]
        command = [python, str(Path(__file__).with_name(worker)), str(source), *arguments]
        env = {**os.environ, **environment}
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def _key(name: str) -> tuple[str, str]:
    layer, _, method = name.rpartition("|")
    return layer, method
