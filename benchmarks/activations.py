"""MiniLM-L6 with int8 activations and weights: what it costs in retrieval, and in time.

    python -m benchmarks.activations [--repeats 15] [--quick]

The pairs are the test pairs of the demo; static ranges come from pairs of other modules.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax import trace
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
    stats = trace.statistics(apply, params, batches, kinds=("range",), only="**/kernel")
    only = "**/kernel"
    models: dict[str, Model] = {
        "float32": jax.jit(apply),
        "int8, a step a row": jax.jit(mz.rewrites.quantize_activations(apply, only=only)),
        "int8, a step a batch": jax.jit(mz.rewrites.quantize_activations(apply, ranges="tensor", only=only)),
        "int8, static ranges": jax.jit(
            mz.rewrites.quantize_activations(apply, ranges="static", stats=stats, only=only)
        ),
        "rounded floats, a step a row": jax.jit(
            mz.rewrites.quantize_activations(apply, arithmetic="fake", only=only)
        ),
    }
    ids, mask = batches[0]
    times = harness.interleave(
        {name: lambda m=m: jax.block_until_ready(m(params, ids, mask)) for name, m in models.items()},
        chosen.repeats, warmup=2,
    )  # fmt: skip
    rows, recalls = [], {}
    reference = None
    for name, model in models.items():
        vectors = embed(model, params, tokens)
        reference = vectors if reference is None else reference
        queries, documents = vectors[: len(pairs)], vectors[len(pairs) :]
        recalls[name] = 100 * retrieval.recall_at(queries, documents, 1)
        text = model.lower(params, ids, mask).as_text()
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
    lost = abs(recalls["float32"] - recalls["int8, a step a row"])
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
