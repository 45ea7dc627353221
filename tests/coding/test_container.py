"""The container: whatever is saved is loaded, from whole files that never change their meaning."""

import dataclasses
import hashlib
import io
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzip_jax as mz
from modelzip_jax.coding import header as headers
from modelzip_jax.coding import reader, writer
from modelzip_jax.errors import FormatError, LeafError, PatternError, RecipeError, TreeError
from modelzip_jax.packed import is_packed

RNG = np.random.default_rng(3)
DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "int64", "uint64", "bool", "complex64", "int4"]
NOTHING = mz.only("params", mz.identity())


class Pair(NamedTuple):
    left: object
    right: object


def kernels(n, shape=(40, 24)):
    return {f"Dense_{i}": {"kernel": RNG.normal(size=shape).astype(np.float32)} for i in range(n)}


def file_of(tmp_path, params, transform, **save):
    variables = save.pop("variables", None)
    packed = mz.compress(params, transform)
    if variables is not None:
        packed = dataclasses.replace(packed, variables=variables)
    return tmp_path / "model.mz", packed, mz.save(tmp_path / "model.mz", packed, **save)


def bits(tree):
    return [
        (str(np.asarray(x).dtype), np.shape(x), np.ascontiguousarray(x).tobytes())
        for x in jax.tree.leaves(tree)
    ]


def array(dtype, shape, seed):
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, jnp.dtype(dtype).itemsize), np.uint8)
    if dtype in ("bool", "int4"):
        return (raw[..., 0] & 1).astype(jnp.dtype(dtype))
    return raw.view(jnp.dtype(dtype)).reshape(shape)


arrays = st.builds(
    array,
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.integers(0, 2**32 - 1),
)
trees = st.recursive(
    st.one_of(arrays, st.none()),
    lambda inner: st.one_of(
        st.dictionaries(st.text("aé/*", min_size=1, max_size=3), inner, max_size=3),
        st.dictionaries(st.integers(-5, 5), inner, max_size=3),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=40)
@given(trees, st.integers(0, 2**40))
def test_any_tree_of_any_dtype(tmp_path_factory, tree, step):
    path = tmp_path_factory.mktemp("any") / "m.mz"
    tree = {"params": np.float32([1]), "tree": tree}
    packed = mz.compress(tree, NOTHING)
    packed = mz.Packed(packed.params, {}, packed.transform, step)
    sizes = mz.save(path, dataclasses.replace(packed, variables=tree))
    loaded = mz.load(path)
    found = jax.tree.map(lambda p: p.array, loaded.params, is_leaf=is_packed)
    assert jax.tree.structure(found) == jax.tree.structure(tree) == jax.tree.structure(loaded.variables)
    assert bits(found) == bits(tree) == bits(loaded.variables)
    assert (loaded.step, loaded.transform) == (step, packed.transform)
    assert sizes.total == path.stat().st_size


@pytest.mark.parametrize(
    "transform",
    [
        mz.quantize(4),
        mz.quantize(3, granularity="group", group_size=7, symmetric=False),
        mz.chain(mz.prune(sparsity=0.8), mz.quantize(2)),
        mz.prune(sparsity=0.5),
    ],
    ids=["int4", "groups", "both", "pruned"],
)
def test_packed_arrays_come_back_as_they_were(tmp_path, transform):
    path, packed, sizes = file_of(tmp_path, kernels(2), transform)
    loaded = mz.load(path)
    assert jax.tree.structure(loaded) == jax.tree.structure(packed)
    assert bits(loaded) == bits(packed)
    assert bits(mz.unpack(loaded)) == bits(mz.unpack(packed))
    assert sum(v for k, v in vars(sizes).items() if k != "total") == sizes.total == path.stat().st_size


def test_other_nodes_become_dicts_and_like_brings_them_back(tmp_path):
    tree = {"a": Pair(RNG.normal(size=3).astype(np.float32), None), "b": [np.float32(1)]}
    path, packed, _ = file_of(tmp_path, tree, mz.identity())
    assert jax.tree.structure(mz.unpack(mz.load(path))) == jax.tree.structure(
        {"a": {"left": 0, "right": None}, "b": [0]}
    )
    for like in (tree, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))):
        back = mz.unpack(mz.load(path, like=like))
        assert jax.tree.structure(back) == jax.tree.structure(tree)
        assert bits(back) == bits(mz.unpack(packed))


def test_nnx_state(tmp_path):
    state = nnx.state(nnx.Linear(8, 4, rngs=nnx.Rngs(0)), nnx.Param)
    path, packed, _ = file_of(tmp_path, state, mz.only("kernel", mz.quantize(8)))
    back = mz.unpack(mz.load(path, like=state))
    assert isinstance(back, nnx.State)
    assert bits(back) == bits(mz.unpack(packed))


