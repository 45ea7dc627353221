"""The README's training loop runs as it stands, and does what it says."""

import re
from pathlib import Path

import jax
import numpy as np

import modelzip_jax as mz

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_in_an_empty_cell_each_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop, resumed, packed, nnx_code, eqx_code = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    scope = {"__name__": "readme"}
    before, after = loop.split("zipper = ")
    exec(before, scope)
    begun = float(scope["loss"](scope["params"]))
    exec("zipper = " + after, scope)
    saved = mz.unpack(mz.load("model.mz"))
    assert float(scope["loss"](saved)) < begun / 3
    kernel = np.asarray(saved["hidden"]["kernel"])
    assert np.mean(kernel == 0) >= 0.8
    # One axis or the other is that of the channels, whichever rounds better.
    levels = [max(len(np.unique(channel)) for channel in np.moveaxis(kernel, axis, 0)) for axis in (0, 1)]
    assert min(levels) <= 16
    jax.tree.map(np.testing.assert_array_equal, scope["params"], saved)
    exec(resumed, scope)
    jax.tree.map(np.testing.assert_array_equal, scope["params"], saved)
    exec(packed, scope)
    exec(nnx_code, scope)
    assert len(np.unique(scope["model"].kernel.get_value()[:, 0])) <= 16
    exec(eqx_code, scope)
    assert scope["model"](np.ones(16, np.float32)).shape == (32,)


def test_contributing_examples():
    """Each by itself, as somebody would paste it."""
    text = (README.parent / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 5
    for block in blocks:
        exec(block, {"__name__": "contributing"})


def test_examples_are_as_short_as_promised():
    text = (README.parent / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    code = [
        [line for line in b.splitlines() if line and not line.startswith(("import", "from", "#"))]
        for b in blocks
    ]
    lengths = [len([line for line in lines if "check_laws" not in line]) for lines in code]
    assert all(length <= most for length, most in zip(lengths, (10, 15, 15, 15, 25), strict=True)), lengths
    assert not any("modelzip_jax." in block for block in blocks)


def test_paths_that_pages_mention_exist():
    pages = [README, README.parent / "CONTRIBUTING.md", *(README.parent / "docs").glob("*.md")]
    missing = []
    for page in pages:
        text = page.read_text()
        for path in re.findall(
            r"(?:modelzip_jax|tests|benchmarks|configs|scripts|docs)/[\w/]+\.(?:py|md|json)", text
        ):
            if not (README.parent / path).exists():
                missing.append((page.name, path))
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            # The API reference is made when the site is.
            if not (page.parent / link).exists() and not link.startswith("api/"):
                missing.append((page.name, link))
    assert missing == []
