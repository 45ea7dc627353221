"""Laws of the losses on logits: what they do not see, what they are made of, and what they are in the limit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelzip_jax import distillation
from modelzip_jax.distillation.logits import kullback_leibler

RNG = np.random.default_rng(0)
SHAPE = (3, 4)
MATRICES = hnp.arrays(np.float32, SHAPE, elements=st.floats(-8, 8, width=32))
TEMPERATURES = st.floats(0.5, 20.0, width=32)
LABELS = jnp.array([1, 3, 0])

soft_targets = jax.jit(distillation.soft_targets)
standardized = jax.jit(distillation.standardized)
correlation = jax.jit(distillation.correlation)
decoupled = jax.jit(distillation.decoupled)
top_k_soft_targets = jax.jit(distillation.top_k_soft_targets)


def normal(*shape, scale=2.0):
    return jnp.asarray(RNG.normal(size=shape) * scale, jnp.float32)


@settings(max_examples=30, deadline=None)
@given(
    MATRICES, MATRICES, hnp.arrays(np.float32, (3, 1), elements=st.floats(-50, 50, width=32)), TEMPERATURES
)
def test_a_constant_in_all_logits_of_a_row_changes_nothing(student, teacher, shift, temperature):
    for loss in (soft_targets, correlation):
        plain = loss(student, teacher, temperature=temperature)
        shifted = loss(student + shift, teacher - shift, temperature=temperature)
        np.testing.assert_allclose(shifted, plain, rtol=1e-3, atol=2e-4 * temperature**2)
    plain = decoupled(student, teacher, LABELS)
    np.testing.assert_allclose(decoupled(student + shift, teacher, LABELS), plain, rtol=1e-3, atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(MATRICES, MATRICES, TEMPERATURES)
def test_a_divergence_is_not_negative(student, teacher, temperature):
    assert soft_targets(student, teacher, temperature=temperature) >= -1e-5 * temperature**2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.125, 8.0, width=32), st.floats(-20, 20, width=32))
def test_standardised_logits_have_neither_place_nor_size(seed, factor, shift):
    student, teacher = np.random.default_rng(seed).normal(size=(2, 5, 6)).astype(np.float32)
    plain = standardized(student, teacher)
    np.testing.assert_allclose(standardized(student * factor + shift, teacher), plain, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(standardized(student, teacher * factor + shift), plain, rtol=1e-3, atol=1e-4)


def test_rows_of_equal_logits_are_uniform_and_have_no_gradient():
    # Means of most of them are not exact, and what is left must not be taken for a deviation.
    flat, teacher = jnp.full((16, 11), 0.1) * jnp.arange(1.0, 17.0)[:, None], normal(16, 11)
    away = flat - jnp.mean(flat, -1, keepdims=True)
    assert jnp.any(away != 0)
    value, gradient = jax.value_and_grad(distillation.standardized)(flat, teacher)
    assert value > 0.1
    np.testing.assert_array_equal(gradient, 0.0)
    uniform = distillation.soft_targets(
        jnp.zeros_like(flat),
        (teacher - teacher.mean(-1, keepdims=True)) / teacher.std(-1, keepdims=True),
        temperature=2.0,
    )
    np.testing.assert_allclose(value, uniform, rtol=1e-4)


def test_soft_targets_are_target_and_other_classes_together():
    # KL = TCKD + (1 - p_y) NCKD, row by row.
    student, teacher = normal(1, 6), normal(1, 6)
    labels = jnp.array([2])
    left = 1.0 - jax.nn.softmax(teacher / 2.0)[0, 2]
    both = distillation.decoupled(student, teacher, labels, temperature=2.0, alpha=1.0, beta=float(left))
    np.testing.assert_allclose(both, distillation.soft_targets(student, teacher, temperature=2.0), rtol=1e-5)


def test_gradients_at_high_temperature_are_those_of_logits():
    # Hinton et al. 2015, equation 4: (z - v) / classes for logits of zero mean.
    student, teacher = (x - x.mean(-1, keepdims=True) for x in (normal(1, 8), normal(1, 8)))
    gradient = jax.grad(distillation.soft_targets)(student, teacher, temperature=500.0)
    np.testing.assert_allclose(gradient, (student - teacher) / 8, rtol=3e-2, atol=3e-3)


def test_a_virtual_teacher_is_label_smoothing():
    student, classes, smoothing = normal(3, 5), 5, 0.1
    labels = jnp.array([0, 4, 2])
    teacher = distillation.smoothed_teacher(labels, classes, correct=1 - smoothing + smoothing / classes)

    def smoothed(student):
        targets = optax.smooth_labels(jax.nn.one_hot(labels, classes), smoothing)
        return jnp.mean(optax.softmax_cross_entropy(student, targets))

    gradient = jax.grad(distillation.soft_targets)(student, teacher, temperature=1.0)
    np.testing.assert_allclose(gradient, jax.grad(smoothed)(student), atol=1e-6)


def test_a_sure_virtual_teacher_of_one_class_and_of_two():
    assert distillation.smoothed_teacher(jnp.array([0, 0]), 1).tolist() == [[0.0], [0.0]]
    two = distillation.smoothed_teacher(jnp.array([1]), 2, correct=0.75)
    np.testing.assert_allclose(jnp.exp(two), [[0.25, 0.75]], rtol=1e-6)


def test_masked_classes_have_no_probability_and_no_gradient():
    student, teacher = normal(2, 5), normal(2, 5)
    masked = [x.at[:, 3:].set(-jnp.inf) for x in (student, teacher)]
    value, gradient = jax.value_and_grad(distillation.soft_targets)(*masked)
    np.testing.assert_allclose(value, distillation.soft_targets(student[:, :3], teacher[:, :3]), rtol=1e-5)
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_array_equal(gradient[:, 3:], 0.0)
    assert distillation.soft_targets(masked[0], teacher) == jnp.inf
    assert kullback_leibler(jnp.zeros(1), jnp.array([-jnp.inf])) == 0.0


def test_probabilities_related_linearly_are_enough_for_correlation():
    # Of two classes, rows of probabilities always are: only the order within a row counts.
    teacher = jnp.array([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    np.testing.assert_allclose(distillation.correlation(0.1 * teacher, teacher, intra=0.0), 0.0, atol=1e-5)


def test_a_class_that_is_never_likely_still_counts():
    # Probabilities of 1e-13 vary from row to row as others do; their squares are no float32 any more.
    teacher = normal(5, 3, scale=1.0).at[:, 2].add(-30.0)
    worse = teacher.at[:, 2].multiply(2.0).at[:, 2].add(30.0)[::-1]
    value, gradient = jax.value_and_grad(distillation.correlation)(worse, teacher, inter=0.0)
    assert value > 1e-3
    assert jnp.all(jnp.isfinite(gradient))
    np.testing.assert_allclose(distillation.correlation(teacher, teacher), 0.0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(MATRICES, MATRICES, TEMPERATURES)
def test_all_classes_kept_are_soft_targets(student, teacher, temperature):
    kept = distillation.top_k_logits(jnp.asarray(teacher), 4)
    assert np.all(np.isneginf(kept.log_rest))
    found = top_k_soft_targets(student, kept, temperature=temperature)
    wanted = soft_targets(student, teacher, temperature=temperature)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * temperature**2)


def test_the_more_is_kept_the_more_is_asked():
    student, teacher = normal(7, 9), normal(7, 9)
    kept = [distillation.top_k_logits(teacher, k) for k in range(1, 10)]
    losses = [float(distillation.top_k_soft_targets(student, x)) for x in kept]
    assert losses == sorted(losses)
    for k, x in enumerate(kept, 1):
        order = np.argsort(-np.asarray(teacher), -1)
        np.testing.assert_array_equal(x.indices, order[:, :k])
        total = np.logaddexp(jax.nn.logsumexp(x.values, -1), x.log_rest)
        np.testing.assert_allclose(total, jax.nn.logsumexp(teacher, -1), rtol=1e-5)


def test_logits_kept_at_a_temperature_have_the_exact_mass_of_the_rest():
    student, teacher, temperature = normal(5, 6), normal(5, 6), 4.0
    kept = distillation.top_k_logits(teacher / temperature, 5)
    found = temperature**2 * distillation.top_k_soft_targets(student / temperature, kept)
    # With one class left out nothing is put together.
    wanted = distillation.soft_targets(student, teacher, temperature=temperature)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    late = distillation.top_k_soft_targets(
        student, distillation.top_k_logits(teacher, 5), temperature=temperature
    )
    np.testing.assert_allclose(late, wanted, rtol=1e-5)


def test_a_student_that_divides_the_rest_otherwise_is_not_told_off():
    teacher = normal(3, 6)
    kept = distillation.top_k_logits(teacher, 2)
    rest = jnp.argsort(-teacher, -1)[:, 2:]
    turned = jnp.put_along_axis(
        teacher, rest, jnp.take_along_axis(teacher, rest[:, ::-1], -1), -1, inplace=False
    )
    assert abs(distillation.top_k_soft_targets(turned, kept)) < 1e-6


def test_a_step_traces_once_for_every_temperature():
    traces = 0

    @jax.jit
    def step(student, teacher, temperature):
        nonlocal traces
        traces += 1
        return sum(
            loss(student, teacher, temperature=temperature)
            for loss in (distillation.soft_targets, distillation.standardized, distillation.correlation)
        )

    for temperature in (1.0, 2.0, 8.0):
        assert jnp.isfinite(step(normal(2, 3), normal(2, 3), temperature))
    assert traces == 1
