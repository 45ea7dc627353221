"""Asks Qwix, in a process of its own, to quantize matrices; see `qwix_worker.py` for what it calls and how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["QwixResult", "ask_qwix"]

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
    python = os.environ.get("MODELZIP_QWIX_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import qwix"], capture_output=True, check=False).returncode:
        return None
    arrays = {
        f"{layer}|{s}": np.asarray(a[s], np.float32)
        for layer, a in layers.items()
        for s in STATISTICS
        if s in a
    }
    options = {"bits": bits, "group": group, "methods": list(methods), "repeat": repeat}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **arrays)  # type: ignore[arg-type]
        worker = Path(__file__).with_name("qwix_worker.py")
        command = [python, str(worker), str(source), str(target), json.dumps(options)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        said = json.loads(printed.splitlines()[-1])
        with np.load(target, allow_pickle=False) as archive:
            weights = {_key(name): archive[name] for name in archive.files}
    seconds = {_key(name): value for name, value in said["seconds"].items()}
    return QwixResult(weights, seconds, said["version"])


def _key(name: str) -> tuple[str, str]:
    layer, _, method = name.rpartition("|")
    return layer, method
