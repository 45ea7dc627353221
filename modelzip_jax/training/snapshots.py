"""Checkpoints of a run, by Orbax: written in the background, checked when read, the best and the last two kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from modelzip_jax import tree as trees
from modelzip_jax.errors import CheckpointError
from modelzip_jax.training.checkpoint_records import (
    DamagedCheckpointError,
    differing_arrays,
    differing_leaf,
    read_record,
    record_of,
)
from modelzip_jax.training.state import TrainState

__all__ = ["CheckpointWarning", "Checkpoints"]

RECORD = "record.json"


class CheckpointWarning(UserWarning):
    """A checkpoint of the run is damaged, and another one takes its place."""


class Checkpoints:
    """The checkpoints of one run in one folder.

    A checkpoint holds the whole `TrainState` (weights, optimizer and compression state, batch
    statistics, PRNG key) under the leaves' paths, and a record beside it: plain data (the position in the data,
    what early stopping remembers), the last evaluation, and a digest of each array. A directory takes its
    final name only when all of it is written, so that a run killed at any time leaves no half checkpoint;
    and nothing is restored that is not bit for bit what was saved.

    The last two are kept, so that there is one to go on from if the last is damaged.

    Args:
      folder: where; it is made if it does not exist.
      best: the number of an evaluation that says which checkpoint is best, and is kept too.
      mode: "max" or "min".

    Raises:
      CheckpointError: the folder cannot be made or read.
    """

    def __init__(self, folder: str | Path, best: str | None = None, mode: str = "max"):
        self.folder = Path(folder).absolute()
        self._best, self._mode = best, mode
        # Orbax's own metrics have no digest; the record's have.
        self._evaluations: dict[int, dict[str, float] | None] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self, enable_async_checkpointing=True, cleanup_tmp_directories=True
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "rest": ocp.JsonCheckpointHandler(RECORD)}
        with self._named():
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        self._evaluations = {step: self._evaluation(step) for step in self.steps()}

    def _evaluation(self, step: int) -> dict[str, float] | None:
        """The numbers that were saved with a checkpoint; None if nobody knows."""
        with contextlib.suppress(DamagedCheckpointError):
            return dict(read_record(self._record(step))[1]["numbers"])
        return None

    def _record(self, step: int) -> Path:
        return self.folder / str(step) / "rest" / RECORD

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax asks which of its checkpoints to keep: the last two, the best, and what may be the best."""
        return self._preserved([checkpoint.step for checkpoint in checkpoints])

    def _preserved(self, steps: list[int]) -> list[bool]:
        scores = {step: score for step in steps if (score := self._score(step)) is not None}
        best = self._first(scores) if scores else None
        unknown = [step for step in steps if self._best and self._evaluations.get(step) is None]
        return [step in steps[-2:] or step == best or step in unknown for step in steps]

    def _score(self, step: int) -> float | None:
        numbers = self._evaluations.get(step) or {}
        return numbers.get(self._best) if self._best else None

    def _first(self, scores: dict[int, float]) -> int:
        choose = min if self._mode == "min" else max
        return choose((score, step) for step, score in scores.items())[1]

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
        self._evaluations[step] = dict(numbers)
        record = record_of(leaves, {"rest": rest, "numbers": numbers})
        with self._named():
            args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), rest=ocp.args.JsonSave(record))
            self._manager.save(step, force=True, args=args)

    def steps(self) -> list[int]:
        """The steps of which there is a complete checkpoint."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step whose evaluation was the best; None if nothing was evaluated.

        Raises:
          CheckpointError: a damaged checkpoint may be the best.
        """
        steps = self.steps()
        for step in steps:
            if self._evaluations[step] is None:
                raise CheckpointError(
                    f"checkpoint {self.folder / str(step)} is damaged, and may have been the best; remove it to "
                    "take the best of the others"
                )
        known = {step: score for step in steps if (score := self._score(step)) is not None}
        return self._first(known) if known else None

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The state and the plain data of a checkpoint, bit for bit as they were saved.

        Damaged checkpoints after the last sound one are renamed to `STEP.damaged`, so that the run can write
        these steps anew, and are named in a `CheckpointWarning`.

        Args:
          like: a state of the same structure; each leaf is restored to its sharding, which may be of
            another mesh than the one that saved.
          step: which checkpoint; by default the last that is not damaged.

        Raises:
          CheckpointError: there is none, none is sound, or it belongs to another network or optimizer.
        """
        with self._named():
            # The last one may still be written in the background.
            self._manager.wait_until_finished()
        found = self.steps()
        if not found or (step is not None and step not in found):
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; there are {found}")
        damaged: dict[int, str] = {}
        for tried in reversed(found) if step is None else [step]:
            try:
                restored = self._restore(like, tried)
            except DamagedCheckpointError as error:
                damaged[tried] = str(error)
            else:
                self._set_aside(damaged, tried)
                return restored
        reasons = "; ".join(f"checkpoint {self.folder / str(n)}: {reason}" for n, reason in damaged.items())
        others = [n for n in found if n not in damaged]
        hint = f"other checkpoints: {others}" if others else f"remove {self.folder} to begin anew"
        raise CheckpointError(f"{reasons}; {hint}")

    def _restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """One checkpoint, in all processes or in none."""
        restored, reason = None, ""
        try:
            restored = self._read(like, step)
        except DamagedCheckpointError as error:
            reason = str(error)
        if jax.process_count() > 1:
            sound = multihost_utils.process_allgather(np.asarray(restored is not None))
            reason = reason or "" if sound.all() else reason or "another process cannot read it"
        if restored is None or reason:
            raise DamagedCheckpointError(reason)
        return restored

    def _read(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        facts, plain = read_record(self._record(step))
        wanted = _stored(like)
        # By the record, which is sound: what Orbax's own metadata say may be damage. It would cut or pad silently.
        if other := differing_leaf(facts, wanted):
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)}: it is of another network or optimizer: {other}"
            )
        abstract = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in wanted.items()
        }
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            arrays = self._manager.restore(step, args=args)["state"]
        except Exception as error:  # Orbax and its storage raise what they like.
            raise DamagedCheckpointError(_line(error)) from error
        if changed := differing_arrays(facts, arrays):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise DamagedCheckpointError(f"{changed[0]!r}{more} is not what was written")
        return _rebuilt(like, arrays), plain["rest"]

    def _set_aside(self, damaged: dict[int, str], sound: int) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            for step in damaged:
                aside = self.folder / f"{step}.damaged"
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(self.folder / str(step), aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()
        if jax.process_index() == 0:
            for step, reason in damaged.items():
                text = f"checkpoint {self.folder / str(step)} is damaged: {reason}"
                text = f"{text}; it is renamed to {step}.damaged, and step {sound} taken"
                warnings.warn(text, CheckpointWarning, stacklevel=3)

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
        if kind is None:
            self._remove_old()
        self.close()

    def _remove_old(self) -> None:
        """Removes what a run has left that was killed as it did so."""
        with self._named():
            self._manager.wait_until_finished()
            for step, kept in zip(self.steps(), self._preserved(self.steps()), strict=True):
                if not kept:
                    self._manager.delete(step)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Turns whatever Orbax and its storage raise into one line that names the folder."""
        try:
            yield
        except Exception as error:
            raise CheckpointError(f"checkpoint {self.folder}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _stored(state: TrainState) -> dict[str, jax.Array]:
    """The arrays of a state by path: PRNG keys as their words, nothing without elements."""
    leaves = {name: _words(x) for name, x in trees.named_leaves(state)}
    return {name: x for name, x in leaves.items() if x.size}


def _words(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def _rebuilt(like: TrainState, stored: dict[str, jax.Array]) -> TrainState:
    def restore(name: str, x: jax.Array) -> jax.Array:
        if not x.size:
            return x
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(stored[name], impl=jax.random.key_impl(x))
        return stored[name]

    return trees.map_named(restore, like)
