"""Mixed precision beside uniform widths at equal bytes.

    python -m benchmarks.mixed_precision [--gru] [--efficientnet] [--minilm] [--outputs] [--quick]

A `Network` brings a model, calibration batches and a figure of merit on held-out data; each width of 2 to 8 bits makes
a uniform model, of groups of 64, and mixed precision chooses among 1 to 8 bits in groups of 32, 64 and 128, and floats,
under its bytes, by each sensitivity. The bytes are those of the packed model. Needs the extra `demo` for MiniLM; the
other networks are left out where their packages are not installed (benchmarks/networks.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import modelzip_jax as mz
from benchmarks import grapheme_to_phoneme, harness, networks, pictures
from modelzip_jax import trace
from modelzip_jax.evaluation import retrieval
from modelzip_jax.models import sentence_encoder
from modelzip_jax.tree import PyTree

WIDTHS, GROUP, GROUPS, MAX_LENGTH = (2, 3, 4, 5, 6, 7, 8), 64, (32, 64, 128), 64
OUTPUT_EXAMPLES = 4


class Network(NamedTuple):
    """What is compressed and how it is judged.

    apply: from params and inputs to outputs. batches: of calibration, tuples of inputs. likelihood: of the outputs:
    "gaussian" for embeddings, "categorical" for logits. merit: from params to a number, larger is better; what says of
    what. kernels: names of the leaves that meet products. axis: of output channels. at_once: of how many
    examples gradients are taken together: of convolutions, one is fastest. output_batches: how many the network is
    run on for each leaf and candidate; 0: four examples, and only with --outputs.
    """

    name: str
    apply: Callable[..., Any]
    params: PyTree
    batches: list[tuple[Any, ...]]
    likelihood: str
    merit: Callable[[PyTree], float]
    what: str
    kernels: str = "**/kernel"
    axis: int | str = "auto"
    at_once: int = 8
    output_batches: int = 0


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


def efficientnet(quick: bool) -> Network:
    """Pictures: cosine to the float logits."""
    module, variables = networks.load_efficientnet()
    rest = {name: value for name, value in variables.items() if name != "params"}
    calibration = pictures.batches("calibration", 8 if quick else 16, 8)
    held_out = pictures.batches("test", 32 if quick else 256)
    run = pictures.evaluator(module)
    floats = pictures.logits(run, variables, held_out)

    def apply(params: PyTree, x: Any) -> Any:
        return module.apply({"params": params, **rest}, x)

    def cosine(params: PyTree) -> float:
        return float(
            pictures.agreement(
                floats, pictures.logits(run, {"params": params, **rest}, held_out)
            ).cosine.mean()
        )

    params, batches = variables["params"], [(x,) for x in calibration]
    merit = "cosine to float logits"
    return Network(
        "EfficientNet-Lite0", apply, params, batches, "categorical", cosine, merit, axis=-1, at_once=1
    )


def gru(quick: bool) -> Network:
    """Words to phonemes: cosine to the float logits."""
    floats = grapheme_to_phoneme.load()
    letters, ends = grapheme_to_phoneme.encode_words(
        grapheme_to_phoneme.words("calibration", 64 if quick else 256)
    )
    phonemes = np.asarray(grapheme_to_phoneme.spell(floats, letters, ends))
    held_out = grapheme_to_phoneme.words("test", 100 if quick else 1000)

    def apply(params: PyTree, letters: Any, ends: Any, phonemes: Any) -> Any:
        # What is said after a word's end means nothing; logits of zero ask nothing of the weights.
        within = jnp.cumsum(phonemes == grapheme_to_phoneme.END, 1) <= 1
        return grapheme_to_phoneme.apply(params, letters, ends, phonemes) * within[..., None]

    def cosine(params: PyTree) -> float:
        return float(grapheme_to_phoneme.agreement(floats, params, held_out).cosine.mean())

    rows = range(0, len(letters), 32)
    batches = [(letters[i : i + 32], ends[i : i + 32], phonemes[i : i + 32]) for i in rows]
    return Network(
        "g2p-en",
        apply,
        floats,
        batches,
        "categorical",
        cosine,
        "cosine to float logits",
        "*_w*",
        0,
        output_batches=2,
    )


def sensitivities(network: Network, by_outputs: bool) -> dict[str, mz.sensitivity.Sensitivity]:
    """Each that there is, of the network's calibration batches."""
    apply, params, batches = network.apply, network.params, network.batches
    information = trace.fisher_information(
        apply, params, batches, likelihood=network.likelihood, examples_at_once=network.at_once
    )  # type: ignore[arg-type]
    stats = trace.statistics(apply, params, batches, kinds=("gram",), only=network.kernels)
    found = {
        "squared error of weights": mz.sensitivity.squared_error(),
        "layer error, relative": mz.sensitivity.layer_error(stats),
        "Fisher": mz.sensitivity.loss_increase(information),
    }
    if by_outputs or network.output_batches:
        outputs = (
            mz.sensitivity.output_kl if network.likelihood == "categorical" else mz.sensitivity.output_error
        )
        few = batches[: network.output_batches] or jax.tree.map(lambda x: x[:OUTPUT_EXAMPLES], batches[:1])
        found["outputs"] = outputs(apply, few)
    return found


def compare(network: Network, report: harness.Report) -> None:
    """Adds a table of one network, and whether mixed precision won at each width."""
    candidates = {
        f"{b} bits / {g}": mz.quantize(b, granularity="group", group_size=g, axis=network.axis)
        for b in range(1, 9)
        for g in GROUPS
    } | {"float": mz.identity()}
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
    for title in [title for title in every if title != "squared error of weights"]:
        lead = min((1 - merits[name]) / (1 - chosen[title][name]) for name in uniform)
        what = f"{network.name}: 1 − {network.what}, uniform ÷ mixed by {title}, least of all widths"
        report.bar(what, 1.0, lead, least=True)


def main() -> None:
    known = {network.__name__: network for network in (gru, efficientnet, minilm)}
    flags = dict.fromkeys(known, "this network; all of them if none is named")
    flags["outputs"] = "also by running the network (minutes)"
    chosen = harness.options(__doc__, repeats=1, flags=flags)
    for name in [name for name in known if getattr(chosen, name)] or known:
        try:
            found = known[name](chosen.quick)
        except networks.MissingPackageError as error:
            print(f"{name} is left out: {error}")
            continue
        report = harness.Report(f"mixed_precision_{name}", f"Mixed precision, {found.name}", chosen)
        compare(found, report)
        report.finish()


if __name__ == "__main__":
    main()
