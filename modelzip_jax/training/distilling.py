"""A teacher in a training run: what `config.distill` adds to the objective.

    teacher: whose knowledge it is.
      "self": the network that training starts from, `config.start`, frozen, before anything is compressed.
      "average": the moving average of the student (`decay`).
      a path: the folder of a finished run, whose config says which network it is; or a `.mz` file or a
      checkpoint of `config.model`.
    loss, temperature, weight, options: of logits; "" is none. label_weight: of the run's own objective.
    features: a loss of features. layers: of the student, by name; teacher_layers: of the teacher, by
    default the same; place: "inputs" of the layers, their "outputs", or "activations" (`distillation.features`);
    projector: "", "linear" or "orthogonal". Losses of several layers are summed.
    balance: "fixed", "dynamic_weight_average", "uncertainty" or "grad_norm", times the weights.
    cache: "float16" or "float32": the teacher's logits are computed once, into the run's folder; "" runs
    the teacher in each step. top_k: keeps only so many logits of each row there; 0 is all.

The teacher sees what the student sees, augmented or not, in evaluation mode with batch statistics of its own.
Projectors are trained by `config.optimizer`. All of it is in the run's checkpoints and none in its `model.mz`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from modelzip_jax import distillation
from modelzip_jax.errors import ConfigError
from modelzip_jax.training import distill_fields as fields
from modelzip_jax.training.distill_checks import checked_fields
from modelzip_jax.training.frameworks import Network
from modelzip_jax.training.objectives import Objective, softmax_cross_entropy
from modelzip_jax.training.state import TrainState
from modelzip_jax.training.teacher_files import TeacherFile, require_unchanged
from modelzip_jax.tree import PyTree

__all__ = ["Beside", "Distilling", "distilling_of"]


class Beside(NamedTuple):
    """What a taught network has beside it, in the train state and its checkpoints.

    teacher: `{"params": ..., "variables": ...}`; of a moving average, `MovingTeacher` of it; () if its logits are
    cached. projectors: params, one for each layer. opt_state: the projectors' optimizer's. balance: the balancer's.
    """

    teacher: PyTree
    projectors: list[PyTree]
    opt_state: optax.OptState
    balance: PyTree


class _Said(NamedTuple):
    """What a network says of a batch: logits (or TopK), features by layer, and its variables after that."""

    logits: Any
    features: dict[str, jax.Array]
    variables: PyTree


@dataclasses.dataclass(frozen=True)
class Distilling:
    """What `config.distill` describes, built by `distilling_of`.

    distill: the group of fields. student, teacher: networks. file: where the teacher's weights
    are; None if they are the student's. prepare: of a batch. tx: the projectors' optimizer. objective: of
    labels. balance: of the losses.
    """

    distill: Any
    student: Network
    teacher: Network
    file: TeacherFile | None
    prepare: Callable[..., PyTree]
    tx: optax.GradientTransformation
    objective: Objective
    balance: distillation.Balancer
    batch_size: int

    def init(
        self, params: PyTree, variables: PyTree, batch: PyTree, key: jax.Array, first: PyTree | None = None,
        *, resuming: bool = False,
    ) -> Beside:  # fmt: skip
        """What there is before the first step.

        Args:
          params, variables: that training starts from. batch: a prepared one, of which a balance reads the losses.
          first: the student's params at the first step, which compression has changed; by default `params`.
          resuming: whether a checkpoint is restored in its place, which has the teacher.

        Raises:
          ConfigError: features of "activations", where batch statistics end them early. DistillationError, TraceError:
            features that do not fit, a layer that there is not, a loss that is 0 for a balance that divides by it.
        """
        features, average = self.distill.features, self.distill.teacher == "average"
        if features.loss and features.place == "activations" and jax.tree.leaves(variables):
            raise ConfigError(
                "distill.features.place is 'activations', but with the moments of a batch, as in training, they end "
                "before the normalisation; name the layer that reads them and take its 'inputs'"
            )
        teacher: PyTree = () if self.distill.cache else self._read(params, variables, resuming)
        teacher = distillation.start_moving_teacher(teacher) if average else teacher
        said = functools.partial(self._taught, teacher)
        projectors = self._projectors(params, variables, jax.eval_shape(said, batch).features, batch, key)
        losses = dict.fromkeys(self.weights, jnp.float32(1.0))
        if self.distill.balance != "fixed":
            trained = {"params": params if first is None else first, "projectors": projectors}
            of_batch = jax.jit(functools.partial(self._losses, self.student, self.objective))
            losses = of_batch(trained, variables, jax.jit(said)(batch), batch, key)[0]
        # Optimizers need not take a tree without leaves: an average has nothing to average.
        opt_state = self.tx.init(projectors) if jax.tree.leaves(projectors) else ()
        return Beside(teacher, projectors, opt_state, self.balance.init(losses))

    def gradients(
        self, network: Network, objective: Objective, state: TrainState, batch: PyTree, key: jax.Array
    ) -> tuple[PyTree, TrainState, dict[str, jax.Array]]:
        """`train_loop.Gradients` of the weighted sum of the objective and the teacher's losses."""
        beside: Beside = state.beside
        teacher = self._moved(state) if self.distill.teacher == "average" else beside.teacher
        said = self._taught(teacher, batch)
        trained = {"params": state.params, "projectors": beside.projectors}
        shares = self.balance.weights(beside.balance)
        weights = {name: weight * shares[name] for name, weight in self.weights.items()}
        (losses, (variables, metrics)), grads, norms = distillation.balanced_gradients(
            lambda trained: self._losses(network, objective, trained, state.variables, said, batch, key),
            trained, weights, norms=self.balance.reads_gradients, shared="params/**", has_aux=True,
        )  # fmt: skip
        projectors, opt_state = beside.projectors, beside.opt_state
        if jax.tree.leaves(projectors):
            steps, opt_state = self.tx.update(grads["projectors"], opt_state, projectors)
            projectors = optax.apply_updates(projectors, steps)
        balance = self.balance.update(beside.balance, losses, norms)
        metrics = {"loss": distillation.weighted_sum(weights, losses), **metrics}
        metrics |= {f"loss/{name}": loss for name, loss in losses.items()}
        if self.distill.balance != "fixed":
            metrics |= {f"weight/{name}": weight for name, weight in weights.items()}
        moved = state._replace(variables=variables, beside=Beside(teacher, projectors, opt_state, balance))
        return grads["params"], moved, metrics

    def cached(
        self, folder: Path, params: PyTree, variables: PyTree, inputs: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Fields for the training set: the teacher's logits of every example, from the folder or into it.

        Where the teacher's file is gone, the folder's will do.

        Raises:
          DistillationError: the folder's are of another teacher or data, or damaged.
        """
        if self.file is not None and self.file.gone and folder.exists():
            return distillation.cached_outputs(folder, inputs)
        # What `top_k_logits` keeps of the rest is exact at one temperature.
        divisor = self.distill.temperature if self.distill.top_k else 1.0

        def apply(weights: PyTree, inputs: jax.Array) -> jax.Array:
            prepared = self.prepare({"inputs": inputs}, None)["inputs"]
            return self.teacher.predict(weights["params"], weights["variables"], prepared) / divisor

        return distillation.cache_outputs(
            folder, distillation.Teacher(apply, self._read(params, variables)), inputs,
            batch_size=self.batch_size, dtype=self.distill.cache, top_k=self.distill.top_k or None,
        )  # fmt: skip

    def require_same(self, began: Beside, restored: Beside) -> None:
        """Refuses a teacher's file that is not what the run's checkpoints have of it.

        Raises:
          ConfigError: it has changed; the message names a leaf.
        """
        frozen = self.distill.teacher != "average" and not self.distill.cache
        if frozen and not (self.file is not None and self.file.gone):
            require_unchanged(self.distill.teacher, began.teacher, restored.teacher)

    def _read(self, params: PyTree, variables: PyTree, resuming: bool = False) -> dict[str, PyTree]:
        if self.file is None:
            return {"params": params, "variables": variables}
        return self.file.read(resuming=resuming)

    @functools.cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each loss before any balance, by its name."""
        return fields.weights_of(self.distill)

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        """Layers of the student and the teacher that are compared."""
        features = self.distill.features
        return list(zip(features.layers, features.teacher_layers or features.layers, strict=True))

    def _taught(self, teacher: PyTree, batch: PyTree) -> _Said:
        """What the teacher says of a batch."""
        if self.distill.cache:
            top_k = self.distill.top_k
            return _Said(distillation.cached_top_k(batch) if top_k else batch["teacher_logits"], {}, ())
        weights = teacher.params if self.distill.teacher == "average" else teacher
        layers = dict.fromkeys((theirs for _, theirs in self._pairs), self.distill.features.place)
        return _say(self.teacher, weights["params"], weights["variables"], batch["inputs"], None, layers)

    def _losses(
        self, network: Network, objective: Objective, trained: PyTree, variables: PyTree, said: _Said,
        batch: PyTree, key: jax.Array,
    ) -> tuple[dict[str, jax.Array], tuple[PyTree, dict[str, jax.Array]]]:  # fmt: skip
        """`(losses, (variables, metrics))` of the student, in training mode."""
        distill, projector = self.distill, fields.projector_of(self.distill.features.projector)
        layers = dict.fromkeys((ours for ours, _ in self._pairs), distill.features.place)
        own = _say(network, trained["params"], variables, batch["inputs"], key, layers)
        label_loss, metrics = objective(own.logits, batch)
        losses = {"labels": label_loss}
        if logit_loss := fields.logit_loss_of(distill):
            losses[distill.loss] = logit_loss(own.logits, said.logits, batch["labels"])
        if feature_loss := fields.feature_loss_of(distill.features):
            losses[distill.features.loss] = sum(
                (
                    feature_loss(
                        projector.student(params, own.features[ours]),
                        projector.teacher(said.features[theirs]),
                    )
                    for params, (ours, theirs) in zip(trained["projectors"], self._pairs, strict=True)
                ),
                jnp.float32(0.0),
            )
        return losses, (own.variables, metrics)

    def _projectors(
        self, params: PyTree, variables: PyTree, taught: dict[str, Any], batch: PyTree, key: jax.Array
    ) -> list[PyTree]:
        """New ones, of the widths that the layers turn out to have.

        Raises:
          ConfigError: widths that this projector, or none, does not bring together.
        """
        layers = dict.fromkeys((ours for ours, _ in self._pairs), self.distill.features.place)
        say = lambda params, inputs: _say(self.student, params, variables, inputs, key, layers)  # noqa: E731
        own = jax.eval_shape(say, params, batch["inputs"]).features
        features = self.distill.features
        for ours, theirs in self._pairs:
            fields.require_widths(features, (ours, own[ours].shape), (theirs, taught[theirs].shape))
        init = fields.projector_of(features.projector).init
        return [
            init(jax.random.fold_in(key, index), own[ours].shape[-1], taught[theirs].shape[-1])
            for index, (ours, theirs) in enumerate(self._pairs)
        ]

    def _moved(self, state: TrainState) -> distillation.MovingTeacher:
        """The average with the student as it is now: at a run's first step there is nothing to average."""
        teacher, student = state.beside.teacher, {"params": state.params, "variables": state.variables}
        moved = distillation.move_teacher(teacher, student, self.distill.decay)
        return jax.tree.map(lambda new, old: jnp.where(state.step > 0, new, old), moved, teacher)


def distilling_of(
    config: Any, student: Network, inputs: np.ndarray, prepare: Callable[..., PyTree],
    tx: optax.GradientTransformation, epoch: int,
) -> Distilling | None:  # fmt: skip
    """What a config's teacher adds to a run; None if there is no teacher.

    Args:
      student: the run's network. inputs: training examples, `(n, ...)`. prepare: `(batch, key) -> batch`.
      tx: the optimizer of projectors. epoch: steps of one.

    Raises:
      ConfigError: a field, or fields together, that cannot work; the message names them.
      DistillationError: a number out of range.
    """
    distill = checked_fields(config)
    if not distill.teacher:
        return None
    named = distill.teacher not in ("self", "average")
    file = TeacherFile.of(config, student, inputs, prepare) if named else None
    return Distilling(
        distill, student, file.network if file else student, file, prepare, tx,
        softmax_cross_entropy(config.label_smoothing), fields.balance_of(distill.balance, epoch),
        config.data.batch_size,
    )  # fmt: skip


def _say(
    network: Network, params: PyTree, variables: PyTree, inputs: jax.Array, key: jax.Array | None,
    layers: dict[str, Any],
) -> _Said:  # fmt: skip
    """What a network says; in training mode if there is a key."""

    def apply(params: PyTree, variables: PyTree, inputs: jax.Array, *keys: jax.Array) -> Any:
        return network.apply(params, variables, inputs, bool(keys), keys[0] if keys else None)

    arguments = (variables, inputs) if key is None else (variables, inputs, key)
    if not layers:
        logits, changed = apply(params, *arguments)
        return _Said(logits, {}, changed)
    (logits, changed), found = distillation.features(apply, params, *arguments, layers=layers)
    return _Said(logits, found, changed)
