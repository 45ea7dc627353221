"""What a trellis saves: bytes of files at equal squared error, by the number of its states, and what it costs in time.

    python -m benchmarks.trellis [--quick]

Weights of known densities, and the first layer of LeNet-300-100 on Fashion-MNIST if `benchmarks.tasks` has trained it.
Sizes are those of whole files; at other errors than the plain one's they are read from two files around it.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.tasks.training import KEPT
from modelzip_jax import checkpoints
from modelzip_jax.coding.writer import file_sizes

STATES = (4, 8, 16, 32, 64)
STEPS = (0.2, 0.5, 1.0, 1.5)
"""Of the plain quantizer, in units of the weights' deviation."""


def weights(quick: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (64, 256) if quick else (1536, 384)
    found = {"normal": rng.normal(size=shape), "Laplace": rng.laplace(size=shape) / math.sqrt(2)}
    layer = KEPT / "lenet_300_100-fashion_mnist-0.npz"
    if layer.exists() and not quick:
        leaves = dict(mz.tree.named_leaves(checkpoints.read(layer)))
        name = next(name for name in leaves if np.shape(leaves[name]) == (784, 300))
        found[f"LeNet-300-100, {name}"] = np.asarray(leaves[name])
    return {name: np.float32(w / w.std()) for name, w in found.items()}


def came_to(w: np.ndarray, step: float, states: int) -> tuple[float, float, mz.Packed]:
    """Logarithms of squared error and of bytes, and the model."""
    transform = mz.entropy_constrained(step, spread=mz.spreads.even(), states=states)
    packed = mz.compress({"w": w}, transform)
    error = float(np.mean(np.square(np.asarray(mz.unpack(packed)["w"]) - w)))
    return math.log(error), math.log(file_sizes(packed).total), packed


def saved(w: np.ndarray, step: float, states: int) -> tuple[float, float]:
    """Bits a weight of the plain quantizer, and the share of its bytes that a trellis takes at its error."""
    error, size, _ = came_to(w, step, 1)
    points = sorted(came_to(w, step * factor, states)[:2] for factor in (0.9, 1.0, 1.1))
    found = float(np.interp(error, *zip(*points, strict=True)))
    return 8 * math.exp(size) / w.size, math.exp(found - size)


def seconds(w: np.ndarray, states: int) -> tuple[float, float, float]:
    """CPU seconds of choosing codes, of the file, and of reading it again into floats."""
    spent = [time.process_time()]
    packed = came_to(w, 0.5, states)[2]
    spent.append(time.process_time())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mz"
        mz.save(path, packed)
        spent.append(time.process_time())
        mz.unpack(mz.load(path))
        spent.append(time.process_time())
    return tuple(np.diff(spent).tolist())  # type: ignore[return-value]


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=1, cores=1)
    report = harness.Report("trellis", "Trellis-coded quantization", chosen)
    worst: dict[int, float] = {}
    for name, w in weights(chosen.quick).items():
        rows: list[list[Any]] = []
        for step in STEPS[1:2] if chosen.quick else STEPS:
            found = {states: saved(w, step, states) for states in STATES}
            bits = found[STATES[0]][0]
            rows.append([bits, *(f"{share - 1:+.1%}" for _, share in found.values())])
            if bits > 2:
                worst = {s: max(worst.get(s, -1.0), share - 1) for s, (_, share) in found.items()}
        report.table(
            f"{name}: bytes at the squared error of plain rounding",
            ["bits a weight, plain", *(f"{states} states" for states in STATES)],
            rows,
        )
    w = weights(chosen.quick)["normal"]
    rows = []
    for states in (1, *STATES):
        seconds(w, states)
        rows.append([states, *(1e9 * s / w.size for s in seconds(w, states))])
    report.table(
        f"{w.size:,} weights, ns each on one core",
        ["states, 1 being none", "codes chosen", "file written", "read into floats"],
        rows,
    )
    report.note(f"Beyond 2 bits a weight 32 states save at least {-worst.get(32, math.nan):.1%}")
    report.finish()


if __name__ == "__main__":
    main()
