"""Optimizer states and packed models in other people's checkpoints go on as if nothing had happened."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from every_transform import PARAMS, TRANSFORMS
from flax import serialization
from flax.training.train_state import TrainState

import modelzip_jax as mz

ALWAYS = (
    "prune, global",
    "quantize, learned zeros",
    "cluster, differentiable",
    "shared neurons",
    "partition",
)
NAMES = [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in TRANSFORMS]


def wrapped(name):
    return mz.wrap(optax.adam(1e-2), TRANSFORMS[name])


@functools.cache
def trained(name):
    """A step of training, jitted, and `(params, state)` after one."""
    tx = wrapped(name)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    return step, step(*mz.start(tx, PARAMS))


def fresh(name):
    return mz.start(wrapped(name), PARAMS)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_array_equal(x, y)


def goes_on(name, restored):
    step, pair = trained(name)
    same(restored, pair)
    same(step(*restored), step(*pair))


def abstract(tree):
    """Shapes, dtypes and where each array is to be, without any array: what Orbax restores into."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_flax(name):
    goes_on(name, serialization.from_bytes(fresh(name), serialization.to_bytes(trained(name)[1])))


@pytest.mark.parametrize("name", NAMES)
def test_state_dicts_of_flax(name):
    stored = serialization.msgpack_serialize(serialization.to_state_dict(trained(name)[1]))
    goes_on(name, serialization.from_state_dict(fresh(name), serialization.msgpack_restore(stored)))


@pytest.mark.parametrize("name", NAMES)
def test_train_states_of_flax(name):
    def begun():
        params, state = fresh(name)
        made = TrainState.create(apply_fn=None, params=params, tx=tx)
        return made.replace(opt_state=state)

    tx = wrapped(name)
    gradient = jax.tree.map(jnp.sin, PARAMS)
    advance = jax.jit(lambda state: state.apply_gradients(grads=gradient))
    state = advance(begun())
    stored = serialization.msgpack_serialize(serialization.to_state_dict(state))
    again = serialization.from_state_dict(begun(), serialization.msgpack_restore(stored))
    same(advance(again), advance(state))


@pytest.mark.parametrize("name", NAMES)
def test_orbax_into_an_abstract_target(name, tmp_path):
    """Made by `jax.eval_shape`: a job that goes on need not first choose masks of weights that it replaces."""
    target = abstract(jax.eval_shape(lambda p: mz.start(wrapped(name), p), PARAMS))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", trained(name)[1])
        checkpointer.wait_until_finished()
        goes_on(name, checkpointer.restore(tmp_path / "standard", target))
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "pytree", trained(name)[1])
        places = ocp.checkpoint_utils.construct_restore_args(target)
        goes_on(name, checkpointer.restore(tmp_path / "pytree", item=target, restore_args=places))


@pytest.mark.parametrize("name", NAMES)
def test_packed_models_through_orbax(name, tmp_path):
    params, state = trained(name)[1]
    packed = jax.device_put(mz.pack(state, params))
    target = abstract(jax.eval_shape(lambda x: x, packed))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "standard", packed)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "standard", target)
    assert (restored.transform, restored.step) == (packed.transform, 1)
    same(restored, packed)
    same(mz.unpack(restored), mz.params(state, params))


@functools.cache
def on_eight_devices(names):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("restoring_script.py")
    command = [sys.executable, str(script), *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


MESHED = ("chain", "partition")


@pytest.mark.parametrize(
    "name", [n if n in MESHED else pytest.param(n, marks=pytest.mark.slow) for n in TRANSFORMS]
)
def test_orbax_puts_each_shard_where_the_target_says(name):
    names = MESHED if name in MESHED else tuple(n for n in TRANSFORMS if n not in MESHED)
    assert on_eight_devices(names)[name] == []


@pytest.mark.parametrize("name", NAMES)
def test_sharding_specs_by_tree_map_params(name):
    """How users make the shardings of an optimizer's state out of those of the params."""
    _, (_, state) = trained(name)
    doubled = optax.tree_utils.tree_map_params(wrapped(name), lambda x: 2 * x, state)
    same(doubled.latents, jax.tree.map(lambda x: 2 * x, state.latents))
    same(doubled.inner[0].mu, jax.tree.map(lambda x: 2 * x, state.inner[0].mu))
    same(doubled.step, state.step)
