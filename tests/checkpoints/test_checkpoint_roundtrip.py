"""What is written is read back: dtypes, shapes, names, nesting."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_trees import FILES, assert_same, values
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip_jax import checkpoints
from modelzip_jax.checkpoints import msgpack_file
from modelzip_jax.checkpoints.arrays import DTYPES, EXTENSION_DTYPES
from modelzip_jax.checkpoints.names import flatten, unflatten
from modelzip_jax.checkpoints.tensors_file import CODE_OF
from modelzip_jax.errors import CheckpointError

ALL = [*FILES, ""]


def storable(suffix):
    if suffix == ".safetensors":
        return list(CODE_OF)
    if suffix == "":
        names = "bool int8 int32 uint8 uint16 float16 float32 bfloat16 float8_e4m3fn"
        return [DTYPES[name] for name in names.split()]
    return list(DTYPES.values())


@pytest.mark.parametrize("suffix", ALL)
def test_every_dtype(tmp_path, suffix):
    tree = {dtype.name: values(dtype) for dtype in storable(suffix)}
    checkpoints.write(tmp_path / f"m{suffix}", tree)
    assert_same(checkpoints.read(tmp_path / f"m{suffix}"), tree)


@pytest.mark.parametrize("suffix", FILES)
def test_scalars_and_empty_arrays(tmp_path, suffix):
    tree = {
        "scalar": np.float32(2.5).reshape(()),
        "half": values(ml_dtypes.bfloat16, ()),
        "none": values("float32", (0, 3)),
        "many": values("int8", (2, 0, 4)),
        "one": values("float16", (1,)),
    }
    checkpoints.write(tmp_path / f"m{suffix}", tree)
    assert_same(checkpoints.read(tmp_path / f"m{suffix}"), tree)


@pytest.mark.parametrize("suffix", FILES)
def test_buffers_are_aligned_writable_and_shared_with_jax(tmp_path, suffix):
    tree = {"a": values("float32", (7,)), "b": values("bfloat16", (33, 3)), "c": values("int8")}
    checkpoints.write(tmp_path / f"m{suffix}", tree)
    for leaf in jax.tree.leaves(checkpoints.read(tmp_path / f"m{suffix}")):
        assert leaf.ctypes.data % 64 == 0
        assert leaf.flags.writeable
        assert leaf.flags.c_contiguous


@pytest.mark.parametrize("suffix", FILES)
def test_device_arrays_and_odd_layouts(tmp_path, suffix):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    tree = {
        "jax": jnp.ones((2, 3), jnp.bfloat16),
        "transposed": base.T,
        "strided": base[::2, ::3],
        "big_endian": base.astype(">f4"),
        "fortran": np.asfortranarray(base),
    }
    checkpoints.write(tmp_path / f"m{suffix}", tree)
    assert_same(checkpoints.read(tmp_path / f"m{suffix}"), tree | {"big_endian": base.astype("<f4")})


@pytest.mark.parametrize("suffix", FILES)
def test_sequences_become_index_segments(tmp_path, suffix):
    x, y, z = values("float32"), values("int8"), values("float16")
    checkpoints.write(tmp_path / f"m{suffix}", {"layers": [{"w": x}, (y, z)]})
    expected = {"layers": {"0": {"w": x}, "1": {"0": y, "1": z}}}
    assert_same(checkpoints.read(tmp_path / f"m{suffix}"), expected)


def test_orbax_keeps_lists(tmp_path):
    x, y = values("float32"), values("bfloat16")
    checkpoints.write(tmp_path / "m", {"layers": [{"w": x}, (y,)], "step": np.int32(3).reshape(())})
    expected = {"layers": [{"w": x}, [y]], "step": np.int32(3).reshape(())}
    assert_same(checkpoints.read(tmp_path / "m"), expected)


def test_same_weights_give_the_same_bytes(tmp_path):
    tree = {"b": values("float32"), "a": values("bfloat16")}
    for suffix in FILES:
        checkpoints.write(tmp_path / f"1{suffix}", tree)
        checkpoints.write(tmp_path / f"2{suffix}", tree)
        assert (tmp_path / f"1{suffix}").read_bytes() == (tmp_path / f"2{suffix}").read_bytes()


def test_large_arrays_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(msgpack_file, "MAX_CHUNK", 64)
    tree = {
        "big": values("float32", (9, 11)),
        "deep": {"half": values("bfloat16", (70,)), "small": values("int8", (3,))},
        "exact": values("float32", (16,)),
    }
    checkpoints.write(tmp_path / "m.msgpack", tree)
    assert b"__msgpack_chunked_array__" in (tmp_path / "m.msgpack").read_bytes()
    assert_same(checkpoints.read(tmp_path / "m.msgpack"), tree)


segments = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="./\\\x00@"), max_size=8)
trees = st.dictionaries(segments, st.integers(), min_size=1, max_size=4)
trees = st.dictionaries(segments, st.one_of(st.integers(), trees), min_size=1, max_size=4)


@given(trees)
def test_names_split_and_join(tree):
    assert unflatten(flatten(tree, "/"), "/") == tree


@pytest.mark.parametrize("suffix", FILES)
@settings(max_examples=25, deadline=None)
@given(tree=trees)
def test_any_name_survives_every_file(tmp_path_factory, suffix, tree):
    path = tmp_path_factory.mktemp("names") / f"m{suffix}"
    arrays = jax.tree.map(lambda n: np.full(2, n % 100, np.int8), tree)
    checkpoints.write(path, arrays)
    assert_same(checkpoints.read(path), arrays)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_flat_dicts_keep_their_names(tmp_path, suffix):
    separator = "." if suffix == ".safetensors" else "/"
    name = separator.join(["encoder", "0", "weight"])
    checkpoints.write(tmp_path / f"m{suffix}", {name: values("int8")})
    expected = {"encoder": {"0": {"weight": values("int8")}}}
    assert_same(checkpoints.read(tmp_path / f"m{suffix}"), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_clashing_names_are_refused(tmp_path, suffix):
    with pytest.raises(CheckpointError, match=r"a\.b"):
        checkpoints.write(tmp_path / f"m{suffix}", {"a.b": values("int8"), "a": {"b": values("int8")}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ALL)
def test_names_that_begin_others_survive_every_format(tmp_path, suffix):
    separator = "/" if suffix == ".npz" else "."
    names = ["l.weight", "l.weight.absmax", "l.weight.quant.map", "l.bias", "m", "m.w", "n.o.p", "n.o.p.q"]
    flat = {name.replace(".", separator): np.full(3, i, np.int8) for i, name in enumerate(names)}
    tree = unflatten(flat, separator)
    checkpoints.write(tmp_path / f"m{suffix}", tree)
    assert_same(checkpoints.read(tmp_path / f"m{suffix}"), tree)
    assert flatten(tree, separator) == flat


@given(st.dictionaries(st.text("ab.", max_size=6), st.integers(), min_size=1, max_size=12))
def test_any_flat_names_can_be_nested(flat):
    assert flatten(unflatten(flat, "."), ".") == flat


def test_names_that_a_format_reserves_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="dtype mark"):
        checkpoints.write(tmp_path / "m.npz", {"a@bfloat16": values("uint16")})
    with pytest.raises(CheckpointError, match="reserved"):
        checkpoints.write(tmp_path / "m.safetensors", {"__metadata__": values("uint16")})


@pytest.mark.parametrize("name", sorted(EXTENSION_DTYPES))
def test_npz_marks_what_numpy_cannot_name(tmp_path, name):
    checkpoints.write(tmp_path / "m.npz", {"a": {"w": values(DTYPES[name])}})
    with np.load(tmp_path / "m.npz") as archive:
        assert archive.files == [f"a/w@{name}"]
        assert archive[f"a/w@{name}"].dtype.kind == "u"


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_order_and_metadata_of_safetensors(tmp_path):
    tensors = {f"layer.{i}.w": np.full(i + 1, i, f) for i, f in ((10, "f4"), (9, "f2"), (2, "i1"), (0, "f8"))}
    tree = unflatten(tensors, ".")
    order = [list(flatten(tree, ".")).index(name) for name in tensors]
    checkpoints.write(tmp_path / "m.safetensors", tree, order=order, metadata={"format": "pt", "by": "me"})
    told = header(tmp_path / "m.safetensors")
    assert told.pop("__metadata__") == {"format": "pt", "by": "me"}
    assert list(told) == list(tensors)
    for name, array in tensors.items():  # aligned, though the order is not by item size
        assert told[name]["data_offsets"][0] % array.itemsize == 0
    contents = checkpoints.read_contents(tmp_path / "m.safetensors")
    assert contents.order() == order
    assert contents.metadata == {"format": "pt", "by": "me"}
    assert_same(contents.tree, tree)
    checkpoints.write(tmp_path / "m.npz", tree, order=order)
    assert checkpoints.read_contents(tmp_path / "m.npz").order() == order


def test_an_order_that_is_none_is_passed_over(tmp_path):
    tree = {"b": values("float32"), "a": values("float32")}
    checkpoints.write(tmp_path / "a.npz", tree)
    for order in ([0], [0, 0], [0, 2], []):
        checkpoints.write(tmp_path / "b.npz", tree, order=order)
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
