"""Teachers: frozen, several as one, moving, and in generations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelzip_jax as mz
from modelzip_jax import distillation
from modelzip_jax.distillation import Teacher
from modelzip_jax.errors import DistillationError

RNG = np.random.default_rng(0)


def linear(params, x):
    return x @ params


def some_teachers(count, classes=4):
    return [Teacher(linear, jnp.asarray(RNG.normal(size=(3, classes)), jnp.float32)) for _ in range(count)]


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_a_jitted_step_takes_one_teacher_after_another():
    traces = []

    @jax.jit
    def step(teacher, x):
        traces.append(1)
        return teacher(x)

    x = jnp.ones((2, 3))
    first, second = some_teachers(2)
    assert not np.array_equal(step(first, x), step(second, x))
    np.testing.assert_allclose(step(second, x), x @ second.params, rtol=1e-6)
    assert step(distillation.ensemble([first, second]), x).shape == (2, 4)
    assert step(distillation.ensemble([second, first]), x).shape == (2, 4)
    assert len(traces) == 2


def test_no_gradient_reaches_a_teacher():
    teachers = some_teachers(2)
    total = lambda t: jnp.sum(distillation.ensemble(t)(jnp.ones((2, 3))) ** 2)  # noqa: E731
    assert all(not np.any(t.params) for t in jax.grad(total)(teachers))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("count", [1, 3])
def test_an_ensemble_is_the_mean_it_says(count, temperature):
    teachers, x = some_teachers(count), RNG.normal(size=(5, 3)).astype(np.float32)
    logits = np.stack([x.astype(np.float64) @ np.asarray(t.params, np.float64) for t in teachers])
    arithmetic = distillation.ensemble(teachers, temperature=temperature)(x)
    expected = softmax(logits / temperature).mean(axis=0)
    np.testing.assert_allclose(softmax(np.asarray(arithmetic) / temperature), expected, rtol=1e-5)
    geometric = np.exp(np.log(softmax(logits / temperature)).mean(axis=0))
    found = distillation.ensemble(teachers, average="logits", temperature=temperature)(x)
    expected = geometric / geometric.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(softmax(np.asarray(found) / temperature), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_stay_finite(dtype):
    for a, b in ((1e4, -1e4), (-1e4, 1e4)):
        logits = jnp.array([[a, b, 0.0]], dtype)
        pair = [Teacher(lambda p, x: x, ()), Teacher(lambda p, x: -x, ())]
        assert np.isfinite(distillation.ensemble(pair)(logits)).all()
    assert distillation.ensemble([Teacher(lambda p, x: x, ())])(jnp.zeros((1, 1))).tolist() == [[0.0]]


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 0.999), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_moving_teacher_is_its_recursion(decay, steps, seed):
    students = np.random.default_rng(seed).normal(size=(steps, 3))
    state, expected = distillation.start_moving_teacher({"w": jnp.full(3, 7.0)}), np.full(3, 7.0)
    for t, student in enumerate(students, start=1):
        alpha = min(decay, 1.0 - 1.0 / t)
        expected = alpha * expected + (1.0 - alpha) * student
        state = distillation.move_teacher(state, {"w": jnp.asarray(student, jnp.float32)}, decay)
    assert int(state.count) == steps
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-4, atol=1e-5)


def test_the_moving_teacher_of_a_standing_student_stands():
    params = {"w": jnp.asarray(RNG.normal(size=100), jnp.bfloat16), "count": jnp.int32(3)}
    state = distillation.start_moving_teacher(params)
    move = jax.jit(distillation.move_teacher)
    for _ in range(20):
        state = move(state, params, 0.99)
    assert state.params["w"].dtype == jnp.float32
    np.testing.assert_array_equal(state.params["w"], params["w"].astype(jnp.float32))
    state = move(state, {**params, "count": jnp.int32(8)}, 0.99)
    assert int(state.params["count"]) == 8


def test_the_moving_teacher_of_a_compressed_student_in_a_donated_step():
    tx = mz.wrap(optax.sgd(1.0), mz.only("w", mz.quantize(2)))
    params, opt_state = mz.start(tx, {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)})
    state = distillation.start_moving_teacher(params)
    x = jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)

    def apply(params, x):
        return x @ params["w"]

    def step(params, opt_state, state):
        targets = 1.0 + jax.nn.softmax(Teacher(apply, state.params)(x))
        updates, opt_state = tx.update(
            jax.grad(lambda p: jnp.mean((apply(p, x) - targets) ** 2))(params), opt_state, params
        )
        params = optax.apply_updates(params, updates)
        return params, opt_state, distillation.move_teacher(state, params, 0.6)

    step, expected = jax.jit(step, donate_argnums=(0, 1, 2)), 0.0
    for t in range(1, 6):
        params, opt_state, state = step(params, opt_state, state)
        alpha = min(0.6, 1.0 - 1.0 / t)
        expected = alpha * expected + (1.0 - alpha) * np.array(params["w"], np.float64)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(state.params["w"], params["w"], atol=0.01)


def test_each_generation_is_taught_by_the_one_before():
    seen = []

    def train(teacher, generation):
        seen.append(teacher)
        return Teacher(linear, jnp.full((3, 2), float(generation)))

    trained = distillation.born_again(train, 3)
    assert seen[0] is None
    assert seen[1:] == trained[:-1]
    mean = distillation.ensemble(trained, average="logits")(jnp.ones((1, 3)))
    np.testing.assert_allclose(mean, [[3.0, 3.0]])


def test_assistants_lead_from_the_teacher_to_the_student():
    calls = []

    def train(teacher, size):
        calls.append((teacher.params, size))
        return Teacher(linear, size)

    sizes = distillation.assistant_sizes(100, 1, count=1)
    assert [t.params for t in distillation.assistants(train, sizes, Teacher(linear, 100))] == [10, 1]
    assert calls == [(100, 10), (10, 1)]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 3000), st.data())
def test_assistant_sizes_fall_by_one_ratio(teacher, data):
    student = data.draw(st.integers(1, teacher - 1))
    sizes = distillation.assistant_sizes(teacher, student, count=data.draw(st.just(0)))
    assert sizes == [student]
    if teacher >= 4 * student:
        (between, _) = distillation.assistant_sizes(teacher, student)
        assert abs(between - (teacher * student) ** 0.5) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda t: distillation.ensemble([]), "at least one teacher"),
        (lambda t: distillation.ensemble(t, average="median"), "median"),
        (lambda t: distillation.ensemble(t, temperature=0.0), "temperature must be a finite number > 0"),
        (lambda t: distillation.ensemble(t, temperature=float("nan")), "nan"),
        (
            lambda t: distillation.ensemble([*t, *some_teachers(1, 5)])(jnp.ones((2, 3))),
            r"\(2, 4\).*\(2, 5\)",
        ),
        (
            lambda t: distillation.move_teacher(distillation.start_moving_teacher(1.0), 1.0, 1.0),
            "decay must be a finite",
        ),
        (
            lambda t: distillation.move_teacher(distillation.start_moving_teacher(1.0), 1.0, float("nan")),
            "nan",
        ),
        (
            lambda t: distillation.born_again(lambda *_: t[0], 0),
            "generations must be an integer of at least 1",
        ),
        (lambda t: distillation.born_again(lambda *_: 1.0, 1), r"train\(\.\.\., 0\) returned a float"),
        (lambda t: distillation.assistants(lambda *_: t[0], [4, 4], t[0]), "must fall"),
        (lambda t: distillation.assistants(lambda *_: t[0], [], t[0]), "must fall"),
        (lambda t: distillation.assistant_sizes(4, 3), "no room for 1 different"),
        (lambda t: distillation.assistant_sizes(4, 4), "there are none"),
    ],
)
def test_bad_calls_are_named(call, match):
    with pytest.raises(DistillationError, match=match):
        call(some_teachers(2))
