"""Post-training quantization of three networks: how near the float network what is stored comes, method by method.

    python -m benchmarks.quantization [--pictures] [--words] [--peers] [--quick]

MiniLM, embeddings included: cosine to the float embeddings and recall@1 on docstrings of packages that calibration has
not seen, and on verses of another domain. With --pictures EfficientNet-Lite0 on CIFAR-10 upsampled: cosine to the float
logits. With --words g2p-en's GRUs: cosine to the float logits, phoneme error rate. With --peers Qwix's GPTQ and AWQ on
the same statistics, the same bits and groups, and QEP; see benchmarks/peers/qwix_minilm.py.

Bytes are those in memory, side information included.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import grapheme_to_phoneme, harness, networks, pictures, sentences
from benchmarks.peers.qwix_minilm import by_qwix
from modelzip_jax import trace
from modelzip_jax.models import sentence_encoder
from modelzip_jax.models.token_batches import unpadded_batches
from modelzip_jax.tree import PyTree

GROUP = 64
BARS = {8: 0.9995, 4: 0.985, 3: 0.93}
KERNELS = "**/kernel"
TABLES = "tables alone, normal floats"
"""What is left to lose by the embeddings; no method of its own."""
Method = Callable[[], mz.Packed]


def grouped(bits: int, **options: Any) -> mz.Transform:
    """Groups of 64 inputs of an output."""
    return mz.quantize(bits, granularity="group", group_size=GROUP, axis=-1, **options)


def with_table(bits: int, kernels: mz.Transform, grid: Any = None) -> mz.Transform:
    """Embeddings in groups along their rows, of least squared error: they meet no product that could be calibrated."""
    table = mz.quantize(bits, granularity="group", group_size=GROUP, axis=0, range="mse", grid=grid)
    return mz.partition({"kernels": kernels, "tables": table}, {KERNELS: "kernels", "**/embedding": "tables"})


def wide_to_nearest(bits: int, kernels: mz.Transform) -> mz.Transform:
    """Kernels of 1,536 inputs to nearest, and tables on normal floats: what Qwix's GPTQ and QEP are compared with."""
    table = with_table(bits, kernels, mz.grids.nf4()).parts[1][1]
    labels = {"encoder/*/output/kernel": "wide", KERNELS: "kernels", "**/embedding": "tables"}
    return mz.partition({"wide": grouped(bits), "kernels": kernels, "tables": table}, labels)


def timed(method: Method) -> tuple[mz.Packed, float]:
    start = time.perf_counter()
    found = method()
    return found, time.perf_counter() - start


