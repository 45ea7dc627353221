"""The min–max step: what it computes, with which networks and optimizers, and what it says when it collapses."""

import warnings

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import modelzip_jax as mz
from modelzip_jax import distillation
from modelzip_jax.distillation import StudentOutput
from modelzip_jax.errors import DistillationError, PatternError

KEY = jax.random.key(0)
INPUTS = jax.random.normal(jax.random.key(1), (32, 6))
BATCH = {"inputs": INPUTS, "labels": jnp.argmax(INPUTS[:, :3], axis=1)}
TEACHER = 3.0 * jax.random.normal(jax.random.key(2), (6, 3))


def teacher(params, batch):
    return {"logits": batch["inputs"] @ params}


def output(logits, batch, variables=()):
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
    return StudentOutput({"labels": loss}, {"logits": logits}, variables)


def plain():
    def student(params, variables, batch, key):
        del variables, key
        hidden = jnp.tanh(batch["inputs"] @ params["in"]["kernel"])
        return output(hidden @ params["out"]["kernel"], batch)

    shapes = {"in": (6, 8), "out": (8, 3)}
    return student, {n: {"kernel": jax.random.normal(KEY, s) / 3} for n, s in shapes.items()}, ()


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.relu(x))


def linen():
    variables = dict(LinenNet().init(KEY, INPUTS))
    params = variables.pop("params")

    def student(params, variables, batch, key):
        del key
        everything = {"params": params, **variables}
        logits, changed = LinenNet().apply(everything, batch["inputs"], train=True, mutable=["batch_stats"])
        return output(logits, batch, changed)

    return student, params, variables


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.one, self.two = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.two(nnx.relu(self.one(x)))


def of_nnx():
    structure, params = nnx.split(NnxNet(nnx.Rngs(0)), nnx.Param)

    def student(params, variables, batch, key):
        del variables, key
        return output(nnx.merge(structure, params)(batch["inputs"]), batch)

    return student, params, ()


def played(game, state, steps, batch=BATCH):
    """The state and all metrics after steps that are traced once, with the state donated."""
    traced = chex.assert_max_traces(game.step, n=1)
    step = jax.jit(traced, donate_argnums=0)
    for _ in range(steps):
        state, metrics = step(state, batch, TEACHER)
    return state, metrics


@pytest.fixture(autouse=True)
def forget_traces():
    chex.clear_trace_counter()


def critic_of_everything(name):
    return {
        "discriminator": distillation.discriminator([16]),
        "vid": distillation.variational_critic(),
        "info_nce": distillation.info_nce_critic(8, [16]),
        "dv": distillation.donsker_varadhan_critic(8, [16]),
    }[name]


@pytest.mark.parametrize("network", [plain, linen, of_nnx])
@pytest.mark.parametrize("critic", ["discriminator", "vid", "info_nce", "dv"])
def test_a_step_traces_once_and_the_student_learns(network, critic):
    student, params, variables = network()
    game = distillation.min_max_game(
        student, teacher, {"logits": critic_of_everything(critic)}, optax.adam(3e-2), optax.adam(1e-2),
        balance=distillation.fixed_weights({"labels": 1.0, "logits": 0.1}), predictions="logits",
    )  # fmt: skip
    state = game.init(params, BATCH, KEY, variables, TEACHER)
    first = float(jax.jit(game.step)(state, BATCH, TEACHER)[1]["loss/labels"])
    state, metrics = played(game, state, 100)
    assert float(metrics["loss/labels"]) < 0.65 * first
    assert int(state.step) == 100
    assert all(np.isfinite(x) for x in metrics.values())
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("critic", ["discriminator", "vid", "info_nce", "dv"])
def test_critics_take_half_precision_and_extremes(critic, scale):
    student, target = scale * jax.random.normal(KEY, (2, 4, 3), jnp.bfloat16)
    critic = critic_of_everything(critic)
    params, memory = critic.init(KEY, student, target)

    @jax.jit
    def both(params, student):
        own, own_grad = jax.value_and_grad(lambda p: critic.critic_loss(p, memory, student, target).loss)(
            params
        )
        return (
            own,
            own_grad,
            *jax.value_and_grad(lambda s: critic.student_loss(params, memory, s, target))(student),
        )

    found = both(params, student)
    assert (found[0].dtype, found[2].dtype, found[3].dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves(found))


