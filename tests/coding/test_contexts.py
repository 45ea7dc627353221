"""Codes by classes of rows and columns: the same codes, in fewer bytes where rows or columns are spread apart."""

import dataclasses
import struct

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_reader import read

import modelzip_jax as mz
from modelzip_jax.coding import contexts, reader, sparse, symbols, writer
from modelzip_jax.coding.class_choice import CLASSES, Classes, cheapest_classes
from modelzip_jax.coding.contexts import Classed, by_classes
from modelzip_jax.coding.joined import Joined
from modelzip_jax.errors import FormatError
from modelzip_jax.evaluation import report
from modelzip_jax.packed import Bits, Elementwise, PackedArray, packed_kind, static
from modelzip_jax.quantization.quantized import Quantized

RNG = np.random.default_rng(5)


def quantized(codes, bits, shape=None):
    step = np.float32([[0.5]])
    shape = np.shape(codes) if shape is None else shape
    return Quantized(Bits.pack(np.reshape(codes, -1), bits), step, None, 0, shape, "float32", "tensor", -1, 1)


def spread(shape, bits, rows, columns, seed=0):
    """Codes around the middle, as wide as their row and column ask for."""
    rng = np.random.default_rng(seed)
    wide = np.resize(rows, shape[0]).reshape(-1, *[1] * (len(shape) - 1)) * np.resize(columns, shape[-1])
    middle = 1 << bits - 1
    codes = np.rint(middle + wide * rng.normal(size=shape))
    return np.clip(codes, 0, 2 * middle - 1).astype(np.uint8)


def model(packed):
    base = mz.compress({"w": np.zeros(np.shape(packed.unpack()), np.float32)}, mz.identity())
    return dataclasses.replace(base, params={"w": packed})


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def version(path):
    return struct.unpack_from("<8sI", path.read_bytes())[1]


def entropy(codes):
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum())


class_lists = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30)


@st.composite
def classed_codes(draw):
    rows, columns = (np.unique(draw(class_lists), return_inverse=True)[1].astype(np.uint8) for _ in range(2))
    if not rows.any() and not columns.any():
        rows = np.append(rows, np.uint8(1))
    shape = int(rows.max()) + 1, int(columns.max()) + 1
    pairs = draw(st.lists(st.integers(0, 63), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    parts = np.unique(pairs, return_inverse=True)[1].reshape(shape)
    bits = draw(st.integers(2, 8))
    seed = draw(st.integers(0, 2**32 - 1))
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows.size, columns.size), np.uint8)
    return codes, bits, Classes(rows, columns, parts)


@settings(deadline=None, max_examples=150)
@given(classed_codes())
def test_any_classes_give_the_codes_back(drawn):
    codes, bits, found = drawn
    classed = Classed.of(codes, bits, found)
    back = symbols.rebuild(symbols.packed_spec(classed), iter(list(symbols.streams(classed)))).in_order()
    assert back.bits == bits
    np.testing.assert_array_equal(back.unpack_host().reshape(codes.shape), codes)


