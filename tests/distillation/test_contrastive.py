"""Contrastive losses: what they draw together, what they remember, and what they are without negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from modelzip_jax import distillation

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_the_constant_is_measured_once_and_kept():
    memory = distillation.init_contrast_memory(jax.random.key(0), 12, 4)
    traces = 0

    @jax.jit
    def step(student, teacher, memory, key):
        nonlocal traces
        traces += 1
        examples, negatives = jnp.arange(3), jax.random.randint(key, (3, 5), 0, 12)
        return distillation.contrastive(student, teacher, memory, examples, negatives)

    _, first = step(normal(3, 4), normal(3, 4), memory, jax.random.key(1))
    _, second = step(normal(3, 4), normal(3, 4), first, jax.random.key(2))
    assert traces == 1
    assert (int(first.batches), int(second.batches)) == (1, 2)
    assert first.log_student == second.log_student != 0
    assert first.log_teacher == second.log_teacher != first.log_student


def test_only_the_rows_of_the_batch_are_remembered_at_unit_length():
    memory = distillation.init_contrast_memory(jax.random.key(0), 6, 4)
    student, teacher = normal(2, 4), 100.0 * normal(2, 4)
    examples, negatives = jnp.array([5, 1]), jnp.zeros((2, 3), int)
    for momentum, share in ((0.0, 0.0), (0.9, 0.9), (1.0, 1.0)):
        _, after = distillation.contrastive(student, teacher, memory, examples, negatives, momentum=momentum)
        for old, new, given in (
            (memory.student, after.student, student),
            (memory.teacher, after.teacher, teacher),
        ):
            np.testing.assert_array_equal(new[jnp.array([0, 2, 3, 4])], old[jnp.array([0, 2, 3, 4])])
            mixed = share * old[examples] + (1 - share) * given / jnp.linalg.norm(
                given, axis=1, keepdims=True
            )
            want = mixed / jnp.linalg.norm(mixed, axis=1, keepdims=True)
            np.testing.assert_allclose(new[examples], want, rtol=1e-5, atol=1e-6)


def test_the_memory_has_no_gradient():
    memory = distillation.init_contrast_memory(jax.random.key(0), 6, 4)

    def loss(rows):
        kept = memory._replace(student=rows, teacher=rows)
        return distillation.contrastive(
            normal(2, 4), normal(2, 4), kept, jnp.array([0, 1]), jnp.array([[2], [3]])
        )[0]

    np.testing.assert_array_equal(jax.grad(loss)(memory.student), 0.0)


def test_lengths_of_embeddings_do_not_matter():
    student, teacher = normal(4, 3), normal(4, 3)
    loss = distillation.in_batch_contrastive
    np.testing.assert_allclose(loss(1e-3 * student, 1e3 * teacher), loss(student, teacher), rtol=1e-5)


def test_the_student_finds_its_own_example():
    teacher = normal(8, 5)
    student, optimizer = normal(8, 5), optax.adam(0.1)

    @jax.jit
    def step(student, state):
        value, gradient = jax.value_and_grad(distillation.in_batch_contrastive)(student, teacher)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(student, updates), state, value

    state, values = optimizer.init(student), []
    for _ in range(60):
        student, state, value = step(student, state)
        values.append(float(value))
    scores = student @ teacher.T / jnp.linalg.norm(teacher, axis=1)
    assert values[-1] < 0.5 * values[0]
    np.testing.assert_array_equal(jnp.argmax(scores, 1), jnp.arange(8))


def test_a_batch_of_one_has_no_negatives():
    value, gradient = jax.value_and_grad(distillation.in_batch_contrastive)(normal(1, 3), normal(1, 3))
    assert value == 0.0
    np.testing.assert_array_equal(gradient, 0.0)
