"""What is given in the place of something else is named in one line, and never a traceback of another library."""

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from modelzip_jax import distillation as d
from modelzip_jax.errors import DistillationError, ModelzipError, TraceError

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32)
W = {"w": jnp.eye(5)}
TEACHER = d.Teacher(lambda p, x: x @ p["w"], W)
SGD = optax.sgd(0.1)
CRITICS = {"features": d.discriminator([4])}


def student(params, variables, batch, key):
    return d.StudentOutput({}, {"features": batch @ params["w"]})


def views(params, batch):
    return {"features": batch}


def played(student=student, teacher=views, critics=CRITICS, tx=SGD, critics_tx=SGD, params=W, **options):
    game = d.min_max_game(student, teacher, critics, tx, critics_tx, **options)
    return game.init(params, X, jax.random.key(0))


def condensed(**given):
    arguments = {
        "key": jax.random.key(0),
        "init": lambda key: {"w": jax.random.normal(key, (5, 2))},
        "apply": lambda p, x: x @ p["w"],
        "inputs": X,
        "labels": np.arange(6) % 2,
        "networks": 1,
        **given,
    }
    return d.condense(**arguments)


def mlp():
    return equinox.nn.MLP(5, 2, 4, 1, key=jax.random.key(0))


def linear():
    return nnx.Linear(5, 2, rngs=nnx.Rngs(0))


