"""Values that cannot be: refused where they can be read, NaN where they are traced, and read also in a jitted step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from modelzip_jax import distillation as d
from modelzip_jax.errors import DistillationError, NonFiniteError, TraceError

RNG = np.random.default_rng(0)
X, T = (jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32) for _ in range(2))
Y = np.array([0, 4, 2, 1])
MEMORY = d.init_contrast_memory(jax.random.key(0), 5, 5)
EXAMPLES, NEGATIVES = np.arange(4), np.array([[4, 0], [3, 3], [4, 1], [0, 2]])


def contrastive_negatives(x, y):
    return d.contrastive(x, T, MEMORY, EXAMPLES, jnp.stack([jnp.asarray(NEGATIVES)[:, 0], y], 1))[0]


# What takes labels, or indices, of five classes: (logits or features, labels) -> numbers that depend on them.
TAKES_LABELS = {
    "decoupled": lambda x, y: d.decoupled(x, T, y),
    "decoupled of one class": lambda x, y: d.decoupled(x[:, :1], T[:, :1], y // 5),
    "smoothed_teacher": lambda x, y: d.soft_targets(x, d.smoothed_teacher(y, 5)),
    "contrastive examples": lambda x, y: d.contrastive(x, T, MEMORY, y, NEGATIVES)[0],
    "contrastive negatives": contrastive_negatives,
    "el2n": d.el2n,
    "pseudo_label": lambda x, y: d.pseudo_label(x, y).weights,
    "weighted_cross_entropy": lambda x, y: d.weighted_cross_entropy(x, y, np.full(4, 0.5, np.float32)),
}
COMPUTED = ("decoupled of one class", "contrastive negatives")  # Of the labels, which traces them.
UNLABELLED_MAY_BE = ("pseudo_label", "weighted_cross_entropy")


@pytest.mark.parametrize("label", [99, 5, -1, -100])
@pytest.mark.parametrize("name", TAKES_LABELS)
def test_labels_out_of_range(name, label):
    function, labels = TAKES_LABELS[name], Y.copy()
    labels[2] = label
    jitted = jax.jit(function)
    assert np.all(np.isfinite(function(X, Y)))
    assert np.all(np.isfinite(jitted(X, Y)))
    if label < 0 and name in UNLABELLED_MAY_BE:
        assert np.all(np.isfinite(function(X, labels)))
        assert np.all(np.isfinite(jitted(X, labels)))
        return
    with pytest.raises(DistillationError, match="from 0 to "):
        # As JAX's and as NumPy's arrays.
        function(X, labels if label == 99 else jnp.asarray(labels))
    assert np.isnan(jitted(X, labels)).any()
    if not name.startswith(("el2n", "pseudo_label")):
        # The gradient, too: a step that looks at nothing else does not go on.
        assert np.isnan(jax.jit(jax.grad(lambda x, y: jnp.sum(function(x, y))))(X, labels)).any()


@pytest.mark.parametrize("what", ["grad", "scan"])
@pytest.mark.parametrize("name", [name for name in TAKES_LABELS if name not in COMPUTED])
def test_what_a_jitted_step_closes_over_is_read(name, what):
    """Concrete labels in a trace: JAX's own arrays cannot be asked for their least value there."""
    function = TAKES_LABELS[name]
    labels = [jnp.asarray(Y), jnp.asarray(np.where(Y == 2, 7, Y))]

    def stepped(labels, x):
        loss = lambda x: jnp.sum(function(x, labels))  # noqa: E731
        if what == "grad":
            return jax.grad(loss)(x)
        return jax.lax.scan(lambda x, _: (x + loss(x), None), x, None, 2)[0]

    assert np.all(np.isfinite(jax.jit(functools.partial(stepped, labels[0]))(X)))
    with pytest.raises(DistillationError, match="from 0 to "):
        jax.jit(functools.partial(stepped, labels[1]))(X)


