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
import json
import math
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import constriction
import jax
import ml_dtypes
import numpy as np
import zstandard

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.networks import NETWORKS, MissingPackageError, matrices
from modelzip_jax.coding import histograms, planes, streams, writer
from modelzip_jax.coding.header import checksum
from modelzip_jax.coding.reader import Archive
from modelzip_jax.coding.symbols import streams as streams_of
from modelzip_jax.packed import Dense, is_packed

BITS = (8, 6, 4)
LARGE = 100_000
WORKER = Path(__file__).parent / "peers" / "nncodec_worker.py"
HEADLINE = "MiniLM-L6"


class Symbols:
    """One network's codes: `codes`, uint8 1-D for each tensor, `shapes`, and their `entropy` in bytes."""

    def __init__(self, weights: dict[str, np.ndarray], bits: int, axis: int):
        packed = mz.compress(weights, mz.quantize(bits, granularity="channel", axis=axis))
        leaves = jax.tree.leaves(packed.params, is_leaf=is_packed)
        # The codes are the first field of a quantized tensor, its step sizes come behind.
        self.codes = [next(streams_of(leaf)) for leaf in leaves]
        self.shapes = [leaf.shape for leaf in leaves]
        self.bits = bits

    @property
    def count(self) -> int:
        return sum(code.size for code in self.codes)

    @property
    def entropy(self) -> float:
        return sum(histograms.entropy(histograms.count(code)) for code in self.codes) / 8

    def large(self) -> Symbols:
        """Those of tensors with more than 100,000 symbols."""
        chosen = object.__new__(Symbols)
        keep = [i for i, code in enumerate(self.codes) if code.size > LARGE]
        chosen.codes, chosen.shapes = [self.codes[i] for i in keep], [self.shapes[i] for i in keep]
        chosen.bits = self.bits
        return chosen


class Ours:
    """modelzip_jax's coder through the functions of its own writer and reader."""

    def __init__(self, symbols: Symbols, path: Path):
        self.codes = symbols.codes
        named = {f"{i:05d}": Dense(code, code.shape) for i, code in enumerate(self.codes)}
        self.encode_cold = _seconds(self.encode)
        self.sizes = mz.save(path, mz.Packed(named, {}, mz.identity()))
        self.archive = Archive(path)
        self.decode_cold = _seconds(self.decode)

    def encode(self) -> None:
        plans = streams.plan_all([functools.partial(iter, (code,)) for code in self.codes])
        lanes, target = writer._layout(plans)
        segments = (
            segment for code, plan in zip(self.codes, plans, strict=True) for segment in plan.segments(code)
        )
        cut = writer._cut((n for plan in plans for n in plan.lengths), target)
        for _, data in writer._code(segments, cut, lanes):
            checksum(data)

    def decode(self) -> list[np.ndarray]:
        self.archive._cached = self.archive._cached_raw = None
        return [self.archive._stream(i) for i in range(len(self.codes))]


class Constriction:
    """One static categorical model and one ANS coder a tensor."""

    def __init__(self, symbols: Symbols):
        self.alphabet = 1 << symbols.bits
        self.codes = [code.astype(np.int32) for code in symbols.codes]
        self.bytes = symbols.codes
        self.probabilities: list[np.ndarray] = []
        self.words: list[np.ndarray] = []
        self.encode()

    def _model(self, probabilities: np.ndarray) -> Any:
        return constriction.stream.model.Categorical(probabilities, perfect=False)

    def encode(self) -> None:
        self.probabilities, self.words = [], []
        for code, as_bytes in zip(self.codes, self.bytes, strict=True):
            counts = histograms.count(as_bytes)[: self.alphabet]
            self.probabilities.append((counts / counts.sum()).astype(np.float32))
            coder = constriction.stream.stack.AnsCoder()
            coder.encode_reverse(code, self._model(self.probabilities[-1]))
            self.words.append(coder.get_compressed())

    def decode(self) -> list[np.ndarray]:
        return [
            constriction.stream.stack.AnsCoder(words).decode(self._model(p), code.size)
            for words, p, code in zip(self.words, self.probabilities, self.codes, strict=True)
        ]

    @property
    def size(self) -> int:
        return sum(words.nbytes for words in self.words)


