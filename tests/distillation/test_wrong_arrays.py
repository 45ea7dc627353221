"""Arguments that do not fit are named, with both shapes; also under `jit`, where shapes are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modelzip_jax import distillation as d
from modelzip_jax.errors import DistillationError, ModelzipError

X, IMAGES = jnp.ones((4, 3)), jnp.ones((4, 2, 2, 3))
LABELS = jnp.zeros(4, jnp.int32)
KEY = jax.random.key(0)
MEMORY = d.init_contrast_memory(KEY, 8, 3)
ON_LOGITS = {
    "soft_targets": d.soft_targets,
    "decoupled": lambda s, t, **more: d.decoupled(s, t, LABELS, **more),
    "standardized": d.standardized,
    "correlation": d.correlation,
}
ON_FEATURES = {
    "hint": d.hint,
    "similarity": d.similarity,
    "relational_distance": d.relational_distance,
    "relational_angle": d.relational_angle,
    "correlation_congruence": d.correlation_congruence,
    "in_batch_contrastive": d.in_batch_contrastive,
    "contrastive": lambda s, t: d.contrastive(s, t, MEMORY, jnp.arange(4), jnp.zeros((4, 2), int)),
    "attention_transfer": d.attention_transfer,
    "flow": lambda s, t: d.flow((s, s), (t, t)),
    "hierarchical_context": lambda s, t: d.hierarchical_context([s], [t]),
}


def refused(words, function, *arguments, **more):
    with pytest.raises(DistillationError) as said:
        function(*arguments, **more)
    for word in words:
        assert word in str(said.value)
    assert isinstance(said.value, ModelzipError)


@pytest.mark.parametrize("name", ON_LOGITS)
def test_logits_that_do_not_fit(name):
    loss = jax.jit(ON_LOGITS[name])
    refused([name, "batch", "(4, 3)", "(5, 3)"], loss, X, jnp.ones((5, 3)))
    refused([name, "classes", "(4, 3)", "(4, 2)"], loss, X, jnp.ones((4, 2)))
    refused([name, "student logits", "int32"], loss, X.astype(jnp.int32), X)
    refused([name, "teacher logits", "int32"], loss, X, X.astype(jnp.int32))
    refused([name, "student logits", "(0, 3)"], loss, X[:0], X[:0])
    refused([name, "student logits", "()"], loss, jnp.float32(1), jnp.float32(1))
    refused([name, "student logits", "list"], ON_LOGITS[name], [[1.0]], X)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "4", None, True, np.ones(2)])
@pytest.mark.parametrize("name", ON_LOGITS)
def test_temperatures_that_are_none(name, temperature):
    refused([name, "temperature", "positive"], ON_LOGITS[name], X, X, temperature=temperature)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_features_that_do_not_fit(name):
    loss = jax.jit(ON_FEATURES[name])
    images = name in ("attention_transfer", "flow", "hierarchical_context")
    fitting = IMAGES if images else X
    refused([name, "batch", str(fitting.shape), "(2, "], loss, fitting, fitting[:2])
    refused([name, "student features", "int32"], loss, fitting.astype(jnp.int32), fitting)
    refused([name, "student features", "(0, "], loss, fitting[:0], fitting[:0])
    refused([name, "student features", "(4,)"], loss, jnp.ones(4), fitting)


@pytest.mark.parametrize(
    "name", ["hint", "flow", "hierarchical_context", "in_batch_contrastive", "contrastive"]
)
def test_other_widths_need_a_projector(name):
    fitting = IMAGES if name in ("flow", "hierarchical_context") else X
    refused(
        [name, "projector", str(fitting.shape), "5)"],
        ON_FEATURES[name],
        fitting,
        jnp.ones((*fitting.shape[:-1], 5)),
    )


def test_weights_and_labels_of_decoupled():
    for name in ("alpha", "beta"):
        for value in (float("nan"), -1.0, float("inf"), "1"):
            refused(["decoupled", name], d.decoupled, X, X, LABELS, **{name: value})
    refused(["labels", "float32"], d.decoupled, X, X, X[:, 0])
    refused(["labels", "(3,)", "(4, 3)"], d.decoupled, X, X, LABELS[:3])
    refused(["labels", "0 to 2", "3"], d.decoupled, X, X, LABELS.at[1].set(3))
    refused(["labels", "0 to 2", "-1"], d.decoupled, X, X, LABELS - 1)


def test_other_hyperparameters():
    for name in ("inter", "intra"):
        refused(["correlation", name], d.correlation, X, X, **{name: -1})
    refused(["power", "0"], d.attention_transfer, IMAGES, IMAGES, power=0.0)
    refused(["gamma"], d.correlation_congruence, X, X, gamma=float("nan"))
    for order in (0, 1.5, True):
        refused(["order"], d.correlation_congruence, X, X, order=order)
    for correct in (0.0, 1.0, float("nan")):
        refused(["correct"], d.smoothed_teacher, LABELS, 3, correct=correct)
    refused(["classes"], d.smoothed_teacher, LABELS, 0)
    refused(["labels", "from 0 to 0"], d.smoothed_teacher, LABELS + 1, 1)


def test_attention_needs_positions():
    refused(["positions", "(4, 3)"], d.attention_transfer, X, X)
    refused(["positions", "(4, 2, 2, 3)", "(4, 2, 3)"], d.attention_transfer, IMAGES, IMAGES[:, 0])


def test_flow_needs_two_layers_of_one_batch():
    refused(["student 3, teacher 2"], d.flow, (IMAGES,) * 3, (IMAGES,) * 2)
    refused(["two layers"], d.flow, (IMAGES,) * 3, (IMAGES,) * 3)
    refused(["one ArrayImpl"], d.flow, IMAGES, (IMAGES, IMAGES))
    refused(["student's two layers"], d.flow, (IMAGES, X), (IMAGES, X))


def test_what_is_kept_of_a_teacher():
    for k in (0, 4, 1.0, True):
        refused(["k must be", "from 1 to 3"], d.top_k_logits, X, k)
    kept = d.top_k_logits(X, 2)
    refused(["(5, 3)", "(4, 2)"], d.top_k_soft_targets, jnp.ones((5, 3)), kept)
    refused(["(4, 1)", "at most classes"], d.top_k_soft_targets, jnp.ones((4, 1)), kept)
    refused(["integers"], d.top_k_soft_targets, X, kept._replace(indices=kept.values))
    refused(["log_rest (4, 2)"], d.top_k_soft_targets, X, kept._replace(log_rest=kept.values))
    refused(["temperature"], d.top_k_soft_targets, X, kept, temperature=0)


def test_contrastive_memories():
    examples, negatives = jnp.arange(4), jnp.zeros((4, 2), int)
    refused(["widths", "(4, 2)", "(8, 3)"], d.contrastive, X[:, :2], X[:, :2], MEMORY, examples, negatives)
    refused(["examples", "(3,)"], d.contrastive, X, X, MEMORY, examples[:3], negatives)
    refused(["negatives", "(4,)"], d.contrastive, X, X, MEMORY, examples, examples)
    refused(["negatives", "(4, 0)"], d.contrastive, X, X, MEMORY, examples, negatives[:, :0])
    refused(["examples", "float32"], d.contrastive, X, X, MEMORY, X[:, 0], negatives)
    refused(["examples", "0 to 7", "8"], d.contrastive, X, X, MEMORY, examples + 5, negatives)
    for momentum in (-0.1, 1.1, float("nan")):
        refused(["momentum"], d.contrastive, X, X, MEMORY, examples, negatives, momentum=momentum)
    refused(["(batch, width)"], d.in_batch_contrastive, IMAGES, IMAGES)
    refused(["width", "0"], d.init_contrast_memory, KEY, 8, 0)


def test_projectors_and_reviews():
    refused(["widths", "0"], d.init_projector, KEY, 0, 3)
    refused(["wider", "4", "3"], d.init_orthogonal_projector, KEY, 4, 3)
    refused(["(4, 3)", "projector's, 2"], d.project, d.init_projector(KEY, 2, 3), X)
    refused(["(4, 3)", "projector's, 2"], d.project_orthogonally, d.init_orthogonal_projector(KEY, 2, 3), X)
    refused(["epsilon"], d.whiten, X, epsilon=0.0)
    refused(["epsilon"], d.standardize_features, X, epsilon=float("nan"))
    refused(["student 1, teacher 2"], d.init_review, KEY, [3], [3, 4])
    refused(["width", "0"], d.init_review, KEY, [3], [3], width=0)
    params = d.init_review(KEY, [3], [5], width=2)
    refused(["(4, 2, 2, 1)", "(batch, height, width, 3)"], d.reviewed, params, [IMAGES[..., :1]], [(2, 2)])
    refused(["reviewed", "4 axes"], d.reviewed, params, [X], [(2, 2)])
    refused(["student 1, teacher 2"], d.reviewed, params, [IMAGES], [(2, 2), (1, 1)])
    refused(["hierarchical_context", "student 1, teacher 2"], d.hierarchical_context, [X], [X, X])
    refused(["height"], d.hierarchical_context, [X], [X])
