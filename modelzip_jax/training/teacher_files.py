"""Where a frozen teacher of a run comes from: a finished run, whose config says which network it is, or weights."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modelzip_jax import tree as trees
from modelzip_jax.errors import ConfigError
from modelzip_jax.training import config as configs
from modelzip_jax.training.frameworks import Network
from modelzip_jax.training.starting import network_of, starting_weights
from modelzip_jax.tree import PyTree

__all__ = ["TeacherFile", "TeacherWarning", "require_unchanged"]


class TeacherWarning(UserWarning):
    """A run goes on without the file of its teacher, which is in its checkpoints."""


@dataclasses.dataclass(frozen=True)
class TeacherFile:
    """What `config.distill.teacher` names, if it is a path.

    path: as it was given. network: the teacher's. inputs: prepared ones of one example, by which it is made.
    """

    path: Path
    network: Network
    inputs: Callable[[], jax.Array]

    @property
    def gone(self) -> bool:
        """Whether weights were here that checkpoints may have: of a run's folder nobody would know the network."""
        return not self.path.exists() and bool(self.path.suffix)

    def read(self, *, resuming: bool = False) -> dict[str, PyTree]:
        """`{"params": ..., "variables": ...}`.

        Args:
          resuming: whether checkpoints are read next, which have the weights, so that new ones will do for a file that
            is gone.

        Raises:
          ConfigError: there is none, or it is of another network. NonFiniteError: a weight is NaN or infinite.
        """
        like = jax.jit(self.network.init)(jax.random.key(0), self.inputs())
        if resuming and self.gone:
            text = f"distill.teacher {self.path} is gone: the run goes on with the teacher in its checkpoints"
            warnings.warn(text, TeacherWarning, stacklevel=2)
            return dict(zip(("params", "variables"), like, strict=True))
        if not self.path.exists():
            near = difflib.get_close_matches(str(self.path).lower(), ("self", "average"), 1, cutoff=0.75)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"there is no {self.path}, of which the weights were to be read: distill.teacher is 'self', 'average', "
                f"the folder of a finished run, a .mz file or a checkpoint{hint}"
            )
        weights = starting_weights(
            self.path, *like, what="the teacher file",
            hint="give the folder of the run that trained it, whose config says which network it is",
        )[:2]  # fmt: skip
        return dict(zip(("params", "variables"), weights, strict=True))

    @classmethod
    def of(
        cls, config: Any, student: Network, inputs: np.ndarray, prepare: Callable[..., PyTree]
    ) -> TeacherFile:
        """The teacher of a config, of the student's network unless its own run says another.

        Raises:
          ConfigError: the run is not finished, or on other data.
        """
        path, network = Path(config.distill.teacher), student
        if (path / configs.STORED).is_file():
            theirs = configs.run_config(path)
            if theirs.data.name != config.data.name:
                raise ConfigError(
                    f"the teacher {path} was trained on {theirs.data.name!r}, of which it standardises its inputs; "
                    f"this run is on {config.data.name!r}"
                )
            network = network_of(theirs, inputs)
        return cls(path, network, lambda: prepare({"inputs": jnp.asarray(inputs[:1])}, None)["inputs"])


def require_unchanged(teacher: str, read: PyTree, kept: PyTree) -> None:
    """Refuses to go on with a teacher that is not the one of a run's checkpoints.

    Args:
      teacher: the config's field. read: from its file. kept: in a checkpoint.

    Raises:
      ConfigError: a leaf differs; the message names it.

    >>> require_unchanged("t.mz", {"w": jnp.ones(2)}, {"w": jnp.zeros(2)})
    Traceback (most recent call last):
    modelzip_jax.errors.ConfigError: distill.teacher 't.mz' is not the one that this run began with: w has changed; ...
    """
    here = lambda x: np.asarray(x.addressable_data(0))  # noqa: E731
    for (name, ours), theirs in zip(trees.named_leaves(read), jax.tree.leaves(kept), strict=True):
        if not np.array_equal(here(ours), here(theirs)):
            raise ConfigError(
                f"distill.teacher {teacher!r} is not the one that this run began with: {name} has changed; put the old "
                "weights back, or choose another folder to begin anew"
            )
