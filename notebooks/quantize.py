# %% [markdown]
# # Quantize
#
# Quantization rounds each weight to one of a few values. Eight bits are nearly free. Below four it matters
# which values there are, how many weights share a scale, and whether the network may adapt. This notebook
# looks at each.

# %%
import glob
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("modelzip_jax") is None:
    wheels = glob.glob("modelzip_jax-*.whl")  # one that you uploaded, else the package of this name
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", *(wheels or ["modelzip_jax"])])

# %% [markdown]
# The data, the network and the loop are those of the quickstart: 8×8 pictures of digits, three dense layers,
# adamw.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import modelzip_jax as mz

pictures, labels = load_digits(return_X_y=True)
pictures, labels = jnp.float32(pictures / 16), jnp.int32(labels)
held_out = np.arange(len(labels)) % 5 == 0
x, y = pictures[~held_out], labels[~held_out]
x_test, y_test = pictures[held_out], labels[held_out]


def draw(key, widths=(64, 256, 128, 10)):
    keys = jax.random.split(key, len(widths) - 1)
    shapes = zip(keys, widths[:-1], widths[1:], strict=True)
    return {
        f"layer{i}": {"kernel": jax.random.normal(k, (m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros(n)}
        for i, (k, m, n) in enumerate(shapes)
    }


def network(params, x):
    for i in range(len(params)):
        x = x @ params[f"layer{i}"]["kernel"] + params[f"layer{i}"]["bias"]
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()


def accuracy(params):
    return float((network(params, x_test).argmax(-1) == y_test).mean())


def train(tx, params, state, steps=600):
    @jax.jit
    def step(params, state, i):
        rows = jax.random.randint(jax.random.fold_in(jax.random.key(7), i), (128,), 0, len(x))
        updates, state = tx.update(jax.grad(loss)(params, x[rows], y[rows]), state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, i)
    return params, state


start = draw(jax.random.key(0))
tx = optax.adamw(2e-3)
dense, _ = train(tx, start, tx.init(start))
print(f"float weights: {accuracy(dense):.1%} right")

# %% [markdown]
# ## How many bits
#
# One line rounds the kernels. `mz.decoded` gives the weights as they will be, without packing them.

# %%
bits = (8, 6, 5, 4, 3, 2)
by_bits = []
for b in bits:
    rounded = mz.decoded(dense, mz.only("**/kernel", mz.quantize(b)))
    by_bits.append(accuracy(rounded))
    print(f"{b} bits: {by_bits[-1]:.1%} right")

# %% [markdown]
# ## Where the values lie
#
# A *grid* is the set of values, a *range* says how far it reaches. Evenly spaced integers up to the largest
# weight waste values on the tails. `range="mse"` reaches less far where that makes the squared error smaller,
# and `nf4` spaces its levels as a bell curve asks for.

# %%
kernel = dense["layer1"]["kernel"]
ways = {
    "integers, to the largest": mz.quantize(3, granularity="tensor", range="max"),
    "integers, least squares": mz.quantize(3, granularity="tensor", range="mse"),
    "nf4, of four bits": mz.quantize(4, granularity="tensor", grid=mz.grids.nf4()),
}
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), sharey=True)
for axis, (name, way) in zip(axes, ways.items(), strict=True):
    rounded = mz.decoded({"kernel": kernel}, way)["kernel"]
    error = float(((rounded - kernel) ** 2).mean() / (kernel**2).mean())
    axis.hist(np.ravel(kernel), bins=120, color="0.7")
    for level in np.unique(rounded):
        axis.axvline(level, color="C3", linewidth=0.8)
    axis.set(title=f"{name}\nerror {error:.1%} of the power", xlabel="weight")
figure.tight_layout()

# %% [markdown]
# ## How many weights share a scale
#
# A scale for each group follows the weights more closely, and costs bytes itself. The table counts both.

# %%
for name, options in {
    "one a tensor": {"granularity": "tensor"},
    "one a channel": {"granularity": "channel"},
    "one for 32 weights": {"granularity": "group", "group_size": 32},
    "one for 8 weights": {"granularity": "group", "group_size": 8},
}.items():
    packed = mz.compress(dense, mz.only("**/kernel", mz.quantize(3, range="mse", **options)))
    print(f"{name:20} {packed.nbytes:8,} bytes  {accuracy(mz.unpack(packed)):.1%} right")

# %% [markdown]
# ## With a few inputs
#
# *Error feedback* (GPTQ) rounds one input after the other, and lets the weights that are still to come make
# up for the error. It needs to know the inputs: `calibrate=` gives it some, and the layers are taken in the
# order in which the model meets them.

# %%
plain = mz.compress(dense, mz.only("**/kernel", mz.quantize(3, range="mse")))
feedback = mz.quantize(3, range="mse", rounding=mz.rounding.error_feedback())
calibrated = mz.compress(dense, mz.only("**/kernel", feedback), calibrate=(network, [x[:256], x[256:512]]))


def drift(packed):
    return float(jnp.mean((network(mz.unpack(packed), x_test) - network(dense, x_test)) ** 2))


print(f"squared error of the outputs: to nearest {drift(plain):.2f}, with feedback {drift(calibrated):.2f}")

# %% [markdown]
# ## Trained at two bits
#
# Two bits are four values. With `learned=True` the step sizes are trained beside the weights (LSQ), and the
# weights settle where the grid is.

# %%
tx = mz.wrap(optax.adamw(2e-3), mz.only("**/kernel", mz.quantize(2, learned=True)))
params, state = train(tx, *mz.start(tx, dense))
print(f"2 bits: {by_bits[-1]:.1%} rounded, {accuracy(params):.1%} trained")

# %%
packed = mz.pack(state, params)
packed

# %% [markdown]
# ## Different bits for different layers
#
# Layers differ in what an error of theirs costs. `mz.mixed_precision` measures it and gives each layer its
# bits, under a budget of bytes that is never exceeded.

# %%
budget = 24_000
information = mz.trace.fisher_information(network, dense, [x[:256]])
mixed = mz.mixed_precision(
    dense,
    {f"{b} bits": mz.quantize(b) for b in (2, 3, 4, 5, 6, 8)},
    sensitivity=mz.sensitivity.loss_increase(information),
    budget_bytes=budget,
    only="**/kernel",
)
print(mixed)
packed = mz.compress(dense, mixed.transform)
print(f"{packed.nbytes:,} of {budget:,} bytes, {accuracy(mz.unpack(packed)):.1%} right")