WRONG = {
    "balance by name": (lambda: played(balance="dwa"), "balance must be a Balancer.*not 'dwa'"),
    "balance not called": (lambda: played(balance=d.grad_norm), "balance must be a Balancer.*not a function"),
    "one critic": (lambda: played(critics=d.discriminator([4])), r"critics must be a dict such as \{'feat"),
    "integer params": (lambda: played(params={"w": jnp.eye(5, dtype=int)}), "params 'w' is int32, which has"),
    "optimizer not called": (lambda: played(tx=optax.adam), "tx must be an optax optimizer.*adam: call it"),
    "critics without one": (lambda: played(critics_tx={"features": None}), r"critics_tx\['features'\] must"),
    "no student": (lambda: played(student=None), "student must be a function"),
    "predictions": (lambda: played(predictions=["features"]), "predictions must be a name"),
    "state of a game": (
        lambda: d.min_max_game(student, views, CRITICS, SGD, SGD).step({}, X),
        "state must be the MinMaxState",
    ),
    "network of a critic": (lambda: d.discriminator([4], network=len), "network must be two functions"),
    "networks of a critic": (lambda: d.info_nce_critic(4, [4], networks=[1, 2]), "networks must be two fun"),
    "teacher swapped": (lambda: d.Teacher(W, lambda p, x: x), "apply must be a function .*not a dict"),
    "linen module": (lambda: d.Teacher(nn.Dense(2), W), "the module Dense, .*model.apply"),
    "nnx module": (lambda: d.Teacher(linear(), None), "the module Linear, .*nnx.split"),
    "equinox module": (lambda: d.Teacher(mlp(), None), "the module MLP, .*eqx.partition"),
    "equinox params": (
        lambda: d.Teacher(lambda p, x: p(x), mlp()),
        "params 'activation' is a .*, not an array: .*eqx.partition",
    ),
    "strings in params": (lambda: d.Teacher(lambda p, x: x, {"kind": "mlp"}), "params 'kind' is a str"),
    "moving swapped": (
        lambda: d.move_teacher(W, d.start_moving_teacher(W), 0.9),
        r"move_teacher\(state, params, decay\): state must be the MovingTeacher of start_moving",
    ),
    "moving nothing": (lambda: d.start_moving_teacher({"a": "x"}), "params 'a' must be an array"),
    "forgetting": (
        lambda: d.record_forgetting({"a": 1}, jnp.arange(2), jnp.ones(2, bool)),
        "state must be the Forgetting of start_forgetting",
    ),
    "forgotten": (lambda: d.forgetting_scores(jnp.ones(3)), "state must be the Forgetting"),
    "noise": (lambda: d.label_noise(np.ones(3), np.ones(3, int), 7), "weak must be the WeakLabels of pseudo"),
    "memory": (lambda: d.contrastive(X, X, {}, np.arange(6), np.ones((6, 2), int)), "the ContrastMemory of"),
    "mask for indices": (lambda: d.hide_labels(np.arange(4), np.arange(4) < 2), "not bool; .*flatnonzero"),
    "logits in words": (lambda: d.pseudo_label("logits"), "logits must be an array of numbers, not a str"),
    "scores in words": (lambda: d.hardest(["a"], 1), "scores must be an array of numbers"),
    "no examples": (lambda: condensed(inputs=X[:0], labels=np.zeros(0, int)), "at least one example"),
    "condensed by none": (lambda: condensed(tx=None), "tx must be an optax optimizer"),
    "half an example": (lambda: condensed(per_class=1.5), "per_class must be an integer"),
    "integer networks": (
        lambda: condensed(init=lambda key: {"w": jnp.ones((5, 2), int)}),
        "params of init 'w' is int32",
    ),
    "collapse of nothing": (lambda: d.check_collapse(None), "metrics must be a dict"),
    "collapse of no metrics": (lambda: d.check_collapse({}), "collapse/<critic>/wins.*which it reads"),
    "collapse misspelt": (lambda: d.check_collapse({"colapse/h/wins": 300}), "'colapse/h/wins'"),
    "negative weights": (
        lambda: d.fixed_weights({"a": -1.0}),
        r"weights\['a'\] must be a finite number >= 0",
    ),
    "weights in a list": (lambda: d.fixed_weights([1.0]), "weights must be a dict"),
    "optimizer of a balance": (lambda: d.grad_norm(tx=optax.adam), "adam: call it"),
    "generations": (lambda: d.born_again(None, 2), "train must be a function"),
    "sizes": (lambda: d.assistants(lambda t, s: TEACHER, 3, TEACHER), "sizes must be a list"),
    "path": (lambda: d.cached_outputs(3, X), "folder must be a path, not a int"),
    "batch": (lambda: d.cached_top_k([1]), "batch must be a dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_given_for_something_else_is_named(name):
    call, match = WRONG[name]
    with pytest.raises(DistillationError, match=match) as told:
        call()
    assert "\n" not in str(told.value)


UNCALLABLE = {
    "student and teacher swapped": (
        lambda: played(views, student),
        r"student\(params, variables, batch, key\) cannot be run on these arguments, of shapes",
    ),
    "teacher of a game": (lambda: played(teacher=student), r"teacher\(teacher_params, batch\) cannot"),
    "init and apply swapped": (
        lambda: condensed(init=lambda p, x: x, apply=lambda key: key),
        r"init\(key\) cannot be run on one key",
    ),
    "apply of one argument": (lambda: condensed(apply=lambda p: p), r"apply\(params, inputs\) cannot"),
    "inputs of a teacher": (lambda: TEACHER(jnp.ones((4, 6))), r"the teacher cannot be run on .*\(\(4, 6\),"),
    "params of a teacher": (lambda: d.Teacher(TEACHER.apply, {"v": 1.0})(X), "KeyError: 'w'"),
    "member of an ensemble": (
        lambda: d.ensemble([TEACHER, d.Teacher(lambda p, x: x @ p, jnp.ones((4, 5)))])(X),
        "teacher 1 of the ensemble cannot be run on",
    ),
}


@pytest.mark.parametrize("name", UNCALLABLE)
def test_a_network_that_cannot_be_called_so_is_named(name):
    call, match = UNCALLABLE[name]
    with pytest.raises(TraceError, match=match) as told:
        call()
    assert "\n" not in str(told.value)


def test_a_file_is_no_folder(tmp_path):
    inputs = np.asarray(X)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DistillationError, match="file is a file, not a folder"):
        d.cache_outputs(tmp_path / "file", TEACHER, inputs)
    with pytest.raises(DistillationError, match="file is a file, not a folder"):
        d.cache_outputs(tmp_path / "file" / "logits", TEACHER, inputs)
    d.cache_outputs(tmp_path / "logits", TEACHER, inputs)
    for name in ("manifest.json", "teacher_logits.npy"):
        with pytest.raises(DistillationError, match=f"{name} is a file.*: give .*logits$"):
            d.cached_outputs(tmp_path / "logits" / name, inputs)


def test_a_teacher_takes_what_jax_puts_in_the_place_of_its_params():
    placeholders = jax.tree.map(lambda _: object(), TEACHER)
    assert jax.tree.structure(placeholders) == jax.tree.structure(TEACHER)
    assert jax.tree.map(lambda _: "x", TEACHER).params == {"w": "x"}
    assert jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(TEACHER)[0][0]) == ".params['w']"
    shapes = jax.eval_shape(lambda t: t, TEACHER)
    assert jax.eval_shape(lambda t, x: t(x), shapes, X).shape == (6, 5)
    both = jax.vmap(lambda t, x: t(x), in_axes=(0, None))(
        jax.tree.map(lambda w: jnp.stack([w, w]), TEACHER), X
    )
    np.testing.assert_array_equal(both[1], X)
    # Modules in parts, wrapped functions, and weights by their variables are as good as any.
    params, rest = equinox.partition(mlp(), equinox.is_array)
    apply = equinox.filter_jit(lambda p, x: jax.vmap(equinox.combine(p, rest))(x))
    assert d.Teacher(apply, params)(X).shape == (6, 2)
    graph, state = nnx.split(linear())
    assert jax.jit(lambda t, x: t(x))(d.Teacher(lambda s, x: nnx.merge(graph, s)(x), state), X).shape == (
        6,
        2,
    )


