"""`modelzip compress` that looks for the smallest file: bytes, drops, and a model of the user's."""

import json
import re

import numpy as np
import pytest
from command import run

import modelzip_jax as mz
from modelzip_jax import checkpoints

RNG = np.random.default_rng(0)
MODEL = """
import jax


def data():
    x = jax.random.normal(jax.random.key(0), (64, 40))
    return (lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"] + p["c"]), [x[i : i + 16] for i in range(0, 64, 16)]


def logits():
    return (*data(), "categorical")


def nothing():
    return 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    params = {"a": RNG.normal(size=(40, 64)), "b": RNG.normal(size=(64, 10)), "c": RNG.normal(size=10)}
    params = {name: x.astype("f4") for name, x in params.items()}
    checkpoints.write(tmp_path / "m.safetensors", params, metadata={"format": "pt", "note": "n" * 300})
    (tmp_path / "searched_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path, params


@pytest.mark.parametrize("data", [(), ("--calibrate", "searched_model:data")])
def test_bytes_are_met_and_what_travels_along_is_among_them(folder, monkeypatch, capsys, data):
    path, _ = folder
    for target in (2_000, 3_500):
        code, out, _ = run(
            monkeypatch, capsys, "compress", "m.safetensors", "m.mz", "--force", "--json",
            "--target-bytes", str(target), *data,
        )  # fmt: skip
        assert code == 0
        assert 0.98 * target <= json.loads(out)["file_bytes"] == (path / "m.mz").stat().st_size <= target
    assert run(monkeypatch, capsys, "decompress", "m.mz", "again.safetensors")[0] == 0


@pytest.mark.parametrize("name", ["data", "logits"])
def test_a_drop_and_none(folder, monkeypatch, capsys, name):
    path, params = folder
    for options in (("--max-drop", "0.02"), ()):
        command = ("compress", "m.safetensors", "m.mz", "--force", *options)
        assert run(monkeypatch, capsys, *command, "--calibrate", f"searched_model:{name}")[0] == 0
        told = mz.load(path / "m.mz").metadata["smallest"]
        assert told["drop"] + told["drop_error"] <= 0.02
        assert (path / "m.mz").stat().st_size < 0.6 * sum(x.nbytes for x in params.values())


def test_masks_of_infinity_stay_lossless_and_that_is_said(tmp_path, monkeypatch, capsys):
    params = {"w": RNG.normal(size=(64, 64)), "mask": np.triu(np.full((64, 64), -np.inf, np.float32), 1)}
    checkpoints.write(tmp_path / "m.npz", params)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, "compress", "m.npz", "m.mz", "--target-bytes", "2500")
    assert (code, "mask" in err, "float64" in err) == (0, True, True)
    assert (tmp_path / "m.mz").stat().st_size <= 2500
    np.testing.assert_array_equal(mz.unpack(mz.load(tmp_path / "m.mz"))["mask"], params["mask"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target-bytes", "60"), "smallest file that there can be"),
        (("--target-bytes", "0"), "bytes must be an integer of at least 1"),
        (("--max-drop", "0.1"), "--max-drop needs a model to run"),
        (("--bits", "4", "--target-bytes", "2000"), "is taken instead of --bits"),
        (("--only", "z", "--target-bytes", "2000"), "pattern 'z' matches no leaf"),
        (("--range", "mse", "--max-drop", "0.1"), "is taken instead of --range"),
        (("--sparsity", "0.5", "--calibrate", "searched_model:data"), "--sparsity goes without --calibrate"),
        (("--recipe", "searched_model:data", "--target-bytes", "2000"), "is taken instead of --target-bytes"),
        (("--target-bytes", "2000", "--max-drop", "0.1", "--calibrate", "searched_model:data"), "not both"),
        (("--calibrate", "searched_model:absent"), "has no 'absent'"),
        (("--calibrate", "searched_model:MODEL_OF_NONE"), "has no 'MODEL_OF_NONE'"),
        (("--calibrate", "searched_model:nothing"), "gives a int, expected"),
        (("--calibrate", "searched_model"), "takes module:function, the folder of a finished"),
    ],
)
def test_what_it_refuses_in_one_line(folder, monkeypatch, capsys, options, message):
    code, _, err = run(monkeypatch, capsys, "compress", "m.safetensors", "m.mz", *options)
    assert code != 0
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not (folder[0] / "m.mz").exists()


def test_the_smallest_file_that_is_named_can_be_had(folder, monkeypatch, capsys):
    path, _ = folder
    _, _, err = run(monkeypatch, capsys, "compress", "m.safetensors", "m.mz", "--target-bytes", "10")
    assert "more than the 10 that it may have" in " ".join(err.split())
    least = re.search(r"has ([\d,]+) bytes", " ".join(err.split()))[1].replace(",", "")
    assert run(monkeypatch, capsys, "compress", "m.safetensors", "m.mz", "--target-bytes", least)[0] == 0
    assert (path / "m.mz").stat().st_size <= int(least)
