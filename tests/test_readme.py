"""The README's training loop runs as it stands, and does what it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import modelzip_jax as mz

README = Path(__file__).parent.parent / "README.md"


def test_the_training_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "mz.wrap" in block
    )
    inputs = jax.random.normal(jax.random.key(0), (64, 16))
    targets = jnp.sin(inputs @ jnp.linspace(-1.0, 1.0, 16))[:, None]
    keys = jax.random.split(jax.random.key(1))
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (16, 32)) / 4, "bias": jnp.zeros(32)},
        "out": {"kernel": jax.random.normal(keys[1], (32, 1)) / 6, "bias": jnp.zeros(1)},
    }

    def loss(params):
        hidden = jax.nn.relu(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return jnp.mean((hidden @ params["out"]["kernel"] + params["out"]["bias"] - targets) ** 2)

    before = float(loss(params))
    # The README leaves the step to its reader; `tx` is the one it makes.
    scope = {"params": params}

    @jax.jit
    def train_step(params, opt_state):
        updates, opt_state = scope["tx"].update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    scope["train_step"] = train_step
    exec(code, scope)
    saved = mz.unpack(mz.load("model.mz"))
    assert float(loss(saved)) < before / 3
    kernel = np.asarray(saved["hidden"]["kernel"])
    assert np.mean(kernel == 0) >= 0.8
    # One axis or the other is that of the channels, whichever rounds better.
    levels = [max(len(np.unique(channel)) for channel in np.moveaxis(kernel, axis, 0)) for axis in (0, 1)]
    assert min(levels) <= 16
    jax.tree.map(np.testing.assert_array_equal, scope["params"], saved)


def test_contributing_examples():
    """Each by itself, as somebody would paste it."""
    text = (README.parent / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 4
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
    assert all(length <= most for length, most in zip(lengths, (10, 15, 15, 25), strict=True)), lengths
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
            if not (page.parent / link).exists():
                missing.append((page.name, link))
    assert missing == []
