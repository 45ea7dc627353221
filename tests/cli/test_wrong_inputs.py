"""What a tired person types: one line that names the thing and says what to do, and nothing is written."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
from command import run

import modelzip_jax as mz
from modelzip_jax import checkpoints

PARAMS = {"dense": {"kernel": np.linspace(-1, 1, 48, dtype="f4").reshape(8, 6), "bias": np.zeros(6, "f4")}}


def torch_file():
    """What torch.save writes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """Files under true and false names."""
    monkeypatch.chdir(tmp_path)
    for suffix in (".safetensors", ".npz", ".msgpack"):
        checkpoints.write(tmp_path / f"m{suffix}", PARAMS)
    assert run(monkeypatch, capsys, "compress", "m.npz", "m.mz")[0] == 0
    read = {name: (tmp_path / name).read_bytes() for name in ("m.safetensors", "m.npz", "m.msgpack", "m.mz")}
    contents = {
        "m": read["m.safetensors"], "checkpoint_3": read["m.msgpack"], "tensors.npz": read["m.safetensors"],
        "tensors.msgpack": read["m.safetensors"], "tensors.mz": read["m.safetensors"],
        "numpy.safetensors": read["m.npz"], "ours.safetensors": read["m.mz"], "cut.mz": read["m.mz"][:-40],
        "torch.bin": torch_file(), "old.pt": pickle.dumps({"a": 1}, 2), "pickle.safetensors": pickle.dumps({"a": 1}),
        "m.gguf": b"GGUF\x03" + bytes(60), "keras.h5": b"\x89HDF\r\n\x1a\n", "config.json": b'{"hidden": 8}',
        "lfs.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "page.safetensors": b"<!DOCTYPE html><title>404</title>", "what.bin": b"\x00" * 9,
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "loop.npz").symlink_to("loop.npz")
    (tmp_path / "gone.mz").symlink_to("moved.mz")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "identity.json").write_text(json.dumps({"type": "Identity", "fields": {}}))
    (tmp_path / "wrong_tasks.py").write_text("three = 3\ndef size(params):\n    return {'n': 1}\n")
    (tmp_path / "wrong_config.py").write_text("def get_config():\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


WRONG = {
    "compress m.npz x.mz --bits 0 --granularity tensor": "--granularity does nothing with --bits 0",
    "compress m.npz x.mz --axis 1 --granularity tensor": "--axis does nothing with --granularity tensor",
    "compress m.npz x.mz --allocation global": "--allocation does nothing without --sparsity",
    "compress m.npz x.mz --group-size 64": "--group-size does nothing without --granularity group",
    "compress m.npz x.mz --min-ndim -1": "--min-ndim -1 must be 0 or more",
    "compress m x.mz": "it is a safetensors file: give it the suffix .safetensors",
    "compress checkpoint_3 x.mz": "give it the suffix .msgpack",
    "compress tensors.npz x.mz": "give it the suffix .safetensors",
    "compress tensors.msgpack x.mz": "give it the suffix .safetensors",
    "compress numpy.safetensors x.mz": "give it the suffix .npz",
    "compress ours.safetensors x.mz": "give it the suffix .mz",
    "compress m.mz x.mz": "compressed already",
    "compress torch.bin x.mz": "a pickle, such as PyTorch writes",
    "compress old.pt x.mz": "a pickle",
    "compress pickle.safetensors x.mz": "a pickle",
    "compress m.gguf x.mz": "GGUF",
    "compress keras.h5 x.mz": "HDF5",
    "compress config.json x.mz": "JSON",
    "compress lfs.safetensors x.mz": "git lfs pull",
    "compress page.safetensors x.mz": "a web page",
    "compress what.bin x.mz": "'.bin' is not known",
    "compress loop.npz x.mz": "a link to loop.npz, where there is nothing",
    "compress hollow x.mz": "no Orbax checkpoint",
    "compress '' x.mz": "the path is empty",
    "compress m.npz ''": "the path is empty",
    "compress m.npz x.mz --bits 4.5": "--bits 4.5",
    "compress m.npz x.mz --sparsity=80%": "--sparsity 80%",
    "compress m.npz x.mz --recipe identity.json --bits 3": "instead of --bits",
    "compress m.npz x.mz --recipe identity.json --range mse": "instead of --range",
    "compress m.npz m.npz --force": "must end in .mz",
    "decompress tensors.mz x.npz": "is no .mz file; it is a safetensors file",
    "decompress torch.bin x.npz": "a pickle",
    "decompress cut.mz x.npz": "truncated",
    "decompress m.mz x.mz": "it is to be a checkpoint",
    "decompress m.mz m.mz --force": "it is to be a checkpoint",
    "decompress gone.mz x.npz": "a link to moved.mz, where there is nothing",
    "inspect gone.mz": "a link to moved.mz",
    "inspect old.pt": "is no .mz file; it is a pickle",
    "inspect m": "is no .mz file; it is a safetensors file",
    "evaluate old.pt --task wrong_tasks:size": "is no .mz file; it is a pickle",
    "evaluate m.mz --task wrong_tasks:three": "is of type int, expected a function",
    "evaluate m.mz --task wrong_tasks": "such as my_module:my_function",
    "evaluate gone.mz --task wrong_tasks:size": "a link to moved.mz",
    "train --config wrong_config.py": "gives a int",
    "train --config m.npz": "no Python file",
}


@pytest.mark.parametrize("command", WRONG)
def test_one_line_says_what_it_is_and_what_to_do(monkeypatch, capsys, folder, command):
    before = {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}
    arguments = [word.strip("'") for word in command.split(" ")]
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert WRONG[command] in err
    after = {path.name: path.lstat().st_mtime_ns for path in folder.iterdir() if path.name != "__pycache__"}
    assert after == before


def test_the_suffix_of_a_module_may_stay(monkeypatch, capsys, folder):
    assert run(monkeypatch, capsys, "evaluate", "m.mz", "--task", "wrong_tasks.py:size")[0] == 0


@pytest.mark.parametrize("options", [("--min-ndim", "3"), ("--only", "dense/bias"), ("--key", "dense/bias")])
def test_it_says_when_nothing_is_compressed(monkeypatch, capsys, folder, options):
    code, _, err = run(monkeypatch, capsys, "compress", "m.npz", "x.mz", *options)
    assert code == 0
    said = "note: nothing is compressed but by the entropy coder: no tensor"
    assert any(line.startswith(said) for line in err.splitlines())
    assert "--min-ndim" in err
    assert mz.load("x.mz").params is not None


def test_lossless_on_purpose_is_no_reason_to_say_so(monkeypatch, capsys, folder):
    assert run(monkeypatch, capsys, "compress", "m.npz", "x.mz", "--bits", "0")[2] == ""


@pytest.mark.parametrize("content", ["def get_config(:\n", "1 / 0\n", "import nowhere\n"])
def test_a_config_that_raises_is_shown_by_its_own_lines(monkeypatch, capsys, folder, content):
    (folder / "own_config.py").write_text(content)
    code, _, err = run(monkeypatch, capsys, "train", "--config", "own_config.py")
    assert code == 1
    assert "own_config.py" in err
    assert "/modelzip_jax/" not in err
    assert err.splitlines()[-1].startswith("modelzip: --config own_config.py raised ")
