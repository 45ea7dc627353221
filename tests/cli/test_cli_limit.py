"""`--limit` of each command that reads a `.mz` file."""

import json

import numpy as np
import pytest
from command import run

import modelzip_jax as mz

TASK = "limited_task:norm"


@pytest.fixture
def file(tmp_path, monkeypatch):
    (tmp_path / "limited_task.py").write_text(
        'def norm(params):\n    return {"norm": float(abs(params["w"]).sum())}\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    mz.save("x.mz", mz.compress({"w": np.ones((100, 100), np.float32)}, mz.quantize(4)))
    return tmp_path / "x.mz"


@pytest.mark.parametrize(
    "command",
    [("inspect",), ("decompress", "out.npz"), ("evaluate", "--task", TASK), ("report",)],
    ids=lambda command: command[0],
)
def test_a_limit(file, monkeypatch, capsys, command):
    name, *rest = command
    code, out, err = run(monkeypatch, capsys, name, "x.mz", *rest, "--limit", "20000", "--json")
    assert code == 2
    assert out == ""
    assert "beyond the limit of 20,000" in err
    assert "--limit" in err
    assert not [path for path in file.parent.iterdir() if path.suffix in (".npz", ".html")]
    code, out, _ = run(monkeypatch, capsys, name, "x.mz", *rest, "--limit", "200000", "--json")
    assert code == 0
    assert json.loads(out)


def test_a_limit_that_is_none(file, monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, "inspect", "x.mz", "--limit", "-1")
    assert code == 2
    assert "--limit" in err
