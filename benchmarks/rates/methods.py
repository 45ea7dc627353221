"""The methods that are compared: ours and the peers, and which of them this environment lacks."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.rates import by_layers, by_nncodec, ours
from benchmarks.rates.case import Case
from benchmarks.rates.sweep import Line
from modelzip_jax.smallest import recipes

__all__ = ["METHODS", "Method", "lines_of", "missing"]

Told = Callable[[], ours.Told]


class Method(NamedTuple):
    """title: in tables. calibrated: whether it sees inputs. lines: of a case, told what ours knows of it.

    beside: a method whose points are settings of this one, too.
    """

    title: str
    calibrated: bool
    lines: Callable[[Case, Told], list[Line]]
    beside: str = ""


def _data_free(case: Case, _: Told) -> list[Line]:
    return [ours.line_of(case, lambda: ours.data_free(case), recipes.QUALITY)]


def _calibrated(case: Case, told: Told) -> list[Line]:
    return [ours.line_of(case, told, ours.unit_step(case))]


METHODS = {
    "data_free": Method("ours, data-free", False, _data_free),
    "calibrated": Method("ours, calibrated", True, _calibrated),
    "nncodec": Method("NNCodec, one qp", False, lambda case, _: by_nncodec.one_qp(case)),
    "nncodec_best": Method(
        "NNCodec, own best options", False, lambda case, _: by_nncodec.best_options(case), "nncodec"
    ),
    "nncodec_fisher": Method("NNCodec, our Fisher qp", True, by_nncodec.fisher),
    "entquant": Method("EntQuant", False, lambda case, _: by_layers.entquant(case)),
    "cerwu": Method("CERWU", True, by_layers.cerwu),
    "watersic": Method("WaterSIC", True, by_layers.watersic),
    "q4_k": Method("Q4_K", False, lambda case, _: by_layers.q4_k(case)),
    "gptq": Method("GPTQ, 4 bits", True, by_layers.gptq),
}


def missing(name: str) -> str:
    """Why a method cannot run here, or nothing."""
    if name.startswith("nncodec") and not os.environ.get("MODELZIP_NNCODEC_PYTHON"):
        return "MODELZIP_NNCODEC_PYTHON names no interpreter that has NNCodec"
    return ""


def lines_of(name: str, case: Case) -> list[Line]:
    """The lines of a method; calibration is done when a point is first asked for, and once."""
    return METHODS[name].lines(case, functools.cache(lambda: ours.calibrated(case, case.batches)))