@pytest.mark.parametrize(
    ("like", "what"),
    [
        ({"w": np.zeros((3, 2))}, "shape"),
        ({"v": np.zeros((2, 3))}, "lack w; they have v too many"),
        ({"w": np.zeros((2, 3)), "v": 0}, "have v too many"),
        ({}, "lack w"),
        ({"w": np.zeros((2, 3)), "a/b": 0, "a": {"b": 0}}, "several leaves"),
    ],
)
def test_a_wrong_like(tmp_path, like, what):
    path, _, _ = file_of(tmp_path, {"w": np.ones((2, 3), np.float32)}, mz.identity())
    with pytest.raises(TreeError, match=what):
        mz.load(path, like=like)


def test_variables_and_what_they_may_not_be(tmp_path):
    stats = {"mean": np.arange(3.0), "count": np.int64(2) ** 40, "python": 7}
    path, packed, _ = file_of(tmp_path, kernels(1), mz.quantize(4), variables=stats)
    loaded = mz.load(path).variables
    assert loaded["count"] == 2**40
    assert loaded["mean"].dtype == np.float64
    mz.save(path, mz.load(path))
    assert bits(mz.load(path).variables) == bits(loaded)
    before = path.read_bytes()
    with pytest.raises(LeafError, match="'f'"):
        mz.save(path, dataclasses.replace(packed, variables={"f": print}))
    assert path.read_bytes() == before


def test_keys_that_a_file_cannot_name(tmp_path):
    for key in (2.5, True, 2**64):
        with pytest.raises(TreeError, match="strings and integers"):
            file_of(tmp_path, {"w": np.ones(2, np.float32)}, mz.identity(), variables={key: np.ones(1)})


def test_recipe_with_a_function(tmp_path):
    transform = mz.prune(sparsity=lambda step: 0.5)
    path, packed, _ = file_of(tmp_path, kernels(1), transform)
    loaded = mz.load(path)
    assert bits(mz.unpack(loaded)) == bits(mz.unpack(packed))
    with pytest.raises(RecipeError, match="sparsity"):
        mz.resume(loaded)


def test_load_tensor_decodes_only_its_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_SYMBOLS", 1000)
    path, packed, _ = file_of(tmp_path, kernels(6), mz.only("**/kernel", mz.quantize(4)))
    chunks = []
    decode = reader.rans.decode
    monkeypatch.setattr(reader.rans, "decode", lambda *a: chunks.append(1) or decode(*a))
    one = mz.load_tensor(path, "Dense_3/kernel")
    some = len(chunks)
    assert bits(one) == bits(mz.load(path).params["Dense_3"]["kernel"])
    assert bits(one) == bits(packed.params["Dense_3"]["kernel"])
    assert 0 < some <= 3 < len(chunks) - some
    for name in ("Dense_9/kernel", "**/kernel", "*"):
        with pytest.raises(PatternError):
            mz.load_tensor(path, name)


def test_many_small_chunks(tmp_path, monkeypatch):
    params = {
        **kernels(5),
        "raw": RNG.integers(0, 2**32, 700, np.uint32),
        "empty": np.zeros((0, 2), np.float32),
    }
    transform = mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.5), mz.quantize(8, granularity="tensor")))
    path, packed, _ = file_of(tmp_path, params, transform)
    for name, size in (("MAX_CHUNK", 300), ("MAX_SYMBOLS", 500), ("MAX_PIECES", 2)):
        monkeypatch.setattr(writer, name, size)
        monkeypatch.setattr(reader, name, size, raising=False)
    sizes = mz.save(path, packed)
    with reader.Archive(path) as archive:
        assert len(archive.header.chunks) > 5
    assert bits(mz.load(path)) == bits(packed)
    assert sizes.total == path.stat().st_size


def test_what_the_writer_packs_into_a_chunk_the_reader_allows():
    for count in [*range(1, 200), *(1 << b for b in range(8, 24)), *(3 << b for b in range(8, 22))]:
        for symbols in (count, count * 511 + 510):
            symbols = min(symbols, writer.MAX_SYMBOLS)
            assert symbols <= headers.MAX_LANE * writer.rans.choose_lanes(0, symbols)


def test_a_failure_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
    path, packed, _ = file_of(tmp_path, kernels(1), mz.quantize(4))
    before = path.read_bytes()

    def fail(*_):
        yield b"some"
        raise OSError("disk full")

    monkeypatch.setattr(writer, "_raw_chunks", fail)
    with pytest.raises(OSError, match="disk full"):
        mz.save(path, packed)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.mz"]


