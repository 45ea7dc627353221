"""CREPE in JAX beside NumPy and beside PyTorch, and the reader of the files that PyTorch writes."""

from __future__ import annotations

import importlib
import pathlib
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def module():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield lambda name: importlib.import_module(f"benchmarks.{name}")


def tensors(channels):
    """A state dict of random numbers, as PyTorch names and lays out its arrays."""
    shapes = {}
    for i, (inputs, outputs) in enumerate(zip((1, *channels), channels, strict=False), 1):
        shapes[f"conv{i}.weight"] = (outputs, inputs, 512 if i == 1 else 64, 1)
        for name in (f"conv{i}.bias", *(f"conv{i}_BN.{x}" for x in ("weight", "bias", "running_mean"))):
            shapes[name] = (outputs,)
    shapes |= {"classifier.weight": (360, 4 * channels[-1]), "classifier.bias": (360,)}
    found = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return found | {
        f"conv{i}_BN.running_var": RNG.uniform(0.5, 2, n).astype(np.float32)
        for i, n in enumerate(channels, 1)
    }


def heard_by_numpy(t, frame):
    """Logits of one frame as torchcrepe's `Crepe.forward` makes them, in float64, channels first."""
    t = {name: x.astype(np.float64) for name, x in t.items()}
    x = frame[None].astype(np.float64)
    for i in range(1, 7):
        x = np.pad(x, ((0, 0), (254, 254) if i == 1 else (31, 32)))
        weight = t[f"conv{i}.weight"][..., 0]
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2], axis=1)[
            :, :: 4 if i == 1 else 1
        ]
        x = np.maximum(np.einsum("oik,itk->ot", weight, windows) + t[f"conv{i}.bias"][:, None], 0)
        mean, var, scale, shift = (
            t[f"conv{i}_BN.{name}"][:, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / np.sqrt(var + 0.0010000000474974513) * scale + shift
        x = np.maximum(x[:, ::2], x[:, 1::2])
    return t["classifier.weight"] @ x.T.reshape(-1) + t["classifier.bias"]


def test_it_hears_what_a_plain_loop_hears(module):
    crepe, given = module("tasks.crepe"), tensors((5, 3, 4, 2, 3, 4))
    frames = RNG.normal(size=(2, 1024)).astype(np.float32)
    found = jax.jit(crepe.hear)(*crepe.from_state_dict(given), frames)
    for logits, frame in zip(found, frames, strict=True):
        expected = heard_by_numpy(given, frame)
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# The largest belief in a sine of 220 Hz, by torchcrepe 0.0.24's own module under PyTorch 2.14 on a CPU.
@pytest.mark.parametrize(("name", "belief"), [("crepe_tiny", 0.7980235), ("crepe", 0.9239547)])
def test_the_published_weights_hear_what_pytorch_hears(module, name, belief):
    crepe = module("tasks.crepe")
    try:
        params, statistics = crepe.published(name)
    except module("networks").MissingPackageError as error:
        pytest.skip(str(error))
    frame = np.sin(np.arange(1024) / 16_000 * 2 * np.pi * 220)
    frame = ((frame - frame.mean()) / frame.std()).astype(np.float32)
    heard = np.asarray(jax.nn.sigmoid(jax.jit(crepe.hear)(params, statistics, frame[None])), np.float64)
    np.testing.assert_allclose(heard.max(), belief, atol=1e-5)
    assert abs(10 * 2 ** (crepe.pitch(heard)[0] / 1200) - 220) < 1


def test_pitch_is_the_mean_around_the_likeliest_alone(module):
    beliefs = np.full((1, 360), 1e-9)
    beliefs[0, [100, 101, 300]] = [0.5, 0.6, 0.3]
    expected = 1997.3794 + 20 * (0.5 * 100 + 0.6 * 101) / 1.1
    np.testing.assert_allclose(module("tasks.crepe").pitch(beliefs), [expected], rtol=1e-6)


def test_tones_are_those_of_their_source_and_have_their_pitch(module):
    tones = module("tasks.tones")
    one, again, other = (tones.draw(8, source) for source in (("test",), ("test",), ("validation",)))
    np.testing.assert_array_equal(one.frames, again.frames)
    assert not np.isin(one.cents, other.cents).any()
    np.testing.assert_allclose(one.frames.std(1), 1, rtol=1e-5)
    # Harmonics repeat after a period: the tone resembles itself then, however the noise.
    for frame, cents in zip(one.frames, one.cents, strict=True):
        period = round(tones.RATE / (10 * 2 ** (cents / 1200)))
        assert np.corrcoef(frame[period:], frame[:-period])[0, 1] > 0.2


def text(words):
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def numbers(values):
    return b"(" + b"".join(b"K" + bytes([value]) for value in values) + b"t"


def pickled(name, offset, shape, strides, function="ctorch._utils\n_rebuild_tensor_v2\n"):
    """The pickle of a state dict of one tensor, whose values are in the storage "7"."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("7") + text("cpu") + b"K\x06tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    given = b"(" + storage + b"K" + bytes([offset]) + numbers(shape) + numbers(strides) + hooks + b"t"
    return b"\x80\x02}" + text(name) + function.encode() + given + b"Rs."


def archive(path, pickle_bytes):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle_bytes)
        file.writestr("archive/data/7", np.arange(6, dtype="<f4").tobytes())
    return path


def test_a_file_of_pytorch_gives_tensors_as_they_lie_in_their_storage(module, tmp_path):
    path = archive(tmp_path / "a.pth", pickled("w", 1, (2, 2), (1, 3)))
    found = module("networks").read_pth(path)
    assert {name: x.tolist() for name, x in found.items()} == {"w": [[1.0, 4.0], [2.0, 5.0]]}


@pytest.mark.parametrize("shape", [(2, 3), (7, 1)])
def test_a_tensor_beyond_its_storage_is_refused(module, tmp_path, shape):
    path = archive(tmp_path / "a.pth", pickled("w", 1, shape, (3, 1)))
    with pytest.raises(pickle.UnpicklingError, match="does not fit into its 6 values"):
        module("networks").read_pth(path)


def test_a_pickle_that_calls_something_else_is_refused(module, tmp_path):
    path = archive(tmp_path / "a.pth", pickled("w", 0, (1, 1), (1, 1), "cbuiltins\nprint\n"))
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print is no tensor"):
        module("networks").read_pth(path)
