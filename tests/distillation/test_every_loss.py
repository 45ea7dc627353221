"""Each loss: its value and gradient are those of float64 references, and what holds of all of them."""

import functools

import distillation_references as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax import distillation

RNG = np.random.default_rng(0)
LABELS = np.array([2, 0, 1, 2])
IMAGES, LATER = (4, 4, 4, 3), (4, 2, 2, 2)
NEGATIVES = np.array([[5, 3], [0, 1], [6, 6], [2, 7]])
EXAMPLES = np.array([4, 7, 2, 0])
MEMORY = distillation.init_contrast_memory(jax.random.key(3), 8, 5)._replace(
    log_student=jnp.float32(1.3), log_teacher=jnp.float32(0.2), batches=jnp.int32(4)
)


def decoupled(student, teacher):
    labels = jnp.asarray(np.resize(LABELS, student.shape[:-1])) % student.shape[-1]
    return distillation.decoupled(student, teacher, labels, temperature=2.0, alpha=0.7, beta=3.0)


def top_k(student, teacher):
    kept = distillation.top_k_logits(teacher, min(2, teacher.shape[-1]))
    return distillation.top_k_soft_targets(student, kept, temperature=2.0)


def flow(student, teacher):
    return distillation.flow((student, 2.0 * student[..., :2]), (teacher, teacher[..., 1:]))


def contrastive(student, teacher):
    where = slice(len(student))
    memory = MEMORY._replace(
        student=MEMORY.student[:, : student.shape[1]], teacher=MEMORY.teacher[:, : student.shape[1]]
    )
    return distillation.contrastive(
        student, teacher, memory, EXAMPLES[where], NEGATIVES[where], temperature=0.5
    )[0]


def contrastive_reference(student, teacher):
    memories = [np.asarray(x, np.float64) for x in MEMORY[:2]]
    sides = [
        reference.contrastive_side(own, others[EXAMPLES], others[NEGATIVES], 0.5, float(np.exp(constant)))
        for own, others, constant in zip((student, teacher), memories[::-1], MEMORY[2:4], strict=True)
    ]
    return sum(sides)


def in_batch_reference(student, teacher, z):
    unit = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    negatives = np.array([np.delete(unit, i, 0) for i in range(len(unit))])
    return reference.contrastive_side(student, unit, negatives, 0.5, z)


def in_batch_constant(student, teacher):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (student, teacher))
    return np.mean(np.exp(a @ b.T / 0.5))


LOGIT_LOSSES = {
    "soft_targets": (
        functools.partial(distillation.soft_targets, temperature=3.0),
        lambda s, t: reference.soft_targets(s, t, 3.0),
    ),
    "decoupled": (decoupled, lambda s, t: reference.decoupled(s, t, LABELS, 2.0, 0.7, 3.0)),
    "standardized": (
        functools.partial(distillation.standardized, temperature=0.8),
        lambda s, t: reference.standardized(s, t, 0.8),
    ),
    "correlation": (
        functools.partial(distillation.correlation, inter=2.0, intra=0.5, temperature=2.0),
        lambda s, t: reference.correlation(s, t, 2.0, 0.5, 2.0),
    ),
    "top_k_soft_targets": (top_k, lambda s, t: reference.top_k(s, t, 2, 2.0)),
}
FEATURE_LOSSES = {
    "hint": (distillation.hint, reference.hint, IMAGES),
    "attention_transfer": (
        functools.partial(distillation.attention_transfer, power=3.0),
        lambda s, t: reference.attention_transfer(s, t, 3.0),
        IMAGES,
    ),
    "flow": (flow, lambda s, t: reference.flow((s, 2.0 * s[..., :2]), (t, t[..., 1:])), (2, 2, 2, 3)),
    "similarity": (distillation.similarity, reference.similarity, LATER),
    "relational_distance": (distillation.relational_distance, reference.relational_distance, (4, 5)),
    "relational_angle": (distillation.relational_angle, reference.relational_angle, (4, 3)),
    "correlation_congruence": (
        functools.partial(distillation.correlation_congruence, gamma=0.3, order=3),
        lambda s, t: reference.correlation_congruence(s, t, 0.3, 3),
        (4, 5),
    ),
    "hierarchical_context": (
        lambda s, t: distillation.hierarchical_context([s, s[:, :1, :1]], [t, t[:, :1, :1]]),
        lambda s, t: (
            reference.hierarchical_context(s, t) + reference.hierarchical_context(s[:, :1, :1], t[:, :1, :1])
        ),
        (1, 8, 4, 2),
    ),
    "contrastive": (contrastive, contrastive_reference, (4, 5)),
    "in_batch_contrastive": (
        functools.partial(distillation.in_batch_contrastive, temperature=0.5),
        None,
        (4, 5),
    ),
}
LOSSES = {
    **{name: (loss, known, (4, 3)) for name, (loss, known) in LOGIT_LOSSES.items()},
    **FEATURE_LOSSES,
}
TRAINS_BOTH = {"contrastive", "in_batch_contrastive"}
ZERO_AT_TEACHER = sorted(LOSSES.keys() - TRAINS_BOTH - {"top_k_soft_targets", "flow"})


