# %% [markdown]
# # Prune
#
# Pruning sets weights to zero. Three questions decide how well that goes: which weights matter least, how
# much each layer gives, and whether the network may train while it happens. We answer each with a
# measurement, and end by taking whole neurons out, so that the network becomes smaller for any hardware.

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
# ## Which weights
#
# A *score* ranks the weights. The simplest is their magnitude. `wanda` multiplies it by how large the inputs
# of the weight are, which `trace.statistics` measures on a few batches: it reads the function itself, and
# needs no hooks.

# %%
stats = mz.trace.statistics(network, dense, [x[:512]], kinds=("second_moment",))
scores = {
    "random": mz.scores.random(),
    "magnitude": mz.scores.magnitude(),
    "wanda": mz.scores.wanda(),
}
shares = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95])


def one_shot(score, share):
    zipper = mz.only("**/kernel", mz.prune(score, sparsity=float(share)))
    return accuracy(mz.decoded(dense, zipper, stats=stats, key=jax.random.key(0)))


found = {name: [one_shot(score, share) for share in shares] for name, score in scores.items()}

# %%
figure, axis = plt.subplots(figsize=(6, 3))
for name, line in found.items():
    axis.plot(100 * shares, 100 * np.array(line), marker="o", label=name)
axis.set(xlabel="zeros, %", ylabel="right on held-out digits, %", title="pruned at once, not trained after")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## How much each layer gives
#
# An *allocation* divides the zeros. `"global"` compares scores over all layers, `"uniform"` gives each layer
# the same share, `"erk"` gives large layers more. The small last layer is the one to watch.


# %%
def zeros(params):
    return {name: f"{float((layer['kernel'] == 0).mean()):.0%}" for name, layer in params.items()}


for allocation in ("global", "uniform", "erk"):
    pruned = mz.decoded(dense, mz.only("**/kernel", mz.prune(sparsity=0.9, allocation=allocation)))
    print(f"{allocation:8}", zeros(pruned), f"{accuracy(pruned):.1%}")

# %% [markdown]
# ## While training
#
# A *schedule* raises the sparsity step by step. The loop is the one from above; `mz.wrap` is the line that
# changes. Weights that are hidden keep what they were, and come back if a later mask wants them.

# %%
trained = []
for share in (0.9, 0.95, 0.98):
    schedule = mz.schedules.cubic(share, begin=0, end=400)
    tx = mz.wrap(optax.adamw(2e-3), mz.only("**/kernel", mz.prune(sparsity=schedule, every=20)))
    params, state = train(tx, *mz.start(tx, dense))
    trained.append(accuracy(params))
    print(f"{mz.metrics(state)['sparsity']:.0%} zeros: {trained[-1]:.1%} right")

# %%
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(100 * shares, 100 * np.array(found["magnitude"]), marker="o", label="at once")
axis.plot([90, 95, 98], 100 * np.array(trained), marker="s", label="while training")
axis.set(xlabel="zeros, %", ylabel="right on held-out digits, %")
axis.legend()
figure.tight_layout()

# %% [markdown]
# ## What it saves
#
# Zeros cost next to nothing in a file. Together with 4 bits for the rest:

# %%
packed = mz.compress(params, mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.98), mz.quantize(4))))
packed

# %% [markdown]
# ## Whole neurons
#
# Single zeros make a file small. To make the *computation* small, neurons have to leave, with everything that
# is coupled to them: a column of one kernel, an entry of a bias, a row of the next kernel. `trace.couplings`
# finds what belongs together.

# %%
groups = mz.trace.couplings(network, dense, x[:1]).groups
for group in groups:
    print(group)

# %% [markdown]
# Half of the neurons go, those of the smallest weights. The smaller network trains on as an ordinary one.

# %%
scores = mz.rewrites.unit_scores(dense, groups, mz.scores.magnitude()(dense))
small = mz.rewrites.shrink(dense, mz.rewrites.choose_units(scores, share=0.5))
print({name: layer["kernel"].shape for name, layer in small.items()}, f"{accuracy(small):.1%} at once")

tx = optax.adamw(1e-3)
small, _ = train(tx, small, tx.init(small))
before, after = (sum(leaf.size for leaf in jax.tree.leaves(params)) for params in (dense, small))
print(f"{before:,} weights before, {after:,} after: {accuracy(small):.1%} right")

# %% [markdown]
# More scores, structures, budgets and schedules are in the guide on pruning. To write a score of your own
# takes ten lines: the notebook on transforms shows how.
