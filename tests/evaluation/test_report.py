"""Every stored form, within every other that can hold it, is reported: from a file and from memory."""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.evaluation import report
from modelzip_jax.evaluation.stored_forms import _FORMS
from modelzip_jax.masking.masked import Masked
from modelzip_jax.packed import PackedArray, kinds, packed_kind, static
from modelzip_jax.packing import unpacked_bytes
from modelzip_jax.sharing.neurons import SharedNeurons

RNG = np.random.default_rng(0)
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.mz"))
SHAPE = (64, 32)


@functools.cache
def packed(shape, transform):
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    return mz.compress({"w": values}, transform).params["w"]


def masked(keep):
    def pack(shape, inner):
        return Masked.of(RNG.random(shape) < keep, inner(shape), "float32")

    return pack


def neurons(shape, inner):
    index = np.arange(shape[-1], dtype=np.uint8) // 2
    return SharedNeurons(inner((*shape[:-1], shape[-1] // 2)), jnp.asarray(index), shape, "float32")


def coefficients(shape, inner):
    outer = packed(shape, mz.wavelet("haar", levels=1))
    return outer.with_inner(inner(outer.corner))


OF_COLUMNS = mz.spreads.root_deviation(axis=-1)
LEAVES = {
    "lossless": lambda shape: packed(shape, mz.identity()),
    "int4 channel": lambda shape: packed(shape, mz.quantize(4)),
    "int8 tensor": lambda shape: packed(shape, mz.quantize(8, granularity="tensor")),
    "uint3 group(16)": lambda shape: packed(
        shape, mz.quantize(3, granularity="group", group_size=16, symmetric=False)
    ),
    "16 levels channel": lambda shape: packed(shape, mz.quantize(grid=mz.grids.nf4())),
    "integers, steps of rows": lambda shape: packed(shape, mz.entropy_constrained(0.2, spread=OF_COLUMNS)),
    "11 values": lambda shape: packed(shape, mz.cluster(11)),
    "8 vectors of 4": lambda shape: packed(shape, mz.cluster(8, block=4)),
}
HOLDERS = {
    "mask half": masked(0.5),
    "mask few": masked(0.02),
    "mask all": masked(2.0),
    "mask none": masked(-1.0),
    "neurons": neurons,
    "coefficients": coefficients,
}
NESTS = [(), *((h,) for h in HOLDERS), *itertools.product(HOLDERS, HOLDERS)]


def build(nest, leaf, shape):
    if not nest:
        return LEAVES[leaf](shape)
    return HOLDERS[nest[0]](shape, lambda inside: build(nest[1:], leaf, inside))


@pytest.mark.parametrize("nest", NESTS, ids=" in ".join)
def test_every_form_in_every_other(tmp_path, nest):
    inside = list(LEAVES)[: len(LEAVES) if len(nest) < 2 else 2]
    leaves = {leaf: build(nest, leaf, SHAPE) for leaf in inside}
    model = mz.Packed(leaves, {"mean": np.ones(3)}, mz.identity())
    mz.save(tmp_path / "m.mz", model)
    found = mz.inspect(tmp_path / "m.mz")
    assert mz.inspect(model) == found
    for row in found.tensors[:-1]:
        assert row.form.endswith(row.name)
        assert [word for word in nest if word.split()[0] not in row.form] == []
        assert (row.shape, row.dtype, row.size) == (SHAPE, "float32", 64 * 32)
        assert row.packed_bytes == leaves[row.name].nbytes
        assert row.dense_bytes == unpacked_bytes(leaves[row.name]) == 64 * 32 * 4
        zeros = [{"half": 0.5, "few": 0.98, "none": 1.0}.get(holder.split()[-1], 0.0) for holder in nest]
        assert row.sparsity == pytest.approx(max(zeros, default=0.0), abs=0.1)
    assert found.tensors[-1].name == "variables/mean"
    assert found.tensors[-1].dtype == "float64"
    assert found.file_bytes == (tmp_path / "m.mz").stat().st_size
    assert sum(row.file_bytes for row in found.tensors) < found.file_bytes


def test_every_kind_that_is_registered_here_is_in_these_tests():
    ours = {tag for tag, kind in kinds.items() if kind.__module__.startswith("modelzip_jax.")}
    parts = {
        "bits",
        "joined",
        "gaps",
        "joint",
        "classed",
        "integers",
        "trellis",
        "by_state",
    }  # of other kinds
    nests = [build((holder,), leaf, SHAPE) for holder in HOLDERS for leaf in LEAVES]
    made = {x.tag for nest in nests for x in (nest, nest.inner)}
    # Of stacked leaves, and of users' linear transforms: told by what they have in common with the others.
    assert made == ours - parts - TWO - {"layers", "layer_vectors", "linear"}
    assert ours - parts <= set(_FORMS)


TWO = {"factored", "sum"}
"""Kinds that hold two of the others."""


def test_what_holds_two_tells_of_both():
    assert report.describe(packed(SHAPE, mz.chain(mz.low_rank(3), mz.quantize(4, axis=-1)))) == (
        "rank 3 (int4 channel; int4 channel)"
    )
    mask = mz.chain(mz.prune(sparsity=0.75), mz.quantize(2))
    model = mz.compress({"w": np.ones((8, 8), np.float32)}, mz.residual(mz.low_rank(1), mask))
    (row,) = mz.inspect(model).tensors
    assert row.form.startswith("sum (rank 1 (lossless; lossless); mask (")
    assert row.form.endswith("+ int2 channel)")
    assert row.sparsity == pytest.approx(0.75 / 2)
    assert report.describe(packed((5,), mz.low_rank(3))) == "no factors + lossless"


@packed_kind("test-report-halved")
class Halved(PackedArray):
    inner: PackedArray
    scale: jax.Array
    shape: tuple[int, ...] = static()

    def unpack(self):
        return self.inner.unpack() * self.scale


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_kind_of_the_users_is_told_by_its_tag(tmp_path, leaf):
    inside = build(("mask few",), leaf, SHAPE)
    model = mz.Packed({"w": Halved(inside, np.float32([0.5]), SHAPE)}, {}, mz.identity())
    mz.save(tmp_path / "m.mz", model)
    (row,) = report.tensors(tmp_path / "m.mz")
    assert row.form.startswith("test-report-halved + mask (")
    assert row.form.endswith(f" + {leaf}")
    assert row.sparsity == pytest.approx(0.98, abs=0.01)


@pytest.mark.parametrize(
    ("sparsity", "bits", "form"),
    [
        (0.5, 8, "bitmap"),
        (0.98, 8, "gaps"),
        (0.8, 4, "among codes"),
        (0.5, 4, ""),
        (0.9, 4, ""),
        (0.99, 2, ""),
    ],
)
def test_the_form_of_a_mask_in_the_file(tmp_path, sparsity, bits, form):
    params = {"w": RNG.standard_t(3, size=(48, 36)).astype(np.float32)}
    chain = mz.chain(mz.prune(sparsity=sparsity), mz.quantize(bits, granularity="tensor"))
    mz.save(tmp_path / "m.mz", mz.compress(params, chain))
    (row,) = report.tensors(tmp_path / "m.mz")
    assert row.form.startswith(f"mask ({form}")
    assert row.form.endswith(f"int{bits} tensor")
    assert row.sparsity == pytest.approx(sparsity, abs=1e-3)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files(path):
    found = mz.inspect(path)
    model = mz.load(path)
    unpacked = jax.tree.leaves(mz.unpack(model)) + jax.tree.leaves(model.variables)
    assert [(row.shape, row.dtype) for row in found.tensors] == [(x.shape, str(x.dtype)) for x in unpacked]
    assert found.dense_bytes == sum(x.nbytes for x in unpacked)
    assert found.step == model.step
    assert str(found).count("\n") >= len(found.tensors) + 3


def test_a_report_is_a_table_with_totals(tmp_path):
    params = {
        "dense": {"kernel": RNG.normal(size=(64, 32)).astype(np.float32), "bias": np.zeros(32, np.float32)}
    }
    model = mz.compress(params, mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.75), mz.quantize(4))))
    mz.save(tmp_path / "m.mz", model, metadata={"author": "me"})
    found = mz.inspect(tmp_path / "m.mz")
    table = str(found).splitlines()
    assert table[0].split()[:4] == ["tensor", "shape", "dtype", "stored"]
    (kernel,) = [line for line in table if line.startswith("dense/kernel")]
    assert "64×32" in kernel
    assert "75.0%" in kernel
    assert f"{found.file_bytes:,}" in table[4]
    assert table[-1] == "metadata: author = me"
    assert found.recipe["type"] == "Partition"
    assert found.metadata == {"author": "me"}
    assert found.plain()["tensors"][1]["bits_per_weight"] == found.tensors[1].bits_per_weight
    told = []
    mz.inspect(tmp_path / "m.mz", progress=lambda *x: told.append(x))
    assert [name for name, _ in told] == ["params/dense/bias", "params/dense/kernel"]
