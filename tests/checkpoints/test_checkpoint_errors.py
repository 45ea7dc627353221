"""Every failure is one clear line that names the file; damage never gets further than that."""

import io
import json
import pickle
import random
import struct
import sys
import zipfile

import jax
import numpy as np
import pytest
from checkpoint_trees import FILES, values

from modelzip_jax import checkpoints
from modelzip_jax.errors import CheckpointError, MissingExtraError

TREE = {"a": {"w": values("float32"), "b": values("bfloat16", (3,))}, "c": values("int8", (2,))}


def message(call, *args):
    with pytest.raises(CheckpointError) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text
    assert str(args[0]) in text
    return text


@pytest.mark.parametrize("suffix", FILES)
def test_absent_empty_and_foreign_files(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    assert "no such file" in message(checkpoints.read, path)
    path.write_bytes(b"")
    assert "empty" in message(checkpoints.read, path)
    for content in (b"x", b"\x80", b"<html>not found</html>" * 9, pickle.dumps({"a": 1})):
        path.write_bytes(content)
        message(checkpoints.read, path)


def test_unknown_suffixes_list_the_known(tmp_path):
    (tmp_path / "m.h5").write_bytes(b"x")
    text = message(checkpoints.read, tmp_path / "m.h5")
    assert ".safetensors, .npz, .msgpack" in text
    (tmp_path / "m.pt").write_bytes(b"x")
    assert "never read" in message(checkpoints.read, tmp_path / "m.pt")
    assert "directory" in message(checkpoints.write, tmp_path / "m.h5", TREE)


class Bomb:
    def __reduce__(self):
        return (sys.exit, (3,))


def test_a_pickle_in_an_archive_is_never_loaded(tmp_path):
    np.savez(tmp_path / "m.npz", w=np.array([Bomb()], dtype=object))
    assert "pickle" in message(checkpoints.read, tmp_path / "m.npz")


def test_directories_that_are_no_checkpoints(tmp_path):
    assert "no Orbax checkpoint" in message(checkpoints.read, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "model.safetensors" in message(checkpoints.read, tmp_path)
    (tmp_path / "other.npz").write_bytes(b"x")
    assert "model.safetensors, other.npz" in message(checkpoints.read, tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "_METADATA").write_bytes(b"{}")
    message(checkpoints.read, tmp_path / "d")


def test_leaves_that_cannot_be_stored(tmp_path):
    for suffix in FILES:
        path = tmp_path / f"m{suffix}"
        assert "holds no arrays" in message(checkpoints.write, path, {"a": {}})
        assert "'k'" in message(checkpoints.write, path, {"k": np.array(["x"])})
        assert "k" in message(checkpoints.write, path, {"k": jax.random.key(0)})
    assert "int4" in message(checkpoints.write, tmp_path / "m.safetensors", {"k": values("int4", (2,))})
    assert "no elements" in message(checkpoints.write, tmp_path / "o", {"k": values("int8", (0,))})
    assert "single array" in message(checkpoints.write, tmp_path / "m.npz", values("int8"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("module", "suffix"), [("flax", ".msgpack"), ("orbax.checkpoint", "")])
def test_missing_packages_are_named(tmp_path, monkeypatch, module, suffix):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match="pip install"):
        checkpoints.write(tmp_path / f"m{suffix}", TREE)


def safetensors_bytes(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (struct.pack("<Q", 2**62) + b"{}", "announce"),
        (safetensors_bytes(b"{"), "JSON"),
        (safetensors_bytes(b"[" * 90_000), "JSON"),
        (safetensors_bytes(b"[]"), "object"),
        (safetensors_bytes(b'{"a":1,"a":2}'), "twice"),
        (safetensors_bytes({"a": 1}), "no dtype"),
        (safetensors_bytes({"a": entry([1], [0, 4], "F99")}, b"1234"), "F99"),
        (safetensors_bytes({"a": entry([-1], [0, 4])}, b"1234"), "shape"),
        (safetensors_bytes({"a": entry([True], [0, 4])}, b"1234"), "shape"),
        (safetensors_bytes({"a": entry([2**70], [0, 4])}, b"1234"), "shape"),
        (safetensors_bytes({"a": entry([1], [4, 0])}, b"1234"), "offsets"),
        (safetensors_bytes({"a": entry([1], [0, 2**40])}, b"1234"), "needs 4"),
        (safetensors_bytes({"a": entry([2**38], [0, 2**40])}, b"1234"), "cut short"),
        (safetensors_bytes({"a": entry([1], [4, 8])}, b"12345678"), "gap"),
        (safetensors_bytes({"a": entry([1], [0, 4])}, b"12345"), "after its end"),
        (
            safetensors_bytes({"a": entry([2], [0, 8]), "b": entry([1], [4, 8])}, b"12345678"),
            "overlap",
        ),
        (safetensors_bytes({"__metadata__": {"a": 1}, "a": entry([1], [0, 4])}, b"1234"), "no strings"),
        (safetensors_bytes({"__metadata__": ["a"], "a": entry([1], [0, 4])}, b"1234"), "no strings"),
        (safetensors_bytes({"__metadata__": {"format": "pt"}}), "no arrays"),
    ],
)
def test_lying_safetensors_headers(tmp_path, content, part):
    (tmp_path / "m.safetensors").write_bytes(content)
    assert part in message(checkpoints.read, tmp_path / "m.safetensors")


def npy(shape, data, descr="<f4"):
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + data


@pytest.mark.parametrize(
    ("members", "part"),
    [
        ({"a.npy": npy((2**40,), b"1234")}, "needs"),
        ({"a.npy": npy((-1,), b"1234")}, "invalid"),
        ({"a.npy": npy((1,), b"1234", "<U1")}, "dtype"),
        ({"a.npy": npy((1,), b"1234", [("x", "<f4")])}, "dtype"),
        ({"a.npy": b"\x93NUMPY\x09\x00"}, "version"),
        ({"a.npy": b"\x93NUMPY\x01\x00\xff\xff{"}, "cut short"),
        ({"a.txt": b"hello"}, "a.txt"),
        ({}, "no arrays"),
    ],
)
def test_lying_npz_members(tmp_path, members, part):
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert part in message(checkpoints.read, tmp_path / "m.npz")


def damaged(data, rng):
    """A truncation or a few flipped bits or altered bytes."""
    kind = rng.randrange(3)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    altered = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        position = rng.randrange(len(altered))
        flipped = altered[position] ^ 1 << rng.randrange(8)
        altered[position] = rng.randrange(256) if kind == 1 else flipped
    return bytes(altered)


def outcome(path):
    """The tree or the message of the refusal; any other exception passes."""
    try:
        return checkpoints.read(path), ""
    except CheckpointError as error:
        return None, str(error)


@pytest.mark.parametrize("suffix", FILES)
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    checkpoints.write(path, TREE)
    data = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(600):
        path.write_bytes(damaged(data, rng))
        tree, text = outcome(path)
        refused += tree is None
        assert tree is not None or (str(path) in text and "\n" not in text)
        leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes")]
        assert sum(leaf.nbytes for leaf in leaves) <= len(data)
    assert refused > 150


# Orbax leaves coroutines behind that nobody awaits when it meets damaged metadata.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_damaged_directories(tmp_path):
    checkpoints.write(tmp_path / "m", TREE)
    files = sorted(f for f in (tmp_path / "m").rglob("*") if f.is_file() and f.stat().st_size)
    rng = random.Random(0)
    for number in range(40):
        file = files[number % len(files)]
        data = file.read_bytes()
        file.write_bytes(damaged(data, rng))
        tree, text = outcome(tmp_path / "m")
        assert tree is not None or str(tmp_path) in text
        file.write_bytes(data)