def test_foreign_files(tmp_path):
    path = tmp_path / "x.mz"
    for content, what in [
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "not a .mz file"),
        (b"", "it is empty"),
        (b"hello world, this is a text", "not a .mz file"),
        (headers.MAGIC[:5], "truncated at byte 5"),
        (headers.PRELUDE.pack(headers.MAGIC, 7, 0, 0) + bytes(99), "version 7.*update"),
        (headers.PRELUDE.pack(headers.MAGIC, 1, 2**31, 0) + bytes(99), "truncated: the header ends at byte"),
    ]:
        path.write_bytes(content)
        with pytest.raises(FormatError, match=what) as error:
            mz.load(path)
        assert str(path) in str(error.value)
    with pytest.raises(OSError, match="director"):
        mz.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        mz.load(tmp_path / "none.mz")


def edited(path, monkeypatch, old, new):
    """The file with a text in its header replaced, checksum and all."""
    with monkeypatch.context() as m:
        m.setattr(headers, "_deflate", lambda raw: deflate(raw.replace(old, new)))
        mz.save(path, mz.load(path))


deflate = headers._deflate


def test_unknown_kinds_and_transforms(tmp_path, monkeypatch):
    path, _, _ = file_of(tmp_path, kernels(1), mz.quantize(4))
    before = bits(mz.unpack(mz.load(path)))
    edited(path, monkeypatch, b"Quantize", b"Squeezed")
    loaded = mz.load(path)  # the weights need no recipe; going on with training does
    assert bits(mz.unpack(loaded)) == before
    with pytest.raises(RecipeError, match=r"'Squeezed'.*import"):
        mz.resume(loaded)
    mz.load_tensor(path, "Dense_0/kernel")
    mz.save(tmp_path / "again.mz", loaded)  # which records the class that it does not know
    assert (tmp_path / "again.mz").read_bytes() == path.read_bytes()
    path, _, _ = file_of(tmp_path, kernels(1), mz.quantize(4))
    edited(path, monkeypatch, b"quantized", b"squeezing")
    with pytest.raises(FormatError, match=r"'squeezing'; import.*dense"):
        mz.load(path)


def test_smaller_means_smaller(tmp_path):
    params = kernels(1, (64, 48))
    sizes = [file_of(tmp_path, params, mz.quantize(b))[2].total for b in range(2, 9)]
    assert sizes == sorted(sizes)
    chains = [mz.chain(mz.prune(sparsity=s), mz.quantize(4)) for s in (0.3, 0.5, 0.7, 0.9, 0.99)]
    sizes = [file_of(tmp_path, params, chain)[2].total for chain in chains]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("count", [1, 4, 20])
def test_headers_stay_small(tmp_path, count):
    # With the axis given: "auto" in a recipe takes four bytes more, once a file.
    four = mz.quantize(4, axis=-1)
    for transform in (four, mz.chain(mz.prune(sparsity=0.8), four)):
        _, _, sizes = file_of(tmp_path, kernels(count, (16, 16)), mz.only("**/kernel", transform))
        assert sizes.fixed + sizes.tensors <= 64 + 24 * count


def test_the_format_does_not_change_silently(tmp_path):
    """Pins every byte but the deflated ones, which another zlib may choose otherwise."""
    weights = (np.arange(-200, 200, dtype=np.float32) ** 3 / 2**20).reshape(20, 20)
    packed = mz.compress({"b": weights[0], "w": weights}, mz.identity())
    packed = mz.Packed(
        {**packed.params, **mz.compress({"q": weights}, mz.quantize(3, axis=-1)).params}, {}, mz.identity(), 5
    )
    path = tmp_path / "golden.mz"
    mz.save(path, packed)
    data = path.read_bytes()
    mz.save(path, packed)
    assert path.read_bytes() == data
    header, start = headers.Header.read(io.BytesIO(data), len(data))
    stored = headers.PRELUDE.unpack_from(data)[2]
    digest = hashlib.sha256(data[headers.PRELUDE.size + stored : start - headers.CHECKSUM] + data[start:])
    digest.update(repr((header.outline, header.specs, header.lanes, header.chunks, header.recipe)).encode())
    digest.update(headers.DICTIONARY)
    assert digest.hexdigest()[:16] == "00892e18ec776a22"


