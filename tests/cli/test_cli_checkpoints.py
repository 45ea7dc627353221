"""Checkpoints as people have them go through the command and come back."""

import json

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
import safetensors.numpy
from command import run
from flax import linen, serialization
from flax.training.train_state import TrainState

import modelzip_jax as mz
from modelzip_jax import checkpoints

RNG = np.random.default_rng(0)


def weights(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def there_and_back(monkeypatch, capsys, source, target, *options):
    code, out, err = run(
        monkeypatch, capsys, "compress", source, source.parent / "m.mz", "-f", "--json", *options
    )
    assert code == 0, err
    code, _, err = run(monkeypatch, capsys, "decompress", source.parent / "m.mz", target, "--json")
    assert code == 0, err
    return json.loads(out)


def test_order_and_metadata_of_safetensors_come_back(monkeypatch, capsys, tmp_path):
    tensors = {f"layers.{i}.w": weights(8, 8) for i in range(12)}  # in numeric order, not in that of text
    tree = checkpoints.names.unflatten(tensors, ".")
    order = [list(checkpoints.names.flatten(tree, ".")).index(name) for name in tensors]
    metadata = {"format": "pt", "licence": "Ä"}
    checkpoints.write(tmp_path / "a.safetensors", tree, order=order, metadata=metadata)
    there_and_back(monkeypatch, capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert list(header(tmp_path / "b.safetensors")) == list(header(tmp_path / "a.safetensors"))
    assert header(tmp_path / "b.safetensors")["__metadata__"] == metadata
    _, out, _ = run(monkeypatch, capsys, "inspect", tmp_path / "m.mz")
    assert "'format': 'pt'" in out
    code, _, err = run(monkeypatch, capsys, "decompress", tmp_path / "m.mz", tmp_path / "c.npz")
    assert code == 0
    assert err == "note: the metadata (format, licence) have no place in c.npz\n"


def test_a_checkpoint_in_the_usual_order_gives_the_file_it_always_gave(monkeypatch, capsys, tmp_path):
    params = {"b": weights(8, 8), "a": np.ones(3, np.float16)}
    checkpoints.write(tmp_path / "a.safetensors", params)
    there_and_back(monkeypatch, capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    mz.save(tmp_path / "n.mz", mz.compress(params, mz.smallest()))
    assert (tmp_path / "m.mz").read_bytes() == (tmp_path / "n.mz").read_bytes()
    there_and_back(monkeypatch, capsys, tmp_path / "a.safetensors", tmp_path / "b.npz", "--bits", 6)
    assert (tmp_path / "m.mz").read_bytes()[8] == 1
    zipper = mz.only(("**",), mz.chain(mz.quantize(6)), min_ndim=2, floating=True)
    mz.save(tmp_path / "n.mz", mz.compress(params, zipper))
    assert (tmp_path / "m.mz").read_bytes() == (tmp_path / "n.mz").read_bytes()


def test_metadata_that_somebody_else_wrote_are_passed_over(monkeypatch, capsys, tmp_path):
    packed = mz.compress({"a": weights(4, 4), "b": weights(2)}, mz.identity())
    for told in (3, {"order": [5, 5], "metadata": {"a": 1}}, {"order": "x", "metadata": []}):
        mz.save(tmp_path / "m.mz", packed, metadata={"checkpoint": told})
        code, _, err = run(
            monkeypatch, capsys, "decompress", tmp_path / "m.mz", tmp_path / "b.safetensors", "-f"
        )
        assert code == 0, err
        assert set(header(tmp_path / "b.safetensors")) == {"a", "b"}


@pytest.mark.parametrize("options", [("--bits", 0), ("--bits", 6), ()])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".msgpack", ""])
def test_buffers_that_are_not_finite_are_kept(monkeypatch, capsys, tmp_path, options, suffix):
    mask = np.triu(np.full((8, 8), -np.inf, np.float32), 1)
    lowest = np.tril(np.full((4, 4), np.finfo(np.float32).min, np.float32))
    params = {
        "w": weights(8, 8),
        "mask": mask,
        "nan": np.full((2, 2), np.nan, ml_dtypes.bfloat16),
        "low": lowest,
    }
    checkpoints.write(tmp_path / f"a{suffix}", params)
    bits = not options or options[1]
    report = there_and_back(monkeypatch, capsys, tmp_path / f"a{suffix}", tmp_path / f"b{suffix}", *options)
    kept = ["3 tensors (low, mask, nan) of NaN, infinite or largest values kept lossless"]
    assert report["notes"] == (kept if bits else [])
    back = checkpoints.read(tmp_path / f"b{suffix}")
    assert back["mask"].tobytes() == mask.tobytes()
    assert back["low"].tobytes() == lowest.tobytes()
    assert back["nan"].tobytes() == params["nan"].tobytes()
    assert (back["w"].tobytes() == params["w"].tobytes()) == (bits == 0)
    mz.resume(mz.load(tmp_path / "m.mz"))


def test_what_the_user_names_must_be_finite(monkeypatch, capsys, tmp_path):
    checkpoints.write(tmp_path / "a.npz", {"w": weights(8, 8), "mask": np.full((8, 8), -np.inf, np.float32)})
    code, _, err = run(
        monkeypatch, capsys, "compress", tmp_path / "a.npz", tmp_path / "m.mz", "--only", "mask"
    )
    assert code == 2
    assert "'mask'" in err


def test_it_says_what_becomes_of_float64(monkeypatch, capsys, tmp_path):
    params = {"w": RNG.normal(size=(8, 8)), "steps": RNG.normal(size=8), "f": weights(4, 4)}
    np.savez(tmp_path / "a.npz", **params)
    report = there_and_back(monkeypatch, capsys, tmp_path / "a.npz", tmp_path / "b.npz")
    assert report["notes"] == [
        "1 tensor (w) of float64 computed in float32, which they come back as",
        "1 tensor (steps) of float64 stored as they are; JAX computes with them in float32",
    ]
    back = checkpoints.read(tmp_path / "b.npz")
    assert back["w"].dtype == np.float32
    np.testing.assert_array_equal(back["steps"], params["steps"])
    report = there_and_back(monkeypatch, capsys, tmp_path / "a.npz", tmp_path / "c.npz", "--bits", 0)
    assert report["notes"] == [
        "2 tensors (steps, w) of float64 stored as they are; JAX computes with them in float32"
    ]
    np.testing.assert_array_equal(checkpoints.read(tmp_path / "c.npz")["w"], params["w"])


def test_names_that_begin_others(monkeypatch, capsys, tmp_path):
    tensors = {"l.weight": weights(4, 4), "l.weight.absmax": weights(3), "l.bias": weights(4)}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    there_and_back(monkeypatch, capsys, tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    back = safetensors.numpy.load_file(tmp_path / "b.safetensors")
    assert back.keys() == tensors.keys()
    np.testing.assert_array_equal(back["l.weight.absmax"], tensors["l.weight.absmax"])


def test_a_train_state(monkeypatch, capsys, tmp_path):
    params = {"kernel": weights(16, 8), "bias": weights(8)}
    state = TrainState.create(apply_fn=linen.Dense(8).apply, params=params, tx=optax.adam(1e-3))
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(state))
    report = there_and_back(monkeypatch, capsys, tmp_path / "a.msgpack", tmp_path / "b.npz")
    assert report["notes"] == ["'params' is compressed; left out: step, opt_state"]
    assert checkpoints.read(tmp_path / "b.npz").keys() == params.keys()
    assert jax.tree.structure(mz.load(tmp_path / "m.mz", like=params).params) is not None
    there_and_back(monkeypatch, capsys, tmp_path / "a.msgpack", tmp_path / "c.npz", "--key", "params")
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "c.npz").read_bytes()


