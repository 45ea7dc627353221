"""Step sizes that are trained stay positive and finite, whatever the optimizer does to them, on every grid."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import modelzip_jax as mz

QUICK = {
    "uniform": {"bits": 3},
    "LSQ+": {"bits": 3, "symmetric": False, "offset": True},
    "nf4": {"grid": mz.grids.nf4()},
}
SLOW = {
    "asymmetric": {"bits": 3, "symmetric": False},
    "one bit": {"bits": 1},
    "binary": {"grid": mz.grids.binary()},
    "ternary": {"grid": mz.grids.ternary()},
    "shift": {"grid": mz.grids.power_of_two(), "bits": 4},
    "two shifts": {"grid": mz.grids.power_of_two(2), "bits": 4},
    "fp8": {"grid": mz.grids.fp8()},
    "quantile": {"grid": mz.grids.quantile(), "bits": 3},
    "weighted entropy": {"grid": mz.grids.weighted_entropy(), "bits": 3},
    "shifted levels": {"grid": mz.grids.nf4(), "offset": True},
}
GRIDS = [pytest.param(o, id=name) for name, o in QUICK.items()]
GRIDS += [pytest.param(o, id=name, marks=pytest.mark.slow) for name, o in SLOW.items()]
W = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)


@pytest.mark.parametrize("options", GRIDS)
def test_a_thousand_steps_at_rate_one_and_weight_decay_without_a_gradient(options):
    t = mz.quantize(learned=True, axis=-1, **options)
    target = W[::-1] * 3.0

    def trained(tx, slope, count):
        def body(_, carry):
            params, state = carry
            grads = jax.tree.map(lambda g: g * slope, jax.grad(loss)(params))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        def loss(params):
            return jnp.mean((params["w"] - target) ** 2)

        return jax.jit(lambda start: jax.lax.fori_loop(0, count, body, start))(mz.start(tx, {"w": W}))

    fast = mz.wrap(optax.sgd(1.0), t, offsets_tx=optax.adam(1.0))
    params, state = trained(fast, 1.0, 1000)
    packed = mz.pack(state, params).params["w"]
    steps = np.asarray(packed.scale if hasattr(packed, "scale") else packed.step)
    assert np.all(np.isfinite(params["w"]))
    assert np.all(np.isfinite(steps))
    assert np.all(steps > 0)
    decayed = mz.wrap(optax.adamw(1e-3, weight_decay=1.0), t)
    _, state = trained(decayed, 0.0, 10)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(state.offsets))