def minilm(report: harness.Report) -> None:
    """Sentence embeddings."""
    chosen = report.chosen
    model, params, tokenizer = sentence_encoder.load_minilm()
    params = jax.tree.map(np.asarray, params)
    known = unpadded_batches(sentences.load("calibration", 48 if chosen.quick else 192, tokenizer).tokens, 16)
    test = sentences.load("test", 100 if chosen.quick else 500, tokenizer)
    other = sentences.load("unseen domain", 50 if chosen.quick else 200, tokenizer)

    def apply(p: PyTree, ids: Any, mask: Any) -> Any:
        return model.apply({"params": p}, ids, mask)

    start = time.perf_counter()
    stats = trace.statistics(apply, params, known, kinds=("gram", "mean_abs"), only=KERNELS)
    jax.block_until_ready(stats)
    report.note(
        f"MiniLM: statistics of {len(known)} batches of 16 texts took {time.perf_counter() - start:.0f} s"
    )
    embed = functools.partial(sentence_encoder.embed_tokens, model)
    floats = {
        part: embed(params, part_tokens.tokens) for part, part_tokens in (("test", test), ("other", other))
    }
    float_found = sentences.agreement(floats["test"], floats["test"]).found
    feedback, normal = mz.rounding.error_feedback(), mz.grids.nf4()

    def methods(bits: int) -> dict[str, Method]:
        found: dict[str, Method] = {
            "to nearest": lambda: mz.compress(params, with_table(bits, grouped(bits))),
        }
        if bits == 8:
            return found
        zeros = {"symmetric": False, "offset": True}
        return found | {
            "to nearest, least squares": lambda: mz.compress(
                params, with_table(bits, grouped(bits, range="mse"))
            ),
            "normal floats": lambda: mz.compress(
                params, with_table(bits, grouped(bits, grid=mz.grids.nf4()))
            ),
            "half-quadratic": lambda: mz.compress(
                params, with_table(bits, grouped(bits, rounding=mz.rounding.half_quadratic(), **zeros))
            ),
            "error feedback": lambda: mz.compress(
                params, with_table(bits, grouped(bits, rounding=feedback)), stats=stats
            ),
            "error feedback, least squares": lambda: mz.compress(
                params, with_table(bits, grouped(bits, rounding=feedback, range="mse")), stats=stats
            ),
            "error feedback on normal floats": lambda: mz.compress(
                params,
                with_table(bits, grouped(bits, grid=normal, rounding=feedback, range="mse"), normal),
                stats=stats,
            ),
            "error feedback on normal floats in turn": lambda: mz.compress(
                params,
                with_table(bits, grouped(bits, grid=normal, rounding=feedback, range="mse"), normal),
                calibrate=(apply, known),
            ),
            "error feedback, least squares, up to 384 inputs": lambda: mz.compress(
                params, wide_to_nearest(bits, grouped(bits, rounding=feedback, range="mse")), stats=stats
            ),
            "error feedback in turn, least squares, up to 384 inputs": lambda: mz.compress(
                params,
                wide_to_nearest(bits, grouped(bits, rounding=feedback, range="mse")),
                calibrate=(apply, known),
            ),
            TABLES: lambda: mz.compress(
                params, mz.only("**/embedding", with_table(bits, grouped(bits), normal).parts[1][1])
            ),
            "error feedback in turn, least squares": lambda: mz.compress(
                params,
                with_table(bits, grouped(bits, rounding=feedback, range="mse")),
                calibrate=(apply, known),
            ),
        }

    def judged(weights: PyTree) -> list[Any]:
        here = sentences.agreement(floats["test"], embed(weights, test.tokens))
        there = sentences.agreement(floats["other"], embed(weights, other.tokens))
        change = sentences.difference(here.found, float_found)
        points = f"{100 * change.mean:+.1f} ± {100 * change.error:.1f}"
        return [float(here.cosine.mean()), float(there.cosine.mean()), points]

    columns = ["method", "bytes", "cosine", "cosine, unseen domain", "recall@1, points", "s"]
    for bits in (4,) if chosen.quick else (8, 4, 3):
        rows = []
        for name, method in methods(bits).items():
            packed, seconds = timed(method)
            rows.append([name, packed.nbytes, *judged(jax.tree.map(np.asarray, mz.unpack(packed))), seconds])
            print(bits, *rows[-1], flush=True)
        if chosen.peers and bits < 8:
            rows += peers(model, params, stats, known, bits, judged)
        report.table(f"MiniLM-L6, {bits} bits, groups of {GROUP}, embeddings included", columns, rows)
        best = max((row for row in rows if row[1] and row[0] != TABLES), key=lambda row: row[2])
        report.bar(f"MiniLM, {bits} bits: cosine", BARS[bits], best[2], least=True, remark=best[0])
        if bits == 4:
            seconds = {row[0]: row[-1] for row in rows}["error feedback"]
            report.bar("MiniLM: error feedback beside the statistics", 60.0, seconds, unit="s")


def peers(
    model: Any,
    params: PyTree,
    stats: PyTree,
    known: list[Any],
    bits: int,
    judged: Callable[[PyTree], list[Any]],
) -> list[list[Any]]:
    """Rows of Qwix's methods, with our tables of embeddings; of equal bits and groups, so of equal bytes."""
    plain = mz.compress(params, with_table(bits, grouped(bits)))
    fine = mz.compress(params, with_table(bits, grouped(bits), mz.grids.nf4()))
    tables = mz.unpack(fine)
    rows = []
    for method, (kernels, seconds, version) in (
        by_qwix(model, params, stats, known, bits, GROUP) or {}
    ).items():
        changed = mz.tree.map_named(lambda name, w, kernels=kernels: kernels.get(name, np.asarray(w)), tables)
        rows.append([f"Qwix {version}: {method}", plain.nbytes, *judged(changed), seconds])
        print(bits, *rows[-1], flush=True)
    return rows


