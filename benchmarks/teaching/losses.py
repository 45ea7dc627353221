"""Every loss of `modelzip_jax.distillation` as one term beside the cross-entropy of labels, and what it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.teaching.students import FULL, QUARTER, Given
from modelzip_jax import distillation
from modelzip_jax.tree import PyTree

__all__ = ["LOSSES", "NONE", "SOFT", "Loss", "Seen", "seen"]

NONE, SOFT = "none", "soft targets"
EXAMPLES, EMBEDDED, NEGATIVES, TRIPLETS = 55_000, 64, 128, 32


class Seen(NamedTuple):
    """What a term reads. student, teacher: "logits" and features by name. extra: what is trained beside the student.
    batch: its labels, and "index", which examples these are."""

    student: dict[str, jax.Array]
    teacher: dict[str, jax.Array]
    extra: PyTree
    memory: PyTree
    batch: dict[str, jax.Array]
    temperature: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Loss:
    """A row of the table.

    term: a scalar, or a scalar and the next memory. weights: ascending, from which the search begins, by `factor`
    further. reads: features of the student and the teacher. extra: their init. memory: its init. critic: instead of a
    term; it reads the feature `view`.
    """

    title: str
    term: Callable[[Seen], Any] | None = None
    temperatures: tuple[float, ...] = (1.0,)
    weights: tuple[float, ...] = (1.0, 10.0)
    factor: float = 10.0
    reads: tuple[str, ...] = ()
    extra: Callable[[jax.Array], PyTree] = lambda key: {}
    memory: Callable[[jax.Array], PyTree] = lambda key: ()
    critic: Callable[[], distillation.Critic] | None = None
    view: str = "hidden"


def _both(loss: Callable[..., jax.Array], name: str, rows: int | None = None) -> Callable[[Seen], jax.Array]:
    return lambda seen: loss(seen.student[name][:rows], seen.teacher[name][:rows])


def _projector(level: int, width: int | None = None) -> Callable[[jax.Array], PyTree]:
    return lambda key: distillation.init_projector(key, QUARTER[level], width or FULL[level])


def _hint(name: str) -> Callable[[Seen], jax.Array]:
    return lambda s: distillation.hint(distillation.project(s.extra, s.student[name]), s.teacher[name])


def _orthogonal(seen: Seen) -> jax.Array:
    projected = distillation.project_orthogonally(seen.extra, seen.student["maps"])
    return distillation.hint(projected, distillation.standardize_features(seen.teacher["maps"]))


def _pair(init: Callable[[jax.Array, int], PyTree], **names: int) -> Callable[[jax.Array], PyTree]:
    """One of each by name, of its number."""
    return lambda key: {n: init(jax.random.fold_in(key, i), x) for i, (n, x) in enumerate(names.items())}


def _flow(seen: Seen) -> jax.Array:
    own = tuple(distillation.project(seen.extra[n], seen.student[n]) for n in ("first", "maps"))
    return distillation.flow(own, (seen.teacher["first"], seen.teacher["maps"]))


def _embedded(seen: Seen) -> tuple[jax.Array, jax.Array]:
    return (
        distillation.project(seen.extra["student"], seen.student["hidden"]),
        distillation.project(seen.extra["teacher"], seen.teacher["hidden"]),
    )


def _contrastive(seen: Seen) -> Any:
    index = seen.batch["index"]
    negatives = jax.random.randint(seen.key, (len(index), NEGATIVES), 0, EXAMPLES)
    return distillation.contrastive(*_embedded(seen), seen.memory, index, negatives)


_EMBEDDINGS = _pair(
    lambda key, width: distillation.init_projector(key, width, EMBEDDED), student=QUARTER[2], teacher=FULL[2]
)


def _review(seen: Seen) -> jax.Array:
    own = distillation.reviewed(seen.extra, [seen.student["first"], seen.student["maps"]], [(12, 12), (4, 4)])
    return distillation.hierarchical_context(own, [seen.teacher["first"], seen.teacher["maps"]])


def _logits(loss: Callable[..., jax.Array], **fields: Any) -> Callable[[Seen], jax.Array]:
    return lambda s: loss(s.student["logits"], s.teacher["logits"], temperature=s.temperature, **fields)


def _decoupled(s: Seen) -> jax.Array:
    return distillation.decoupled(
        s.student["logits"], s.teacher["logits"], s.batch["labels"], temperature=s.temperature
    )


def _smoothed(s: Seen) -> jax.Array:
    virtual = distillation.smoothed_teacher(s.batch["labels"], 10, correct=0.9)
    return distillation.soft_targets(s.student["logits"], virtual, temperature=s.temperature)


def _top_k(s: Seen) -> jax.Array:
    kept = distillation.top_k_logits(s.teacher["logits"] / s.temperature, 3)
    return s.temperature**2 * distillation.top_k_soft_targets(s.student["logits"] / s.temperature, kept)


_SOFTENED: dict[str, Any] = {"weights": (1.0, 3.0), "factor": 3.0}
_WARM = (2.0, 4.0)

LOSSES = [
    Loss(NONE, weights=(0.0,)),
    Loss(SOFT, _logits(distillation.soft_targets), _WARM, **_SOFTENED),
    Loss("decoupled (DKD)", _decoupled, _WARM, (0.3, 1.0), 3.0),
    Loss("standardized", _logits(distillation.standardized), _WARM, **_SOFTENED),
    Loss("correlation (DIST)", _logits(distillation.correlation), (1.0, 4.0), **_SOFTENED),
    Loss("soft targets, top 3", _top_k, _WARM, **_SOFTENED),
    Loss("smoothed teacher (no network)", _smoothed, (1.0, 4.0), (0.3, 1.0), 3.0),
    Loss("hint, 4×4 maps", _hint("maps"), reads=("maps",), extra=_projector(1)),
    Loss("hint, hidden", _hint("hidden"), reads=("hidden",), extra=_projector(2)),
    Loss(
        "hint, maps, orthogonal projector (V_kD)", _orthogonal, reads=("maps",),
        extra=lambda key: distillation.init_orthogonal_projector(key, QUARTER[1], FULL[1]),
    ),
    Loss("attention transfer", _both(distillation.attention_transfer, "maps"), weights=(10.0, 100.0), reads=("maps",)),
    Loss("similarity (SP)", _both(distillation.similarity, "hidden"), weights=(100.0, 1000.0), reads=("hidden",)),
    Loss("relational distance (RKD-D)", _both(distillation.relational_distance, "hidden"), reads=("hidden",)),
    Loss("relational angle (RKD-A)", _both(distillation.relational_angle, "hidden", TRIPLETS), reads=("hidden",)),
    Loss(
        "correlation congruence (CC)", _both(distillation.correlation_congruence, "hidden"),
        weights=(100.0, 1000.0), reads=("hidden",),
    ),
    Loss(
        "contrastive, in batch (CRD)", lambda s: distillation.in_batch_contrastive(*_embedded(s)),
        weights=(0.1, 1.0), reads=("hidden",), extra=_EMBEDDINGS,
    ),
    Loss(
        "contrastive, memory (CRD)", _contrastive, weights=(0.1, 1.0), reads=("hidden",), extra=_EMBEDDINGS,
        memory=lambda key: distillation.init_contrast_memory(key, EXAMPLES, EMBEDDED),
    ),
    Loss("discriminator, logits", critic=lambda: distillation.discriminator([64, 64], adversarial_samples=1.0),
         weights=(0.1, 1.0), view="logits"),
    Loss("discriminator, hidden", critic=lambda: distillation.discriminator([64, 64], adversarial_samples=1.0),
         weights=(0.1, 1.0), reads=("hidden",), extra=_projector(2)),
    Loss("variational information (VID)", critic=distillation.variational_critic, reads=("hidden",)),
    Loss("InfoNCE", critic=distillation.info_nce_critic, weights=(0.1, 1.0), reads=("hidden",)),
    Loss("Donsker–Varadhan", critic=distillation.donsker_varadhan_critic, weights=(0.1, 1.0), reads=("hidden",)),
    Loss(
        "flow (FSP)", _flow, reads=("first", "maps"),
        extra=lambda key: {"first": _projector(0)(key), "maps": _projector(1)(jax.random.fold_in(key, 1))},
    ),
    Loss(
        "review", _review, reads=("first", "maps"),
        extra=lambda key: distillation.init_review(key, QUARTER[:2], FULL[:2], width=QUARTER[1]),
    ),
]  # fmt: skip


def seen(student: dict[str, jax.Array], extra: PyTree, given: Given) -> Seen:
    """The teacher's part is in the batch."""
    prefix = "teacher_"
    teacher = {
        n.removeprefix(prefix): x.astype(jnp.float32) for n, x in given.batch.items() if n.startswith(prefix)
    }
    return Seen(student, teacher, extra, given.memory, given.batch, given.hyper["temperature"], given.key)
