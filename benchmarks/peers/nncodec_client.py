"""Asks NNCodec, in a process of its own, to quantize, code and decode float tensors.

See `nncodec_float_worker.py` for what is called and how, and `benchmarks/coding.py` for how its environment is made;
its interpreter is named by $MODELZIP_NNCODEC_PYTHON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.coded import Coded
from modelzip_jax.errors import LeafError, NonFiniteError

__all__ = ["NncodecResult", "ask_nncodec", "nearest_qp", "step_of"]

WORKER = Path(__file__).with_name("nncodec_float_worker.py")
_LOWEST, _HIGHEST = -128, 127
"""Of a qp at a density of 2."""


class NncodecResult(NamedTuple):
    """coded: bytes of the real bitstream, headers and all, and what it decodes to. Seconds of both calls. version."""

    coded: Coded
    encode_s: float
    decode_s: float
    version: str


def ask_nncodec(
    tensors: Mapping[str, np.ndarray], settings: Sequence[Mapping[str, Any]]
) -> list[NncodecResult] | None:
    """All tensors in one bitstream, once for each setting: importing takes longer than coding a small network.

    Args:
      tensors: float arrays. Matrices are best given as (outputs, inputs), PyTorch's layout, whose rows NNCodec skips
        and scans. Those of one axis are coded at `nonweight_qp`.
      settings: options of NNCodec's compress(), such as `{"qp": -28, "opt_qp": True, "lambda_scale": 1.0}` or
        `{"qp": -28, "qp_per_tensor": {"kernel": nearest_qp(0.01)}}`; see `nncodec_float_worker.py`.

    Returns:
      None where $MODELZIP_NNCODEC_PYTHON is not set.

    Raises:
      LeafError: an empty tensor. NonFiniteError: NaN or infinite numbers.
      subprocess.CalledProcessError: NNCodec could not; what it said stands on standard error.
    """
    interpreter = os.environ.get("MODELZIP_NNCODEC_PYTHON")
    if not interpreter:
        return None
    arrays = {}
    for name, tensor in tensors.items():
        array = np.asarray(tensor, np.float32)
        if not array.size:
            raise LeafError(f"{name!r} has shape {array.shape}; NNCodec codes no empty tensors")
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{name!r} holds NaN or infinite numbers")
        arrays[name] = np.atleast_1d(array)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **arrays)  # type: ignore[arg-type]
        command = [interpreter, str(WORKER), str(source), str(target), json.dumps(list(settings))]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        said = json.loads(printed.splitlines()[-1])
        with np.load(target, allow_pickle=False) as archive:
            decoded = [
                {name: archive[f"{i}|{name}"].reshape(np.shape(tensor)) for name, tensor in tensors.items()}
                for i in range(len(settings))
            ]
    return [
        NncodecResult(Coded(r["bytes"], values), r["encode_s"], r["decode_s"], said["version"])
        for r, values in zip(said["results"], decoded, strict=True)
    ]


def step_of(qp: int) -> float:
    """The step that NNCodec quantizes with at a density of 2: four qps an octave, evenly spaced within.

    With `use_dq` it rounds to every second multiple of it, by turns of the even and the odd ones, at 1.75 times the
    root mean square error of rounding to each.

    >>> [step_of(qp) for qp in (-8, -7, -6, -5, -4)]
    [0.25, 0.3125, 0.375, 0.4375, 0.5]
    """
    return (4 + (qp & 3)) * 2.0 ** ((qp >> 2) - 2)


def nearest_qp(step: float) -> int:
    """The qp whose step is nearest in ratio.

    Raises:
      ValueError: not a positive step within NNCodec's range.

    >>> [nearest_qp(step) for step in (0.25, 0.3, 0.01)]
    [-8, -7, -27]
    """
    if not step_of(_LOWEST) <= step <= step_of(_HIGHEST):
        raise ValueError(
            f"NNCodec has steps from {step_of(_LOWEST):g} to {step_of(_HIGHEST):g}, not {step!r}"
        )
    low = 4 * math.floor(math.log2(step))
    return min(range(low, low + 5), key=lambda qp: abs(math.log(step_of(qp) / step)))
