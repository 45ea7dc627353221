"""k-means beside scikit-learn, and what a codebook is worth beside a uniform grid.

    python -m benchmarks.kmeans [--cores 1] [--repeats 2] [--quick]

Both start from the same centroids and make the same number of iterations. The time is that of centroids and
assignments; scikit-learn's is of `fit`, which makes both. The squared error is computed in float64 from either's
centroids. The second part compresses MiniLM-L6 by a 16-entry codebook a tensor and by uniform grids a tensor and
compares, at equal file size, the cosine of the embeddings with the float model's.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax.sharing.lloyd import KMeans, assign, kmeans

ITERATIONS = 30
BARS = {16: 40.0, 256: 300.0}
WEIGHTS = ("**/kernel", "**/embedding")
UNIFORM = {
    "int3, clipped": mz.quantize(3, granularity="tensor", range="mse"),
    "int4": mz.quantize(4, granularity="tensor"),
    "int4, clipped": mz.quantize(4, granularity="tensor", range="mse"),
    "int5": mz.quantize(5, granularity="tensor"),
    "int5, clipped": mz.quantize(5, granularity="tensor", range="mse"),
    "int6": mz.quantize(6, granularity="tensor"),
    "int6, clipped": mz.quantize(6, granularity="tensor", range="mse"),
    "int7": mz.quantize(7, granularity="tensor"),
}
CODEBOOKS = {
    "16 values, companding": mz.cluster(16),
    "16 values, linear": mz.cluster(16, init="linear"),
    "16 values, one codebook": mz.cluster(16, granularity="model"),
}
HEADLINE = "16 values, companding"


def squared_error(x: np.ndarray, centroids: np.ndarray) -> float:
    """Of each value from its nearest centroid, by binary search in float64."""
    c = np.sort(centroids.astype(np.float64))
    middle, total = 0.5 * (c[1:] + c[:-1]), 0.0
    for chunk in np.array_split(x, 16):
        part = chunk.astype(np.float64)
        total += float(np.sum(np.square(part - c[np.searchsorted(middle, part)])))
    return total


def compare(x: np.ndarray, k: int, repeats: int) -> dict[str, Any]:
    """Seconds and squared errors of ours and of scikit-learn, from the same centroids."""
    from sklearn.cluster import KMeans as Peer

    start = np.asarray(kmeans(x[:: len(x) // 4096], k, iterations=0).centroids)
    device = jnp.asarray(x)
    found: dict[str, Any] = {}

    def ours() -> None:
        model: KMeans = kmeans(device, k, init=start, iterations=ITERATIONS)
        found["codes"] = jax.block_until_ready(assign(device, model.centroids))
        found["ours"] = np.asarray(model.centroids)

    def theirs() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # That it has not converged is the point.
            peer = Peer(k, init=start[:, None], n_init=1, max_iter=ITERATIONS, tol=0).fit(x[:, None])
        found["theirs"], found["iterations"] = peer.cluster_centers_[:, 0], peer.n_iter_

    ours()  # Compiles.
    times = harness.interleave({"ours": ours, "theirs": theirs}, repeats, warmup=0)
    ratio = harness.median(harness.ratios(times, "theirs", "ours"))
    errors = [squared_error(x, found[name]) for name in ("ours", "theirs")]
    return {
        "ours": harness.median(times["ours"]), "theirs": harness.median(times["theirs"]), "ratio": ratio,
        "iterations": found["iterations"], "error": errors[0] / errors[1] - 1.0,
        "converged": squared_error(x, np.asarray(kmeans(device, k).centroids)) / errors[1] - 1.0,
    }  # fmt: skip


def report_speed(report: harness.Report, size: int, repeats: int) -> None:
    """The bars of speed and squared error."""
    rng = np.random.default_rng(0)
    rows = []
    draws = {"normal": rng.standard_normal(size), "Student t, 3 degrees": rng.standard_t(3, size)}
    for name, values in draws.items():
        x = np.asarray(values, np.float32)
        for k, bar in BARS.items():
            if name != "normal" and k == 256:
                continue  # Minutes of scikit-learn more.
            r = compare(x, k, repeats if k == 16 else 1)
            rows.append([name, k, r["iterations"], r["ours"], r["theirs"], r["ratio"], 100 * r["error"],
                         100 * r["converged"]])  # fmt: skip
            what = f"{size:,} values ({name}), k = {k}, {r['iterations']} iterations"
            report.bar(f"{what}: scikit-learn's time ÷ ours", bar, r["ratio"], least=True, unit=" ×")
            report.bar(f"{what}: squared error above scikit-learn's", 0.1, 100 * r["error"], unit=" %")
    columns = ["values", "k", "iterations", "ours, s", "scikit-learn, s", "ratio", "squared error, %",
               "ours with its defaults, %"]  # fmt: skip
    report.table(f"k-means of {size:,} values, centroids and assignments", columns, rows)


def embeddings(texts: int) -> tuple[Any, Callable[[Any], np.ndarray]]:
    """MiniLM's params, and its embeddings of some texts by other params."""
    from modelzip_jax.evaluation import retrieval
    from modelzip_jax.models import sentence_encoder

    model, params, tokenizer = sentence_encoder.load_minilm()
    pairs = retrieval.thin(retrieval.split_by_package(retrieval.docstring_pairs())[1], texts // 2)
    tokens = sentence_encoder.tokenize(tokenizer, [t for p in pairs for t in (p.query, p.document)], 48)
    return params, lambda weights: sentence_encoder.embed_tokens(model, weights, tokens)


def report_codebooks(report: harness.Report, texts: int) -> None:
    """Codebooks and uniform grids on MiniLM."""
    from modelzip_jax.evaluation import retrieval

    params, embed = embeddings(texts)
    reference, rows, points = embed(params), [], {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.mz"
        for name, transform in {**UNIFORM, **CODEBOOKS}.items():
            size = mz.save(path, mz.compress(params, mz.only(WEIGHTS, transform))).total / 1e6
            cosine = retrieval.mean_cosine(reference, embed(mz.unpack(mz.load(path, like=params))))
            points[name] = size, cosine
            rows.append([name, size, cosine])
            print(name, f"{size:.3f} MB", f"{cosine:.4f}", flush=True)
    size, cosine = points[HEADLINE]
    uniform = _at_size([points[name] for name in UNIFORM], size)
    report.table(
        f"MiniLM-L6, one codebook or step a tensor, {texts} texts", ["form", "file, MB", "cosine"], rows
    )
    report.bar(
        "MiniLM-L6: cosine of a 16-entry codebook a tensor ÷ that of a uniform grid at equal file size",
        1.0, cosine / uniform, least=True,
        remark=f"{cosine:.4f} and {uniform:.4f} at {size:.2f} MB; the grids' best, interpolated",
    )  # fmt: skip


def _at_size(points: list[tuple[float, float]], size: float) -> float:
    """The best cosine at a size: 1 - cosine interpolated log-linearly between points of the upper envelope."""
    best: list[tuple[float, float]] = []
    for s, cosine in sorted(points):
        if not best or cosine > best[-1][1]:
            best.append((s, cosine))
    sizes, cosines = zip(*best, strict=True)
    return 1.0 - float(np.exp(np.interp(size, sizes, np.log1p(-np.array(cosines)))))


def main() -> None:
    """Measures; see the module's docstring."""
    chosen = harness.options(__doc__, repeats=2, cores=1)
    report = harness.Report("kmeans", "k-means and codebooks", chosen)
    report_speed(report, 200_000 if chosen.quick else 10_000_000, chosen.repeats)
    report_codebooks(report, 40 if chosen.quick else 200)
    report.finish()


if __name__ == "__main__":
    main()
