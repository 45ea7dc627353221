"""Checkpoints in several files: read whole through their index, and refused whole."""

import json

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_trees import assert_same, values

from modelzip_jax import checkpoints
from modelzip_jax.checkpoints.names import unflatten
from modelzip_jax.errors import CheckpointError

FILES = {
    "model-00001-of-00002.safetensors": {"a.w": values("float32"), "a.w.absmax": values("float16", (2,))},
    "model-00002-of-00002.safetensors": {"b.w": values("int8", (4,)), "norm": values("float32", (0,))},
}
INDEX = "model.safetensors.index.json"


def sharded(folder, **changed):
    for file, tensors in FILES.items():
        safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
    weights = {name: file for file, tensors in FILES.items() for name in tensors}
    index = {"metadata": {"total_size": 99}, "weight_map": weights | changed}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize("path", [INDEX, ""])
def test_an_index_or_its_folder(tmp_path, path):
    sharded(tmp_path)
    contents = checkpoints.read_contents(tmp_path / path)
    expected = {name: array for tensors in FILES.values() for name, array in tensors.items()}
    assert_same(contents.tree, unflatten(expected, "."))
    assert contents.metadata == {"format": "pt"}


def test_a_folder_with_one_file(tmp_path):
    safetensors.numpy.save_file({"w": values("float32")}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert_same(checkpoints.read(tmp_path), {"w": values("float32")})


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"c": "model-00003-of-00003.safetensors"}, "not beside it: model-00003"),
        ({"c": "model-00001-of-00002.safetensors"}, "'c' is not in model-00001"),
        ({"b.w": "model-00001-of-00002.safetensors"}, "'b.w' is not in model-00001"),
        ({"c": "../secret.safetensors"}, "no .safetensors file beside it"),
        ({"c": "/etc/passwd"}, "no .safetensors file beside it"),
        ({"c": 3}, "no .safetensors file beside it"),
    ],
)
def test_an_index_that_lies(tmp_path, changed, part):
    sharded(tmp_path, **changed)
    assert part in refusal(tmp_path / INDEX)


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"weight_map": {}}', b"[" * 10**5, b""])
def test_an_index_that_is_none(tmp_path, content):
    (tmp_path / INDEX).write_bytes(content)
    refusal(tmp_path / INDEX)


def test_damaged_and_doubled_shards(tmp_path):
    sharded(tmp_path)
    first, second = (tmp_path / file for file in FILES)
    second.write_bytes(second.read_bytes()[:-1])
    assert second.name in refusal(tmp_path / INDEX)
    second.write_bytes(first.read_bytes())
    assert "'a.w' is in" in refusal(tmp_path / INDEX)


def test_an_index_is_not_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"write one file instead: model.safetensors"):
        checkpoints.write(tmp_path / INDEX, {"w": np.ones(2)})
