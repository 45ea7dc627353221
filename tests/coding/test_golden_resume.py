"""Training goes on from the files that earlier versions wrote, each by its own recipe."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz
from modelzip_jax.errors import LeafError

GOLDEN = sorted(Path(__file__).parent.parent.joinpath("golden").glob("*.mz"))


def within(name, x):
    """Exact, but for sums of wavelets and products of factors, and float64, in which JAX does not compute."""
    if np.asarray(x).dtype.itemsize == 8:
        return {"rtol": 1e-7}
    sums = name.startswith(("wavelet", "packets", "cosines", "best_basis", "low_rank", "residual_low_rank"))
    return {"rtol": 0, "atol": 1e-6 if sums else 0}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_training_resumes(path):
    packed = mz.load(path)
    weights = mz.unpack(packed)
    tx = mz.wrap(optax.sgd(1e-3), packed)
    if path.stem == "identity":  # Its leaves are of every dtype, and integers cannot be trained.
        with pytest.raises(LeafError, match="floating-point"):
            mz.start(tx, weights)
        return
    params, state = mz.start(tx, weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **within(path.stem, b)), params, weights)
    grads = jax.tree.map(
        lambda x: jnp.ones_like(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, params
    )
    _, state = tx.update(grads, state, params)
    assert int(mz.loop.wrap_states(state)[0].step) == packed.step + 1
    again = mz.pack(state, params)
    assert jax.tree.structure(mz.unpack(again)) == jax.tree.structure(weights)
