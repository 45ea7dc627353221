"""The notebooks run as they stand, and the text of each is its `.ipynb`."""

import json
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
TEXTS = sorted((ROOT / "notebooks").glob("*.py"))
TAUGHT = [path for path in TEXTS if path.stem != "accelerator_tpu"]  # which needs the repository and a TPU


def cells(text):
    """Kind and source of each cell of a text in jupytext's percent format, as the `.ipynb` has them."""
    kinds, sources = re.findall(r"^# %%(.*)$", text, re.M), re.split(r"^# %%.*\n", text, flags=re.M)[1:]
    for kind, source in zip(kinds, sources, strict=True):
        markdown = "[markdown]" in kind
        comment = r"^# ?" if markdown else r"^# (?=[%!])"
        yield "markdown" if markdown else "code", re.sub(comment, "", source.strip("\n"), flags=re.M)


def test_every_notebook_is_a_pair():
    assert [path.with_suffix(".ipynb") for path in TEXTS] == sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(TAUGHT) >= 7


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_text_and_notebook_agree(path):
    book = json.loads(path.with_suffix(".ipynb").read_text())
    found = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    assert found == list(cells(path.read_text())), "make notebooks"


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)
def test_the_first_cell_installs_what_is_missing(path):
    codes = [source for kind, source in cells(path.read_text()) if kind == "code"]
    assert codes[0] == next(source for kind, source in cells(TAUGHT[0].read_text()) if kind == "code")
    assert 'glob.glob("modelzip_jax-*.whl")' in codes[0]
    assert '"modelzip_jax"]' in codes[0]


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem != "quickstart")) for p in TAUGHT],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "__main__"}
    for number, (kind, source) in enumerate(cells(path.read_text())):
        if kind == "code":
            exec(compile(source, f"{path.name}, cell {number}", "exec"), scope)
    matplotlib.pyplot.close("all")
    if path.stem == "quickstart":
        assert scope["accuracy"](scope["params"]) > 0.95
        assert scope["ratio"] > 15
        assert all(jax.tree.leaves(scope["same"]))