def test_x64_mode_changes_nothing(tmp_path):
    params = {**kernels(1), "wide": RNG.normal(size=5), "count": np.arange(4) << 40}
    jax.config.update("jax_enable_x64", True)
    try:
        params["latent"] = RNG.normal(size=(20, 30))
        chosen = mz.chain(mz.prune(sparsity=0.5), mz.quantize(4))
        path, _, _ = file_of(tmp_path, params, mz.only(("**/kernel", "latent"), chosen))
    finally:
        jax.config.update("jax_enable_x64", False)
    narrow = mz.load(path)
    data = path.read_bytes()
    jax.config.update("jax_enable_x64", True)
    try:
        wide = mz.load(path)
        mz.save(path, wide)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert bits(narrow) == bits(wide)
    assert path.read_bytes() == data


def test_metadata_travel_along_and_cost_a_file_without_them_nothing(tmp_path):
    path, packed, _ = file_of(tmp_path, kernels(1), mz.quantize(4))
    without = path.read_bytes()
    told = {"format": "pt", "order": [2, 0, 1], "deep": {"none": None, "bytes": b"x", "half": 0.5}}
    mz.save(path, packed, metadata=told)
    assert path.read_bytes()[8] == 3
    loaded = mz.load(path)
    assert loaded.metadata == told
    assert bits(mz.unpack(loaded)) == bits(mz.unpack(packed))
    jax.jit(mz.unpack)(loaded)  # metadata are a part of the structure, and hashable
    mz.save(tmp_path / "again.mz", loaded)
    assert (tmp_path / "again.mz").read_bytes() == path.read_bytes()
    mz.save(path, loaded, metadata={})
    assert path.read_bytes() == without
    assert mz.load(path).metadata == {}


@pytest.mark.parametrize(
    "wrong", [{1: "x"}, {"x": {2: 1}}, {"x": [object()]}, {"x": np.ones(2)}, {"x": 2**70}]
)
def test_metadata_that_a_file_cannot_hold(tmp_path, wrong):
    path, packed, _ = file_of(tmp_path, kernels(1), mz.quantize(4))
    before = path.read_bytes()
    with pytest.raises(FormatError, match="metadata"):
        mz.save(path, packed, metadata=wrong)
    assert path.read_bytes() == before


@pytest.mark.parametrize("wrong", [None, [], "x", 3, {1: 2}, {"a": {1: 2}}, "missing"])
def test_metadata_that_are_none_are_refused(tmp_path, monkeypatch, wrong):
    path, packed, _ = file_of(tmp_path, kernels(1), mz.quantize(4))

    def packb(parts):
        return pack(parts[:8] if wrong == "missing" else [*parts[:8], wrong])

    pack = headers.msgpack.packb
    with monkeypatch.context() as m:
        m.setattr(
            headers.msgpack, "packb", lambda x: packb(x) if len(x) == 9 and x[0] is not None else pack(x)
        )
        mz.save(path, packed, metadata={"a": "b"})
    with pytest.raises(FormatError, match=r"the header \(bytes"):
        mz.load(path)


def test_boxes_have_one_name_on_both_sides(tmp_path):
    box = nn.Partitioned(jnp.ones((4, 6)), ("in", "out"))
    params = {
        "d": {"kernel": box, "bias": jnp.zeros(6)},
        "value": jnp.ones(3),
        "frozen": FrozenDict(value=1.5),
    }
    path, packed, _ = file_of(tmp_path, params, mz.only("**/kernel", mz.quantize(4)))
    with reader.Archive(path) as archive:
        named = [name.removeprefix("params/") for name in archive.names]
    assert named == [name for name, _ in mz.tree.named_leaves(params)]
    back = mz.unpack(mz.load(path, like=params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert bits(back) == bits(mz.unpack(packed))
    mz.resume(mz.load(path))  # its pattern finds the kernel, which is no box any more
    assert bits(mz.load_tensor(path, "d/kernel")) == bits(packed.params["d"]["kernel"])


def test_writing_and_reading_tell_how_far_they_are(tmp_path):
    params = {**kernels(3), "raw": RNG.integers(0, 2**32, 700, np.uint32), "z": np.zeros((0, 2), np.float32)}
    packed = mz.compress(params, mz.only("**/kernel", mz.quantize(4)), variables={"v": np.ones(3)})
    told = []
    mz.save(tmp_path / "m.mz", packed, progress=lambda *x: told.append(x))
    assert sum(size for _, size in told) == packed.nbytes + 24
    assert {name for name, _ in told} == {
        *(f"params/Dense_{i}/kernel" for i in range(3)), "params/raw", "params/z", "variables/v",
    }  # fmt: skip
    read = []
    mz.load(tmp_path / "m.mz", progress=lambda *x: read.append(x))
    assert [name for name, _ in read] == [name for name, _ in told[:6]]
    assert 0 < sum(size for _, size in read) <= (tmp_path / "m.mz").stat().st_size
