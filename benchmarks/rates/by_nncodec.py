"""Curves of NNCodec: one qp, its own best options, and steps by our Fisher information."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import modelzip_jax as mz
from benchmarks.peers.nncodec_client import ask_nncodec, nearest_qp, step_of
from benchmarks.rates.case import Case
from benchmarks.rates.ours import Told, unit_step
from benchmarks.rates.sweep import Line, Made

__all__ = ["BEST", "best_options", "fisher", "one_qp"]

BEST: tuple[dict[str, Any], ...] = (
    {"opt_qp": True},
    {"opt_qp": True, "lambda_scale": 0.25},
    {"opt_qp": True, "lambda_scale": 1.0},
    {"opt_qp": True, "lambda_scale": 4.0},
    {"lambda_scale": 0.25},
    {"lambda_scale": 1.0},
)
"""Beside one qp without them. More than 4 is worse than 4 on LeNets."""
_GRID = (-16, -12, -8, -6, -4, -2, 0, 2)
_FEWER = (-8, -4, -2, 0, 2)
_CHUNK = 3


def one_qp(case: Case) -> list[Line]:
    """Leaves of one axis at NNCodec's own nonweight_qp."""
    return [_line(case, "", {})]


def best_options(case: Case) -> list[Line]:
    """Its shares of qp by size and deviation, and the rate in its quantizer; with those of one qp beside."""
    said = [", ".join(f"{key}={value}" for key, value in options.items()) for options in BEST]
    return [_line(case, label, options) for label, options in zip(said, BEST, strict=True)]


def fisher(case: Case, told: Callable[[], Told]) -> list[Line]:
    """The step of each tensor, biases included, by the root of the mean of the Fisher information that ours has."""
    kept: list[dict[str, float]] = []

    def setting(k: int) -> dict[str, Any]:
        kept[:] = kept or [_by_root(told()[1]["importance"], case)]
        return {"qp": -20, "qp_per_tensor": {n: _qp(s * 2 ** (k / 4)) for n, s in kept[0].items()}}

    return [Line("", lambda ks: _asked(case, [setting(k) for k in ks]), _GRID, _CHUNK)]


def _by_root(importance: Any, case: Case) -> dict[str, float]:
    means = {name: float(np.mean(x)) for name, x in mz.tree.named_leaves(importance)}
    least = min((mean for mean in means.values() if mean > 0), default=1.0)
    return {name: unit_step(case) / math.sqrt(mean or least) for name, mean in means.items()}


def _qp(step: float) -> int:
    return nearest_qp(min(max(step, step_of(-100)), step_of(100)))


def _line(case: Case, label: str, options: dict[str, Any]) -> Line:
    matrices = [x for x in case.leaves.values() if x.ndim > 1]
    deviation = math.sqrt(sum(float(np.sum(x.astype(np.float64) ** 2)) for x in matrices))
    deviation /= math.sqrt(sum(x.size for x in matrices))
    # With dependent quantization rounding is to every second multiple.
    start = nearest_qp(deviation / 4)
    settings = lambda ks: [{"qp": start + k, **options} for k in ks]  # noqa: E731
    return Line(label, lambda ks: _asked(case, settings(ks)), _FEWER if options else _GRID, _CHUNK)


def _asked(case: Case, settings: Sequence[dict[str, Any]]) -> list[Made | None]:
    found = ask_nncodec(case.outputs_first, settings)
    assert found is not None, "asked where its interpreter is known"
    return [
        Made(e.coded.bytes, case.from_outputs_first(e.coded.values), (e.encode_s, e.decode_s)) for e in found
    ]
