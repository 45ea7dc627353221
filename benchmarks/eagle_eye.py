"""Does accuracy with adapted batch normalisation, before fine-tuning, tell the accuracy after it?

    python -m benchmarks.eagle_eye [--quick]

EagleEye (Li et al. 2020, arXiv:2007.02491) on a ResNet-8 of half width and Fashion-MNIST at 14×14 pixels: random shares
for each group of channels, kept if the pruned model has about half of the FLOPs; units of small L1 norm go. Every
candidate is judged on validation examples with its own batch statistics and with the unpruned model's,
then fine-tuned alike and measured on the test set.
"""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import spearmanr

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax import trace
from modelzip_jax.evaluation.candidates import rank_candidates
from modelzip_jax.models.resize import resized
from modelzip_jax.models.resnet import CifarResNet
from modelzip_jax.rewrites.channels import unit_scores
from modelzip_jax.rewrites.shrinking import shrunk_shapes, silence
from modelzip_jax.rewrites.unit_choice import choose_units
from modelzip_jax.training import data
from modelzip_jax.tree import PyTree

# Projections, since channels that a padded shortcut fills with zeros are in no group: six groups, not four.
MODEL = CifarResNet(blocks=1, shortcut="projection", stages=(8, 16, 32))
BATCH, ADAPT = 128, 30
FLOPS = (0.45, 0.55)
LARGEST_SHARE = 0.7


def images(split: str) -> dict[str, np.ndarray]:
    """Fashion-MNIST with each 2×2 pixels averaged, normalized."""
    arrays, known = data.load_split("fashion_mnist", split), data.spec("fashion_mnist")
    x = arrays["inputs"].reshape(-1, 14, 2, 14, 2, 1).mean((2, 4), dtype=np.float32)
    return {"inputs": (x - known.mean[0]) / known.std[0], "labels": arrays["labels"]}


TX = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1.0, momentum=0.9))


@jax.jit
def step(
    params: PyTree, stats: PyTree, state: PyTree, mask: PyTree, x: jax.Array, labels: jax.Array, rate: float
) -> tuple[PyTree, PyTree, PyTree]:
    """One of `train`'s. Not in a `scan`: XLA:CPU takes seven times as long for these gradients inside a loop."""

    def loss(params: PyTree) -> tuple[jax.Array, PyTree]:
        logits, new = MODEL.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

    grads, stats = jax.grad(loss, has_aux=True)(params)
    updates, state = TX.update(grads, state, params)
    params = jax.tree.map(lambda w, u, m: jnp.where(m, w + rate * u, 0.0), params, updates, mask)
    return params, stats, state


def train(variables: PyTree, mask: PyTree, x: np.ndarray, labels: np.ndarray, rate: float) -> PyTree:
    """SGD with momentum and a cosine schedule over `x` (steps, batch, ...); what the mask clears stays zero."""
    now = variables["params"], variables["batch_stats"], TX.init(variables["params"])
    for i in range(len(x)):
        now = step(*now, mask, x[i], labels[i], rate * 0.5 * (1 + np.cos(np.pi * i / len(x))))
    return {"params": now[0], "batch_stats": now[1]}


def draw(variables: PyTree, x: jax.Array, count: int) -> tuple[list[Any], list[float], int]:
    """Random strategies within the bounds on FLOPs: removals, FLOPs ÷ whole, and how many were tried."""
    groups = trace.couplings(MODEL.apply, variables, x).groups
    scores = unit_scores(variables, groups, mz.scores.magnitude()(variables["params"]))
    whole = trace.cost(MODEL.apply, variables, x).flops
    rng, tried = np.random.default_rng(0), 0
    found: list[Any] = []
    flops: list[float] = []
    known = set()
    while len(found) < count:
        tried += 1
        removals = {
            g: choose_units({g: scores[g]}, share=share)[g]
            for g, share in zip(groups, rng.uniform(0, LARGEST_SHARE, len(groups)), strict=True)
        }
        smaller = shrunk_shapes(variables, removals)
        shapes = {name: leaf.shape for name, leaf in mz.tree.named_leaves(smaller)}
        left = trace.cost(resized(MODEL, shapes).apply, smaller, x).flops / whole
        sizes = tuple(sorted(shapes.items()))
        if FLOPS[0] <= left <= FLOPS[1] and sizes not in known:
            known.add(sizes)
            found.append(removals)
            flops.append(left)
    return found, flops, tried


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's."""
    return float(spearmanr(a, b).statistic)