def efficientnet(report: harness.Report) -> None:
    """Pictures: int4 a channel."""
    chosen = report.chosen
    module, variables = networks.load_efficientnet()
    count, held = (16, 32) if chosen.quick else (512, 1000)
    known, test = pictures.batches("calibration", count), pictures.batches("test", held)
    run = pictures.evaluator(module)
    floats = pictures.logits(run, variables, test)
    kernels = "params/**/kernel"
    feedback = mz.rounding.error_feedback()

    def quantized(**options: Any) -> mz.Transform:
        return mz.only(kernels, mz.quantize(4, granularity="channel", axis=-1, **options))

    methods: dict[str, Method] = {
        "to nearest": lambda: mz.compress(variables, quantized()),
        "to nearest, least squares": lambda: mz.compress(variables, quantized(range="mse")),
        "error feedback in turn, least squares": lambda: mz.compress(
            variables, quantized(rounding=feedback, range="mse"), calibrate=(module.apply, known)
        ),
    }
    rows = []
    for name, method in methods.items():
        packed, seconds = timed(method)
        found = pictures.agreement(floats, pictures.logits(run, mz.unpack(packed), test))
        rows.append([name, packed.nbytes, float(found.cosine.mean()), float(found.top.mean()), seconds])
        print(*rows[-1], flush=True)
    report.table(
        f"EfficientNet-Lite0, kernels at 4 bits a channel, calibrated on {count} pictures",
        ["method", "bytes", "cosine of logits", "same class", "s"],
        rows,
    )
    best = max(rows, key=lambda row: row[2])
    report.bar(
        "EfficientNet-Lite0, 4 bits a channel: cosine of logits", 0.95, best[2], least=True, remark=best[0]
    )


def words(report: harness.Report) -> None:
    """Words to phonemes: GRUs."""
    floats = grapheme_to_phoneme.load()
    known = grapheme_to_phoneme.words("calibration", 500)
    held = grapheme_to_phoneme.words("test", 1000)
    letters, ends = grapheme_to_phoneme.encode_words(known)
    phonemes = grapheme_to_phoneme.spell(floats, letters, ends)
    inputs = [(letters, ends, phonemes)]
    stats = trace.statistics(grapheme_to_phoneme.apply, floats, inputs, kinds=("gram",))
    matrices = tuple(
        name for name, s in mz.tree.named_leaves(stats, lambda x: isinstance(x, trace.Measured)) if s
    )
    feedback = mz.rounding.error_feedback()
    rows = []
    for bits in (4, 3, 2):
        for name, options, given in (
            ("to nearest", {"range": "mse"}, {}),
            ("error feedback", {"range": "mse", "rounding": feedback}, {"stats": stats}),
            ("error feedback in turn", {"range": "mse", "rounding": feedback},
             {"calibrate": (grapheme_to_phoneme.apply, inputs)}),
        ):  # fmt: skip
            t = mz.only(matrices, mz.quantize(bits, granularity="group", group_size=GROUP, **options))
            packed, seconds = timed(lambda t=t, given=given: mz.compress(floats, t, **given))
            found = grapheme_to_phoneme.agreement(floats, mz.unpack(packed), held)
            errors = 100 * float(found.edits.sum() / found.phonemes.sum())
            rows.append([bits, name, packed.nbytes, float(np.mean(found.cosine)), errors, seconds])
            print(*rows[-1], flush=True)
    columns = ["bits", "method", "bytes", "cosine of logits", "phoneme errors, %", "s"]
    report.table("g2p-en, matrices of products in groups of 64", columns, rows)


def main() -> None:
    flags = {
        "pictures": "EfficientNet too (minutes)",
        "words": "g2p-en too",
        "peers": "Qwix too (long to compile)",
    }
    chosen = harness.options(__doc__, repeats=1, flags=flags)
    report = harness.Report("quantization", "Post-training quantization", chosen)
    minilm(report)
    if chosen.pictures:
        efficientnet(report)
    if chosen.words:
        words(report)
    report.finish()


if __name__ == "__main__":
    main()
