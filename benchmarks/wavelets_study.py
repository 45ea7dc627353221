"""Where wavelets pay: bits of real networks' weights at equal squared error, in the best basis and in none.

    python -m benchmarks.wavelets_study [--lenet run/model.mz] [--values 262144] [--shapes 8] [--quick]

For each network, one tensor of each of the largest shapes (its middle one by name) stands for all of that shape,
and rows up to `--values` weights for a larger tensor. Codes are counted as files code them, tables included.
LeNet-300-100 is read from a trained model: `modelzip train --config configs/lenet_300_100.py`.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path
from typing import Any

import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.networks import NETWORKS, MissingPackageError, matrices
from modelzip_jax.wavelets.best_basis import Choice, choices

DISTORTIONS = (1e-3, 1e-2, 1e-1)


def sample(x: np.ndarray, values: int) -> np.ndarray:
    """The first rows of a tensor, whole along its other axes."""
    rows = max(values // max(x[0].size, 1), 8)
    return x[:rows]


def compare(name: str, x: np.ndarray, distortion: float) -> tuple[Choice, Choice]:
    """`(best, identity)`."""
    found = choices(name, x, distortion)
    return found[0], next(choice for choice in found if choice.basis is None)


def study(report: harness.Report, network: str, tensors: dict[str, np.ndarray], options: Any) -> None:
    """A table of the network's largest shapes, and its total."""
    shapes: dict[tuple[int, ...], list[str]] = collections.defaultdict(list)
    for name, x in tensors.items():
        shapes[x.shape].append(name)
    largest = sorted(shapes, key=lambda s: -len(shapes[s]) * int(np.prod(s)))[: options.shapes]
    rows, totals = [], {d: [0.0, 0.0] for d in DISTORTIONS}
    for shape in largest:
        name = shapes[shape][len(shapes[shape]) // 2]
        x = sample(tensors[name], options.values)
        weight = len(shapes[shape]) * int(np.prod(shape)) / x.size
        row: list[Any] = [name, "×".join(map(str, shape)), len(shapes[shape])]
        for distortion in DISTORTIONS:
            best, plain = compare(name, x, distortion)
            totals[distortion][0] += best.bits * weight
            totals[distortion][1] += plain.bits * weight
            row += [plain.bits / x.size, best.bits / plain.bits - 1.0]
        rows.append([*row, str(best.basis or "–")])
        print(network, *rows[-1], flush=True)
    total = [totals[d][0] / totals[d][1] - 1.0 for d in DISTORTIONS]
    covered = sum(len(shapes[s]) * int(np.prod(s)) for s in largest) / sum(x.size for x in tensors.values())
    rows.append(
        [f"all of these ({covered:.0%} of the weights)", "", "", "", total[0], "", total[1], "", total[2], ""]
    )
    columns = ["tensor", "shape", "tensors"]
    for distortion in DISTORTIONS:
        columns += [f"bits/weight at {distortion:g}", "best basis"]
    report.table(network, [*columns, f"basis at {DISTORTIONS[-1]:g}"], rows)


def sparsity(report: harness.Report, x: np.ndarray) -> None:
    """Whether what is sparse becomes compact: the gain on a tensor pruned by magnitude."""
    rows = []
    for share in (0.0, 0.5, 0.8, 0.9, 0.95):
        pruned = np.where(np.abs(x) > np.quantile(np.abs(x), share), x, 0).astype(np.float32)
        best, plain = compare("pruned", pruned, 1e-2)
        others = [c for c in choices("pruned", pruned, 1e-2) if c.basis is not None]
        rows.append(
            [share, plain.bits / x.size, best.bits / plain.bits - 1.0, others[0].bits / plain.bits - 1.0,
             str(others[0].basis)]
        )  # fmt: skip
        print("sparsity", *rows[-1], flush=True)
    report.table(
        "LeNet-300-100's first layer, pruned by magnitude first, at distortion 0.01",
        ["pruned", "bits/weight as it is", "best basis", "best but identity", "which"], rows,
    )  # fmt: skip


def main() -> None:
    """Runs the study."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--lenet", type=Path, action="append", default=[])
    parser.add_argument("--values", type=int, default=1 << 18)
    parser.add_argument("--shapes", type=int, default=8)
    mine, rest = parser.parse_known_args()
    sys.argv = [sys.argv[0], *rest]
    chosen = harness.options(__doc__, repeats=1)
    report = harness.Report("wavelets_study", "Where wavelets pay", chosen)
    for path in mine.lenet:
        tensors = matrices(mz.unpack(mz.load(path)))
        first = next(iter(tensors.values()))
        study(
            report,
            f"LeNet-300-100 ({path.parent.name})",
            tensors,
            argparse.Namespace(values=1 << 18, shapes=3),
        )
        best, plain = compare("first", first, 1e-2)
        report.bar(
            f"LeNet-300-100 ({path.parent.name}), first layer at 0.01: best basis ÷ identity",
            0.92, best.bits / plain.bits,
        )  # fmt: skip
    if mine.lenet:
        sparsity(report, first)
    for name, network in ({} if chosen.quick else NETWORKS).items():
        try:
            tensors = matrices(network.load())
        except MissingPackageError as error:
            report.note(f"{name} skipped: {error}")
            continue
        study(report, name, tensors, mine)
    report.finish()


if __name__ == "__main__":
    main()