ONE = jnp.float32(1.0)
CLOSED_OVER = {
    "temperature": lambda x: d.soft_targets(x, T, temperature=4 * ONE),
    "decoupled": lambda x: d.decoupled(x, T, Y, alpha=ONE, beta=ONE),
    "momentum": lambda x: d.contrastive(x, T, MEMORY, EXAMPLES, NEGATIVES, momentum=0.5 * ONE)[0],
    "correct": lambda x: d.soft_targets(x, d.smoothed_teacher(Y, 5, correct=0.9 * ONE)),
    "pseudo_label": lambda x: d.pseudo_label(x, threshold=0.1 * ONE, temperature=ONE).weights,
    "weights": lambda x: d.weighted_cross_entropy(x, jnp.asarray(Y), jnp.ones(4)),
    "balance": lambda x: d.uncertainty_weighting().init({"a": ONE, "b": ONE}).log_variances["a"] + x,
    "moving teacher": lambda x: d.move_teacher(d.start_moving_teacher(x), x, 0.5 * ONE).params,
    "ensemble": lambda x: d.ensemble([d.Teacher(lambda p, x: x @ p, T.T)], temperature=ONE)(x),
    "forgetting": lambda x: d.record_forgetting(
        d.start_forgetting(9), jnp.asarray(Y), x[:, 0] > 0
    ).events.astype(float),
}


@pytest.mark.parametrize("name", CLOSED_OVER)
def test_numbers_that_a_jitted_step_closes_over_or_is_given(name):
    assert np.all(np.isfinite(jax.jit(CLOSED_OVER[name])(X)))


def test_a_traced_number_that_a_step_is_compiled_with_is_refused():
    made = lambda t: d.ensemble([d.Teacher(lambda p, x: x, ())], temperature=t)(X)  # noqa: E731
    with pytest.raises(DistillationError, match="temperature must be a number when a step is compiled"):
        jax.jit(made)(1.0)


@pytest.mark.parametrize("choose", [d.herding, d.k_centre, lambda x, n, y: d.hardest(x[:, 0], n, y)])
def test_an_example_without_a_label_is_of_no_class(choose):
    hidden = d.hide_labels(Y, known=[0, 2])
    with pytest.raises(DistillationError, match=r"2 below 0, .*without a label"):
        choose(np.asarray(X), 3, hidden)
    assert len(choose(np.asarray(X), 3, Y)) == 3


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_weights_of_examples_that_are_none(weight):
    weights = np.array([1.0, weight, 0.0, 0.5], np.float32)
    with pytest.raises(DistillationError, match="at least 0; number 1 is"):
        d.weighted_cross_entropy(X, Y, weights)
    jitted = jax.jit(d.weighted_cross_entropy, static_argnames="normalize")
    for normalize in (False, True):
        assert not np.isfinite(jitted(X, Y, weights, normalize=normalize))
    # An example that does not count may be as wrong as it likes, and nothing weighs nothing.
    nothing = d.weighted_cross_entropy(X, Y, np.zeros(4, np.float32))
    assert str(nothing) == "0.0"


def test_a_teacher_that_says_nan_is_not_one_that_is_unsure():
    broken = X.at[1, 1].set(jnp.nan)
    for weighting in ("one", "probability", "margin", "entropy"):
        weights = d.pseudo_label(broken, weighting=weighting, threshold=0.1).weights
        np.testing.assert_array_equal(np.isnan(weights), np.arange(4) == 1)


def test_a_memory_forgets_nothing_by_a_loss_that_is_nan():
    for teacher, examples in ((T.at[1, 1].set(jnp.nan), EXAMPLES), (T, EXAMPLES - 1)):
        loss, after = jax.jit(d.contrastive)(X, teacher, MEMORY, examples, NEGATIVES)
        assert np.isnan(loss)
        jax.tree.map(np.testing.assert_array_equal, after, MEMORY)


def condensed(inputs, labels, key=None, outputs=3):
    init = lambda key: {"w": 0.1 * jax.random.normal(key, (5, outputs))}  # noqa: E731
    key = jax.random.key(0) if key is None else key
    return d.condense(key, init, lambda p, x: x @ p["w"], inputs, labels, networks=1)