def test_batch_statistics_of_a_train_state_travel_along(monkeypatch, capsys, tmp_path):
    stats = {"mean": weights(8)}
    tree = {
        "params": {"kernel": weights(16, 8)},
        "batch_stats": stats,
        "opt_state": {"mu": weights(3)},
        "step": 3,
    }
    checkpoints.write(tmp_path / "a.msgpack", tree)
    there_and_back(monkeypatch, capsys, tmp_path / "a.msgpack", tmp_path / "b.msgpack")
    back = checkpoints.read(tmp_path / "b.msgpack")
    assert back.keys() == {"params", "batch_stats"}
    np.testing.assert_array_equal(back["batch_stats"]["mean"], stats["mean"])
    np.testing.assert_array_equal(mz.load(tmp_path / "m.mz").variables["batch_stats"]["mean"], stats["mean"])


def test_patterns_are_suggested(monkeypatch, capsys, tmp_path):
    checkpoints.write(tmp_path / "a.npz", {"encoder": {"self_attention": {"kernel": weights(8, 8)}}})
    for pattern, meant in [
        ("**attention**", "**/*attention*/**"),
        ("kernel", "**/kernel"),
        ("attention", "**/*attention*/**"),
        ("encoder.self_attention", "encoder/self_attention/**"),
        ("encoder/self_atention/kernel", "encoder/self_attention/kernel"),
    ]:
        code, _, err = run(
            monkeypatch, capsys, "compress", tmp_path / "a.npz", tmp_path / "m.mz", "--only", pattern
        )
        assert code == 2
        assert f"did you mean {meant!r}?" in err
        assert run(
            monkeypatch, capsys, "compress", tmp_path / "a.npz", tmp_path / "m.mz", "--only", meant, "-f"
        )[0] == 0  # fmt: skip
        (tmp_path / "m.mz").unlink()
