"""Checkpoints of a run, by Orbax: written in the background, the best and the last one kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from modelzip_jax import tree as trees
from modelzip_jax.errors import CheckpointError
from modelzip_jax.training.state import TrainState

__all__ = ["Checkpoints"]

Names = dict[str, jax.Array]


class Checkpoints:
    """The checkpoints of one run in one folder.

    A checkpoint holds the whole `TrainState` (weights, optimizer and compression state, batch
    statistics, PRNG key) under the leaves' paths, and plain data beside it: the position in the data,
    what early stopping remembers, the last evaluation. A directory takes its final name only when
    all of it is written, so that a run killed at any time leaves no half checkpoint.

    Args:
      folder: where; it is made if it does not exist.
      best: the number of an evaluation that says which checkpoint is best; None keeps the last only.
      mode: "max" or "min".
    """

    def __init__(self, folder: str | Path, best: str | None = None, mode: str = "max"):
        self.folder = Path(folder).absolute()
        keep: list[policies.PreservationPolicy] = [policies.LatestN(1)]
        number: Callable[[Any], float] | None = None
        if best:
            number = lambda numbers: numbers[best]  # noqa: E731
            keep.append(
                policies.BestN(
                    get_metric_fn=number, n=1, reverse=mode == "min", keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), best_fn=number, best_mode=mode,
            enable_async_checkpointing=True, cleanup_tmp_directories=True,
        )  # fmt: skip
        handlers = {"state": ocp.StandardCheckpointHandler(), "rest": ocp.JsonCheckpointHandler()}
        self._best, self._mode = best, mode
        with self._named():
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, state: TrainState, rest: dict[str, Any], numbers: dict[str, float]) -> None:
        """Copies the state and writes it in the background; waits for the save before, if need be.

        Args:
          state: of step `state.step`. rest: plain data that JSON can hold. numbers: the last evaluation.

        Raises:
          CheckpointError: this save cannot begin, or the one before failed (a full disk, for example).
        """
        step = int(state.step)
        # A copy: on CPU Orbax reads the state's own memory, which the next step takes back.
        leaves = {name: jnp.array(x, copy=True) for name, x in _stored(state).items()}
        # Orbax ranks by these; a save before the first evaluation has none.
        metrics = numbers if self._best in numbers else None
        with self._named():
            self._manager.save(
                step, metrics=metrics, force=True,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves), rest=ocp.args.JsonSave({**rest, "numbers": numbers})
                ),
            )  # fmt: skip

    def steps(self) -> list[int]:
        """The steps of which there is a complete checkpoint."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step whose evaluation was the best; None if nothing was evaluated."""
        ranked = [(self._manager.metrics(step), step) for step in self.steps()]
        scored = [(m[self._best], step) for m, step in ranked if m is not None and self._best in m]
        if not scored:
            return None
        return (min if self._mode == "min" else max)(scored)[1]

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The state and the plain data of a checkpoint.

        Args:
          like: a state of the same structure; each leaf is restored to its sharding, which may be of
            another mesh than the one that saved.
          step: which checkpoint, default the last.

        Raises:
          CheckpointError: there is none, it is damaged, or it belongs to another network or optimizer.
        """
        found = self.steps()
        if not found or (step is not None and step not in found):
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; there are {found}")
        step = found[-1] if step is None else step
        wanted = _stored(like)
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in wanted.items()
        }
        with self._named(step):
            self._check(step, wanted)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), rest=ocp.args.JsonRestore())
            restored = self._manager.restore(step, args=args)
        return _rebuilt(like, restored["state"]), restored["rest"]

    def _check(self, step: int, wanted: Names) -> None:
        """Refuses a checkpoint of other leaves or shapes by name; Orbax would cut or pad silently."""
        stored = self._manager.item_metadata(step)["state"]
        if stored is None:
            raise CheckpointError("its state cannot be read")
        shapes = {name: tuple(x.shape) for name, x in stored.items()}
        for name in sorted({*wanted, *shapes}):
            if shapes.get(name) != (wanted[name].shape if name in wanted else None):
                raise CheckpointError(
                    f"it is of another network or optimizer: {name!r} has the shape {shapes.get(name)} in the "
                    f"checkpoint, {wanted[name].shape if name in wanted else None} in this run"
                )

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointError: the last save failed.
        """
        with self._named():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _named(self, step: int | None = None) -> Iterator[None]:
        """Turns whatever Orbax and its storage raise into one line that names the folder."""
        where = self.folder if step is None else self.folder / str(step)
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            hint = ""
            if step is not None:
                others = [s for s in self.steps() if s != step]
                hint = f"; other checkpoints: {others}" if others else "; there is no other checkpoint"
            raise CheckpointError(f"checkpoint {where}: {reason}{hint}") from error


def _stored(state: TrainState) -> Names:
    """The arrays of a state by path: PRNG keys as their words, nothing without elements."""
    leaves = {name: _words(x) for name, x in trees.named_leaves(state)}
    return {name: x for name, x in leaves.items() if x.size}


def _words(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _rebuilt(like: TrainState, stored: Names) -> TrainState:
    def restore(name: str, x: jax.Array) -> jax.Array:
        if not x.size:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(stored[name], impl=jax.random.key_impl(x))
        return stored[name]

    return trees.map_named(restore, like)