def drawn(shape, scale=1.0):
    return tuple(jnp.asarray(RNG.normal(size=shape) * scale, jnp.float32) for _ in range(2))


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_reference(name):
    loss, known, shape = LOSSES[name]
    student, teacher = drawn(shape, 1.5)
    value, gradient = jax.jit(jax.value_and_grad(loss))(student, teacher)
    s, t = (np.asarray(x, np.float64) for x in (student, teacher))
    if name == "in_batch_contrastive":  # Its constant has no gradient.
        known = functools.partial(in_batch_reference, z=in_batch_constant(s, t))
    np.testing.assert_allclose(value, known(s, t), rtol=2e-5, atol=1e-6)
    want = reference.numeric_gradient(lambda x: known(x, t), s)
    np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=2e-5 * max(1.0, np.abs(want).max()))
    assert value.dtype == jnp.float32
    assert value.shape == ()


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_flows_into_the_teacher_but_where_it_is_said(name):
    loss, _, shape = LOSSES[name]
    gradient = jax.jit(jax.grad(loss, argnums=1))(*drawn(shape))
    assert bool(jnp.any(gradient != 0)) == (name in TRAINS_BOTH)


@pytest.mark.parametrize("name", ZERO_AT_TEACHER)
def test_zero_where_student_and_teacher_are_equal(name):
    loss, _, shape = LOSSES[name]
    _, teacher = drawn(shape)
    value, gradient = jax.jit(jax.value_and_grad(loss))(teacher, teacher)
    assert abs(float(value)) < 1e-5
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def shapes_of(name):
    """A batch of one, and one class, channel or position, beside the usual shape."""
    shape = LOSSES[name][2]
    found = {shape, (1, *shape[1:])}
    if name == "flow":
        return found
    return found | {(*shape[:-1], 1), (1, *shape[1:-1], 1), (1,) * len(shape)}


def extremes(shape, dtype):
    """Students and teachers of all kinds that have broken losses."""
    random = RNG.normal(size=shape)
    hot = np.where(np.arange(shape[-1]) == 0, 1e4, -1e4) * np.ones(shape)
    kinds = [
        random,
        1e4 * random,
        -1e4 * np.sign(random),
        hot,
        np.zeros(shape),
        np.full(shape, 1e4),
        1e-6 * random,
    ]
    return [jnp.asarray(x, dtype) for x in kinds]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_extremes(name, dtype):
    loss = jax.jit(jax.value_and_grad(LOSSES[name][0]))
    for shape in shapes_of(name):
        kinds = extremes(shape, dtype)
        for i, student in enumerate(kinds):
            for teacher in (kinds[0], kinds[3], kinds[4], kinds[(i + 1) % len(kinds)]):
                value, gradient = loss(student, teacher)
                assert jnp.isfinite(value), (shape, i)
                assert jnp.all(jnp.isfinite(gradient)), (shape, i)
                assert value.dtype == jnp.float32
                assert gradient.dtype == dtype


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_read_and_not_computed_in(name):
    loss, _, shape = LOSSES[name]
    student, teacher = (x.astype(jnp.bfloat16) for x in drawn(shape))
    halves = jax.jit(loss)(student, teacher)
    np.testing.assert_allclose(
        halves, jax.jit(loss)(student.astype(jnp.float32), teacher.astype(jnp.float32)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", sorted(LOGIT_LOSSES))
def test_leading_axes_of_logits_are_rows(name):
    loss = LOGIT_LOSSES[name][0]
    student, teacher = drawn((2, 2, 3))
    flat = [x.reshape(4, 3) for x in (student, teacher)]
    np.testing.assert_allclose(loss(student, teacher), loss(*flat), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"contrastive", "decoupled"}))
def test_the_order_of_the_batch_does_not_matter(name):
    loss, _, shape = LOSSES[name]
    student, teacher = drawn(shape)
    order = RNG.permutation(shape[0])
    np.testing.assert_allclose(loss(student[order], teacher[order]), loss(student, teacher), rtol=1e-4)


def info_nce(student, teacher):
    return -distillation.info_nce(student @ teacher.T)