def intervals(measures: list[np.ndarray], final: np.ndarray) -> list[tuple[float, float]]:
    """90 % bootstrap intervals over the candidates: of each correlation, and of the first less the second."""
    rng = np.random.default_rng(0)
    drawn = []
    for rows in rng.integers(0, len(final), (2000, len(final))):
        both = [correlation(m[rows], final[rows]) for m in measures]
        drawn.append([*both, both[0] - both[1]])
    low, high = np.nanquantile(np.array(drawn), [0.05, 0.95], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def main() -> None:
    chosen = harness.options(__doc__, repeats=1)
    report = harness.Report("eagle_eye", "Ranking pruned candidates before fine-tuning", chosen)
    steps, tuning, count = (60, 20, 4) if chosen.quick else (2000, 200, 20)
    training, validation, test = (images(split) for split in ("train", "validation", "test"))
    batches = data.Batches(training, BATCH, seed=0)

    def take(number: int) -> tuple[np.ndarray, np.ndarray]:
        parts = [next(batches) for _ in range(number)]
        return np.stack([p["inputs"] for p in parts]), np.stack([p["labels"] for p in parts])

    x = jnp.asarray(validation["inputs"][:1])
    variables = jax.jit(MODEL.init)(jax.random.key(0), x)
    everything = jax.tree.map(lambda w: np.ones(w.shape, bool), variables["params"])
    variables = train(variables, everything, *take(steps), 0.1)

    strategies, flops, tried = draw(variables, x, count)
    ones = jax.tree.map(jnp.ones_like, variables)
    masks = [jax.tree.map(lambda m: m != 0, silence(ones, s)["params"]) for s in strategies]
    stacked = jax.tree.map(lambda *m: jnp.stack(m), *masks)
    adapting, _ = take(ADAPT)

    def rank(adapt: bool) -> Any:
        return rank_candidates(
            MODEL.apply, variables, stacked, adapting, validation["inputs"], validation["labels"], adapt=adapt
        )

    unadapted = rank(False)
    rank(True)  # compiles
    begin = time.perf_counter()
    adapted = rank(True)
    ranking_seconds = time.perf_counter() - begin

    data_of_tuning = take(tuning)  # the same for all
    begin = time.perf_counter()
    tuned = jax.block_until_ready([train(variables, m, *data_of_tuning, 0.02) for m in masks])
    tuning_seconds = time.perf_counter() - begin

    def judge(models: list[PyTree]) -> np.ndarray:
        predict = jax.jit(lambda v, x: jnp.argmax(MODEL.apply(v, x), -1))
        return np.array([np.mean(np.asarray(predict(v, test["inputs"])) == test["labels"]) for v in models])

    whole, final = judge([variables])[0], judge(tuned)
    before = [r.hits / r.count for r in (adapted, unadapted)]
    rhos = [correlation(measure, final) for measure in before]
    bounds = intervals(before, final)

    rows = [
        [i, flops[i], 100 * before[0][i], 100 * before[1][i], 100 * final[i]]
        for i in np.argsort(-final).tolist()
    ]
    report.table(
        f"{count} different candidates of {tried} drawn; the whole model has {100 * whole:.2f} % on the test set",
        ["candidate", "FLOPs ÷ whole", "validation, adapted, %", "validation, unadapted, %", "test, fine-tuned, %"],
        rows,
    )  # fmt: skip
    picked = [final[r.best] for r in (adapted, unadapted)]
    names = ["adapted batch normalisation", "unadapted"]
    criteria = [
        [name, rho, f"{low:.2f} to {high:.2f}", 100 * p, 100 * (final.max() - p)]
        for name, rho, (low, high), p in zip(names, rhos, bounds, picked, strict=False)
    ]
    chance = ["a candidate at random", 0.0, "", 100 * final.mean(), 100 * (final.max() - final.mean())]
    report.table(
        "What each criterion tells of fine-tuned test accuracy",
        [
            "criterion",
            "Spearman",
            "90 % interval",
            "test accuracy of its choice, %",
            "below the best, points",
        ],
        [*criteria, chance],
    )
    report.bar("Spearman: adapted accuracy with fine-tuned test accuracy", 0.6, rhos[0], least=True)
    report.bar(
        "Spearman: adapted less unadapted", 0.0, rhos[0] - rhos[1], least=True,
        remark=f"90 % interval {bounds[2][0]:.2f} to {bounds[2][1]:.2f} over candidates",
    )  # fmt: skip
    report.bar(
        f"ranking {count} candidates ÷ fine-tuning them for {tuning} steps, wall time", 1.0,
        ranking_seconds / tuning_seconds, unit="×",
        remark=f"{ranking_seconds:.1f} s and {tuning_seconds:.1f} s, in one compiled call and in {count}",
    )  # fmt: skip
    error = 100 * np.sqrt(whole * (1 - whole) / len(test["labels"]))
    report.note(
        "ResNet-8 of (8, 16, 32) channels with projections, Fashion-MNIST averaged to 14×14, "
        f"{steps} steps of training and {tuning} of fine-tuning in batches of {BATCH}; statistics from {ADAPT} "
        f"training batches. Test accuracies have standard errors of about {error:.1f} points, and one seed each."
    )
    report.finish()


if __name__ == "__main__":
    main()
