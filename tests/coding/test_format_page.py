"""A reader written from docs/format.md alone gets the same weights, bit for bit."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from page_reader import PAGE, read, read_metadata

import modelzip_jax as mz
from modelzip_jax.coding import sparse, symbols
from modelzip_jax.metadata import Metadata

RNG = np.random.default_rng(7)
KERNEL = RNG.standard_t(3, size=(48, 36)).astype(np.float32)
LOSSLESS = {
    "f32": KERNEL, "bf16": KERNEL.astype(jnp.bfloat16), "f16": KERNEL.astype(np.float16),
    "f8": KERNEL.astype(jnp.float8_e4m3fn), "int": np.arange(-300, 300, dtype=np.int32), "none": None,
    "wide": RNG.normal(size=9), "long": np.arange(9, dtype=np.int64) << 40, "bool": KERNEL[0] > 0,
    "complex": (KERNEL[0] + 1j * KERNEL[1]).astype(np.complex64), "scalar": np.float32(-0.0),
    "empty": np.zeros((0, 3), np.float32), "special": np.float32([np.nan, np.inf, -np.inf, -0.0]),
}  # fmt: skip
MASKS = {"bits": (0.5, 8), "gaps": (0.98, 8), "joint": (0.8, 3)}


def both(path, packed, ulp=0):
    mz.save(path, packed)
    _, ours = read(path)
    # Page order is file order, and a plain dict's is sorted: the same.
    theirs = [np.asarray(p.unpack()) for p in packed.params.values() if p is not None]
    assert len(ours) == len(theirs)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.dtype == wanted.dtype
        assert mine.shape == wanted.shape
        if ulp and np.size(wanted):  # A product of matrices is summed up in an order of one's own.
            unit = jnp.finfo(wanted.dtype).eps * np.abs(wanted).max()
            np.testing.assert_allclose(
                *(x.astype(np.float64) for x in (mine, wanted)), rtol=0, atol=ulp * unit
            )
            continue
        assert mine.tobytes() == np.ascontiguousarray(wanted).tobytes()


def test_lossless_leaves_of_every_dtype(tmp_path):
    both(tmp_path / "m.mz", mz.compress(dict(sorted(LOSSLESS.items())), mz.only("f32", mz.identity())))


@pytest.mark.parametrize(
    "transform",
    [
        pytest.param(mz.quantize(4, granularity="channel"), marks=pytest.mark.slow),
        mz.quantize(4, granularity="channel", axis=0),
        mz.quantize(3, granularity="group", group_size=20, symmetric=False),
        mz.quantize(8, granularity="tensor"),
        mz.entropy_constrained(0.1),
        mz.entropy_constrained(0.003, spread=mz.spreads.even()),
        mz.chain(mz.prune(sparsity=0.7), mz.entropy_constrained(0.05, spread=mz.spreads.even())),
        mz.chain(mz.prune(sparsity=0.7), mz.quantize(3, granularity="group", group_size=64, symmetric=False)),
        pytest.param(mz.prune(sparsity=0.9), marks=pytest.mark.slow),
        pytest.param(mz.cluster(11), marks=pytest.mark.slow),
        mz.cluster(5, granularity="model"),
        pytest.param(mz.cluster(16, block=5, axis=0), marks=pytest.mark.slow),
        mz.chain(mz.prune(sparsity=0.9), mz.cluster(6)),
        mz.only("b", mz.chain(mz.prune(sparsity=0.6), mz.cluster(5, layers=1))),
        mz.only("b", mz.cluster(4, block=5, axis=0, layers=(2, 0))),
        mz.quantize(grid=mz.grids.nvfp4()),
        mz.chain(mz.prune(sparsity=0.7), mz.quantize(grid=mz.grids.mx("e3m2"))),
        mz.quantize(3, grid=mz.grids.nf4(), offset=True, granularity="group", group_size=20, axis=0),
        pytest.param(mz.only("b", mz.share_neurons(5)), marks=pytest.mark.slow),
        mz.only("b", mz.chain(mz.share_neurons(5), mz.quantize(4, granularity="tensor"))),
        mz.residual(mz.quantize(3), mz.only("b", mz.cluster(4)), mz.quantize(2, axis=0)),
    ],
    ids=str,
)
def test_transforms(tmp_path, transform):
    params = {"a": KERNEL[0], "b": KERNEL.reshape(4, 12, 36).astype(jnp.bfloat16)}
    both(tmp_path / "m.mz", mz.compress(params, transform))


@pytest.mark.parametrize("step", [0.02, 60.0])
def test_steps_of_rows_and_columns_in_classes(tmp_path, step):
    """With integers apart, and of classes of rows and columns."""
    w = RNG.standard_t(3, size=(300, 200)).astype(np.float32)
    w[:150] *= 30.0
    importance = np.outer(np.where(np.arange(300) < 100, 1.0, 9.0), np.linspace(1.0, 5.0, 200)).astype("f4")
    t = mz.entropy_constrained(step, spread=mz.spreads.by_importance())
    packed = mz.compress({"w": w}, t, importance={"w": importance})
    leaf = packed.params["w"]
    assert leaf.columns is not None
    assert (leaf.codes.wide.size > 0) == (step < 0.1)
    assert "classed" in repr(symbols.packed_spec(sparse.stored(leaf)))
    both(tmp_path / "m.mz", packed)


@pytest.mark.parametrize(
    "transform",
    [
        mz.only("b", mz.low_rank(3, layers=(0,))),
        mz.residual(
            mz.chain(mz.low_rank(2), mz.quantize(4, axis=-1)),
            mz.chain(mz.prune(sparsity=0.9), mz.quantize(3)),
        ),
    ],
    ids=["factors", "factors and a rest"],
)
def test_products_of_factors(tmp_path, transform):
    params = {"a": KERNEL[0], "b": KERNEL.reshape(4, 12, 36).astype(jnp.bfloat16)}
    both(tmp_path / "m.mz", mz.compress(params, transform), ulp=4)


@pytest.mark.parametrize("form", MASKS)
def test_each_form_of_a_mask(tmp_path, form):
    sparsity, bits = MASKS[form]
    packed = mz.compress({"w": KERNEL}, mz.chain(mz.prune(sparsity=sparsity), mz.quantize(bits)))
    mask = sparse.stored(packed.params["w"]).mask
    assert (mask.tag if mask is not None else "joint") == form
    both(tmp_path / "m.mz", packed)


def test_metadata(tmp_path):
    told = {"checkpoint": {"metadata": {"format": "pt"}, "order": [1, 0]}, "author": "me"}
    packed = mz.compress({"a": KERNEL, "b": KERNEL}, mz.quantize(3))
    both(tmp_path / "m.mz", packed)
    assert read_metadata(tmp_path / "m.mz") == {}
    both(tmp_path / "m.mz", dataclasses.replace(packed, metadata=Metadata(told)))  # and repeated streams
    assert read_metadata(tmp_path / "m.mz") == told


def test_many_lanes_and_escapes(tmp_path):
    params = {"w": RNG.laplace(size=(200, 700)).astype(np.float32)}
    both(tmp_path / "m.mz", mz.compress(params, mz.quantize(8, granularity="tensor")))


def test_the_example_on_the_page(tmp_path):
    hexes = re.search(r"writes\n\n```\n(.*?)\n```", PAGE, re.S)[1]
    path = tmp_path / "m.mz"
    path.write_bytes(bytes.fromhex(hexes))
    _, (ours,) = read(path)
    assert ours.tolist() == [[1, -2], [3, 0]]
    np.testing.assert_array_equal(mz.load(path).params["w"].unpack(), ours)
