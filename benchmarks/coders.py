"""The coders that `benchmarks.coding` compares, and what is measured of each."""

from __future__ import annotations

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
import numpy as np
import zstandard

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax.coding import histograms, streams, writer
from modelzip_jax.coding.header import checksum
from modelzip_jax.coding.reader import Archive
from modelzip_jax.coding.symbols import streams as streams_of
from modelzip_jax.packed import Dense, is_packed

LARGE = 100_000
WORKER = Path(__file__).parent / "peers" / "nncodec_worker.py"


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

    def plan(self) -> list[streams.Plan]:
        """The part of `encode` that counts symbols and looks for tables and escapes."""
        return streams.plan_all([functools.partial(iter, (code,)) for code in self.codes])

    def encode(self) -> None:
        plans = self.plan()
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
            "plan": ours.plan,
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
        "plan / encode": harness.median(harness.ratios(times, "plan", "encode")),
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