SHAPES = [
    (),
    (5000,),
    (90, 40),
    (1, 3000),
    (3000, 1),
    (0, 7),
    (7, 0),
    (3, 3, 40, 24),
    (64, 20, 3, 3),
    (2, 60, 40),
]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SHAPES),
    st.integers(1, 8),
    st.lists(st.sampled_from([0.0, 0.3, 1.0, 4.0, 30.0]), min_size=1, max_size=5),
    st.lists(st.sampled_from([0.1, 1.0, 8.0]), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_leaf_comes_back_and_is_no_larger(shape, bits, rows, columns, seed):
    codes = spread(shape, bits, rows, columns, seed) if shape else np.zeros((), np.uint8)
    packed = quantized(codes, bits)
    stored = by_classes(packed)
    same(sparse.in_memory(stored), packed)
    if isinstance(stored.codes, Classed):
        assert bits > 1
        assert len(shape) > 1
        with pytest.MonkeyPatch.context() as patched:
            classes = writer.file_sizes(model(packed))
            patched.setattr(sparse, "by_classes", lambda x: x)
            assert classes.total < writer.file_sizes(model(packed)).total


def test_two_kinds_of_rows_save_what_entropy_says(tmp_path, monkeypatch):
    codes = spread((300, 256), 6, [1.0, 7.0], [1.0])
    packed = model(quantized(codes, 6))
    classed = mz.save(tmp_path / "m.mz", packed).total
    assert version(tmp_path / "m.mz") == 5
    same(mz.load(tmp_path / "m.mz").params, packed.params)
    monkeypatch.setattr(sparse, "by_classes", lambda x: x)
    plain = mz.save(tmp_path / "m.mz", packed).total
    assert version(tmp_path / "m.mz") == 1
    saved = (entropy(codes) - entropy(codes[::2]) - entropy(codes[1::2]) - len(codes)) / 8
    # Tables, and what describes the parts, are some dozens of bytes.
    assert saved - 150 < plain - classed < saved + 20
    assert saved > 0.1 * plain


def test_rows_with_a_mean_of_their_own_are_a_class():
    codes = spread((128, 128), 6, [3.0], [1.0])
    codes[::3] += 10
    found = by_classes(quantized(codes, 6)).codes
    assert np.unique(found.row_class[::3]).size == 1
    assert not set(found.row_class[::3]) & set(found.row_class[1::3])
    assert found.column_class is None


def test_rows_and_columns_have_classes_and_alike_pairs_one_part():
    # Wide rows of narrow columns are as narrow rows of wide columns: four pairs, three kinds.
    codes = spread((200, 200), 8, [2.0, 8.0], [2.0, 8.0])
    found = cheapest_classes(codes)
    assert found.parts.shape == (2, 2)
    assert np.unique(found.parts).size == 3
    same(sparse.in_memory(by_classes(quantized(codes, 8))), quantized(codes, 8))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_that_are_alike_everywhere_are_left_alone(tmp_path, monkeypatch, bits):
    params = {"w": RNG.normal(size=(200, 300)).astype(np.float32), "e": np.ones((100, 100), np.float32)}
    packed = mz.compress(params, mz.quantize(bits, granularity="tensor"))
    mz.save(tmp_path / "m.mz", packed)
    assert version(tmp_path / "m.mz") == 1
    data = (tmp_path / "m.mz").read_bytes()
    monkeypatch.setattr(sparse, "by_classes", lambda x: x)
    mz.save(tmp_path / "m.mz", packed)
    assert (tmp_path / "m.mz").read_bytes() == data


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 3, 48, 32), 2), ((3, 3, 48, 32), 3), ((48, 32, 3, 3), 0), ((6, 40, 40), 1), ((6, 40, 40), 2)],
)
def test_convolutions_and_stacks_in_any_layout(shape, axis):
    along = np.resize([1, 9], shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    packed = quantized(np.clip(np.rint(32 + along * RNG.normal(size=shape)), 0, 63), 6)
    stored = by_classes(packed)
    assert isinstance(stored.codes, Classed)
    same(sparse.in_memory(stored), packed)


def weights(*shape):
    """Rows (of the last axis but one) of three scales."""
    scale = np.resize([0.2, 1.0, 3.0], shape[-2])[:, None]
    return (RNG.normal(size=shape) * scale).astype(np.float32)


TRANSFORMS = [
    mz.quantize(5, granularity="tensor"),
    mz.quantize(4, grid=mz.grids.nf4(), granularity="tensor"),
    mz.cluster(20),
    mz.chain(mz.cosines(16, axes=(1,)), mz.quantize(5, granularity="tensor")),
    mz.residual(mz.quantize(3, granularity="tensor"), mz.quantize(4, granularity="tensor")),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=["quantized", "levels", "clustered", "inside", "sum"])
def test_every_kind_that_has_a_code_a_value(tmp_path, transform):
    packed = mz.compress({"w": weights(160, 96)}, transform)
    assert "classed" in repr(symbols.packed_spec(sparse.stored(packed.params["w"])))
    mz.save(tmp_path / "m.mz", packed)
    same(mz.load(tmp_path / "m.mz").params, packed.params)


PAGE = {"quantized": 0, "levels": 1, "clustered": 2, "sum": 4}


@pytest.mark.parametrize("transform", [TRANSFORMS[i] for i in PAGE.values()], ids=list(PAGE))
def test_the_page_tells_all_that_a_reader_needs(tmp_path, transform):
    packed = mz.compress(
        {"a": weights(160, 96), "b": weights(3, 3, 24, 40), "c": weights(160, 96).T}, transform
    )
    mz.save(tmp_path / "m.mz", packed)
    assert version(tmp_path / "m.mz") == 5
    _, ours = read(tmp_path / "m.mz")
    for mine, theirs in zip(ours, packed.params.values(), strict=True):
        np.testing.assert_array_equal(mine, theirs.unpack())


def test_kept_codes_behind_a_mask_stay_in_order():
    transform = mz.chain(mz.prune(sparsity=0.3), mz.quantize(5, granularity="tensor"))
    packed = mz.compress({"w": weights(160, 96)}, transform).params["w"]
    assert "classed" not in repr(symbols.packed_spec(sparse.stored(packed)))


@packed_kind("test: wide integers")
class WideIntegers(PackedArray):
    codes: PackedArray
    low: int = static()

    @property
    def shape(self):
        return self.codes.shape


@packed_kind("test: scaled")
class Scaled(Elementwise):
    element_field = "integers"
    integers: PackedArray
    shape: tuple[int, ...] = static()

    def elements(self):
        return self.integers.codes.unpack()

    def assemble(self, elements):
        return elements.reshape(self.shape).astype(np.float32)


def test_codes_one_level_below_the_elements(tmp_path):
    codes = spread((100, 80), 5, [0.5, 5.0], [1.0])
    packed = Scaled(WideIntegers(Bits.pack(codes.reshape(-1), 5), -3), codes.shape)
    stored = sparse.stored(packed)
    assert isinstance(stored.integers.codes, Classed)
    same(sparse.in_memory(stored), packed)
    mz.save(tmp_path / "m.mz", model(packed))
    same(mz.load(tmp_path / "m.mz").params["w"], packed)


def test_one_tensor_of_a_file_decodes_its_chunks_only(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_SYMBOLS", 4000)
    params = {name: weights(160, 96) for name in "abcd"}
    packed = mz.compress(params, mz.quantize(5, granularity="tensor"))
    path = tmp_path / "m.mz"
    sizes = mz.save(path, packed)
    decoded, decode = [], reader.rans.decode
    monkeypatch.setattr(reader.rans, "decode", lambda *a: decoded.append(1) or decode(*a))
    same(mz.load_tensor(path, "c"), packed.params["c"])
    with reader.Archive(path) as archive:
        assert 0 < len(decoded) < len(archive.header.chunks) / 2
        assert all(spec[1][0] == "classed" for spec in archive.header.specs)
        found = archive.coded_bytes()
    assert sum(found) == pytest.approx(sizes.payload + sizes.tables + sizes.lanes, rel=0.02)
    rows = report.inspect(path).tensors
    assert [row.file_bytes for row in rows] == found
    assert rows[0].form == "int5 tensor"


def test_tied_leaves_are_stored_once(tmp_path):
    w = weights(160, 96)
    once = mz.save(tmp_path / "1.mz", mz.compress({"a": w}, TRANSFORMS[0])).total
    twice = mz.save(tmp_path / "2.mz", mz.compress({"a": w, "b": w.copy()}, TRANSFORMS[0])).total
    assert twice < once + 200
    np.testing.assert_array_equal(mz.unpack(mz.load(tmp_path / "2.mz"))["b"], read(tmp_path / "1.mz")[1][0])


def parts(*counts, bits=4):
    return Joined.of([Bits.pack(np.zeros(n, np.uint8), bits) for n in counts])


ROWS, COLUMNS = np.uint8([0, 1, 1]), np.uint8([0, 1, 0, 0])
FITS = Classed(parts(3, 7, 2), ROWS, COLUMNS, (0, 1, 1, 2))
WRONG = {
    "a code too few": {"codes": parts(3, 7, 1)},
    "other parts": {"codes": parts(7, 3, 2)},
    "one part": {"codes": parts(12)},
    "two parts": {"codes": parts(10, 2), "parts": (0, 0, 1, 1)},
    "a class more": {"codes": parts(3, 7, 2, 0), "row_class": np.uint8([0, 1, 2])},
    "bits of masks": {"codes": parts(3, 7, 2, bits=1)},
    "bits of two widths": {"codes": Joined(parts(3), parts(7, 2, bits=5))},
    "parts in parts": {"codes": Joined(parts(3, 7), parts(2))},
    "other arrays": {"codes": Joined(parts(3, 7), mz.Dense(np.zeros(2), (2,)))},
    "a row too few": {"row_class": ROWS[:2]},
    "a row too many": {"row_class": np.uint8([0, 1, 1, 1])},
    "rows of a class without parts": {"row_class": np.uint8([0, 1, 2])},
    "rows of class 255": {"row_class": np.uint8([0, 1, 255])},
    "rows of one class": {"row_class": np.uint8([0, 0, 0])},
    "rows that are no bytes": {"row_class": ROWS.astype(np.int32)},
    "rows in a matrix": {"row_class": ROWS.reshape(1, 3)},
    "no row": {"row_class": np.uint8([])},
    "no classes": {"row_class": None, "column_class": None},
    "no classes of rows": {"row_class": None},
    "a divisor that is none": {"row_class": None, "column_class": np.zeros(5, np.uint8)},
    "a column in another class": {"column_class": np.uint8([0, 1, 1, 0])},
    "a pair too few": {"parts": (0, 1, 1)},
    "a pair too many": {"parts": (0, 1, 1, 2, 2)},
    "a part that is not there": {"parts": (0, 1, 1, 3)},
    "a part below 0": {"parts": (0, 1, 1, -1)},
    "a part that is no integer": {"parts": (0, 1, 1, 2.0)},
    "a part that is a flag": {"parts": (0, True, True, 2)},
    "parts that are exchanged": {"parts": (0, 1, 2, 1)},
    "lists of parts": {"parts": ([0], 1, 1, 2)},
    "a number for parts": {"parts": 7},
    "no parts": {"parts": None},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(wrong):
    assert FITS.in_order().count == 12
    with pytest.raises(FormatError, match=r"classes|parts"):
        dataclasses.replace(FITS, **WRONG[wrong]).in_order()


def test_more_classes_than_a_file_may_have_are_refused():
    many = np.arange(CLASSES + 1, dtype=np.uint8)
    with pytest.raises(FormatError, match="classes"):
        Classed(parts(CLASSES + 1), many, np.uint8([0]), (0,) * (CLASSES + 1)).in_order()


def test_a_large_leaf_is_learned_from_a_sample(monkeypatch):
    from modelzip_jax.coding import class_choice

    codes = spread((700, 600), 5, [0.5, 3.0], [1.0, 1.0, 2.5])
    whole = cheapest_classes(codes)
    monkeypatch.setattr(class_choice, "_SAMPLE", 1 << 16)
    for seen in (codes, np.ascontiguousarray(codes.T)):
        found = cheapest_classes(seen)
        rows, columns = (found.rows, found.columns) if seen is codes else (found.columns, found.rows)
        for ours, theirs in ((rows, whole.rows), (columns, whole.columns)):
            np.testing.assert_array_equal(np.unique(ours), np.unique(theirs))
            assert np.unique(np.stack([ours, theirs]), axis=1).shape[1] == np.unique(ours).size
    assert contexts._height((700, 600)) == 700