def test_what_cannot_be_condensed():
    with pytest.raises(NonFiniteError, match="example 3 has inputs that are NaN"):
        condensed(np.where(np.arange(4)[:, None] == 3, np.nan, np.asarray(X)), np.arange(4) % 3)
    with pytest.raises(DistillationError, match="labels from 0 to 3, and the network gives"):
        condensed(X, np.arange(4))
    with pytest.raises(DistillationError, match=r"must be one random key, jax\.random\.key"):
        condensed(X, np.arange(4) % 3, key=0)


@pytest.mark.parametrize("key", [0, None, np.int32(3), jax.random.split(jax.random.key(0))])
@pytest.mark.parametrize(
    "init", [d.init_projector, d.init_orthogonal_projector, d.init_contrast_memory, d.init_review]
)
def test_keys_that_are_none(init, key):
    arguments = ([2], [3]) if init is d.init_review else (2, 3)
    with pytest.raises(DistillationError, match=f"{init.__name__}: key must be one random key"):
        init(key, *arguments)
    init(jax.random.PRNGKey(0), *arguments)


BALANCES = {
    "uncertainty": d.uncertainty_weighting(),
    "grad_norm": d.grad_norm(),
    "dynamic_weight_average": d.dynamic_weight_average(),
    "dynamic_weight_average of epochs": d.dynamic_weight_average(every=2),
}


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("name", BALANCES)
def test_a_balance_goes_on_after_a_loss_that_is_nan(name, value):
    balance, losses = BALANCES[name], {"a": jnp.float32(2.0), "b": jnp.float32(1.0)}
    update, state = jax.jit(balance.update), balance.init(losses)
    for a in (1.5, 1.0, 0.5):
        state = update(state, {**losses, "a": jnp.float32(a)}, losses)
    for _ in range(3):
        after = update(state, {**losses, "a": jnp.float32(value)}, losses)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    if balance.reads_gradients:
        after = update(state, losses, {**losses, "b": jnp.float32(value)})
        jax.tree.map(np.testing.assert_array_equal, after, state)
    assert any(
        np.any(a != b)
        for a, b in zip(*map(jax.tree.leaves, (update(state, losses, losses), state)), strict=True)
    )
    with pytest.raises(
        DistillationError, match=r"began with the losses \['a', 'b'\].*updated with \['a', 'c'\]"
    ):
        balance.update(state, {"a": losses["a"], "c": losses["b"]}, losses)


def test_a_moving_teacher_is_moved_by_its_own_student():
    state = d.start_moving_teacher({"w": jnp.ones((2, 3))})
    with pytest.raises(DistillationError, match=r"w is \(3,\) in the student and \(2, 3\) in the teacher"):
        d.move_teacher(state, {"w": jnp.ones(3)}, 0.9)
    with pytest.raises(DistillationError, match="they lack w; they have v too many"):
        d.move_teacher(state, {"v": jnp.ones((2, 3))}, 0.9)
    with pytest.raises(DistillationError, match="decay"):
        d.move_teacher(state, {"w": jnp.ones((2, 3))}, jnp.float32(1.5))


SEEN = np.array([True, False])


