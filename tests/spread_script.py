"""Run by test_spread.py in a process of its own, with eight CPU devices: how far what they find is from one's."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import modelzip_jax as mz
from modelzip_jax import distillation
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment, records, train_loop
from modelzip_jax.training.distributed import Placement

BATCH = 16
RNG = np.random.default_rng(0)
LOGITS = [RNG.normal(size=(BATCH, 5)).astype("f4") for _ in range(2)]
MAPS = [RNG.normal(size=(BATCH, 4, 4, 6)).astype("f4") for _ in range(2)]
ROWS = [RNG.normal(size=(BATCH, 6)).astype("f4") for _ in range(2)]
LABELS = RNG.integers(0, 5, BATCH).astype("i4")
EXAMPLES = RNG.permutation(40)[:BATCH].astype("i4")
NEGATIVES = RNG.integers(0, 40, (BATCH, 7)).astype("i4")


def remembered(student, teacher, examples, negatives):
    memory = distillation.init_contrast_memory(jax.random.key(0), 40, 6)
    loss, memory = distillation.contrastive(student, teacher, memory, examples, negatives)
    again, memory = distillation.contrastive(student, teacher, memory, examples, negatives)
    return loss + again + jnp.sum(memory.student**3) + memory.log_student


def reviewed(student, teacher):
    params = distillation.init_review(jax.random.key(0), [6], [6], width=4)
    return distillation.hierarchical_context(distillation.reviewed(params, [student], [(4, 4)]), [teacher])


def critic(made):
    def loss(student, teacher):
        params, memory = made.init(jax.random.key(0), student, teacher)
        params = jax.tree.map(lambda p: p + 0.1, params)
        output = made.critic_loss(params, memory, student, teacher)
        return output.loss + made.student_loss(params, output.memory, student, teacher)

    return loss


LOSSES = {
    "soft_targets": (distillation.soft_targets, LOGITS),
    "decoupled": (distillation.decoupled, [*LOGITS, LABELS]),
    "standardized": (distillation.standardized, LOGITS),
    "correlation": (distillation.correlation, LOGITS),
    "top_k": (lambda s, t: distillation.top_k_soft_targets(s, distillation.top_k_logits(t, 2)), LOGITS),
    "hint": (distillation.hint, MAPS),
    "attention_transfer": (distillation.attention_transfer, MAPS),
    "flow": (lambda s, t: distillation.flow((s, s), (t, t)), MAPS),
    "similarity": (distillation.similarity, MAPS),
    "relational_distance": (distillation.relational_distance, ROWS),
    "relational_angle": (distillation.relational_angle, ROWS),
    "correlation_congruence": (distillation.correlation_congruence, ROWS),
    "in_batch_contrastive": (distillation.in_batch_contrastive, ROWS),
    "contrastive": (remembered, [*ROWS, EXAMPLES, NEGATIVES]),
    "review": (reviewed, MAPS),
    "whitened": (lambda s, t: distillation.hint(s, distillation.whiten(t)), ROWS),
    "variational": (critic(distillation.variational_critic()), ROWS),
    "info_nce": (critic(distillation.info_nce_critic(4, [8])), ROWS),
    "donsker_varadhan": (critic(distillation.donsker_varadhan_critic(4, [8])), ROWS),
    "discriminator": (critic(distillation.discriminator([8])), ROWS),
    "weak": (
        lambda s, t, y: distillation.weighted_cross_entropy(s, y, jax.nn.softmax(t)[:, 0]),
        [*LOGITS, LABELS],
    ),
}


def gap(found, expected):
    """The largest difference between two trees, as a share of the largest number of each leaf."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in pairs)


def loss_of(name):
    def asked(batch, _):
        loss, arguments = LOSSES[name]
        return jax.jit(jax.value_and_grad(loss))(*batch(arguments))

    return asked