class Zstd:
    """zstd -19, one frame a tensor."""

    def __init__(self, symbols: Symbols):
        coder = zstandard.ZstdCompressor(level=19)
        start = harness.clock()()
        self.frames = [coder.compress(code.tobytes()) for code in symbols.codes]
        self.encode_s = harness.clock()() - start

    def decode(self) -> list[bytes]:
        decoder = zstandard.ZstdDecompressor()
        return [decoder.decompress(frame) for frame in self.frames]

    @property
    def size(self) -> int:
        return sum(map(len, self.frames))


def nncodec(symbols: Symbols, folder: Path) -> dict[str, Any] | None:
    """What `peers/nncodec_worker.py` prints, or None without an environment for it."""
    interpreter = os.environ.get("MODELZIP_NNCODEC_PYTHON")
    if not interpreter:
        return None
    low = (1 << (symbols.bits - 1)) - 1
    arrays = {
        f"t{i:05d}": (code.astype(np.int16) - low).astype(np.int8).reshape(shape)
        for i, (code, shape) in enumerate(zip(symbols.codes, symbols.shapes, strict=True))
    }
    np.savez(folder / "symbols.npz", **arrays)
    output = subprocess.run(
        [interpreter, str(WORKER), str(folder / "symbols.npz")], check=True, capture_output=True, text=True
    )
    return json.loads(output.stdout.splitlines()[-1])


def _seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(symbols: Symbols, repeats: int) -> dict[str, Any]:
    """All coders on one network's symbols: sizes, seconds and ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = nncodec(symbols, folder)
        ours, other, zstd = Ours(symbols, folder / "codes.mz"), Constriction(symbols), Zstd(symbols)
        for decoded, code in zip(ours.decode(), symbols.codes, strict=True):
            np.testing.assert_array_equal(decoded, code)
        for words, code in zip(other.decode(), symbols.codes, strict=True):
            np.testing.assert_array_equal(words, code)
        cases = {
            "encode": ours.encode,
            "decode": ours.decode,
            "other encode": other.encode,
            "other decode": other.decode,
            "zstd decode": zstd.decode,
        }
        times = harness.interleave(cases, repeats)
        large = symbols.large()
        large_ratio = math.nan
        if large.codes:
            sizes = mz.save(
                folder / "large.mz",
                mz.Packed(
                    {f"{i:05d}": Dense(c, c.shape) for i, c in enumerate(large.codes)}, {}, mz.identity()
                ),
            )
            large_ratio = sizes.payload / large.entropy
        ours.archive._file.close()
    plans = [streams.plan(code) for code in large.codes]
    worst = [
        (sum(p.bits) if p.coding != streams.RAW else 8 * p.length)
        / histograms.entropy(histograms.count(code))
        for p, code in zip(plans, large.codes, strict=True)
    ]
    million = symbols.count / 1e6
    speed = {name: million / harness.median(values) for name, values in times.items()}
    found: dict[str, Any] = {
        "symbols": symbols.count,
        "entropy": symbols.entropy,
        "sizes": ours.sizes,
        "large": large_ratio,
        "worst": max(worst, default=math.nan),
        "speed": speed,
        "cold": (ours.encode_cold, ours.decode_cold),
        "constriction": other.size,
        "zstd": zstd.size,
        "zstd encode": million / zstd.encode_s,
        "encode / constriction": harness.median(harness.ratios(times, "other encode", "encode")),
        "decode / constriction": harness.median(harness.ratios(times, "other decode", "decode")),
        "nncodec": None,
    }
    if peer:
        encode, decode = million / peer["encode_s"], million / peer["decode_s"]
        found["nncodec"] = {
            "bytes": peer["bytes"],
            "encode": encode,
            "decode": decode,
            "encode ratio": speed["encode"] / encode,
            "decode ratio": speed["decode"] / decode,
        }
    return found


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
        "network", "bits", "ours: encode", "decode", "first encode, s", "first decode, s",
        "constriction: encode", "decode", "NNCodec: encode", "decode", "zstd -19: encode", "decode",
        "decode ÷ constriction", "encode ÷ constriction", "decode ÷ NNCodec", "encode ÷ NNCodec",
    ]  # fmt: skip
    rows = []
    for (name, bits), f in found.items():
        speed, peer = f["speed"], f["nncodec"] or {}
        rows.append(
            [
                name, bits, speed["encode"], speed["decode"], *f["cold"],
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
