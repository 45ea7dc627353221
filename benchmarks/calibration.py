"""MiniLM-L6's kernels rounded by what their inputs are: error feedback, all at once or in turn, beside nearest.

    python -m benchmarks.calibration [--quick] [--ada]

Calibrated on 128 docstrings; judged by the cosine between embeddings of the compressed and the float network, of 200
pairs of other packages. --quick: 4 bits only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.activations import embed
from modelzip_jax import trace
from modelzip_jax.evaluation import retrieval
from modelzip_jax.models import sentence_encoder

MAX_LENGTH = 48


def main() -> None:
    chosen = harness.options(__doc__, repeats=1, flags={"ada": "AdaRound, too, which takes minutes"})
    report = harness.Report("calibration", "Calibrated rounding", chosen)
    network, params, tokenizer = sentence_encoder.load_minilm()
    params = jax.tree.map(jnp.asarray, params)
    calibration, test = retrieval.split_by_package(retrieval.docstring_pairs())

    def apply(params: Any, ids: Any, mask: Any) -> Any:
        return network.apply({"params": params}, ids, mask)

    pairs = retrieval.thin(test, 200)
    texts = [p.query for p in pairs] + [p.document for p in pairs]
    tokens = sentence_encoder.tokenize(tokenizer, texts, MAX_LENGTH)
    known = sentence_encoder.tokenize(
        tokenizer, [p.document for p in retrieval.thin(calibration, 128)], MAX_LENGTH
    )
    batches = [(b.ids, b.mask) for b in sentence_encoder.batches(known)]
    model = jax.jit(apply)
    reference = embed(model, params, tokens)
    started = time.perf_counter()
    stats = jax.block_until_ready(
        trace.statistics(apply, params, batches, kinds=("gram",), only="encoder/**/kernel")
    )
    statistics_seconds = time.perf_counter() - started
    rows = []
    for bits in (4,) if chosen.quick else (4, 3):
        roundings = {
            "nearest": (None, {}),
            "error feedback": (mz.rounding.error_feedback(), {"stats": stats}),
        }
        roundings["error feedback, as inputs come"] = (
            mz.rounding.error_feedback(order=False), {"stats": stats}
        )  # fmt: skip
        roundings["error feedback, in turn"] = (
            mz.rounding.error_feedback(), {"calibrate": (apply, batches)}
        )  # fmt: skip
        if chosen.ada:
            roundings["AdaRound"] = (mz.rounding.ada_round(), {"stats": stats})
        for name, (rounding, given) in roundings.items():
            t = mz.only(
                "encoder/**/kernel",
                mz.quantize(bits, granularity="group", group_size=64, axis=-1, rounding=rounding),
            )
            packed, seconds = _timed(lambda t=t, given=given: mz.compress(params, t, **given))
            vectors = embed(model, mz.unpack(packed), tokens)
            rows.append([bits, name, retrieval.mean_cosine(reference, vectors), seconds])
            print(*rows[-1], flush=True)
    columns = ["bits", "rounding", "cosine", "seconds"]
    report.table(
        f"Groups of 64; statistics take {statistics_seconds:.0f} s, counted only in turn", columns, rows
    )
    report.finish()


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = call()
    jax.block_until_ready(found.params)
    return found, time.perf_counter() - started


if __name__ == "__main__":
    main()