def played(batch, weights):
    """Three steps of a pruned student against a discriminator and a bound, balanced by their gradients."""

    def student(params, variables, batch, key):
        hidden = jnp.tanh(batch["inputs"] @ params["in"]["kernel"])
        logits = hidden @ params["out"]["kernel"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
        return distillation.StudentOutput({"labels": loss}, {"logits": logits, "hidden": hidden})

    def teacher(params, batch):
        return {"logits": batch["inputs"] @ params, "hidden": jnp.tanh(batch["inputs"])}

    critics = {"logits": distillation.discriminator([8]), "hidden": distillation.info_nce_critic(4, [8])}
    game = distillation.min_max_game(
        student, teacher, critics,
        mz.wrap(optax.adam(1e-2), mz.only("**/kernel", mz.prune(sparsity=0.5))), optax.adam(1e-2),
        balance=distillation.grad_norm(), shared="in/kernel", predictions="logits",
    )  # fmt: skip
    drawn = np.random.default_rng(1)
    params = weights(
        {n: {"kernel": drawn.normal(size=s).astype("f4") / 3} for n, s in (("in", (6, 8)), ("out", (8, 5)))}
    )
    taught = weights(drawn.normal(size=(6, 5)).astype("f4"))
    given = batch({"inputs": ROWS[0], "labels": LABELS})
    state = game.init(params, given, jax.random.key(3), teacher_params=taught)
    step = jax.jit(game.step, donate_argnums=0)
    for _ in range(3):
        state, metrics = step(state, given, taught)
    return state.params, metrics


SPREAD = {"w": P(None, "data"), "b": P("data"), "v": P(None, "data")}


def leaves():
    drawn = np.random.default_rng(2)
    shapes = {"w": (16, 32), "b": (32,), "v": (32, 16)}
    return {name: drawn.normal(size=s).astype("f4") / 4 for name, s in shapes.items()}


def tuned(_, __, params=None):
    params, x = (
        leaves() if params is None else params,
        np.random.default_rng(3).normal(size=(64, 16)).astype("f4"),
    )
    model = lambda p, x: jnp.tanh(x @ p["w"] + p["b"])  # noqa: E731
    packed = mz.compress(params, mz.only(["w", "v"], mz.quantize(2)))
    return mz.unpack(
        mz.tune_scales(packed, params, (model, [x]), epochs=5, learning_rate=1e-2, only=["w", "b"])
    )


def searched(_, __, params=None):
    with tempfile.TemporaryDirectory() as folder:
        search = mz.smallest(bytes=700, journal=Path(folder) / "tries")
        return mz.unpack(mz.compress(leaves() if params is None else params, search))


def lined(_, __, params=None):
    """A trellis, at first and as a training step decodes it."""
    params = leaves() if params is None else params
    transform = mz.entropy_constrained(0.1, spread=mz.spreads.even(), states=8, rate_weight=0.5)
    encoded = transform.init(jax.tree.map(jnp.asarray, params), mz.Context())
    packed = mz.compress(params, transform)
    assert {type(packed.params[name].codes).__name__ for name in ("w", "v")} == {"TrellisCodes"}
    return mz.unpack(packed), jax.jit(transform.decode)(encoded)


def taught(devices):
    """Five steps from a config: a pruned student of its float self, by soft targets and relations."""
    config = configs.base()
    config.model.options, config.data.batch_size = {"widths": (8,)}, 32
    config.distill.teacher = "self"
    config.distill.features.update(loss="relational_distance", layers=("Dense_1",))
    with tempfile.TemporaryDirectory() as folder:
        config.start = str(Path(folder) / "start.mz")
        drawn = np.random.default_rng(4)
        kernels = {"Dense_0": drawn.normal(size=(64, 8)) / 8, "Dense_1": drawn.normal(size=(8, 10)) / 3}
        params = {
            n: {"kernel": k.astype("f4"), "bias": np.zeros(k.shape[1], "f4")} for n, k in kernels.items()
        }
        mz.save(config.start, mz.compress(params, mz.identity()))
        built = experiment.build(config, mz.only("**/kernel", mz.prune(sparsity=0.5)))
        built = built._replace(place=Placement(32, devices))
        state = experiment.initial_state(built)
    step = train_loop.make_step(
        built.network, built.distilling.objective, built.tx, built.prepare, built.distilling.gradients
    )
    items = np.arange(5 * 32, dtype="i4").reshape(5, 32)
    data = built.place.replicate(built.train)
    state, metrics = train_loop.make_block(step)(state, data, built.place.split(items))
    return state.params, metrics


def beside(name, kind):
    """The gap between a case on eight devices and on one."""
    if name == "taught":
        return gap(taught(jax.devices()), taught(jax.devices()[:1]))
    # Arrays on an Explicit mesh bring it along where none is set.
    axis_type = AxisType.Explicit if kind == "Unset" else getattr(AxisType, kind)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))

    def put(spec):
        return lambda tree: jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), tree)

    case = {"game": played, "tuned": tuned, "searched": searched, "lined": lined}.get(name) or loss_of(name)
    here = lambda tree: jax.tree.map(jnp.asarray, tree)  # noqa: E731
    expected = case(here, here)
    held = (
        {}
        if case not in (tuned, searched, lined)
        else {"params": {k: jax.device_put(x, NamedSharding(mesh, SPREAD[k])) for k, x in leaves().items()}}
    )
    with contextlib.nullcontext() if kind == "Unset" else jax.set_mesh(mesh):
        return gap(case(put(P("data")), put(P()), **held), expected)


def attempt(name, kind):
    try:
        return beside(name, kind)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:2000]


def trained(folder, changes):
    """What a run on eight devices logged, and its test numbers."""
    config = configs.base()
    config.update(json.loads(changes))
    result = experiment.run(config, folder, quiet=True)
    return [records.read_records(Path(folder) / "log.jsonl"), result["test"]]


if __name__ == "__main__":
    if sys.argv[1] == "run":
        json.dump(trained(*sys.argv[2:]), sys.stdout)
    else:
        json.dump({case: attempt(*case.split()) for case in sys.argv[1:]}, sys.stdout)