@pytest.mark.parametrize(
    ("indices", "correct", "match"),
    [
        (np.array([0, -1]), SEEN, "from 0 to 4, not from -1 to 0"),
        (np.array([0, 5]), SEEN, "from 0 to 4, not from 0 to 5"),
        (np.array([2, 2]), SEEN, "example 2 is there twice"),
        (np.array([0, 1, 2]), SEEN, r"indices \(3,\) and correct \(2,\)"),
        (np.array([0, 1]), np.array([1, 0]), r"correct must be bools \(batch,\)"),
        (
            SEEN,
            np.array([0, 1]),
            r"indices must be integers \(batch,\).*record_forgetting\(state, indices, correct\)",
        ),
        (np.array([0.0, 1.0]), SEEN, "indices must be integers"),
        (np.array([[0, 1]]), SEEN, r"\(1, 2\)"),
    ],
)
def test_forgetting_of_what_is_no_batch(indices, correct, match):
    state = d.start_forgetting(5)
    with pytest.raises(DistillationError, match=match):
        d.record_forgetting(state, jnp.asarray(indices), correct)
    with pytest.raises(DistillationError, match="examples must be an integer"):
        d.start_forgetting(np.arange(5))
    # Of traced ones what is out of range is left out.
    after = jax.jit(d.record_forgetting)(state, np.array([-1, 7]), np.array([True, True]))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_the_largest_logits_of_other_classes():
    kept = d.top_k_logits(T, 2)
    with pytest.raises(DistillationError, match="indices must be from 0 to 1, not from"):
        d.top_k_soft_targets(X[:, :2], kept)
    assert np.isnan(jax.jit(d.top_k_soft_targets)(X[:, :2], kept._replace(indices=kept.indices * 0 + 4)))


UNTYPED = {
    "labels in a list": (lambda: d.decoupled(X, T, [0] * 4), "labels must be an array, not a list"),
    "examples in a list": (
        lambda: d.contrastive(X, T, MEMORY, [0] * 4, NEGATIVES),
        "examples must be an array",
    ),
    "jax's own largest": (lambda: d.top_k_soft_targets(X, jax.lax.top_k(T, 2)), "must be a TopK .*not a"),
    "largest of lists": (
        lambda: d.top_k_soft_targets(X, d.TopK([0], [0.0], [0.0])),
        "a TopK of list, list, list",
    ),
    "logits of an ensemble": (lambda: d.ensemble([X, T]), "number 0 is one ArrayImpl, and not a Teacher"),
    "one of an ensemble": (lambda: d.ensemble(d.Teacher(lambda p, x: x, ())), "in a list, not one Teacher"),
    "other projector": (
        lambda: d.project(d.init_orthogonal_projector(jax.random.key(0), 5, 5), X),
        r"project: params must be those of init_projector.*'kernel'\], not \['across', 'within'\]",
    ),
    "other orthogonal projector": (
        lambda: d.project_orthogonally(d.init_projector(jax.random.key(0), 5, 5), X),
        r"project_orthogonally: params must be those of init_orthogonal_projector",
    ),
    "a cached function": (
        lambda: d.cache_outputs("nowhere", lambda x: x, X),
        r"must be a Teacher\(apply, params\)",
    ),
    "widths": (lambda: d.discriminator(32), "widths must be a list"),
    "sizes": (lambda: d.assistant_sizes(64.0, 4.0), "must be integers"),
    "so many sizes": (lambda: d.assistant_sizes(3, 2, 1), "no room for 1 different sizes between 3 and 2"),
    "an unlikely label": (lambda: d.smoothed_teacher(Y, 5, correct=0.05), "less likely than others"),
}


@pytest.mark.parametrize("name", UNTYPED)
def test_what_is_of_another_type_is_named(name):
    call, match = UNTYPED[name]
    with pytest.raises(DistillationError, match=match):
        call()


def test_layers_are_named_by_names():
    with pytest.raises(TraceError, match="0 is a int"):
        d.features(lambda p, x: x @ p["w"], {"w": T.T}, X, layers=[0])


def test_what_a_game_is_given_is_named():
    critics = {"features": d.discriminator([4])}
    student = lambda params, variables, batch, key: d.StudentOutput({}, {"features": batch @ params})  # noqa: E731
    teacher = lambda params, batch: {"features": batch}  # noqa: E731
    tx = optax.sgd(0.1)
    for wrong, match in (
        ((lambda *arguments: X, teacher), "must give a StudentOutput.*not a"),
        ((student, lambda params, batch: batch), "must give views by the critics' names.*not a"),
    ):
        game = d.min_max_game(*wrong, critics, tx, tx)
        with pytest.raises(DistillationError, match=match):
            game.init(jnp.eye(5), X, jax.random.key(0))
