"""Under the flags by which users find promotions of their own, none is found in the library."""

import jax
import optax
import pytest
from every_transform import PARAMS, TRANSFORMS

import modelzip_jax as mz

FLAGS = {
    "dtype": lambda: jax.numpy_dtype_promotion("strict"),
    "rank": lambda: jax.numpy_rank_promotion("raise"),
}


def two_steps(transform):
    tx = mz.wrap(optax.sgd(0.1), transform, offsets_tx=optax.sgd(0.1))

    def steps(params):
        params, state = mz.start(tx, params)
        for _ in range(2):
            updates, state = tx.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return mz.params(state, params), mz.metrics(state)

    return tx, steps


# Each transform under one of the flags always, under both at length.
CASES = [
    pytest.param(flag, name, marks=[] if (i + j) % 2 else [pytest.mark.slow])
    for i, name in enumerate(TRANSFORMS)
    for j, flag in enumerate(FLAGS)
]


@pytest.mark.parametrize(("flag", "name"), CASES)
def test_init_update_decode_pack_and_unpack(flag, name):
    with FLAGS[flag]():
        tx, steps = two_steps(TRANSFORMS[name])
        jax.eval_shape(steps, PARAMS)  # Promotions are found by tracing.
        packed = mz.pack(tx.init(PARAMS), PARAMS)
        jax.eval_shape(mz.unpack, packed)
        mz.unpack(packed)
        mz.unpack(mz.compress(PARAMS, TRANSFORMS[name]))
        transform, encoded = mz.resume(packed)
        transform.decode(encoded)
