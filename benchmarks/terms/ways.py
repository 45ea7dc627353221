"""Every family of the survey and the main chains, as rows of one experiment on LeNet-5."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import optax

import modelzip_jax as mz
from benchmarks.tasks import lenets
from benchmarks.teaching import students
from modelzip_jax import trace
from modelzip_jax.models.lenet import LeNet5
from modelzip_jax.recipe import from_plain
from modelzip_jax.tree import PyTree

__all__ = ["RECIPES", "WAYS", "Way", "float_params", "given_samples", "lenet", "lenet_apply"]

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
STEPS, PEAK = 215, 3e-4
"""Half an epoch of the training images, at a rate for networks that are trained already."""


def _recipe(name: str) -> Callable[[PyTree], mz.Transform]:
    return lambda _: from_plain(json.loads((RECIPES / f"{name}.json").read_text()))


def _lossless(_: PyTree) -> mz.Transform:
    return mz.only("**", mz.identity())


def _by_samples(sparsity: float, bits: int = 0, **options: Any) -> Callable[[PyTree], mz.Transform]:
    def made(_: PyTree) -> mz.Transform:
        sparse = mz.sparse_dense_by_samples(sparsity, **options)
        return mz.only("**/kernel", mz.chain(sparse, mz.quantize(bits)) if bits else sparse)

    return made


def _by_field(params: PyTree) -> mz.Transform:
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), "float32")
    found = trace.receptive_fields(lenet_apply, params, image)
    allocation = mz.allocation.by_receptive_field(found)
    return mz.only("**/kernel", mz.prune(sparsity=0.9, allocation=allocation))


@dataclasses.dataclass(frozen=True)
class Way:
    """A row of the table.

    family, title: of the survey. recipe: from the float weights to a transform. steps: of training; 0: none.
    samples: whether it is told what each layer's inputs are. range: of weights that train. soft: the weight of
    distillation from the float network. width: of a network of its own, from scratch, in the place of the trained one.
    clip: of the gradients' global norm.
    """

    family: str
    title: str
    recipe: Callable[[PyTree], mz.Transform]
    steps: int = STEPS
    samples: bool = False
    range: tuple[float, float] | None = None
    soft: float = 0.0
    width: tuple[int, int, int] = students.FULL
    clip: float = 0.0

    @property
    def name(self) -> str:
        """Of its cells."""
        return f"{self.family}/{self.title}"

    @property
    def from_scratch(self) -> bool:
        """Whether it is a network of its own."""
        return self.width != students.FULL

    def optimizer(self) -> optax.GradientTransformation:
        """Adamw on a cosine, behind the mask of a range if there is one."""
        tx = students.adamw(1e-3 if self.from_scratch else PEAK, max(self.steps, 1))
        tx = optax.chain(optax.clip_by_global_norm(self.clip), tx) if self.clip else tx
        return mz.loop.within_range(tx, *self.range) if self.range else tx


def float_params(seed: int) -> PyTree:
    """LeNet-5, trained once by `configs/`."""
    return lenets.load(f"lenet5-fashion_mnist-{seed}", quick=False).params


def lenet(way: Way) -> LeNet5:
    """The network of a way."""
    return LeNet5(widths=way.width)


def lenet_apply(params: PyTree, images: jax.Array) -> jax.Array:
    """Logits by the module itself, whose convolutions statistics see."""
    return LeNet5().apply({"params": params}, images)


def given_samples(seed: int, params: PyTree) -> dict[str, Any]:
    """What 1,000 training images give each layer."""
    images = lenets.load(f"lenet5-fashion_mnist-{seed}", quick=False).calibration(1_000, seed)
    stats = trace.statistics(lenet_apply, params, images, kinds=("above_mean",), only="**/kernel")
    return {"stats": stats}


CUT, PRUNED, QUANTIZED, SHARED = "cutting", "pruning", "quantization", "weight sharing"
WAYS = (
    Way("float", "as trained", _lossless, steps=0),
    Way("float", "trained on", _lossless),
    Way(CUT, "90 %, one threshold", _recipe("cut_global")),
    Way("sparse–dense", "half the features, by samples", _by_samples(0.5), samples=True),
    Way(CUT, "weights from 0 to 1 train", _lossless, range=(0.0, 1.0)),
    Way(CUT, "90 %, small fields lose more", _by_field),
    Way(QUANTIZED, "4 bits", _recipe("quantize_4")),
    Way("chain", "90 % cut, 4 bits learned", _recipe("cut_quantize")),
    Way(PRUNED, "5 % farthest, clipped", _recipe("prune_farthest"), clip=1.0),
    Way(QUANTIZED, "shift: powers of two, 4 bits", _recipe("quantize_shift")),
    Way(QUANTIZED, "halve: 4 bits", _recipe("quantize_halve")),
    Way(QUANTIZED, "8 bits", _recipe("quantize_8")),
    Way(
        "sparse–dense", "90 % of single weights, by samples",
        _by_samples(0.9, structure=mz.structures.unstructured(), allocation="global"), samples=True,
    ),
    Way(QUANTIZED, "binary learned", _recipe("quantize_binary")),
    Way("factorization", "rank 4 and 3 bits of the rest", _recipe("factorize")),
    Way(QUANTIZED, "offset at test time, 4 bits", _recipe("quantize_offset")),
    Way(SHARED, "16 weights a layer", _recipe("share_weights")),
    Way("wavelets", "Haar, 4 bits", _recipe("wavelet_quantize")),
    Way("distillation", "quarter width, labels", _lossless, steps=858, width=students.QUARTER),
    Way("distillation", "quarter width, soft targets", _lossless, steps=858, width=students.QUARTER, soft=4.0),
    Way("chain", "90 % cut, 16 shared weights", _recipe("cut_share")),
    Way("sparse–dense", "half the features, then dense", _recipe("sparse_dense")),
    Way(QUANTIZED, "2 bits learned", _recipe("quantize_2_learned")),
    Way(CUT, "90 %, ERK", _recipe("cut_by_layer")),
    Way(CUT, "2 of 4", _recipe("cut_two_of_four")),
    Way(CUT, "75 % of 4×4 blocks", _recipe("cut_blocks")),
    Way(QUANTIZED, "weighted levels, 4 bits", _recipe("quantize_weighted")),
    Way(QUANTIZED, "dynamic, 4 bits", _recipe("quantize_dynamic")),
    Way(QUANTIZED, "ternary learned", _recipe("quantize_ternary")),
    Way("wavelets", "cosines, 4 bits", _recipe("cosines_quantize")),
    Way(SHARED, "256 vectors of 4 a layer", _recipe("share_vectors")),
    Way(SHARED, "neurons in twos", _recipe("share_neurons")),
    Way("chain", "Haar, 80 % cut, 4 bits", _recipe("cut_wavelet_quantize")),
    Way("chain", "half the features by samples, 4 bits", _by_samples(0.5, 4), samples=True),
    Way("chain", "neurons in twos, 4 bits", _recipe("share_neurons_quantize")),
    Way("chain", "90 % cut, 4 bits learned, soft targets", _recipe("cut_quantize"), soft=4.0),
    Way(
        "chain", "quarter width, soft targets, 4 bits", _recipe("quantize_4"), steps=858, width=students.QUARTER,
        soft=4.0,
    ),
)  # fmt: skip
"""In the order in which they are trained, the main ones first."""