OTHER_LOSSES = {
    "info_nce": (info_nce, (4, 5)),
    "donsker_varadhan": (lambda s, t: -distillation.donsker_varadhan(s @ t.T), (4, 5)),
    "variational_information": (
        lambda s, t: distillation.variational_information(s, t, distillation.init_variance(5)),
        (4, 5),
    ),
    "discriminator_loss": (distillation.discriminator_loss, (4,)),
    "whiten": (lambda s, t: distillation.hint(s, distillation.whiten(t)), (4, 3)),
    "standardize_features": (lambda s, t: distillation.hint(s, distillation.standardize_features(t)), (4, 3)),
    "gradient_distance": (lambda s, t: distillation.gradient_distance([s], [t]), (4, 3)),
    "project_orthogonally": (
        lambda s, t: distillation.hint(
            distillation.project_orthogonally(
                distillation.init_orthogonal_projector(jax.random.key(0), 3, 3), s
            ),
            t,
        ),
        (4, 3),
    ),
    "weighted_cross_entropy": (
        lambda s, t: distillation.weighted_cross_entropy(s, *distillation.pseudo_label(t, weighting="one")),
        (4, 3),
    ),
}
EVERY_LOSS = {name: (loss, shape) for name, (loss, _, shape) in LOSSES.items()} | OTHER_LOSSES


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_nan_in_nan_out(name, value):
    """Also of a batch of one, of equal examples and where only one number is: never a finite loss."""
    loss, shape = EVERY_LOSS[name]
    loss = jax.jit(loss)
    for shape_of_batch in {shape, shape if name == "donsker_varadhan" else (1, *shape[1:])}:
        sides = [np.ones(shape_of_batch, np.float32), *map(np.asarray, drawn(shape_of_batch))]
        for side in (0, 1):
            for fine in sides:
                one = np.array(sides[1])
                one.reshape(-1)[-1] = value
                for broken in (np.full(shape_of_batch, value, np.float32), one):
                    # Chances that cannot be infinite: a sure discriminator's loss is zero.
                    if name == "discriminator_loss" and value == np.inf:
                        continue
                    pair = [fine, broken] if side else [broken, fine]
                    assert not np.isfinite(loss(*pair)), (shape_of_batch, side, pair)


def masked_pairs():
    """Logits of five classes of which both mask some, and what is left of them."""
    student, teacher = (np.asarray(x) for x in drawn((4, 5), 1.5))
    keep = [0, 2, 4]
    mask = np.where(np.isin(np.arange(5), keep), 0.0, -np.inf).astype(np.float32)
    return student + mask, teacher + mask, keep


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_masked_class_is_left_out(name):
    loss = LOGIT_LOSSES[name][0]
    if name == "decoupled":
        loss = lambda s, t: distillation.decoupled(s, t, np.zeros(4, int), beta=3.0)  # noqa: E731
    student, teacher, keep = masked_pairs()
    value, gradient = jax.jit(jax.value_and_grad(loss))(student, teacher)
    want, kept = jax.jit(jax.value_and_grad(loss))(student[:, keep], teacher[:, keep])
    if name == "top_k_soft_targets":  # How even the rest is depends on how many there are.
        assert np.isfinite(value)
    else:
        np.testing.assert_allclose(value, want, rtol=1e-5)
        np.testing.assert_allclose(gradient[:, keep], kept, rtol=1e-4, atol=1e-6)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(np.delete(gradient, keep, 1), 0.0)


def test_each_row_may_mask_classes_of_its_own():
    student, teacher = (np.array(x) for x in drawn((3, 4)))
    for row in range(3):
        student[row, row] = teacher[row, row] = -np.inf
    rows = [
        distillation.standardized(*(np.delete(x[i], i)[None] for x in (student, teacher))) for i in range(3)
    ]
    np.testing.assert_allclose(distillation.standardized(student, teacher), np.mean(rows), rtol=1e-5)
    p = jax.nn.softmax(student, -1), jax.nn.softmax(teacher, -1)
    within = [1 - np.corrcoef(*(np.delete(x[i], i) for x in p))[0, 1] for i in range(3)]
    along = [
        1 - np.corrcoef(*(np.delete(x[:, c], c) if c < 3 else x[:, c] for x in p))[0, 1] for c in range(4)
    ]
    want = np.mean(within) + np.mean(along)
    np.testing.assert_allclose(distillation.correlation(student, teacher), want, rtol=1e-4)
    # What the student alone masks, the teacher holds for possible.
    teacher[0, 0] = 0.0
    assert np.isinf(distillation.standardized(student, teacher))
