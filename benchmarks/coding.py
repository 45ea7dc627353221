"""Entropy coding: bytes against the entropy, and speed against constriction, zstd and NNCodec.

    python -m benchmarks.coding [--repeats 7] [--device cpu] [--cores 1] [--quick]

Every coder gets the same symbols: codes rounded to nearest, a step size a channel, of all float
tensors of two axes and more of the networks in `benchmarks/networks.py` (its docstring says how to
install them; what is missing is reported as skipped). constriction and zstandard come with the
extra `bench`. NNCodec needs an environment of its own (it pins NumPy 1.26 and needs PyTorch):

    python -m venv nncodec && nncodec/bin/pip install nncodec==2.1.3
    export MODELZIP_NNCODEC_PYTHON=nncodec/bin/python

What is timed. Ours: from symbols to checksummed chunks as `mz.save` makes them (histograms, escapes
and tables included), and from an open file back to symbols as `mz.load` does (checksums, tables and
escapes included). constriction: a static categorical model for each tensor, built from counts, and
its ANS coder on whole int32 arrays. NNCodec (both ways) and zstd -19 (encoding): their own calls,
once, since they take seconds. Chunks and tensors of one call count together; the first call of ours,
which compiles unless an earlier network had the same capacities, is reported apart.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import tempfile
import time
from typing import Any

import jax
import ml_dtypes
import numpy as np
import zstandard

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.coders import Symbols, measure
from benchmarks.networks import NETWORKS, MissingPackageError, matrices
from modelzip_jax.coding import planes, writer

BITS = (8, 6, 4)
HEADLINE = "MiniLM-L6"


def report_coders(report: harness.Report, chosen: argparse.Namespace) -> None:
    """The tables and bars of the comparison."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    names = ["g2p-en"] if chosen.quick else list(NETWORKS)
    if not os.environ.get("MODELZIP_NNCODEC_PYTHON"):
        report.note("NNCodec skipped: MODELZIP_NNCODEC_PYTHON is not set")
    for name in names:
        network = NETWORKS[name]
        try:
            weights = matrices(network.load())
        except MissingPackageError as error:
            report.note(f"{name} skipped: its weights cannot be read without: {error}")
            continue
        for bits in BITS:
            symbols = Symbols(weights, bits, network.axis)
            found[name, bits] = measure(symbols, chosen.repeats)
            print(f"{name} int{bits} done", flush=True)
    report.table("Bytes over the 0-order entropy of each tensor", *_size_rows(found))
    report.table("Speed, million symbols a second", *_speed_rows(found))
    _coder_bars(report, found)


def _size_rows(found: dict[tuple[str, int], dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    columns = [
        "network", "bits", "symbols", "entropy, bytes", "ours", "ours, large tensors", "worst large tensor",
        "tables", "lanes", "constriction", "NNCodec", "zstd -19",
    ]  # fmt: skip
    rows = []
    for (name, bits), f in found.items():
        e, sizes = f["entropy"], f["sizes"]
        relative = [sizes.payload / e, f["large"], f["worst"], sizes.tables / e, sizes.lanes / e]
        peers = [f["constriction"] / e, f["nncodec"] and f["nncodec"]["bytes"] / e, f["zstd"] / e]
        shown = [_percent(x) for x in (*relative, *peers)]
        rows.append([name, bits, f["symbols"], round(e), *shown])
    return columns, rows


def _percent(ratio: float | None) -> str:
    return "–" if ratio is None or math.isnan(ratio) else f"{100 * ratio:.2f} %"


def _speed_rows(found: dict[tuple[str, int], dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    columns = [
        "network", "bits", "ours: encode", "of it counts and tables", "decode", "first encode, s", "first decode, s",
        "constriction: encode", "decode", "NNCodec: encode", "decode", "zstd -19: encode", "decode",
        "decode ÷ constriction", "encode ÷ constriction", "decode ÷ NNCodec", "encode ÷ NNCodec",
    ]  # fmt: skip
    rows = []
    for (name, bits), f in found.items():
        speed, peer = f["speed"], f["nncodec"] or {}
        rows.append(
            [
                name, bits, speed["encode"], _percent(f["plan / encode"]), speed["decode"], *f["cold"],
                speed["other encode"], speed["other decode"], peer.get("encode"), peer.get("decode"),
                f["zstd encode"], speed["zstd decode"],
                f["decode / constriction"], f["encode / constriction"],
                peer.get("decode ratio"), peer.get("encode ratio"),
            ]
        )  # fmt: skip
    return columns, rows


def _coder_bars(report: harness.Report, found: dict[tuple[str, int], dict[str, Any]]) -> None:
    large = {f"{name} int{bits}": f["large"] for (name, bits), f in found.items() if f["large"] == f["large"]}
    if large:
        worst = max(large, key=lambda k: large[k])
        report.bar(
            "payload of all tensors over 100k symbols ÷ their 0-order entropy", 1.005, large[worst],
            remark=f"worst network: {worst}; tables and lane flush stand apart (a lane's final state, 4 bytes, "
            "holds about 2 bytes of information, hence figures below 1)",
        )  # fmt: skip
    speeds = [
        ("decode ÷ constriction", 4, lambda f: f["decode / constriction"]),
        ("encode ÷ constriction", 1, lambda f: f["encode / constriction"]),
        ("decode ÷ NNCodec", 8, lambda f: (f["nncodec"] or {}).get("decode ratio")),
        ("encode ÷ NNCodec", 25, lambda f: (f["nncodec"] or {}).get("encode ratio")),
    ]
    for what, limit, figure in speeds:
        for scope in (HEADLINE, "every network"):
            values = {
                f"{name} int{bits}": figure(f)
                for (name, bits), f in found.items()
                if figure(f) is not None and scope in (name, "every network")
            }
            if values:
                worst = min(values, key=lambda k: values[k])
                report.bar(
                    f"{what}, {scope}", limit, values[worst], least=True, unit=" ×", remark=f"worst: {worst}"
                )


def report_lossless(report: harness.Report, chosen: argparse.Namespace) -> None:
    """`mz.identity` on MiniLM in float32 and cast to bfloat16, against zstd on the same planes."""
    try:
        params = NETWORKS["g2p-en" if chosen.quick else HEADLINE].load()
    except MissingPackageError as error:
        report.note(f"lossless coding skipped: {error}")
        return
    rows = []
    for dtype, limit in ((np.dtype(np.float32), 84), (np.dtype(ml_dtypes.bfloat16), 67)):
        cast = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype) if x.dtype.kind == "f" else x, params)
        raw = sum(x.nbytes for x in jax.tree.leaves(cast))
        with tempfile.TemporaryDirectory() as folder:
            packed = mz.compress(cast, mz.identity())
            start = time.perf_counter()
            size = mz.save(f"{folder}/lossless.mz", packed).total
            seconds = time.perf_counter() - start
            for a, b in zip(
                jax.tree.leaves(mz.unpack(mz.load(f"{folder}/lossless.mz"))),
                jax.tree.leaves(cast),
                strict=True,
            ):
                np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))
        coder = zstandard.ZstdCompressor(level=19)
        zstd = sum(
            len(coder.compress(p.tobytes())) for x in jax.tree.leaves(cast) for p in planes.split_planes(x)
        )
        rows.append([str(dtype), raw, _percent(size / raw), _percent(zstd / raw), seconds])
        report.bar(f"lossless {dtype}, file ÷ raw bytes", limit, 100 * size / raw, unit=" %")
    columns = ["dtype", "raw bytes", "ours, whole file", "zstd -19 on planes", "mz.save, s"]
    report.table(f"Lossless coding of {HEADLINE}", columns, rows)


