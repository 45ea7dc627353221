"""`modelzip report` and `compare`: a page beside the file, and what is wrong before any work is done."""

import json

import numpy as np
import pytest
from command import run

from modelzip_jax import checkpoints

TASK = """
import numpy as np
import modelzip_jax as mz

two, eight = mz.quantize(2), mz.quantize(8)

def scores(params):
    return {"hit": np.asarray(params["w"])[:, 0] > 0, "bytes": 12}

def broken(params):
    raise ZeroDivisionError("mine")

def program():
    return (lambda p, x: x @ p["w"]), [np.ones((2, 64), np.float32)]
"""


@pytest.fixture
def compressed(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report_tasks.py").write_text(TASK)
    rng = np.random.default_rng(0)
    checkpoints.write("m.safetensors", {"w": rng.normal(size=(64, 32)).astype(np.float32)})
    assert run(monkeypatch, capsys, "compress", "m.safetensors", "m.mz", "--bits", 4)[0] == 0
    return tmp_path


def test_a_page_with_everything(monkeypatch, capsys, compressed):
    pytest.importorskip("matplotlib")
    options = ("--against", "m.safetensors", "--task", "report_tasks:scores")
    code, out, err = run(monkeypatch, capsys, "report", "m.mz", *options, "--json")
    assert code == 0, err
    told = json.loads(out)
    page = (compressed / "m.html").read_text()
    assert told["out"] == "m.html"
    assert told["bytes"] == len(page.encode())
    assert "Histogram of the weights of w" in page
    assert "one by one" in page
    assert run(monkeypatch, capsys, "report", "m.mz")[0] == 2
    assert run(monkeypatch, capsys, "report", "m.mz", "-o", "other.html")[0] == 0
    assert (compressed / "other.html").stat().st_size < len(page)


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (("--key", "params"), 2, "--against"),
        (("--model-explorer", "shown"), 2, "--calibrate"),
        (("--calibrate", "report_tasks:program"), 2, "--model-explorer"),
        (("--task", "report_tasks:absent"), 2, "absent"),
        (("--task", "report_tasks:broken"), 1, "ZeroDivisionError"),
        (("--against", "nothing.safetensors"), 2, "nothing.safetensors"),
    ],
)
def test_what_is_wrong_leaves_no_page(monkeypatch, capsys, compressed, options, code, word):
    pytest.importorskip("matplotlib")
    found, _, err = run(monkeypatch, capsys, "report", "m.mz", *options)
    assert found == code
    assert word in err
    assert not (compressed / "m.html").exists()


def test_a_folder_for_model_explorer(monkeypatch, capsys, compressed):
    pytest.importorskip("matplotlib")
    options = ("--model-explorer", "shown", "--calibrate", "report_tasks:program")
    code, out, err = run(monkeypatch, capsys, "report", "m.mz", *options, "--against", "m.safetensors")
    assert code == 0, err
    assert "shown: open graph.json" in out
    names = {"graph.json", "bytes.json", "bits.json", "sparsity.json", "error.json"}
    assert {path.name for path in (compressed / "shown").iterdir()} == names
    graph = json.loads((compressed / "shown" / "graph.json").read_text())
    assert graph["label"] == "m.mz"
    assert "dot_general" in [node["label"] for node in graph["graphs"][0]["nodes"]]
    assert run(monkeypatch, capsys, "report", "m.mz", *options, "-o", "other.html")[0] == 2
    assert not (compressed / "other.html").exists()
    code, out, err = run(monkeypatch, capsys, "report", "m.mz", *options, "--json", "-f")
    assert code == 0, err
    assert json.loads(out)["model_explorer"] == "shown"
    # Without what it was made of there are no errors, nor those of the run before.
    assert {path.name for path in (compressed / "shown").iterdir()} == names - {"error.json"}


def test_evaluate_shows_scores_of_examples_with_their_standard_error(monkeypatch, capsys, compressed):
    code, out, err = run(monkeypatch, capsys, "evaluate", "m.mz", "--task", "report_tasks:scores")
    assert code == 0, err
    assert "±" in out
    _, out, _ = run(monkeypatch, capsys, "evaluate", "m.mz", "--task", "report_tasks:scores", "--json")
    assert 0 < json.loads(out)["m.mz"]["hit"] < 1


def test_recipes_side_by_side(monkeypatch, capsys, compressed):
    pytest.importorskip("matplotlib")
    options = ("--recipes", "report_tasks:two,report_tasks:eight", "--task", "report_tasks:scores")
    code, out, err = run(monkeypatch, capsys, "compare", "m.safetensors", *options, "-o", "c.html", "--json")
    assert code == 0, err
    told = json.loads(out)
    small, large = told["recipes"]
    assert small["file_bytes"] < large["file_bytes"]
    assert small["on_front"]
    page = (compressed / "c.html").read_text()
    assert f"{small['file_bytes']:,}" in page
    assert "report_tasks:two" in page
    code, out, _ = run(monkeypatch, capsys, "compare", "m.safetensors", *options)
    assert code == 0
    assert "on the front" in out
    assert run(monkeypatch, capsys, "compare", "m.safetensors", *options, "--score", "none")[0] == 2


def test_layers_one_by_one(monkeypatch, capsys, compressed):
    pytest.importorskip("matplotlib")
    options = ("--recipes", "report_tasks:two,report_tasks:eight", "--task", "report_tasks:scores")
    code, out, err = run(monkeypatch, capsys, "sensitivity", "m.safetensors", *options, "-o", "s.html")
    assert code == 0, err
    assert "drop of quality" in out
    assert "report_tasks:two" in out
    assert "each compressed alone" in (compressed / "s.html").read_text()
    code, out, err = run(
        monkeypatch, capsys, "sensitivity", "m.safetensors", *options, "--score", "bytes", "--json"
    )
    assert code == 0, err
    rows = json.loads(out)["layers"]
    assert [(row["name"], row["candidate"], row["error"]) for row in rows] == [
        ("w", "report_tasks:two", 0.0), ("w", "report_tasks:eight", 0.0)
    ]  # fmt: skip
    for wrong, word in (
        (("--score", "accuracy"), "accuracy"), (("--only", "absent"), "absent"), (("-o", "s.html"), "--force"),
    ):  # fmt: skip
        code, _, err = run(monkeypatch, capsys, "sensitivity", "m.safetensors", *options, *wrong)
        assert code == 2
        assert word in err
