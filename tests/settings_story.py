"""One story of everything that users do, told under settings of JAX: what it gives, as bytes by name.

As a program, `settings_story.py FOLDER`, it reads, and prints a digest of each array, for settings that have to be
made before JAX is imported.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import modelzip_jax as mz
from modelzip_jax import checkpoints

RNG = np.random.default_rng(7)
PARAMS = {
    "a": {"kernel": RNG.normal(size=(12, 8)).astype(np.float32), "bias": np.zeros(8, np.float32)},
    "b": {"kernel": RNG.normal(size=(8, 4)).astype(np.float32)},
    "half": {"kernel": jnp.asarray(RNG.normal(size=(8, 4)), jnp.bfloat16)},
}
BATCHES = [RNG.normal(size=(16, 12)).astype(np.float32) for _ in range(2)]
PACKED_RECIPE = mz.partition(
    {
        "codes": mz.chain(mz.prune(sparsity=0.5), mz.quantize(4)),
        "table": mz.cluster(4),
        "levels": mz.quantize(grid=mz.grids.nf4()),
    },
    {"a/kernel": "codes", "b/kernel": "table", "half/kernel": "levels"},
)
FEEDBACK = mz.only(("a/kernel", "b/kernel"), mz.quantize(4, rounding=mz.rounding.error_feedback()))
TRAINED = mz.only(
    "**/kernel", mz.chain(mz.prune(sparsity=0.5), mz.quantize(4, learned=True, granularity="tensor"))
)
SUMS = mz.only("a/kernel", mz.chain(mz.wavelet("haar"), mz.quantize(6)))


def network(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None]) @ params["b"]["kernel"]


def loss(params, x):
    return jnp.mean(jnp.square(network(params, x))) + jnp.mean(
        jnp.square(params["half"]["kernel"].astype(x.dtype))
    )


def write(folder):
    """The file that was made before: with no setting."""
    mz.save(Path(folder) / "made.mz", mz.compress(PARAMS, PACKED_RECIPE))
    mz.save(Path(folder) / "sums.mz", mz.compress(PARAMS, SUMS))


def told(folder, parts=("reading", "compressing", "training")):
    """Name to dtype, shape and bytes of what the story gives. `sums/...` are rounded as XLA likes."""
    found = {}

    def keep(name, tree):
        for leaf, x in mz.tree.named_leaves(tree):
            x = np.asarray(x)
            found[f"{name}/{leaf}"] = (str(x.dtype), x.shape, x.tobytes())

    for part in parts:
        PARTS[part](Path(folder), keep)
    return found


def reading(folder, keep):
    loaded = mz.load(folder / "made.mz")
    keep("loaded", loaded.params)
    keep("unpacked", mz.unpack(loaded))
    keep("tensor", mz.unpack(mz.load_tensor(folder / "made.mz", "a/kernel")))
    keep("sums", mz.unpack(mz.load(folder / "sums.mz")))
    assert mz.inspect(folder / "made.mz").size == 168
    checkpoints.write(folder / "again.safetensors", mz.unpack(loaded))
    keep("checkpoint", np.frombuffer((folder / "again.safetensors").read_bytes(), np.uint8))


def compressing(folder, keep):
    packed = mz.compress(PARAMS, PACKED_RECIPE)
    keep("packed", packed.params)
    mz.save(folder / "again.mz", packed)
    keep("file", np.frombuffer((folder / "again.mz").read_bytes(), np.uint8))
    calibrated = mz.compress(PARAMS, FEEDBACK, calibrate=(network, BATCHES))
    assert calibrated.params["a"]["kernel"].tag == "quantized"
    keep("calibrated", mz.unpack(calibrated))


def training(folder, keep):
    tx, x = mz.wrap(optax.sgd(0.1), TRAINED), jax.device_put(BATCHES[0])

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    params, state = mz.start(tx, jax.tree.map(jax.device_put, PARAMS))
    params, state = step(params, state)
    assert all(np.isfinite(np.asarray(x)) for x in mz.metrics(state).values())
    keep("trained", mz.unpack(mz.pack(state, params)))


PARTS = {"reading": reading, "compressing": compressing, "training": training}


def digest(found):
    dtype, shape, data = found
    return [dtype, list(shape), hashlib.sha256(data).hexdigest()]


if __name__ == "__main__":
    if "LAST_DEVICE" in os.environ:
        jax.config.update("jax_default_device", jax.devices()[-1])
    rows = told(sys.argv[1], ("reading",)).items()
    print(json.dumps({name: digest(x) for name, x in rows}))
