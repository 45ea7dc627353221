"""What pruning costs in accuracy: ours and JaxPruner on the same schedule, data and seeds; every score's curve.

    python -m benchmarks.pruning [--repeats 3] [--quick] [--fashion]

A repeat is a seed. Every method trains the same network from the same initial weights on the same batches with the
same AdamW; only kernels are pruned, the same share of each unless a row says otherwise. Nothing is tuned here; figures
are of the test split. `--fashion` trains LeNet-5 on Fashion-MNIST, too (three quarters of an hour on two cores).

JaxPruner as in `benchmarks.step_overhead`: a checkout named in MODELZIP_JAXPRUNER_SOURCE.

The curves: a trained network is pruned at once, by one threshold over all layers, and fine-tuned; every score starts
from the same weights. All sparsities of a score train in one `vmap`. `benchmarks.pruning_figure` draws them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax import models, trace
from modelzip_jax.masking.scores import iterate, synflow
from modelzip_jax.training import data

BATCH = 128
KERNELS = "**/kernel"
CURVE = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
CUT, TUNING = 50, 250
JAXPRUNER = "MODELZIP_JAXPRUNER_SOURCE"


class Task(NamedTuple):
    """A network and its data, normalised. steps: of training."""

    name: str
    model: Any
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    steps: int

    def loss(self, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = self.model.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def init(self, seed: Any) -> Any:
        return self.model.init(jax.random.key(seed), self.train[0][:1])["params"]

    def errors(self, params: Any) -> jax.Array:
        """The share of the test split that is wrong."""
        x, y = self.test
        parts = range(0, y.shape[0], 1000)
        wrong = [jnp.sum(self.predict(params, x[i : i + 1000]) != y[i : i + 1000]) for i in parts]
        return sum(wrong) / y.shape[0]

    @functools.partial(jax.jit, static_argnums=0)
    def predict(self, params: Any, x: jax.Array) -> jax.Array:
        return jnp.argmax(self.model.apply({"params": params}, x), -1)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def batch(arrays: tuple[jax.Array, jax.Array], seed: Any, step: Any) -> tuple[jax.Array, jax.Array]:
    """Drawn with replacement: the same for every method."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    index = jax.random.randint(key, (BATCH,), 0, arrays[1].shape[0])
    return arrays[0][index], arrays[1][index]


def task(name: str, steps: int) -> Task:
    """The digits MLP 300-100, or LeNet-5 on Fashion-MNIST."""
    spec = data.spec(name)

    def arrays(split: str) -> tuple[jax.Array, jax.Array]:
        loaded = data.load_split(name, split)
        x = (loaded["inputs"].astype(np.float32) - np.float32(spec.mean)) / np.float32(spec.std)
        return jnp.asarray(x), jnp.asarray(loaded["labels"])

    model = models.create("mlp", widths=(300, 100)) if name == "digits" else models.create("lenet5")
    return Task(name, model, arrays("train"), arrays("test"), steps)


def optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(2e-3 if steps < 3000 else 1e-3, steps), weight_decay=1e-2)


def train(
    job: Task, tx: Any, start: Callable[[Any], tuple[Any, Any]], after: Callable[[Any, Any], Any], seed: int
) -> Any:
    """The trained params. after: what follows the update."""
    step = _step(job, tx, after)
    params, state = start(job.init(seed))
    for index in range(job.steps):
        params, state = step(params, state, job.train, seed, index)
    return after(params, state)


