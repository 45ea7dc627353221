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
    assert all(len(np.unique(kernel[:, c])) <= 16 for c in range(kernel.shape[1]))
    jax.tree.map(np.testing.assert_array_equal, scope["params"], saved)


def test_contributing_example():
    text = (README.parent / "CONTRIBUTING.md").read_text()
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {"__name__": "contributing"})