def test_a_step_is_the_one_that_is_written():
    student, params, _ = plain()
    critic = distillation.discriminator([16], l2=1e-3)
    tx, critic_tx = optax.sgd(0.1), optax.sgd(0.2)
    balance = distillation.fixed_weights({"labels": 2.0, "logits": 0.5})
    game = distillation.min_max_game(
        student, teacher, {"logits": critic}, tx, critic_tx, balance=balance, critic_steps=2
    )
    state = game.init(params, BATCH, KEY, teacher_params=TEACHER)
    new, _ = jax.jit(game.step)(state, BATCH, TEACHER)

    views = student(params, (), BATCH, KEY).views["logits"]
    theirs, memory = state.critics["logits"].params, state.critics["logits"].memory
    for _ in range(2):
        grads = jax.grad(lambda p: critic.critic_loss(p, memory, views, INPUTS @ TEACHER).loss)(theirs)
        theirs = jax.tree.map(lambda p, g: p - 0.2 * g, theirs, grads)

    def total(params):
        out = student(params, (), BATCH, KEY)
        return 2.0 * out.losses["labels"] + 0.5 * critic.student_loss(
            theirs, memory, out.views["logits"], None
        )

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(total)(params))
    chex.assert_trees_all_close(new.critics["logits"].params, theirs, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(new.params, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("balance", [distillation.fixed_weights(), distillation.grad_norm()])
def test_a_step_runs_the_students_network_once(balance):
    calls, (network, params, _) = [], plain()

    def student(*args):
        calls.append(1)
        return network(*args)

    game = game_of(student, balance=balance, critic_steps=3)
    state = game.init(params, BATCH, KEY, teacher_params=TEACHER)
    calls.clear()
    jax.jit(game.step)(state, BATCH, TEACHER)
    assert len(calls) == 1


@pytest.mark.parametrize("network", [plain, of_nnx])
def test_with_wrapped_optimizers_the_student_is_compressed_throughout(network):
    student, params, _ = network()
    tx = mz.wrap(optax.adam(1e-2), mz.only("**/kernel", mz.chain(mz.prune(sparsity=0.5), mz.quantize(4))))
    game = distillation.min_max_game(
        student, teacher, {"logits": distillation.discriminator([16])}, tx, optax.adam(1e-2)
    )
    state = game.init(params, BATCH, KEY, teacher_params=TEACHER)
    for _ in range(2):
        kernels = [x for n, x in mz.tree.named_leaves(state.params) if n.endswith("kernel")]
        assert [float(jnp.mean(x == 0)) >= 0.5 for x in kernels] == [True, True]
        state, metrics = played(game, state, 30)
        chex.clear_trace_counter()
    assert float(metrics["loss/labels"]) < 1.0
    packed = mz.pack(state.opt_state, state.params)
    chex.assert_trees_all_close(mz.tree.plain(mz.unpack(packed)), mz.tree.plain(state.params), rtol=1e-6)


@pytest.mark.parametrize(
    "balance",
    [
        distillation.dynamic_weight_average(),
        distillation.uncertainty_weighting(),
        distillation.grad_norm(),
    ],
)
def test_balances_follow_the_terms(balance):
    student, params, _ = plain()
    game = distillation.min_max_game(
        student, teacher, {"logits": distillation.info_nce_critic(8, [16])}, optax.adam(1e-2), optax.adam(1e-2),
        balance=balance, shared="out/**",
    )  # fmt: skip
    _, metrics = played(game, game.init(params, BATCH, KEY, teacher_params=TEACHER), 30)
    weights = [float(metrics[f"weight/{name}"]) for name in ("labels", "logits")]
    assert weights[0] != weights[1]
    assert all(w > 0 for w in weights)


def test_steps_run_in_a_scan():
    student, params, _ = plain()
    critics = {"logits": distillation.donsker_varadhan_critic(8, [16])}
    game = distillation.min_max_game(student, teacher, critics, optax.adam(1e-2), optax.adam(1e-2))
    state = game.init(params, BATCH, KEY, teacher_params=TEACHER)
    one, _ = played(game, state, 5)
    state = game.init(params, BATCH, KEY, teacher_params=TEACHER)
    many, metrics = jax.jit(lambda s: jax.lax.scan(lambda s, _: game.step(s, BATCH, TEACHER), s, length=5))(
        state
    )
    chex.assert_trees_all_close(one.params, many.params, rtol=1e-4, atol=1e-6)
    assert metrics["logits/nats"].shape == (5,)


def test_each_critic_has_its_optimizer():
    student, params, _ = plain()

    def two_views(params, variables, batch, key):
        out = student(params, variables, batch, key)
        return out._replace(views={"still": out.views["logits"], "moving": out.views["logits"]})

    names = ("still", "moving")
    game = distillation.min_max_game(
        two_views, lambda p, b: dict.fromkeys(names, teacher(p, b)["logits"]),
        dict.fromkeys(names, distillation.discriminator([8])), optax.sgd(0.1),
        {"still": optax.set_to_zero(), "moving": optax.sgd(0.1)},
    )  # fmt: skip
    state = game.init(params, BATCH, KEY, teacher_params=TEACHER)
    new, _ = jax.jit(game.step)(state, BATCH, TEACHER)
    chex.assert_trees_all_equal(new.critics["still"].params, state.critics["still"].params)
    assert not np.array_equal(
        new.critics["moving"].params["Dense_0"]["kernel"], state.critics["moving"].params["Dense_0"]["kernel"]
    )


def of_logits(function, critic=None, student_tx=None, critic_tx=None, steps=250, targets=teacher):
    """Metrics of a game in which the student's logits are a function of its one param and the inputs."""

    def student(params, variables, batch, key):
        del variables, key
        return StudentOutput({}, {"logits": function(params, batch["inputs"])})

    game = distillation.min_max_game(
        student, targets, {"logits": critic or distillation.discriminator([16])},
        student_tx or optax.set_to_zero(), critic_tx or optax.adam(1e-2), predictions="logits",
    )  # fmt: skip
    state = game.init(jnp.zeros(()), BATCH, KEY, teacher_params=TEACHER)
    return played(game, state, steps)[1]


def said(metrics, text, patience=50):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        texts = distillation.check_collapse(metrics, patience)
    assert [str(x.message) for x in caught] == texts
    assert all(x.category is distillation.CollapseWarning for x in caught)
    with pytest.raises(DistillationError, match=text):
        distillation.check_collapse(metrics, patience, strict=True)
    return texts


def test_a_discriminator_that_wins_is_said():
    metrics = of_logits(lambda p, x: p + 5.0 + x @ TEACHER)  # A student that cannot move, far away.
    assert float(metrics["logits/auc"]) > 0.99
    said(metrics, "'logits', for 50 steps or more: the discriminator tells student from teacher")


def test_a_discriminator_that_does_not_learn_is_said():
    dead = (lambda key, features: jnp.zeros(3), lambda params, features: features @ params)
    critic = distillation.discriminator(network=dead)
    metrics = of_logits(lambda p, x: p + 5.0 + x @ TEACHER, critic, critic_tx=optax.set_to_zero(), steps=60)
    assert float(metrics["logits/gap"]) > 0.5
    said(metrics, "the discriminator does not tell")


def test_a_student_that_predicts_one_class_is_said():
    metrics = of_logits(lambda p, x: p + jnp.array([50.0, 0.0, 0.0]) + x[:, :3])
    assert "'student', for" in "".join(said(metrics, "predicts nearly the same"))


def test_a_bound_at_its_ceiling_is_said():
    def told_apart(params, batch):
        return {"logits": 40 * jnp.eye(32)}

    same = lambda features: features  # noqa: E731
    network = (lambda key, features: (), lambda params, features: same(features))
    critic = distillation.info_nce_critic(networks=(network, network))
    metrics = of_logits(lambda p, x: p + jnp.eye(32), critic, targets=told_apart)
    said(metrics, r"InfoNCE stands at log\(batch\)")


def test_what_is_not_finite_is_said_at_once():
    metrics = of_logits(lambda p, x: (p + x @ TEACHER).at[0, 0].set(jnp.nan), steps=1)
    assert len(said(metrics, "NaN or infinite", patience=10_000)) == 2  # The critic, and the student's term.


def test_a_game_that_goes_well_is_not_spoken_of():
    student, params, _ = plain()
    critics = {"logits": distillation.discriminator([16], adversarial_samples=1.0)}
    game = distillation.min_max_game(
        student, teacher, critics, optax.adam(1e-2), optax.adam(1e-3), predictions="logits"
    )
    _, metrics = played(game, game.init(params, BATCH, KEY, teacher_params=TEACHER), 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert distillation.check_collapse(metrics, patience=90) == []


def test_of_stacked_metrics_the_longest_streak_counts():
    metrics = {"collapse/a/b/wins": np.array([3, 7, 0]), "loss": np.ones(3)}
    assert "'a/b'" in said(metrics, "tells student", patience=7)[0]
    assert distillation.check_collapse(metrics, patience=8) == []


def game_of(student=None, critics=None, **options):
    student = student or plain()[0]
    critics = critics or {"logits": distillation.discriminator([8])}
    critics_tx = options.pop("critics_tx", optax.sgd(0.1))
    return distillation.min_max_game(student, teacher, critics, optax.sgd(0.1), critics_tx, **options)


def begun(game, variables=()):
    return game.init(plain()[1], BATCH, KEY, variables, TEACHER)


def wider(params, variables, batch, key):
    return StudentOutput(
        {}, {"logits": jnp.tile(plain()[0](params, variables, batch, key).views["logits"], 2)}
    )


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: begun(game_of(wider)), DistillationError, r"\(32, 6\).*\(32, 3\).*projector"),
        (lambda: begun(game_of(critics={"hint": distillation.discriminator()})), DistillationError, r"\['hint'\]"),
        (lambda: begun(game_of(predictions="scores")), DistillationError, "scores"),
        (lambda: begun(game_of(critics={"labels": distillation.discriminator()})), DistillationError, "labels"),
        (lambda: begun(game_of(), {"mean": jnp.ones(2)}), DistillationError, "variables"),
        (lambda: game_of(critics={"logits": optax.sgd(0.1)}), DistillationError, "'logits'"),
        (lambda: game_of(critics_tx={"other": optax.sgd(0.1)}), DistillationError, "other"),
        (lambda: game_of(critic_steps=0), DistillationError, "critic_steps"),
        (
            lambda: game_of(
                critics={"logits": distillation.variational_critic()}, balance=distillation.uncertainty_weighting()
            ),
            DistillationError,
            "may be negative",
        ),
        (
            lambda: begun(game_of(balance=distillation.grad_norm(), shared="body/**")),
            PatternError,
            "body",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(call, error, word):
    with pytest.raises(error, match=word):
        call()
