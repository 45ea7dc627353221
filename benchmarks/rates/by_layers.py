"""Curves of peers that code layers, or matrices, and say nothing of other leaves.

Those that take the weights alone (EntQuant, Q4_K) have every leaf of two axes and more, and the others as our file
without data has them: lossless. Those that take inputs (CERWU, WaterSIC, GPTQ) have the kernels that are one matrix
each, with the Gram matrices of the float network's inputs. All other leaves, such as biases, embeddings and depthwise
kernels, are coded as our calibrated file codes leaves without error feedback: at the step at which an error costs as
many nats a weight as in the layers of the peer, by the same Fisher information.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import modelzip_jax as mz
from benchmarks.peers.cerwu import absmax_step, code_by_cerwu
from benchmarks.peers.coded import Coded
from benchmarks.peers.entquant import code_by_entquant
from benchmarks.peers.gptq_file import code_by_gptq
from benchmarks.peers.q4_k import code_by_q4_k
from benchmarks.peers.watersic import code_by_watersic, spacing_for
from benchmarks.rates.case import Case
from benchmarks.rates.ours import Told
from benchmarks.rates.sweep import Line, Made
from modelzip_jax import tree
from modelzip_jax.coding.writer import file_sizes

__all__ = ["cerwu", "entquant", "gptq", "q4_k", "watersic"]

_PRICES = (0.05, 0.012, 0.2)
"""Of CERWU, in units of the geometric mean over columns and layers of step² L_jj², H = L Lᵀ.

With fine steps an error costs ½ step² L_jj² / 12 and a quarter of that for one bit more: the price is 0.058 there.
"""


def entquant(case: Case) -> list[Line]:
    """λ = 8 · 2^(k / 2): published 3.9 for about 4 bits a weight, 14.5 for 3, 58 for 2."""
    return [_by_weights(case, lambda matrices, k: code_by_entquant(matrices, 8 * 2 ** (k / 2), axis=0))]


def q4_k(case: Case) -> list[Line]:
    """One point."""
    return [_only(_by_weights(case, lambda matrices, _: code_by_q4_k(matrices)))]


def cerwu(case: Case, told: Callable[[], Told]) -> list[Line]:
    """As the authors: one number of levels for all layers, and one price of a bit; lines are prices."""

    costs: list[dict[str, float]] = []

    def coded(price: float, k: int) -> Coded:
        levels = max(round(32 * 2 ** (-k / 4)), 2)
        steps = {name: absmax_step(w, levels) for name, w in case.matrices.items()}
        costs[:] = costs or [{name: _column_cost(gram) for name, gram in case.grams.items()}]
        sizes = [w.size for w in case.matrices.values()]
        logs = [math.log(s**2 * costs[0][name]) for name, s in steps.items()]
        unit = math.exp(float(np.average(logs, weights=sizes)))
        return code_by_cerwu(case.matrices, case.grams, steps, price * unit)

    return [_by_inputs(case, told, functools.partial(coded, price), f"λ {price}") for price in _PRICES]


def _column_cost(gram: np.ndarray) -> float:
    """The geometric mean of L_jj² with CERWU's damping."""
    damped = gram + 0.01 * np.mean(np.diagonal(gram)) * np.eye(len(gram))
    return float(np.exp(2 * np.mean(np.log(np.diagonal(np.linalg.cholesky(damped))))))


def watersic(case: Case, told: Callable[[], Told]) -> list[Line]:
    """One rate for all layers, as the authors give it, or one distortion."""

    def spacings(k: int) -> dict[str, float]:
        return {n: spacing_for(w, case.grams[n], 3 - k / 4) for n, w in case.matrices.items()}

    def typical(k: int) -> float:
        sizes = [w.size for w in case.matrices.values()]
        return float(np.exp(np.average(np.log(list(spacings(k).values())), weights=sizes)))

    by_rate = lambda k: code_by_watersic(case.matrices, case.grams, spacings(k))  # noqa: E731
    by_error = lambda k: code_by_watersic(case.matrices, case.grams, typical(k))  # noqa: E731
    return [
        _by_inputs(case, told, by_rate, "one rate"),
        _by_inputs(case, told, by_error, "one distortion"),
    ]


def gptq(case: Case, told: Callable[[], Told]) -> list[Line]:
    """One point: 4 bits, groups of 128 inputs."""
    return [_only(_by_inputs(case, told, lambda _: code_by_gptq(case.matrices, case.grams), ""))]


def _only(line: Line) -> Line:
    return Line(line.label, line.make, only=True)


def _by_weights(case: Case, coded: Callable[[Mapping[str, np.ndarray], int], Coded]) -> Line:
    matrices = {name: w for name, w in case.outputs_first.items() if w.ndim > 1}
    kept = {name: leaf for name, leaf in case.leaves.items() if name not in matrices}
    beside = _content(mz.compress(kept, mz.chain())) if kept else 0

    def made(k: int) -> Made:
        found = coded(matrices, k)
        return Made(found.bytes + beside, case.from_outputs_first(found.values))

    return Line("", lambda ks: [made(k) for k in ks])


def _by_inputs(case: Case, told: Callable[[], Told], coded: Callable[[int], Coded], label: str) -> Line:
    kept: list[dict[str, np.ndarray]] = []

    def made(k: int) -> Made:
        kept[:] = kept or [{name: np.asarray(x) for name, x in tree.named_leaves(told()[1]["importance"])}]
        found = coded(k)
        step = _step_of_equal_cost(case, kept[0], found.values)
        size, others = _others(case, kept[0], step)
        return Made(found.bytes + size, {**others, **case.from_matrices(found.values)})

    return Line(label, lambda ks: [made(k) for k in ks])


def _step_of_equal_cost(
    case: Case, importance: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> float:
    """The step that costs step² / 24 nats a weight, being what ½ Σ g_i e_i H e_iᵀ over all layers comes to a weight.

    e_i is the error of output i, g_i the curvature of the loss in it, as `mz.spreads.water_filling` has it.
    """
    cost, count = 0.0, 0
    for name, w in case.matrices.items():
        gram, off = case.grams[name], (w - values[name]).astype(np.float64)
        curvature = case.matrix(name, importance[name]).sum(1, dtype=np.float64) / max(np.trace(gram), 1e-30)
        cost += 0.5 * float(curvature @ np.sum(off @ gram * off, axis=1))
        count += w.size
    return math.sqrt(24 * max(cost, 1e-12) / count)


def _others(
    case: Case, importance: Mapping[str, np.ndarray], step: float
) -> tuple[int, dict[str, np.ndarray]]:
    """Bytes and values of the leaves that are none of the peer's layers; those that nothing hangs on are lossless."""
    leaves = {name: leaf for name, leaf in case.leaves.items() if name not in case.matrices}
    if not leaves:
        return 0, {}
    known = {name: importance[name] for name in leaves}
    alive = [name for name in leaves if np.max(known[name], initial=0.0) > 0]
    how: Any = mz.entropy_constrained(step, spread=mz.spreads.by_importance(), rate_weight=1.0)
    packed = mz.compress(leaves, mz.only(tuple(alive), how) if alive else mz.chain(), importance=known)
    return _content(packed), {n: np.asarray(x) for n, x in tree.named_leaves(mz.unpack(packed))}


def _content(packed: mz.Packed) -> int:
    """Bytes of a file without its header, as peers without a file format are charged."""
    sizes = file_sizes(packed)
    return sizes.payload + sizes.tables + sizes.lanes
