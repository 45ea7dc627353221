"""Mixed precision beside uniform widths at equal bytes.

    python -m benchmarks.mixed_precision [--outputs] [--quick]

A `Network` brings a model, calibration batches and a figure of merit on held-out data; each width of 2 to 8 bits makes
a uniform model, of groups of 64, and mixed precision chooses among 1 to 8 bits in groups of 32, 64 and 128 under its
bytes, by each sensitivity. The bytes are those of the packed model. Needs the extra `demo` for MiniLM.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import modelzip_jax as mz
from benchmarks import harness
from modelzip_jax import trace
from modelzip_jax.evaluation import retrieval
from modelzip_jax.models import sentence_encoder
from modelzip_jax.tree import PyTree

WIDTHS, GROUP, GROUPS, MAX_LENGTH = (2, 3, 4, 5, 6, 7, 8), 64, (32, 64, 128), 64
OUTPUT_EXAMPLES = 4


class Network(NamedTuple):
    """What is compressed and how it is judged.

    apply: from params and inputs to outputs. batches: of calibration, tuples of inputs. likelihood: of the outputs:
    "gaussian" for embeddings, "categorical" for logits. merit: from params to a number, larger is better.
    """

    name: str
    apply: Callable[..., Any]
    params: PyTree
    batches: list[tuple[Any, ...]]
    likelihood: str
    merit: Callable[[PyTree], float]
    what: str


def minilm(quick: bool) -> Network:
    """Sentence embeddings: cosine to those of the float model on docstrings of packages that calibration lacks."""
    model, params, tokenizer = sentence_encoder.load_minilm()
    calibration, test = retrieval.split_by_package(retrieval.docstring_pairs())

    def tokens(pairs: list[retrieval.Pair], count: int) -> list[np.ndarray]:
        texts = [p.document for p in retrieval.thin(pairs, count)]
        return sentence_encoder.tokenize(tokenizer, texts, MAX_LENGTH)

    known = [
        (b.ids, b.mask)
        for b in sentence_encoder.batches(tokens(calibration, 16 if quick else 32), buckets=(MAX_LENGTH,))
    ]
    held_out = tokens(test, 32 if quick else 128)
    floats = sentence_encoder.embed_tokens(model, params, held_out)

    def apply(params: PyTree, ids: Any, mask: Any) -> Any:
        return model.apply({"params": params}, ids, mask)

    def cosine(params: PyTree) -> float:
        return retrieval.mean_cosine(floats, sentence_encoder.embed_tokens(model, params, held_out))

    return Network("MiniLM-L6", apply, params, known, "gaussian", cosine, "cosine to float embeddings")


def sensitivities(network: Network, by_outputs: bool) -> dict[str, mz.sensitivity.Sensitivity]:
    """Each that there is, of the network's calibration batches."""
    apply, params, batches = network.apply, network.params, network.batches
    kernels = "**/kernel"
    information = trace.fisher_information(apply, params, batches, likelihood=network.likelihood)  # type: ignore[arg-type]
    stats = trace.statistics(apply, params, batches, kinds=("gram",), only=kernels)
    found = {
        "squared error of weights": mz.sensitivity.squared_error(),
        "layer error, relative": mz.sensitivity.layer_error(stats),
        "Fisher": mz.sensitivity.loss_increase(information),
    }
    if by_outputs:
        outputs = (
            mz.sensitivity.output_kl if network.likelihood == "categorical" else mz.sensitivity.output_error
        )
        few = jax.tree.map(lambda x: x[:OUTPUT_EXAMPLES], batches[:1])
        found[f"outputs of {OUTPUT_EXAMPLES} examples"] = outputs(apply, few)
    return found


def compare(network: Network, report: harness.Report) -> None:
    """Adds a table of one network, and whether mixed precision won at each width."""
    candidates = {
        f"{b} bits / {g}": mz.quantize(b, granularity="group", group_size=g)
        for b in range(1, 9)
        for g in GROUPS
    }
    uniform = {
        f"{b} bits": mz.compress(network.params, mz.only("**", candidates[f"{b} bits / {GROUP}"], min_ndim=2))
        for b in WIDTHS
    }
    merits = {name: network.merit(mz.unpack(packed)) for name, packed in uniform.items()}
    chosen: dict[str, dict[str, float]] = {}
    seconds = {}
    start = time.perf_counter()
    every = sensitivities(network, report.chosen.outputs)
    print(f"statistics: {time.perf_counter() - start:.0f} s", flush=True)
    for title, sensitivity in every.items():
        start = time.perf_counter()
        found = mz.mixed_precision(
            network.params,
            candidates,
            sensitivity=sensitivity,
            min_ndim=2,
            budget_bytes=uniform["4 bits"].nbytes,
        )
        seconds[title] = time.perf_counter() - start
        chosen[title] = {}
        print(found if title == "Fisher" else repr(found), f"{seconds[title]:.0f} s", flush=True)
        for name, packed in uniform.items():
            mixed = found.at(packed.nbytes)
            made = mz.compress(network.params, mixed.transform)
            if made.nbytes != mixed.bytes or made.nbytes > packed.nbytes:
                raise SystemExit(
                    f"{title}: {made.nbytes} bytes, of {packed.nbytes}, said to be {mixed.bytes}"
                )
            chosen[title][name] = network.merit(mz.unpack(made))
            print(network.name, title, name, merits[name], chosen[title][name], flush=True)
    report.table(
        f"{network.name}: {network.what}, at the bytes of each uniform width",
        ["width", "bytes", "uniform", *chosen],
        [
            [name, packed.nbytes, merits[name], *(c[name] for c in chosen.values())]
            for name, packed in uniform.items()
        ],
    )
    report.table(
        f"{network.name}: seconds to measure", ["sensitivity", "s"], [[n, s] for n, s in seconds.items()]
    )
    lead = min((1 - merits[name]) / (1 - chosen["Fisher"][name]) for name in uniform)
    report.bar(
        f"{network.name}: 1 − {network.what}, uniform ÷ mixed by Fisher, least of all widths",
        1.0,
        lead,
        least=True,
    )


def main() -> None:
    chosen = harness.options(__doc__, repeats=1, flags={"outputs": "also by running the network (minutes)"})
    report = harness.Report("mixed_precision", "Mixed precision", chosen)
    for network in (minilm,):
        compare(network(chosen.quick), report)
    report.finish()


if __name__ == "__main__":
    main()
