"""The examples of the pages in docs/ run, and print what they say."""

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.parametrize(
    "page",
    [
        "getting_started.md",
        "concepts.md",
        "pruning.md",
        "trace.md",
        "quantization.md",
        "mixed_precision.md",
        "activations.md",
        "accelerators.md",
        "distillation.md",
        "distillation_minmax.md",
        "distillation_losses.md",
        "distillation_data.md",
        pytest.param("rewrites.md", marks=pytest.mark.slow),
        pytest.param("wavelets.md", marks=pytest.mark.slow),
        pytest.param("smallest.md", marks=pytest.mark.slow),
    ],
)
def test_the_examples_of_the_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        said = [line[2:] for line in block.splitlines() if line.startswith("# ")]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
        if said and "print(" in block:
            assert printed.getvalue().splitlines() == said
        elif said:
            last = [line for line in block.splitlines() if line and not line.startswith("#")][-1]
            assert repr(eval(last, names)) == said[0]


def test_every_page_with_examples_is_among_them():
    """`format.md` shows bytes; the modules that `command_line.md` shows are files of users."""
    (mark,) = test_the_examples_of_the_page.pytestmark
    run = {str(page.values[0] if hasattr(page, "values") else page) for page in mark.args[1]}
    shown = {path.name for path in DOCS.glob("*.md") if "```python\n" in path.read_text()}
    assert shown - run == {"format.md", "command_line.md"}
