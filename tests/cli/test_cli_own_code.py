"""Errors of the user's own code: their frames and no others, exit code 1."""

import numpy as np
import pytest
from command import run

from modelzip_jax import checkpoints

TASKS = """
import jax

def raises(params):
    return inner(params["w"])

def inner(w):
    raise ValueError("two\\nlines")

def jitted(params):
    return jax.jit(inner)(params["w"])

def calls_ours(params):
    import modelzip_jax as mz
    return mz.compress(params, mz.only("nothing", mz.quantize(4)))

def chained(params):
    try:
        inner(0)
    except ValueError as error:
        raise KeyError("again") from error

def number(params):
    return 3

def words(params):
    return {"a": "text"}

def exits(params):
    return {"a": 1 / 0}
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    checkpoints.write(tmp_path / "a.npz", {"w": np.ones((4, 4), np.float32)})
    (tmp_path / "own_tasks.py").write_text(TASKS)
    (tmp_path / "broken_import.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "broken_syntax.py").write_text("def f(:\n")
    (tmp_path / "broken_body.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "a.npz"


@pytest.mark.parametrize(
    ("task", "frames", "error"),
    [
        ("raises", ["raises", "inner"], "ValueError"),
        ("jitted", ["jitted", "inner"], "ValueError"),
        ("calls_ours", ["calls_ours"], "PatternError"),
        ("chained", ["chained", "inner"], "KeyError"),
        ("exits", ["exits"], "ZeroDivisionError"),
    ],
)
def test_a_task_that_raises(monkeypatch, capsys, model, task, frames, error):
    code, out, err = run(monkeypatch, capsys, "evaluate", model, "--task", f"own_tasks:{task}")
    assert (code, out) == (1, "")
    for name in frames:
        assert f'own_tasks.py", line {1 + find(name)}' in err or f", in {name}\n" in err
    assert "/modelzip_jax/" not in err
    assert err.splitlines()[-1] == f"modelzip: --task own_tasks:{task} raised {error}"


def find(name):
    return next(i for i, line in enumerate(TASKS.splitlines()) if line.startswith(f"def {name}("))


@pytest.mark.parametrize("task", ["number", "words"])
def test_a_task_that_gives_no_numbers(monkeypatch, capsys, model, task):
    code, _, err = run(monkeypatch, capsys, "evaluate", model, "--task", f"own_tasks:{task}")
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("option", ["--task", "--recipe"])
@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("broken_import", "ModuleNotFoundError"),
        ("broken_syntax", "SyntaxError"),
        ("broken_body", "ZeroDivisionError"),
    ],
)
def test_a_module_that_cannot_be_imported(monkeypatch, capsys, model, option, module, error):
    command = ["evaluate", model] if option == "--task" else ["compress", model, "x.mz"]
    code, _, err = run(monkeypatch, capsys, *command, option, f"{module}:f")
    assert code == 1
    assert f"{module}.py" in err
    assert "importlib" not in err
    assert "/modelzip_jax/" not in err
    assert err.splitlines()[-1].endswith(f"the module {module} raised {error}")


@pytest.mark.parametrize("option", ["--task", "--recipe"])
@pytest.mark.parametrize("name", ["nowhere:f", "own_tasks.sub:f", "own_tasks:nothing"])
def test_names_that_lead_nowhere(monkeypatch, capsys, model, option, name):
    command = ["evaluate", model] if option == "--task" else ["compress", model, "x.mz"]
    code, _, err = run(monkeypatch, capsys, *command, option, name)
    assert code == 2
    assert err.count("\n") == 1
    assert name in err


def test_a_recipe_that_raises(monkeypatch, capsys, model):
    code, _, err = run(monkeypatch, capsys, "compress", model, "x.mz", "--recipe", "own_tasks:raises")
    assert code == 1
    assert err.splitlines()[-1] == "modelzip: --recipe own_tasks:raises raised TypeError"
