"""The losses equal published implementations on the same arrays; `benchmarks/peers/public_losses.py` asked those."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax import distillation
from modelzip_jax.distillation.pooling import pooled_to

PUBLIC = np.load(Path(__file__).with_name("public_losses.npz"))


def entry(name):
    return {key.removeprefix(f"{name}/"): PUBLIC[key] for key in PUBLIC if key.startswith(f"{name}/")}


def unbiased(student, teacher):
    """The published code divides by the deviation of a sample: another temperature, and another T²."""
    share = student.shape[-1] / (student.shape[-1] - 1)
    return distillation.standardized(student, teacher, temperature=2.0 * share**0.5) / share


def flow(student, teacher):
    return distillation.flow(*((x, pooled_to(x, (4, 4))) for x in (student, teacher)))


LOSSES = {
    "soft_targets": functools.partial(distillation.soft_targets, temperature=4.0),
    "decoupled": lambda s, t: distillation.decoupled(s, t, jnp.asarray(PUBLIC["decoupled/labels"])),
    "standardized": unbiased,
    "correlation": functools.partial(distillation.correlation, inter=2.0, intra=0.5),
    "hint": distillation.hint,
    "attention_transfer": distillation.attention_transfer,
    "flow": flow,
    "similarity": distillation.similarity,
    "relational_distance": distillation.relational_distance,
    "relational_angle": distillation.relational_angle,
}


def assert_same_gradient(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name):
    public = entry(name)
    value, gradient = jax.jit(jax.value_and_grad(LOSSES[name]))(public["student"], public["teacher"])
    np.testing.assert_allclose(value, public["value"], rtol=5e-6)
    assert_same_gradient(gradient, public["gradient"])


def test_contrastive_and_its_memory():
    public = entry("contrastive")
    memory = distillation.init_contrast_memory(jax.random.key(0), 9, 4)
    memory = memory._replace(student=public["memory_student"], teacher=public["memory_teacher"])

    @jax.jit
    def loss(student):
        return distillation.contrastive(
            student, public["teacher"], memory, public["examples"], public["negatives"], temperature=0.5
        )

    (value, after), gradient = jax.value_and_grad(loss, has_aux=True)(public["student"])
    np.testing.assert_allclose(value, public["value"], rtol=1e-5)
    assert_same_gradient(gradient, public["gradient"])
    np.testing.assert_allclose(after.student, public["after_student"], atol=1e-6)
    np.testing.assert_allclose(after.teacher, public["after_teacher"], atol=1e-6)


def test_review_of_three_levels():
    public = entry("review")
    levels = [
        {k.removeprefix(f"{i}/"): v for k, v in public.items() if k.startswith(f"{i}/")} for i in range(3)
    ]
    student, teacher = ([level[who] for level in levels] for who in ("student", "teacher"))
    channels = [x.shape[-1] for x in student], [x.shape[-1] for x in teacher]
    params = distillation.init_review(jax.random.key(0), *channels, width=3)
    for own, level in zip(params, levels, strict=True):
        for name in ("narrow", "widen"):
            own[name]["kernel"] = level[name]
        if "attention" in own:
            own["attention"] = {"kernel": level["attention"], "bias": level["attention_bias"]}

    @jax.jit
    def loss(student):
        found = distillation.reviewed(params, student, [x.shape[1:3] for x in teacher])
        return distillation.hierarchical_context(found, teacher)

    value, gradients = jax.value_and_grad(loss)(student)
    np.testing.assert_allclose(value, public["value"], rtol=5e-6)
    top = max(np.abs(level["gradient"]).max() for level in levels)
    for gradient, level in zip(gradients, levels, strict=True):
        np.testing.assert_allclose(gradient, level["gradient"], rtol=1e-4, atol=1e-5 * top)
