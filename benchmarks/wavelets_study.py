"""Where wavelets pay: bits and file sizes of real networks' weights at equal squared error.

    python -m benchmarks.wavelets_study [--repeats 3] [--quick]

Four questions: what bases save on a layer whose inputs are pixels; on pretrained networks, tensor by tensor; in files,
with channels in the order of their training and with similar ones beside each other; and whether two claims about
compactness hold. A repeat is a seed of LeNet-300-100, which is trained on MNIST with two weight decays (runs live in
`runs/wavelets_study` and are not repeated); pretrained networks are those of `benchmarks.networks` that are
installed. Bits are counted as files code them, tables included. "Error" is of weights, not of predictions.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

import modelzip_jax as mz
from benchmarks import harness
from benchmarks.coupled import PRETRAINED, Coupled, lenet
from benchmarks.networks import NETWORKS, MissingPackageError, matrices
from modelzip_jax import trace
from modelzip_jax.coding.writer import file_sizes
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment
from modelzip_jax.wavelets.bases import Basis
from modelzip_jax.wavelets.basis_choice import Choice, candidates, choices

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "wavelets_study"
DECAYS = (0.05, 1.0)
DISTORTIONS = (0.003, 0.01, 0.03, 0.1)
PIXELS = (28, 28, 300)
DB4, HAAR, COSINES = (
    Basis("wavelet", "db4", 3, (0, 1)), Basis("wavelet", "haar", 3, (0, 1)), Basis("dct", "", 28, (0, 1)),
)  # fmt: skip
VALUES, SHAPES, FEW = 1 << 18, 8, 4096
"""Most weights of a tensor, and shapes of a network, whose bits are counted; weights under which descriptions tell."""
LARGEST = 3_000_000
"""Most weights of a tensor that goes into a file."""


def trained(decay: float, seed: int) -> tuple[Path, dict[str, Any]]:
    """A run of LeNet-300-100: its file, and its results."""
    folder = RUNS / f"decay-{decay}-{seed}"
    changes = [f"--config.optimizer.weight_decay={decay}", f"--config.seed={seed}"]
    config = configs.override(configs.load_config(ROOT / "configs" / "lenet_300_100.py"), changes)
    done = folder / "result.json"
    result = json.loads(done.read_text()) if done.exists() else experiment.run(config, folder)
    return folder / "model.mz", result


def plain(found: list[Choice]) -> Choice:
    return next(choice for choice in found if choice.basis is None)


def forced(found: list[Choice]) -> Choice:
    """The cheapest with a basis."""
    return next((choice for choice in found if choice.basis is not None), plain(found))


def saved(x: np.ndarray, distortion: float, *bases: tuple[Basis, tuple[int, ...]]) -> float:
    """Bits of the cheapest of these bases over those of the plain weights, less 1; NaN if 8 bits are too few."""
    found = choices("x", x, distortion, bases or None)
    best = forced(found)
    return best.bits / plain(found).bits - 1.0 if best.basis else math.nan


def gini(x: np.ndarray) -> float:
    """Gini coefficient of |w|: 0 where all are equal, towards 1 for the sparse (Hurley & Rickard 2009)."""
    a = np.sort(np.abs(x), axis=None).astype(np.float64)
    return float(1.0 - 2.0 * np.sum(a / a.sum() * (a.size - np.arange(a.size) - 0.5) / a.size))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def pixels(report: harness.Report, decay: float, firsts: list[np.ndarray], accuracy: float) -> None:
    """The layer that sees the image: bases over it, and what they need the image for."""
    rows: list[list[Any]] = []
    for distortion in DISTORTIONS:
        shuffled = [x[np.random.default_rng(0).permutation(784)] for x in firsts]
        line = [(basis, ()) for basis, view in candidates((784, 300)) if basis.axes == (0,) and not view]
        figures = [
            mean([min(saved(x, distortion), 0.0) for x in firsts]),
            *(mean([saved(x, distortion, (basis, PIXELS)) for x in firsts]) for basis in (DB4, HAAR, COSINES)),
            mean([saved(x, distortion, *line) for x in firsts]),
            mean([saved(x, distortion, (DB4, PIXELS)) for x in shuffled]),
        ]  # fmt: skip
        rows.append(
            [distortion, *("not with 8 bits" if math.isnan(figure) else figure for figure in figures)]
        )
        print("pixels", decay, *rows[-1], flush=True)
    report.table(
        f"LeNet-300-100 on MNIST, weight decay {decay:g} ({accuracy:.2%}): bits of the first layer over the plain "
        f"weights', less 1, mean of {len(firsts)} seeds",
        ["distortion", "best basis", "db4, 28×28", "Haar, 28×28", "DCT, 28×28", "best along reading order",
         "db4, pixels shuffled"], rows,
    )  # fmt: skip
    report.bar(
        f"LeNet-300-100 with weight decay {decay:g}, first layer at 0.01: best basis ÷ plain weights",
        0.92, 1.0 + rows[1][1],
    )  # fmt: skip


def sparsity(report: harness.Report, decay: float, first: np.ndarray) -> None:
    """Whether what is sparse becomes compact: a layer pruned by magnitude before it is transformed."""
    rows = []
    for share in (0.0, 0.5, 0.8, 0.9, 0.95):
        x = np.where(np.abs(first) > np.quantile(np.abs(first), share), first, 0).astype(np.float32)
        found = choices("pruned", x, 1e-2)
        rows.append([
            share, gini(x), plain(found).bits / x.size, 1.0 + saved(x, 1e-2, (DB4, PIXELS)),
            forced(found).bits / plain(found).bits, str(forced(found).basis),
        ])  # fmt: skip
        print("sparsity", *rows[-1], flush=True)
    report.table(
        f"First layer (weight decay {decay:g}, seed 0) pruned by magnitude first, at distortion 0.01",
        ["pruned", "Gini of |w|", "bits/weight, plain", "db4 28×28 ÷ plain", "best of all bases ÷ plain", "which"],
        rows,
    )  # fmt: skip


def middle(x: np.ndarray) -> np.ndarray:
    """Neighbouring rows in the middle of a tensor: its first ones may be of unused things."""
    rows = min(max(VALUES // max(x[0].size, 1), 8), len(x))
    start = (len(x) - rows) // 2
    return x[start : start + rows]


def by_shape(tensors: dict[str, np.ndarray]) -> dict[tuple[int, ...], list[str]]:
    """Names of tensors of each of the shapes that most of the weights have."""
    shapes: dict[tuple[int, ...], list[str]] = collections.defaultdict(list)
    for name, x in tensors.items():
        shapes[x.shape].append(name)
    largest = sorted(shapes, key=lambda s: -len(shapes[s]) * int(np.prod(s)))
    return {shape: shapes[shape] for shape in largest[:SHAPES]}


def tensor_by_tensor(
    report: harness.Report, network: str, tensors: dict[str, np.ndarray]
) -> list[tuple[float, float]]:
    """A table of one tensor of each shape. Returns sparsity and bits in the best basis for each, at 0.01."""
    rows, points, totals = [], [], {0.01: [0.0, 0.0], 0.1: [0.0, 0.0]}
    chosen = [(names[len(names) // 2], len(names)) for names in by_shape(tensors).values()]
    for name, count in chosen:
        x = middle(tensors[name])
        weight = count * tensors[name].size / x.size
        row: list[Any] = [name, "×".join(map(str, tensors[name].shape)), count, gini(x)]
        for distortion, total in totals.items():
            found = choices(name, x, distortion)
            total[0] += found[0].bits * weight
            total[1] += plain(found).bits * weight
            row += [
                plain(found).bits / x.size,
                forced(found).bits / plain(found).bits - 1.0,
                str(forced(found).basis),
            ]
        if x.size >= FEW:
            points.append((row[3], row[5]))
        rows.append(row)
        print(network, *row, flush=True)
    covered = sum(tensors[name].size * count for name, count in chosen) / sum(
        x.size for x in tensors.values()
    )
    last: list[Any] = [f"all of these ({covered:.0%} of the weights), best or plain", "", "", ""]
    columns = ["tensor", "shape", "tensors", "Gini of |w|"]
    for distortion, total in totals.items():
        last += ["", total[0] / total[1] - 1.0, ""]
        columns += [f"bits/weight at {distortion:g}", "cheapest basis ÷ plain, less 1", "which"]
    report.table(f"{network}, tensor by tensor", columns, [*rows, last])
    return points


def unused_rows(report: harness.Report, words: np.ndarray) -> None:
    """Word embeddings that were never trained resemble each other: what a sample of first rows would show."""
    rows = [
        [f"{start} to {stop - 1}", *(saved(words[start:stop], 1e-2, (b, ())) for b in
         (Basis("wavelet", "haar", 3, (0,)), Basis("wavelet", "haar", 3, (1,))))]
        for start, stop in ((0, 238), (5_000, 5_238), (20_000, 20_238))
    ]  # fmt: skip
    report.table(
        "MiniLM-L6's word embeddings, Haar ÷ plain, less 1, at 0.01",
        ["rows", "along words", "along features"], rows,
    )  # fmt: skip


def files(title: str, network: Coupled, distortion: float) -> list[Any]:
    """A row: bytes of files of equal error, in the given order and in one by similarity."""
    groups = trace.couplings(network.apply, network.params, *network.inputs).groups
    permuted = mz.rewrites.permute(network.params, groups)
    before, after = (np.asarray(network.apply(p, *network.inputs)) for p in (network.params, permuted))
    change = float(np.abs(after - before).max() / np.abs(before).max())
    tensors = {n: x for n, x in matrices(network.params).items() if x.size <= LARGEST}
    names = [same[len(same) // 2] for same in by_shape(tensors).values()]
    sizes, errors = [], []
    for params, bases in ((network.params, []), (network.params, None), (permuted, None)):
        leaves = {n: x for n, x in matrices(params).items() if n in names}
        plan = mz.best_basis(leaves, distortion, bases=bases)
        packed = mz.compress(leaves, plan)
        sizes.append(file_sizes(packed).total)
        decoded = mz.unpack(packed)
        errors += [float(np.sum(np.square(x - decoded[n])) / np.sum(np.square(x))) for n, x in leaves.items()]
    row = [title, distortion, len(groups), len(names), sum(tensors[n].size for n in names), *sizes,
           sizes[1] / sizes[0] - 1.0, sizes[2] / sizes[0] - 1.0, change, max(errors) / distortion]  # fmt: skip
    print("files", *row, flush=True)
    return row


def file_table(report: harness.Report, networks: dict[str, Callable[[], Coupled]]) -> None:
    """What is saved in files."""
    rows = []
    for title, load in networks.items():
        try:
            network = load()
        except MissingPackageError as error:
            report.note(f"{title}: no files, {error}")
            continue
        for distortion in (0.01, 0.1):
            rows.append(files(title, network, distortion))
            report.bar(
                f"{title} at {distortion:g}: file in the best basis ÷ plain weights'", 1.0, 1.0 + rows[-1][8]
            )
        report.bar(f"{title}: largest change of an output by permuting, relative", 1e-5, rows[-1][10])
    report.table(
        "Files of equal error",
        ["network", "distortion", "groups", "tensors", "weights", "plain, bytes", "best basis", "permuted, best basis",
         "best basis ÷ plain, less 1", "permuted, best basis ÷ plain, less 1", "change of outputs by permuting",
         "largest error ÷ distortion"], rows,
    )  # fmt: skip
    report.note(
        f"Files hold one tensor of each of a network's {SHAPES} largest shapes, those above {LARGEST:,} weights left "
        "out. An error above the distortion is of a tensor whose plain weights cannot meet it with 8 bits: the bases "
        "then get the error of these."
    )


def main() -> None:
    """Runs the study."""
    chosen = harness.options(__doc__, repeats=3)
    report = harness.Report("wavelets_study", "Where wavelets pay", chosen)
    networks: dict[str, Callable[[], Coupled]] = {}
    points: list[tuple[float, float]] = []
    for decay in DECAYS:
        runs = [trained(decay, seed) for seed in range(1 if chosen.quick else chosen.repeats)]
        tensors = [matrices(mz.unpack(mz.load(path))) for path, _ in runs]
        firsts = [t["Dense_0/kernel"] for t in tensors]
        pixels(report, decay, firsts, mean([result["test"]["accuracy"] for _, result in runs]))
        sparsity(report, decay, firsts[0])
        title = f"LeNet-300-100, weight decay {decay:g}"
        points += tensor_by_tensor(report, title, tensors[0])
        networks[title] = lambda path=runs[0][0]: lenet(path)
    for name, network in ({} if chosen.quick else NETWORKS).items():
        try:
            weights = matrices(network.load())
        except MissingPackageError as error:
            report.note(f"{name} skipped: {error}")
            continue
        points += tensor_by_tensor(report, name, weights)
        if name == "MiniLM-L6":
            unused_rows(report, weights["embeddings/word_embeddings/weight"])
        if name == "EfficientNet-Lite0":
            depthwise = {n: x for n, x in weights.items() if "depthwise" in n}
            points += tensor_by_tensor(report, "EfficientNet-Lite0's depthwise kernels", depthwise)
    rank = spearmanr(*zip(*points, strict=True))
    report.note(
        "Spearman's rank correlation of the Gini coefficient of |w| with what the cheapest basis costs at 0.01, over "
        f"{len(points)} tensors of {FEW:,} weights and more: {rank.statistic:.2f} (p = {rank.pvalue:.2g}); negative "
        "would mean that sparser tensors are more compact."
    )
    file_table(report, networks if chosen.quick else {**networks, **PRETRAINED})
    report.finish()


if __name__ == "__main__":
    main()
