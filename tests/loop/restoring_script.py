"""Run by test_restored_states.py with eight CPU devices: what Orbax does not restore as it was, or elsewhere."""

import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from every_transform import PARAMS, TRANSFORMS
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import modelzip_jax as mz


def put(mesh, tree):
    spec = lambda x: P("data", "model") if x.ndim == 2 else P()  # noqa: E731
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(x))), tree)


def differences(restored, saved, target):
    if jax.tree.structure(restored) != jax.tree.structure(saved):
        yield "another structure"
        return
    for (path, x), y, t in zip(
        jax.tree.leaves_with_path(restored), jax.tree.leaves(saved), jax.tree.leaves(target), strict=True
    ):
        where = jax.tree_util.keystr(path)
        if (x.shape, x.dtype) != (y.shape, y.dtype) or not np.array_equal(x, y):
            yield f"{where} has other values"
        if not x.sharding.is_equivalent_to(t.sharding, x.ndim):
            yield f"{where} is on {x.sharding}, not on {t.sharding}"


def restored(saved, target):
    with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(Path(folder) / "saved", saved)
        checkpointer.wait_until_finished()
        return checkpointer.restore(Path(folder) / "saved", target)


def check(name):
    """Saved from a mesh of 4 x 2, restored there, and into one of 2 x 4."""
    tx = mz.wrap(optax.adam(1e-2), TRANSFORMS[name])
    found = []

    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    saved = None
    for shape in ((4, 2), (2, 4)):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        begun = jax.jit(lambda p: mz.start(tx, p))(put(mesh, PARAMS))
        saved = jax.jit(step)(*begun) if saved is None else saved
        # Compiled, as only then it is known where each array will be.
        places = jax.tree.map(lambda x: x.sharding, begun)
        target = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            jax.eval_shape(lambda p: mz.start(tx, p), PARAMS), places,
        )  # fmt: skip
        again = restored(saved, target)
        found += differences(again, saved, target)
        latents = jax.tree.leaves(mz.loop.wrap_states(again[1])[0].latents)
        alike = [x for x in latents if x.shape in ((8, 8), (8, 4))]
        found += [f"a latent lies on {x.sharding}" for x in alike if x.sharding.is_fully_replicated]
        np.testing.assert_allclose(
            *(jnp.concatenate([x.astype(jnp.float32).ravel() for x in jax.tree.leaves(jax.jit(step)(*pair)[0])])
              for pair in (again, saved)), atol=1e-2 if "neurons" in name else 1e-5,
        )  # fmt: skip
    packed = mz.pack(saved[1], saved[0])
    everywhere = NamedSharding(mesh, P())
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), packed)
    found += differences(restored(packed, target), packed, target)
    return found


if __name__ == "__main__":
    json.dump({name: check(name) for name in sys.argv[1:]}, sys.stdout)