def _mlp(tensors: int) -> dict[str, Any]:
    """An MLP of so many tensors: kernels of 64 × 64, and a bias with each but a lone kernel."""
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    for layer in range(max(tensors // 2, 1)):
        params[f"Dense_{layer}"] = {"kernel": rng.normal(0, 0.1, (64, 64)).astype(np.float32)}
        if tensors > 1:
            params[f"Dense_{layer}"]["bias"] = rng.normal(0, 0.1, 64).astype(np.float32)
    return params


def report_overhead(report: harness.Report, chosen: argparse.Namespace) -> None:
    """Where a whole file's bytes go."""
    files: dict[str, Any] = {
        f"MLP of {n} tensor(s), int4": functools.partial(_file, _mlp(n), 4, -1, ("**/kernel",))
        for n in (1, 4, 20)
    }
    if not chosen.quick:
        for name, bits in ((HEADLINE, 6), ("EfficientNet-Lite0", 4)):
            try:
                params = NETWORKS[name].load()
            except MissingPackageError as error:
                report.note(f"overhead of {name} skipped: {error}")
                continue
            axis = NETWORKS[name].axis
            files[f"{name}, int{bits}"] = functools.partial(
                _file, params, bits, axis, tuple(matrices(params))
            )
    rows, ratio = [], {}
    for name, make in files.items():
        tensors, sizes = make()
        allowed = 64 + 24 * tensors
        ratio[name] = (sizes.fixed + sizes.tensors) / allowed
        rows.append(
            [name, tensors, sizes.total, sizes.payload, sizes.names, sizes.tables, sizes.lanes,
             sizes.fixed + sizes.tensors, allowed]
        )  # fmt: skip
    columns = [
        "file", "tensors", "bytes", "payload", "names", "tables", "lane flush",
        "everything else", "64 + 24 a tensor",
    ]  # fmt: skip
    report.table("Bytes of whole files", columns, rows)
    worst = max(ratio, key=lambda k: ratio[k])
    report.bar(
        "file − payload − names − tables − lane flush, ÷ (64 + 24 a tensor)", 1.0, ratio[worst],
        remark=f"worst: {worst}",
    )  # fmt: skip


def _file(params: Any, bits: int, axis: int, paths: tuple[str, ...]) -> tuple[int, writer.FileSizes]:
    with tempfile.TemporaryDirectory() as folder:
        zipper = mz.only(paths, mz.quantize(bits, granularity="channel", axis=axis))
        packed = mz.compress(params, zipper)
        return len(jax.tree.leaves(params)), mz.save(f"{folder}/file.mz", packed)


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=7, cores=1)
    report = harness.Report("coding", "Entropy coding", chosen)
    report_coders(report, chosen)
    report_lossless(report, chosen)
    report_overhead(report, chosen)
    report.finish()


if __name__ == "__main__":
    main()
