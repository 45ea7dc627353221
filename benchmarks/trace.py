"""What looking into a model costs: statistics over a plain forward pass, tracing, and FLOPs beside XLA's.

    python -m benchmarks.trace [--repeats 15] [--device cpu] [--cores 1] [--quick]

Statistics are the default moments (mean |x|, second moment, zeros, minimum and maximum of every channel),
of the inputs of every layer with weights, and of inputs and outputs. Plain is the jitted model; it runs
twice, and how far the second is from 1 is what this benchmark cannot tell apart. Gram matrices and
percentiles are shown for context. Tracing is timed in its own rounds, nothing being cached between
them but JAX's own caches of inner functions.

XLA counts the body of a scan once, so models are compared with their layers unrolled. Its count has the
elementwise operations in it: the figure is (products + elementwise) ÷ XLA's.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from modelzip_jax import trace
from modelzip_jax.models import language_model, lenet, resnet, vgg
from modelzip_jax.models.bert import SentenceEncoder
from modelzip_jax.trace.measures.input_statistics import statistics_pass

PLAIN, CONTROL = "plain forward pass", "plain, a second time"
MOMENTS = ("mean_abs", "second_moment", "zeros", "range")
CASES: dict[str, tuple[tuple[str, ...], tuple[trace.Place, ...]]] = {
    "moments of inputs": (MOMENTS, ("inputs",)),
    "moments of inputs and outputs": (MOMENTS, ("inputs", "outputs")),
    "moments and percentiles of inputs": ((*MOMENTS, "percentiles"), ("inputs",)),
    "moments and Gram matrices of inputs": ((*MOMENTS, "gram"), ("inputs",)),
}


def models(quick: bool) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """Models and inputs."""
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 256, (16, 64)))
    images = jnp.asarray(rng.normal(size=(32, 32, 32, 3)), jnp.float32)
    digits = jnp.asarray(rng.normal(size=(128, 28, 28, 1)), jnp.float32)
    found: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
        "LeNet-300-100": (lenet.lenet_300_100(), (digits,)),
        "LeNet-5": (lenet.LeNet5(), (digits,)),
    }
    if not quick:
        found |= {
            "ResNet-20": (resnet.resnet20(), (images,)),
            "MiniLM-L6": (SentenceEncoder(), (tokens, tokens > 0)),
            "decoder, scan": (language_model.LanguageModel(), (tokens,)),
        }
    return found


def variables(model: nn.Module, *inputs: Any) -> Any:
    """Random variables; the time of a product does not depend on them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda s: jnp.asarray(rng.uniform(0, 0.1, s.shape), s.dtype), shapes)


def _waiting(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def report_statistics(report: harness.Report, chosen: argparse.Namespace) -> None:
    """Statistics over a plain forward pass."""
    rows = []
    for name, (model, inputs) in models(chosen.quick).items():
        params = variables(model, *inputs)
        plain = jax.jit(model.apply)
        cases = {case: _waiting(plain, params, *inputs) for case in (PLAIN, CONTROL)}
        for case, (kinds, places) in CASES.items():
            run = statistics_pass(model.apply, params, *inputs, kinds=kinds, places=places)
            cases[case] = _waiting(run, params, *inputs)
        times = harness.interleave(cases, chosen.repeats, warmup=2)
        for case in cases:
            ratio = harness.ratios(times, case, PLAIN)
            rows.append(
                [name, case, 1e3 * harness.median(times[case]), harness.median(ratio), harness.spread(ratio)]
            )
        control = harness.median(harness.ratios(times, CONTROL, PLAIN))
        ratio = harness.ratios(times, "moments of inputs", PLAIN)
        report.bar(
            f"{name}: channel moments of inputs ÷ plain forward pass", 1.3, harness.median(ratio), unit=" ×",
            remark=f"± {harness.spread(ratio):.2f}; plain against itself {control:.3f}",
        )  # fmt: skip
    report.table(
        "Statistics", ["model", "case", "median, ms", "ratio to plain", "± half IQR"], rows
    )  # fmt: skip


def report_tracing(report: harness.Report, chosen: argparse.Namespace) -> None:
    """Seconds of each analysis."""
    rows = []
    for name, (model, inputs) in models(chosen.quick).items():
        params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        analyses = {"uses": trace.uses, "cost": trace.cost, "couplings": trace.couplings}
        times = harness.interleave(
            {n: functools.partial(f, model.apply, params, *inputs) for n, f in analyses.items()},
            min(chosen.repeats, 5),
            warmup=0,
        )
        rows.append([name, *(harness.median(times[n]) for n in analyses), sum(map(max, times.values()))])
        if name == "MiniLM-L6":
            slowest = sum(map(max, times.values()))
            report.bar(
                "MiniLM-L6: uses, cost and couplings together",
                5.0,
                slowest,
                unit=" s",
                remark="slowest rounds",
            )
    report.table("Tracing, seconds", ["model", "uses", "cost", "couplings", "all, slowest rounds"], rows)


def report_flops(report: harness.Report, chosen: argparse.Namespace) -> None:
    """FLOPs beside XLA's."""
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    small = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    cases: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
        "LeNet-5": (lenet.LeNet5(), (jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32),)),
        "ResNet-20": (resnet.resnet20(), (small,)),
        "VGG-19": (vgg.vgg19(), (small,)),
        "ResNet-50": (resnet.resnet50(), (images,)),
        "MiniLM-L6": (SentenceEncoder(), (ids, ids)),
        "decoder, unrolled": (language_model.LanguageModel(scan=False), (ids,)),
    }
    rows, worst = [], 0.0
    for name, (model, inputs) in cases.items():
        params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        ours = trace.cost(model.apply, params, *inputs)
        theirs = jax.jit(model.apply).lower(params, *inputs).cost_analysis()["flops"]
        ratio = (ours.flops + ours.elementwise) / theirs
        rows.append(
            [name, ours.flops / 1e6, ours.flops_padded / 1e6, ours.elementwise / 1e6, theirs / 1e6, ratio]
        )
        worst = max(worst, abs(ratio - 1))
    report.table(
        "Millions of FLOPs, one example",
        ["model", "products", "with padding", "elementwise", "XLA", "ratio"],
        rows,
    )
    report.bar("FLOPs beside XLA's, largest difference", 2.0, 100 * worst, unit=" %")


def main() -> None:
    """Runs the benchmark."""
    chosen = harness.options(__doc__, repeats=15, cores=1)
    report = harness.Report("trace", "Looking into a model", chosen)
    report_tracing(report, chosen)
    report_flops(report, chosen)
    report_statistics(report, chosen)
    report.finish()


if __name__ == "__main__":
    main()
