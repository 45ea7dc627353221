"""The command line as a tired person would type it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from command import run

import modelzip_jax as mz
from modelzip_jax import checkpoints
from modelzip_jax.recipe import to_plain


@pytest.fixture
def checkpoint(tmp_path):
    rng = np.random.default_rng(0)
    params = {
        "dense": {
            "kernel": rng.standard_normal((64, 32)).astype(np.float32),
            "bias": np.ones(32, np.float32),
        },
        "steps": np.arange(6, dtype=np.int64).reshape(2, 3),
    }
    checkpoints.write(tmp_path / "model.safetensors", params)
    return tmp_path / "model.safetensors", params


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".msgpack", ""])
def test_compress_and_decompress_into_every_format(monkeypatch, capsys, tmp_path, checkpoint, suffix):
    source, params = checkpoint
    assert run(monkeypatch, capsys, "compress", source, tmp_path / "m.mz")[0] == 0
    code, _, err = run(monkeypatch, capsys, "decompress", tmp_path / "m.mz", tmp_path / f"back{suffix}")
    assert code == 0, err
    back = checkpoints.read(tmp_path / f"back{suffix}")
    expected = mz.unpack(mz.compress(params, mz.smallest()))
    np.testing.assert_array_equal(back["dense"]["kernel"], expected["dense"]["kernel"])
    np.testing.assert_array_equal(back["dense"]["bias"], params["dense"]["bias"])
    assert back["steps"].dtype == np.int64
    np.testing.assert_array_equal(back["steps"], params["steps"])


@pytest.mark.parametrize(
    "ranged", [("--granularity", "tensor"), ("--axis", 0), ("--range", "mse"), ("--bits", 6)]
)
def test_what_speaks_of_ranges_rounds_within_them(monkeypatch, capsys, tmp_path, checkpoint, ranged):
    source, _ = checkpoint
    assert run(monkeypatch, capsys, "compress", source, tmp_path / "m.mz", *ranged)[0] == 0
    (kernel,) = (t for t in mz.inspect(tmp_path / "m.mz").tensors if t.name == "dense/kernel")
    assert "int6" in kernel.form
    assert isinstance(mz.load(tmp_path / "m.mz").transform, type(mz.only("**", mz.identity())))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_without_a_range_weights_are_pruned_and_chosen_all_the_same(
    monkeypatch, capsys, tmp_path, allocation
):
    rng = np.random.default_rng(3)
    params = {
        name: rng.normal(size=(64, 64)).astype("f4") * s for name, s in (("a", 1.0), ("b", 0.1), ("c", 1.0))
    }
    params["embed"] = {"embedding": rng.normal(size=(64, 64)).astype("f4")}
    params["bias"] = rng.normal(size=64).astype("f4")
    checkpoints.write(tmp_path / "m.npz", params)
    only = ("a", "b", "bias", "embed/*")
    named = [word for name in only for word in ("--only", name)]
    options = ("--sparsity", 0.6, "--allocation", allocation, *named)
    assert run(monkeypatch, capsys, "compress", tmp_path / "m.npz", tmp_path / "m.mz", *options)[0] == 0
    packed = mz.load(tmp_path / "m.mz")
    found = mz.unpack(packed)
    zeros = {name: np.mean(np.asarray(found[name]) == 0) for name in "abc"}
    shares = [zeros["a"], zeros["b"], np.mean(np.asarray(found["embed"]["embedding"]) == 0)]
    assert (
        all(share >= 0.599 for share in shares)
        if allocation == "uniform"
        else shares[1] > 0.95 > 0.6 > shares[0]
    )
    np.testing.assert_array_equal(found["c"], params["c"])
    assert 0 < np.abs(found["bias"] - params["bias"]).max() < 0.01
    before = mz.prune(sparsity=0.6, allocation=allocation)
    same = mz.compress(params, mz.smallest(only=only, before=before))
    mz.save(tmp_path / "n.mz", same)
    assert (tmp_path / "m.mz").read_bytes() == (tmp_path / "n.mz").read_bytes()
    options = (*options, "--min-ndim", 2)
    assert run(monkeypatch, capsys, "compress", tmp_path / "m.npz", tmp_path / "m.mz", "-f", *options)[0] == 0
    np.testing.assert_array_equal(mz.unpack(mz.load(tmp_path / "m.mz"))["bias"], params["bias"])


def test_json_reports_every_size(monkeypatch, capsys, tmp_path, checkpoint):
    source, _ = checkpoint
    options = ("--bits", 4, "--sparsity", 0.5, "--only", "**/kernel", "--json")
    code, out, _ = run(monkeypatch, capsys, "compress", source, tmp_path / "m.mz", *options)
    report = json.loads(out)
    assert code == 0
    assert report["file_bytes"] == (tmp_path / "m.mz").stat().st_size == report["file"]["total"]
    code, out, _ = run(monkeypatch, capsys, "inspect", tmp_path / "m.mz", "--json")
    kernel = next(t for t in json.loads(out)["tensors"] if t["name"] == "dense/kernel")
    assert kernel["sparsity"] == 0.5
    assert kernel["form"].endswith("int4 channel")
    code, out, _ = run(monkeypatch, capsys, "inspect", tmp_path / "m.mz")
    assert code == 0
    assert "dense/kernel" in out


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
def test_inspect_reads_masks_in_every_form(monkeypatch, capsys, tmp_path, sparsity):
    """The file holds a mask as bits or as distances, whichever is smaller."""
    w = np.random.default_rng(1).normal(size=(256, 256)).astype(np.float32)
    np.savez(tmp_path / "w.npz", kernel=w)
    options = ("--bits", 4, "--sparsity", sparsity)
    assert run(monkeypatch, capsys, "compress", tmp_path / "w.npz", tmp_path / "m.mz", *options)[0] == 0
    code, out, err = run(monkeypatch, capsys, "inspect", tmp_path / "m.mz", "--json")
    assert code == 0, err
    (tensor,) = json.loads(out)["tensors"]
    assert tensor["sparsity"] == pytest.approx(
        sparsity, abs=0.1
    )  # Small kept weights have the code of zero, too.


def test_a_recipe_can_be_taken_from_a_file(monkeypatch, capsys, tmp_path, checkpoint):
    source, _ = checkpoint
    run(monkeypatch, capsys, "compress", source, tmp_path / "a.mz", "--bits", 3, "--granularity", "group")
    _, out, _ = run(monkeypatch, capsys, "inspect", tmp_path / "a.mz", "--json")
    (tmp_path / "recipe.json").write_text(json.dumps(json.loads(out)["recipe"]))
    options = ("--recipe", tmp_path / "recipe.json")
    assert run(monkeypatch, capsys, "compress", source, tmp_path / "b.mz", *options)[0] == 0
    assert (tmp_path / "a.mz").read_bytes() == (tmp_path / "b.mz").read_bytes()


def test_evaluate_compares_with_the_checkpoint(monkeypatch, capsys, tmp_path, checkpoint):
    source, _ = checkpoint
    run(monkeypatch, capsys, "compress", source, tmp_path / "m.mz")
    (tmp_path / "my_task.py").write_text(
        "def norm(params): return {'norm': (params['dense']['kernel'] ** 2).sum()}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ("--task", "my_task:norm", "--against", source, "--json")
    code, out, _ = run(monkeypatch, capsys, "evaluate", tmp_path / "m.mz", *arguments)
    ours, theirs = (r["norm"] for r in json.loads(out).values())
    assert code == 0
    assert ours == pytest.approx(theirs, rel=1e-2)


WRONG = {
    "no such file": ("compress", "{folder}/nothing.npz", "{folder}/x.mz"),
    "unknown suffix": ("compress", "{folder}/readme.txt", "{folder}/x.mz"),
    "too many bits": ("compress", "{model}", "{folder}/x.mz", "--bits", "9"),
    "unknown granularity": ("compress", "{model}", "{folder}/x.mz", "--granularity", "chanel"),
    "bits as a word": ("compress", "{model}", "{folder}/x.mz", "--bits", "six"),
    "bits below none": ("compress", "{model}", "{folder}/x.mz", "--bits", "-1"),
    "unknown range": ("compress", "{model}", "{folder}/x.mz", "--range", "median"),
    "unknown allocation": (
        "compress",
        "{model}",
        "{folder}/x.mz",
        "--sparsity",
        "0.5",
        "--allocation",
        "all",
    ),
    "unknown option": ("compress", "{model}", "{folder}/x.mz", "--bitts", "4"),
    "unknown command": ("squeeze", "{model}"),
    "no output named": ("compress", "{model}"),
    "percent": ("compress", "{model}", "{folder}/x.mz", "--sparsity", "80"),
    "not a number": ("compress", "{model}", "{folder}/x.mz", "--sparsity", "nan"),
    "sparsity below zero": ("compress", "{model}", "{folder}/x.mz", "--sparsity", "-0.1"),
    "sparsity of one": ("compress", "{model}", "{folder}/x.mz", "--sparsity", "1.0"),
    "pattern of nothing": ("compress", "{model}", "{folder}/x.mz", "--only", "**/weights"),
    "integer leaf": ("compress", "{model}", "{folder}/x.mz", "--bits", "6", "--only", "steps"),
    "no such folder": ("compress", "{model}", "{folder}/no/x.mz"),
    "output exists": ("compress", "{model}", "{model}"),
    "unknown key": ("compress", "{model}", "{folder}/x.mz", "--key", "weights"),
    "compressed already": ("compress", "{folder}/empty.mz", "{folder}/x.mz"),
    "an empty checkpoint": ("compress", "{folder}/empty.npz", "{folder}/x.mz"),
    "a folder of nothing": ("compress", "{folder}/folder", "{folder}/x.mz"),
    "another suffix as output": ("compress", "{model}", "{folder}/x.bin"),
    "no suffix as output": ("compress", "{model}", "{folder}/x"),
    "a folder as output": ("compress", "{model}", "{folder}/folder.mz", "--force"),
    "inspect nothing": ("inspect", "{folder}/none.mz"),
    "inspect a folder": ("inspect", "{folder}"),
    "inspect an empty file": ("inspect", "{folder}/empty.mz"),
    "inspect a text": ("inspect", "{folder}/readme.txt"),
    "decompress nothing": ("decompress", "{folder}/none.mz", "{folder}/x.npz"),
    "decompress a folder": ("decompress", "{folder}/folder", "{folder}/x.npz"),
    "decompress an empty file": ("decompress", "{folder}/empty.mz", "{folder}/x.npz"),
    "decompress into shards": ("decompress", "{folder}/empty.mz", "{folder}/x.safetensors.index.json"),
    "evaluate nothing": ("evaluate", "{folder}/none.mz", "--task", "json:dumps"),
    "evaluate a folder": ("evaluate", "{folder}/folder", "--task", "json:dumps"),
    "a key into a .mz": (
        "evaluate",
        "{folder}/none.mz",
        "--task",
        "json:dumps",
        "--against",
        "{folder}/folder",
    ),
    "a recipe that is no JSON": ("compress", "{model}", "{folder}/x.mz", "--recipe", "{folder}/bad.json"),
    "a recipe that is missing": ("compress", "{model}", "{folder}/x.mz", "--recipe", "{folder}/none.json"),
    "a recipe that needs data": (
        "compress",
        "{model}",
        "{folder}/x.mz",
        "--recipe",
        "{folder}/feedback.json",
    ),
    "a checkpoint as output": ("compress", "{model}", "{folder}/x.npz"),
    "no recipe": ("compress", "{model}", "{folder}/x.mz", "--recipe", "nothing:here"),
    "half a recipe": ("compress", "{model}", "{folder}/x.mz", "--recipe", "nothing"),
    "not a file of ours": ("inspect", "{model}"),
    "unknown target": ("decompress", "{model}", "{folder}/x.foo"),
    "no task": ("evaluate", "{model}", "--task", "json:nothing"),
}


HINTS = {
    "percent": "--sparsity 80 must be a share from 0 to below 1; did you mean 0.8?",
    "too many bits": "--bits 9 must be from 1 to 8",
    "unknown granularity": "tensor",
    "pattern of nothing": "'**/weights' matches no leaf",
    "compressed already": "it is compressed already",
    "an empty checkpoint": "empty.npz cannot be read: it is empty",
    "another suffix as output": "x.bin must end in .mz",
    "inspect nothing": "there is no such file",
    "inspect an empty file": "empty.mz: not a .mz file: it is empty",
    "not a file of ours": "is a .safetensors checkpoint",
    "a recipe that is missing": "none.json: No such file or directory",
    "a recipe that needs data": "the recipe needs stats= of",
    "a folder as output": "folder.mz",
    "unknown option": "--bits",
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, checkpoint, case):
    source, _ = checkpoint
    (tmp_path / "readme.txt").write_text("hello")
    (tmp_path / "empty.mz").touch()
    (tmp_path / "empty.npz").touch()
    (tmp_path / "bad.json").write_text("{")
    needy = mz.only("**/kernel", mz.quantize(4, rounding=mz.rounding.error_feedback()))
    (tmp_path / "feedback.json").write_text(json.dumps(to_plain(needy)))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.mz").mkdir()
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    arguments = [a.format(folder=tmp_path, model=source) for a in WRONG[case]]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("modelzip: ")
    assert "Errno" not in err
    assert HINTS.get(case, "") in err
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_nan_weights_leave_no_output(monkeypatch, capsys, tmp_path):
    checkpoints.write(tmp_path / "bad.npz", {"layer": {"kernel": np.full((4, 4), np.nan, np.float32)}})
    code, _, err = run(monkeypatch, capsys, "compress", tmp_path / "bad.npz", tmp_path / "m.mz")
    assert code == 2
    assert "layer/kernel" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.npz"]


def test_the_command_itself_starts():
    command = [sys.executable, "-m", "modelzip_jax.cli", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}, check=True
    )
    assert "decompress" in done.stdout