def test_whole_numbers_have_no_gradient():
    losses, pull = jax.vjp(
        lambda p: {"a": jnp.sum(p["w"] ** 2)}, {"n": jnp.arange(2), "w": jnp.array([3.0, 4.0])}
    )
    assert d.norm_balancing.gradient_norms(pull, losses)["a"] == 10.0


BALANCES = {
    "dynamic_weight_average": d.dynamic_weight_average(),
    "dynamic_weight_average of epochs": d.dynamic_weight_average(every=2),
    "grad_norm": d.grad_norm(),
    "uncertainty": d.uncertainty_weighting(),
    "uncertainty from a number": d.uncertainty_weighting(log_variance=0.0),
}


@pytest.mark.parametrize("value", [0.0, -1.0])
@pytest.mark.parametrize("name", BALANCES)
def test_a_balance_begun_under_jit_from_no_positive_loss_is_nan(name, value):
    balance, good = BALANCES[name], {"a": jnp.float32(1.0), "b": jnp.float32(2.0)}
    losses = {**good, "b": jnp.float32(value)}
    with pytest.raises(DistillationError, match=r"'b' is .*above zero"):
        balance.init(losses)
    init, update = jax.jit(balance.init), jax.jit(balance.update)
    sound, state = init(good), init(losses)
    assert jax.tree.structure(sound) == jax.tree.structure(balance.init(good))
    for _ in range(7):
        assert np.isnan(balance.weights(state)["b"])
        assert all(np.isfinite(w) for w in balance.weights(sound).values())
        sound, state = update(sound, good, good), update(state, good, good)


@pytest.mark.parametrize("name", BALANCES)
def test_a_balance_takes_its_own_state(name):
    losses = {"a": jnp.float32(1.0)}
    for call in (
        lambda: BALANCES[name].weights(losses),
        lambda: BALANCES[name].update(losses, losses, losses),
    ):
        with pytest.raises(ModelzipError, match="state must be the"):
            call()


def test_what_float16_cannot_hold_is_told_from_nan(tmp_path):
    inputs = np.asarray(X)
    for weight, match in ((np.nan, "NaN or infinite: repair"), (1e6, r"float16.*distill\.cache='float32'")):
        teacher = d.Teacher(lambda p, x: x @ p, jnp.full((5, 2), weight))
        with pytest.raises(ModelzipError, match=match):
            d.cache_outputs(tmp_path / str(weight), teacher, inputs)
