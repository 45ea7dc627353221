"""What pruning and quantization cost a training step: ours, JaxPruner and Qwix over plain AdamW.

    python -m benchmarks.step_overhead [--repeats 15] [--device cpu] [--cores 1] [--quick] [--kept] [--grids]

One core, so that no two cases share or split them differently, and CPU time is what counts; `--cores 2` has
bars of its own; on a GPU or TPU (`--device cuda --cores 0`: all of the host's) it is a wide network, whose step
is long beside the time to start it, and bars do not apply. With `--kept` nothing is donated; with `--grids` the cases
are the grids of `mz.grids` with floating scales, fixed and learned. A case is a jitted
step (loss, gradients, update; params and optimizer state donated) of the same Flax model on the same batch. All
cases take turns; every figure is the median of a case's ratios to plain AdamW in the same round. Plain AdamW runs
twice: how far the second is from 1 is what this benchmark cannot tell apart.

JaxPruner is not on PyPI: name a checkout of its repository in MODELZIP_JAXPRUNER_SOURCE
(`benchmarks/peers/jaxpruner_patch.py` says what it needs to run on current JAX). Its masks cover the
kernels at the same sparsity. It masks the weights themselves, so it stores no second copy; ours keeps
the latents, so that a weight can come back. Qwix quantizes weights only, as ours does, with absmax
scales that it computes anew at each step; ours holds its step sizes ("fixed") or trains them
("learned"). Its int4 convolutions do not run: `lax.conv` refuses mixed dtypes in Qwix 0.1.8.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import modelzip_jax as mz
from benchmarks import harness

SPARSITY = 0.8
BATCH = 128
NEVER = 1_000_000
PLAIN = "optax.adamw"
CONTROL = "optax.adamw, a second time"
SLOW = "update each step"
TWO_CORES = {
    "prune, fixed masks": 1.08,
    "quantize(4), fixed": 1.10,
    "quantize(4), learned": 1.25,
    "wavelet, Haar": 1.22,
    "cluster(16), fixed indices": 1.12,
}
DONATED = [0, 1]
"""Params and state; emptied by `--kept`."""

Case = Callable[[], None]


class MLP(nn.Module):
    """784-1200-1200-400-10 with biases: 2.9 million parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in (1200, 1200, 400):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class WideMLP(nn.Module):
    """784-6144-6144-6144-10 with biases: 80 million parameters, for accelerators."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in (6144, 6144, 6144):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Two convolutions, two dense layers: 0.4 million parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (16, 32):
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(256)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


def _batch() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 28, 28, 1)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 10, BATCH))


def _case(
    model: nn.Module,
    tx: optax.GradientTransformation,
    start: Callable[[Any], tuple[Any, Any]],
    after: Callable[[Any, Any], Any] = lambda params, state: params,
) -> Case:
    """A callable that takes one training step and waits for it. after: what follows the update."""
    images, labels = _batch()

    def loss_of(params: Any) -> jax.Array:
        logits = model.apply({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=tuple(DONATED))
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss_of)(params), state, params)
        return after(optax.apply_updates(params, updates), state), state

    held = list(start(model.init(jax.random.key(0), images)["params"]))

    def run() -> None:
        held[:] = jax.block_until_ready(step(*held))

    return run


def _ours(model: nn.Module, transform: mz.Transform) -> Case:
    tx = mz.wrap(_adamw(), mz.only("**/kernel", transform))
    return _case(model, tx, lambda params: mz.start(tx, params))


def _adamw() -> optax.GradientTransformation:
    return optax.adamw(1e-3)


def _dynamic(make: Callable[..., mz.Transform], every: int) -> mz.Transform:
    return make(sparsity=SPARSITY, every=every, end=2 * NEVER, allocation="uniform")


def _plain(model: nn.Module) -> Case:
    tx = _adamw()
    return _case(model, tx, lambda params: (params, tx.init(params)))


def _jaxpruner(model: nn.Module, algorithm: str, every: int) -> Case:
    importlib.import_module("benchmarks.peers.jaxpruner_patch")  # Makes the import below work.
    import jaxpruner
    import ml_collections

    config = ml_collections.ConfigDict(
        {"algorithm": algorithm, "dist_type": "uniform", "sparsity": SPARSITY,
         "update_freq": every, "update_start_step": 1, "update_end_step": NEVER}
    )  # fmt: skip
    updater = jaxpruner.create_updater_from_config(config)
    tx = updater.wrap_optax(_adamw())
    # Its own loop; `pre_forward_update` is the identity for these algorithms.
    return _case(
        model, tx, lambda params: (params, tx.init(params)), lambda p, s: updater.post_gradient_update(p, s)
    )


def _qwix(model: nn.Module, dtype: Any) -> Case:
    import qwix

    rule = qwix.QtRule(module_path=".*", weight_qtype=dtype)
    return _plain(qwix.quantize_model(model, qwix.QtProvider([rule])))


GRIDS: dict[str, dict[str, Any]] = {
    "integers": {"bits": 4},
    "integers, zero points": {"bits": 4, "symmetric": False},
    "normal floats": {"grid": mz.grids.nf4()},
    "ternary": {"grid": mz.grids.ternary()},
    "powers of two": {"grid": mz.grids.power_of_two()},
    "sums of two": {"grid": mz.grids.power_of_two(2)},
    "fp8": {"grid": mz.grids.fp8()},
    "quantiles": {"grid": mz.grids.quantile(), "bits": 4},
}


def _grid_makers(model: nn.Module) -> dict[str, Callable[[], Case]]:
    def case(**options: Any) -> Callable[[], Case]:
        return lambda: _ours(model, mz.quantize(axis=-1, **options))

    fixed = {f"{name}, fixed": case(**options) for name, options in GRIDS.items()}
    learned = {f"{name}, learned": case(learned=True, **options) for name, options in GRIDS.items()}
    return {PLAIN: lambda: _plain(model), CONTROL: lambda: _plain(model), **fixed, **learned}


def cases(model: nn.Module, chosen: argparse.Namespace, report: harness.Report) -> dict[str, Case]:
    """All cases that run here; a note says why another one does not."""
    rising = mz.schedules.polynomial(SPARSITY, begin=0, end=NEVER, initial=SPARSITY / 2)
    makers: dict[str, Callable[[], Case]] = {
        PLAIN: lambda: _plain(model),
        CONTROL: lambda: _plain(model),
        "prune, fixed masks": lambda: _ours(model, mz.prune(sparsity=SPARSITY)),
        "prune, schedule, between refreshes": lambda: _ours(model, mz.prune(sparsity=rising, every=NEVER)),
        "prune, refresh each step": lambda: _ours(model, mz.prune(sparsity=SPARSITY, every=1)),
        "prune globally, refresh each step": lambda: _ours(
            model, mz.prune(sparsity=SPARSITY, allocation="global", every=1)
        ),
        "SET, between refreshes": lambda: _ours(model, _dynamic(mz.sparse_evolution, NEVER)),
        "SET, refresh each step": lambda: _ours(model, _dynamic(mz.sparse_evolution, 1)),
        "RigL, between refreshes": lambda: _ours(model, _dynamic(mz.rigl, NEVER)),
        "RigL, refresh each step": lambda: _ours(model, _dynamic(mz.rigl, 1)),
        "quantize(4), fixed": lambda: _ours(model, mz.quantize(4, axis=-1)),
        "quantize(4), learned": lambda: _ours(model, mz.quantize(4, axis=-1, learned=True)),
        "prune + quantize(4), fixed": lambda: _ours(
            model, mz.chain(mz.prune(sparsity=SPARSITY), mz.quantize(4, axis=-1))
        ),
        "prune + quantize(4), learned": lambda: _ours(
            model, mz.chain(mz.prune(sparsity=SPARSITY), mz.quantize(4, axis=-1, learned=True))
        ),
        "wavelet, Haar": lambda: _ours(model, mz.wavelet("haar", 3, 0)),
        "wavelet, db4": lambda: _ours(model, mz.wavelet("db4", 3, 0)),
        "cluster(16), fixed indices": lambda: _ours(model, mz.cluster(16)),
        "prune + cluster(16)": lambda: _ours(model, mz.chain(mz.prune(sparsity=SPARSITY), mz.cluster(16))),
        "Qwix QAT, int8 weights": lambda: _qwix(model, jnp.int8),
        "Qwix QAT, int4 weights": lambda: _qwix(model, jnp.int4),
    }
    if chosen.grids:
        makers = _grid_makers(model)
    elif "MODELZIP_JAXPRUNER_SOURCE" in os.environ:
        for algorithm in ("magnitude",) if chosen.quick else ("magnitude", "set", "rigl"):
            for every, when in ((NEVER, "between updates"), (1, "update each step")):
                makers[f"JaxPruner {algorithm}, {when}"] = functools.partial(
                    _jaxpruner, model, algorithm, every
                )
    else:
        report.note("JaxPruner skipped: MODELZIP_JAXPRUNER_SOURCE is not set")
    found = {}
    for name, make in makers.items():
        try:
            began = time.perf_counter()
            case = make()
            case()
            print(f"{type(model).__name__}: {name} ready in {time.perf_counter() - began:.1f} s", flush=True)
        except (ImportError, TypeError) as error:
            report.note(f"{type(model).__name__}: {name} does not run: {str(error).splitlines()[0]}")
            continue
        found[name] = case
    return found


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(
        __doc__, repeats=60, cores=1, flags={"kept": "donate nothing", "grids": "every grid"}
    )
    if chosen.kept:
        DONATED.clear()
    kept = "kept" if chosen.kept else "donated"
    platform = jax.default_backend()
    where = f"{chosen.cores} core(s)" if platform == "cpu" else platform
    record = "step_overhead"
    if (where, kept) != ("1 core(s)", "donated"):
        record += f"_{chosen.cores if platform == 'cpu' else platform}_{kept}"
    grids = ", every grid" if chosen.grids else ""
    record += "_grids" if chosen.grids else ""
    report = harness.Report(record, f"Training step, {where}, {kept}{grids}", chosen)
    models = (MLP(), CNN()) if platform == "cpu" else (WideMLP(),)
    for model in models[:1] if chosen.quick or chosen.grids else models:
        name = type(model).__name__
        runs = cases(model, chosen, report)
        # A step that sorts all weights takes as long as 30 others: those have rounds of their own.
        slow = {case: run for case, run in runs.items() if case.endswith(SLOW)}
        fast = {case: run for case, run in runs.items() if case not in slow}
        # Two steps: JaxPruner's second one traces again.
        times = harness.interleave(fast, chosen.repeats, warmup=2)
        rows = _rows(times, list(fast))
        if slow:
            slow_times = harness.interleave(
                {PLAIN: runs[PLAIN], **slow}, max(chosen.repeats // 12, 3), warmup=2
            )
            rows += _rows(slow_times, list(slow))
        columns = ["case", "median, ms", "min, ms", "ratio to plain", "± half IQR", "ratio of minima"]
        report.table(f"{name}, batch {BATCH}: {(model.__doc__ or '').rstrip('.')}", columns, rows)
        if platform == "cpu" and chosen.grids:
            limit = {"fixed": TWO_CORES["quantize(4), fixed"], "learned": TWO_CORES["quantize(4), learned"]}
            _limits(report, name, times, {case: limit[case.rpartition(", ")[2]] for case in list(fast)[2:]})
        elif platform == "cpu":
            _bars(report, name, times, TWO_CORES if chosen.cores == 2 else {"prune, fixed masks": 1.06})
    report.finish()


def _rows(times: harness.Times, shown: list[str]) -> list[list[Any]]:
    rows = []
    for case in shown:
        seconds, ratio = times[case], harness.ratios(times, case, PLAIN)
        rows.append(
            [case, 1e3 * harness.median(seconds), 1e3 * min(seconds), harness.median(ratio),
             harness.spread(ratio), min(seconds) / min(times[PLAIN])]
        )  # fmt: skip
    return rows


def _bars(report: harness.Report, model: str, times: harness.Times, own: dict[str, float]) -> None:
    limits = {
        **own,
        "prune, schedule, between refreshes": 1.06,
        "SET, between refreshes": 1.06,
        "RigL, between refreshes": 1.06,
        "prune, refresh each step": 1.6,
        "prune globally, refresh each step": 1.6,
        "SET, refresh each step": 2.2,
        "RigL, refresh each step": 2.2,
    }
    _limits(report, model, times, limits)


def _limits(report: harness.Report, model: str, times: harness.Times, limits: dict[str, float]) -> None:
    control = harness.median(harness.ratios(times, CONTROL, PLAIN))
    for case, limit in limits.items():
        ratio = harness.ratios(times, case, PLAIN)
        report.bar(
            f"{model}: {case} ÷ plain", limit, harness.median(ratio), unit=" ×",
            remark=f"± {harness.spread(ratio):.2f}; of minima {min(times[case]) / min(times[PLAIN]):.3f}; "
            f"plain against itself {control:.3f}",
        )  # fmt: skip


if __name__ == "__main__":
    main()
