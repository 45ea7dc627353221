"""The examples of docs/trace.md run, and print what it says."""

import contextlib
import io
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "trace.md"


def test_the_examples_of_the_page():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        said = [line[2:] for line in block.splitlines() if line.startswith("# ")]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(PAGE), "exec"), names)
        if said and "print(" in block:
            assert printed.getvalue().splitlines() == said
        elif said:
            last = [line for line in block.splitlines() if line and not line.startswith("#")][-1]
            assert repr(eval(last, names)) == said[0]
