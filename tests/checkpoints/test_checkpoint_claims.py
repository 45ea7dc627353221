"""Checkpoints of a few bytes that claim gigabytes: refused before the memory is taken."""

import json
import tracemalloc
import zipfile

import msgpack
import numpy as np
import pytest

from modelzip_jax import checkpoints
from modelzip_jax.errors import CheckpointError


@pytest.mark.parametrize("header", ["-" * 60_000, "-" * 4000, "(" * 4000, "not " * 1000 + "1"])
def test_a_header_of_nested_signs(tmp_path, header):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        text = header.encode()
        archive.writestr("w.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4))
    with pytest.raises(CheckpointError, match="header"):
        checkpoints.read(path)


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\xc0", b"\xa0"], ids=["maps", "lists", "nils", "texts"])
def test_more_items_than_a_checkpoint_has(tmp_path, item):
    path = tmp_path / "x.msgpack"
    count = 2_000_000
    path.write_bytes(b"\x81\xa1a\xdd" + count.to_bytes(4, "big") + item * count)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="more than 293394 items in 2000008 bytes"):
            checkpoints.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


VALUES = [
    1, -1, 200, -200, 2**15, -(2**15), 2**31, -(2**31), 2**63, -(2**63), 0.5, True, None, "a" * 3, "a" * 40, "a" * 300,
    "a" * 70_000, b"a", b"a" * 300, b"a" * 70_000, [1] * 20, {str(i): i for i in range(20)},
    *(msgpack.ExtType(7, b"a" * n) for n in (1, 2, 4, 8, 16, 17, 300, 70_000)),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: f"{type(v).__name__}{len(str(v))}")
def test_every_item_is_skipped_as_a_whole(value):
    from modelzip_jax.checkpoints.msgpack_file import _width

    data, at = msgpack.packb(value), 0
    items = 1 + (len(value) if isinstance(value, list) else 2 * len(value) if isinstance(value, dict) else 0)
    for _ in range(items):
        assert at < len(data)
        at += _width(data, at)
    assert at == len(data)


@pytest.mark.parametrize("key", ["shape", "chunks"])
def test_an_array_that_its_files_cannot_hold(tmp_path, key):
    ocp = pytest.importorskip("orbax.checkpoint")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "ck", {"w": np.ones((4, 4), np.float32)})
    np.testing.assert_array_equal(checkpoints.read(tmp_path / "ck")["w"], np.ones((4, 4)))
    described = tmp_path / "ck" / "w" / ".zarray"
    told = json.loads(described.read_text())
    told[key] = [2**17, 2**17]
    described.write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="claim 68,719,476,736 bytes"):
        checkpoints.read(tmp_path / "ck")