@functools.lru_cache(maxsize=4)
def _step(job: Task, tx: Any, after: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    @jax.jit
    def step(params: Any, state: Any, arrays: Any, seed: Any, index: Any) -> tuple[Any, Any]:
        grads = jax.grad(job.loss)(params, *batch(arrays, seed, index))
        updates, state = tx.update(grads, state, params)
        return after(optax.apply_updates(params, updates), state), state

    return step


def _ours(job: Task, transform: mz.Transform) -> Callable[[int], Any]:
    tx = mz.wrap(optimizer(job.steps), mz.only(KERNELS, transform))
    return lambda seed: train(job, tx, lambda p: mz.start(tx, p), _given, seed)


def _given(params: Any, state: Any) -> Any:
    return params


def _plain(job: Task) -> Callable[[int], Any]:
    tx = optimizer(job.steps)
    return lambda seed: train(job, tx, lambda p: (p, tx.init(p)), _given, seed)


def _jaxpruner(
    job: Task, algorithm: str, sparsity: float, start: int, end: int, every: int
) -> Callable[[int], Any]:
    importlib.import_module("benchmarks.peers.jaxpruner_patch")  # Makes the import below work.
    import jaxpruner
    import ml_collections

    config = ml_collections.ConfigDict(
        {"algorithm": algorithm, "dist_type": "erk" if algorithm in ("rigl", "set") else "uniform",
         "sparsity": sparsity, "update_freq": every, "update_start_step": start, "update_end_step": end}
    )  # fmt: skip
    if algorithm in ("rigl", "set"):
        config.drop_fraction = 0.3
    updater = jaxpruner.create_updater_from_config(config)
    tx = updater.wrap_optax(optimizer(job.steps))
    return lambda seed: train(job, tx, lambda p: (p, tx.init(p)), updater.post_gradient_update, seed)


def methods(job: Task, sparsity: float, report: harness.Report) -> dict[str, Callable[[int], Any]]:
    """What is trained at a sparsity: name → from a seed to trained params."""
    start, end, every = job.steps // 10, 3 * job.steps // 4, max(job.steps // 60, 1)
    dynamic = {"sparsity": sparsity, "every": every, "end": end}
    phases = mz.schedules.alternating(sparsity, 2 * start, 8 * start, start, start)
    found = {
        "gradual magnitude": _ours(
            job, mz.prune(sparsity=mz.schedules.cubic(sparsity, start, end), every=every)
        ),
        "gradual magnitude, global": _ours(
            job,
            mz.prune(sparsity=mz.schedules.cubic(sparsity, start, end), every=every, allocation="global"),
        ),
        "AC/DC": _ours(job, mz.prune(sparsity=phases, every=1, remember=False)),
        "static, ERK": _ours(job, mz.prune(mz.scores.random(), sparsity=sparsity, allocation="erk")),
        "SET, ERK": _ours(job, mz.sparse_evolution(**dynamic)),
        "RigL, ERK": _ours(job, mz.rigl(**dynamic)),
    }
    if JAXPRUNER in os.environ:
        for algorithm in ("magnitude", "set", "rigl"):
            name = f"JaxPruner {algorithm}" + ("" if algorithm == "magnitude" else ", ERK")
            found[name] = _jaxpruner(job, algorithm, sparsity, start, end, every)
    else:
        report.note(f"JaxPruner skipped: {JAXPRUNER} is not set")
    return found


def quality(
    job: Task, sparsities: tuple[float, ...], seeds: int, report: harness.Report, compared_only: bool = False
) -> None:
    """Test error after training, method by method; or those methods alone that bars compare."""
    rows, found = [], {}
    phase, single = (job.steps // 3, 2 * job.steps // 3), mz.structures.unstructured()
    cases = [
        (0.0, "dense", _plain(job)),
        (0.0, "dense–sparse–dense", _ours(job, mz.sparse_dense(0.3, *phase, structure=single))),
        (0.0, "sparse–dense features", _ours(job, mz.sparse_dense(0.3, *phase))),
    ]
    for sparsity in sparsities:
        cases += [(sparsity, name, run) for name, run in methods(job, sparsity, report).items()]
    if compared_only:
        dynamic = [("RigL, ERK", max(sparsities)), ("static, ERK", max(sparsities))]
        gradual = [(name, s) for s in sparsities for name in ("gradual magnitude", "JaxPruner magnitude")]
        cases = [c for c in cases if (c[1], c[0]) in [("dense", 0.0), *gradual, *dynamic]]
    for sparsity, name, run in cases:
        params = [run(seed) for seed in range(seeds)]
        errors = [100 * float(job.errors(p)) for p in params]
        found[name, sparsity] = errors
        mean, error = float(np.mean(errors)), harness.standard_error(errors)
        rows.append(
            [sparsity, name, " / ".join(f"{e:.2f}" for e in errors), mean, error, _sparsity(params[0])]
        )
        print(job.name, sparsity, name, f"{mean:.2f} ± {error:.2f}", flush=True)
    report.table(
        f"{job.name}: test error after training, {job.steps} steps",
        [
            "sparsity asked",
            "method",
            "error of each seed, %",
            "mean, %",
            "± standard error",
            "sparsity of kernels",
        ],
        rows,
    )
    for sparsity in sparsities:
        _compare(report, job, found, sparsity, "gradual magnitude", "JaxPruner magnitude")
    _compare(report, job, found, max(sparsities), "RigL, ERK", "static, ERK")


def _compare(
    report: harness.Report, job: Task, found: dict[Any, list[float]], sparsity: float, ours: str, theirs: str
) -> None:
    """The paired difference over seeds, at most one standard error above nothing."""
    if (theirs, sparsity) not in found:
        return
    paired = np.subtract(found[ours, sparsity], found[theirs, sparsity])
    report.bar(
        f"{job.name}, {sparsity:.0%}: {ours} − {theirs}, test error in points",
        harness.standard_error(paired), float(paired.mean()),
        remark="the bar is one standard error of the paired difference",
    )  # fmt: skip


def _sparsity(params: Any) -> float:
    kernels = [x for name, x in mz.tree.named_leaves(params) if name.endswith("kernel")]
    return sum(int(jnp.sum(k == 0)) for k in kernels) / sum(k.size for k in kernels)


def collapse(job: Task, seeds: int, report: harness.Report) -> None:
    """Pruned before training to 99.9 % by one threshold: which layers keep a weight."""
    rows = []
    zipper = mz.prune(mz.scores.given(), sparsity=0.999, allocation="global")
    for name in ("magnitude", "SynFlow, 100 rounds"):
        for seed in range(seeds):
            params = job.init(seed)
            kernels = {layer: {"kernel": leaves["kernel"]} for layer, leaves in params.items()}
            if name == "magnitude":
                found = jax.tree.map(jnp.abs, kernels)
            else:
                found = iterate(functools.partial(_synflow, job), kernels, 0.999)
            scores = _with_biases(found, params)
            pruned = mz.decoded(params, mz.only(KERNELS, zipper), scores=scores)
            left = [int(jnp.sum(x != 0)) for n, x in mz.tree.named_leaves(pruned) if n.endswith("kernel")]
            tuned = _ours(job, zipper, scores=lambda p, s=scores: s)
            rows.append([name, seed, " / ".join(map(str, left)), 100 * float(job.errors(tuned(seed)))])
    columns = ["score", "seed", "weights left in each layer", "test error, %"]
    report.table("Pruned to 99.9 % before training", columns, rows)
    for name, limit in (("magnitude", math.inf), ("SynFlow, 100 rounds", 0)):
        emptied = sum(row[2].split(" / ").count("0") for row in rows if row[0] == name)
        if math.isfinite(limit):
            report.bar(f"layers that {name} empties, {seeds} seeds", limit, emptied)
        else:
            report.note(f"{name} empties {emptied} layers in {seeds} seeds")


def _synflow(job: Task, kernels: Any) -> Any:
    """Of kernels alone, without biases: none flows at initialisation."""
    apply = lambda k, x: job.model.apply({"params": _with_biases(k, zeros)}, x)  # noqa: E731
    zeros = jax.tree.map(jnp.zeros_like, job.init(0))
    return synflow(apply, kernels, job.train[0][:1])


def _with_biases(kernels: Any, params: Any) -> Any:
    return {layer: {**leaves, "kernel": kernels[layer]["kernel"]} for layer, leaves in params.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class _Once(mz.schedules.Schedule):
    """Nothing until step `CUT`, when masks are chosen once and for all."""

    sparsity: jax.Array  # Traced, and so neither hashed nor compared.

    def __call__(self, step: Any) -> jax.Array:
        return jnp.where(jnp.asarray(step) >= CUT, self.sparsity, 0.0)

    def refreshes(self, step: Any, every: int) -> Any:
        return step == CUT


def _score_cases() -> dict[str, tuple[Any, Any]]:
    scores, channel = mz.scores, mz.structures.channel()
    return {
        "magnitude": (scores.magnitude(), None),
        "random": (scores.random(), None),
        "gradient magnitude": (scores.gradient_magnitude(), None),
        "saliency (SNIP)": (scores.saliency(), None),
        "Taylor": (scores.taylor(), None),
        "movement": (scores.movement(), None),
        "Fisher (OBD)": (scores.fisher(0.9), None),
        "Wanda": (scores.wanda(), None),
        "outlier": (scores.outlier(), None),
        "GraSP": (scores.given(), None),
        "SynFlow": (scores.given(), None),
        "magnitude, channels": (scores.magnitude(2), channel),
        "Taylor, channels": (scores.taylor(), channel),
        "activation, channels": (scores.neuron_activity(), channel),
        "geometric median, channels": (scores.geometric_median(), channel),
        "random, channels": (scores.random(), channel),
    }


def curve(job: Task, name: str, case: tuple[Any, Any], dense: Any, seeds: int) -> np.ndarray:
    """Test errors `(seeds, sparsities)` after pruning the trained networks at once, and fine-tuning."""
    score, structure = case
    x, y = job.train[0][:512], job.train[1][:512]
    # Neurons of the last layer are the classes.
    pattern = KERNELS if structure is None else ("Dense_0/kernel", "Dense_1/kernel")

    def given(params: Any) -> dict[str, Any]:
        if name == "SynFlow":
            kernels = {layer: {"kernel": leaves["kernel"]} for layer, leaves in params.items()}
            return {"scores": _with_biases(_synflow(job, kernels), params)}
        if name == "GraSP":
            return {"scores": mz.scores.grasp(lambda p: job.loss(p, x, y), params)}
        if "stats" in score.needs:
            apply = lambda p, x: job.model.apply({"params": p}, x)  # noqa: E731
            places = ("inputs", "activations")
            return {"stats": trace.statistics(apply, params, [(x,)], places=places)}
        return {}

    def tune(params: Any, extra: Any, seed: jax.Array, sparsity: jax.Array) -> Any:
        allocation = "global" if structure is None else "uniform"
        prune = mz.prune(score, sparsity=_Once(sparsity), structure=structure, allocation=allocation)
        told = {"grads": jax.grad(job.loss)(params, x, y), **extra}
        tx = mz.wrap(optax.adam(3e-4), mz.only(pattern, prune), given=told)
        first, state = mz.start(tx, params)

        def step(carry: Any, index: jax.Array) -> tuple[Any, None]:
            params, state = carry
            grads = jax.grad(job.loss)(params, *batch(job.train, seed, index))
            updates, state = tx.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (first, state), jnp.arange(CUT + TUNING))[0][0]

    found = []
    family = jax.jit(jax.vmap(tune, in_axes=(None, None, None, 0)))
    for seed in range(seeds):
        tuned = family(dense[seed], given(dense[seed]), jnp.int32(100 + seed), jnp.array(CURVE, jnp.float32))
        found.append(
            [100 * float(job.errors(jax.tree.map(lambda x, i=i: x[i], tuned))) for i in range(len(CURVE))]
        )
    return np.array(found)


def curves(job: Task, seeds: int, report: harness.Report, quick: bool) -> None:
    """A row of test errors for each score."""
    plain = _plain(job)
    dense = [plain(seed) for seed in range(seeds)]
    found, cases = {}, _score_cases()
    for name in list(cases)[:3] if quick else cases:
        found[name] = curve(job, name, cases[name], dense, seeds)
        print(name, found[name].mean(0).round(2), flush=True)
    start = float(np.mean([100 * float(job.errors(p)) for p in dense]))
    report.table(
        f"{job.name}: test error in % after pruning at once and {TUNING} steps; dense {start:.2f}",
        ["score", *(f"{s:.0%}" for s in CURVE), "largest standard error"],
        [[name, *e.mean(0), max(map(harness.standard_error, e.T))] for name, e in found.items()],
    )


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=3, flags={"fashion": "LeNet-5 on Fashion-MNIST, too"})
    report = harness.Report("pruning", "Pruning: accuracy", chosen)
    digits = task("digits", 150 if chosen.quick else 1500)
    quality(digits, (0.9, 0.98), chosen.repeats, report)
    collapse(digits, chosen.repeats, report)
    curves(digits, chosen.repeats, report, chosen.quick)
    if chosen.fashion:
        quality(task("fashion_mnist", 860), (0.9, 0.98), chosen.repeats, report, compared_only=True)
    report.finish()


if __name__ == "__main__":
    main()
