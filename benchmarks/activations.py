"""MiniLM-L6 with int8 activations and weights: what it costs in retrieval, and in time.

    python -m benchmarks.activations [--repeats 15] [--quick]

The pairs are the test pairs of the demo; static steps come from pairs of other modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax.evaluation import retrieval
from modelzip_jax.models import sentence_encoder

MAX_LENGTH = 48
Model = Callable[..., jax.Array]


def embed(model: Model, params: Any, tokens: list[np.ndarray]) -> np.ndarray:
    """Embeddings of tokenized texts, in order."""
    out: dict[int, np.ndarray] = {}
    for batch in sentence_encoder.batches(tokens):
        vectors = np.asarray(model(params, batch.ids, batch.mask))
        out.update(zip(batch.rows.tolist(), vectors, strict=False))
    return np.stack([out[i] for i in range(len(tokens))])


def main() -> None:
    chosen = harness.options(__doc__, repeats=15)
    report = harness.Report("activations", "Integer activations", chosen)
    network, params, tokenizer = sentence_encoder.load_minilm()
    calibration, test = retrieval.split_by_package(retrieval.docstring_pairs())
    pairs = retrieval.thin(test, 200 if chosen.quick else 2000)
    texts = [p.query for p in pairs] + [p.document for p in pairs]
    tokens = sentence_encoder.tokenize(tokenizer, texts, MAX_LENGTH)

    def apply(params: Any, ids: Any, mask: Any) -> Any:
        return network.apply({"params": params}, ids, mask)

    known = sentence_encoder.tokenize(
        tokenizer, [p.document for p in retrieval.thin(calibration, 64)], MAX_LENGTH
    )
    batches = [(b.ids, b.mask) for b in sentence_encoder.batches(known)]
    only, rewritten = "**/kernel", mz.rewrites.quantize_activations
    packed = mz.compress(params, mz.only(only, mz.quantize(8, axis=-1))).params

    def static(**options: Any) -> Model:
        how = mz.activations.static(**options)
        return jax.jit(
            rewritten(apply, how, mz.activations.calibrate(apply, how, params, batches, only=only), only=only)
        )

    row, batch = mz.activations.dynamic(), mz.activations.dynamic(per="tensor")
    models: dict[str, tuple[Model, Any]] = {
        "float32": (jax.jit(apply), params),
        "dynamic, a step a row": (jax.jit(rewritten(apply, row, only=only)), params),
        "dynamic, a step a batch": (jax.jit(rewritten(apply, batch, only=only)), params),
        "dynamic range: packed weights, a step a row": (
            jax.jit(rewritten(apply, mz.activations.dynamic_range(), only=only)),
            packed,
        ),
        "static, min-max": (static(), params),
        "static, min-max, zero points": (static(symmetric=False), params),
        "static, squared error, zero points": (
            static(range=mz.ranges.least_squares(), symmetric=False),
            params,
        ),
        "rounded floats, a step a row": (
            jax.jit(rewritten(apply, row, only=only, arithmetic="float")),
            params,
        ),
    }
    ids, mask = batches[0]
    times = harness.interleave(
        {name: lambda m=m, p=p: jax.block_until_ready(m(p, ids, mask)) for name, (m, p) in models.items()},
        chosen.repeats, warmup=2,
    )  # fmt: skip
    rows, recalls = [], {}
    reference = None
    for name, (model, held) in models.items():
        vectors = embed(model, held, tokens)
        reference = vectors if reference is None else reference
        queries, documents = vectors[: len(pairs)], vectors[len(pairs) :]
        recalls[name] = 100 * retrieval.recall_at(queries, documents, 1)
        text = model.lower(held, ids, mask).as_text()
        rows.append([
            name, retrieval.mean_cosine(reference, vectors), recalls[name],
            retrieval.mrr_at(queries, documents, 10), len(re.findall(r"dot_general.*xi32>", text)),
            1e3 * harness.median(times[name]), harness.median(harness.ratios(times, name, "float32")),
        ])  # fmt: skip
        print(*rows[-1], flush=True)
    columns = [
        "model",
        "cosine",
        "recall@1, %",
        "MRR@10",
        "integer products",
        "ms a batch of 16",
        "time ÷ float32",
    ]
    report.table(f"{len(pairs)} docstring pairs", columns, rows)
    lost = abs(recalls["float32"] - recalls["dynamic, a step a row"])
    report.bar("int8 MiniLM-L6: recall@1 beside float32, points apart", 1.0, lost)
    report.bar(
        "integer dot_general in the lowered program",
        36,
        rows[1][4],
        least=True,
        remark="6 layers of 6 products",
    )
    report.finish()


if __name__ == "__main__":
    main()
