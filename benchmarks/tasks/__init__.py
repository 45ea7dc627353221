"""Networks on which rate and distortion are measured, each with its data and its measure of quality.

    task = tasks.load("minilm")
    packed = mz.compress(task.params, ...)                      # seeing task.calibration(...) alone
    task.quality(mz.unpack(packed), "validation")               # a number for each example
    task.quality(mz.unpack(packed), "test") - task.quality(task.params, "test")

`python -m benchmarks.tasks` trains what no package carries, once, and says how good every network is.
"""

from __future__ import annotations

from benchmarks.tasks import crepe, efficientnet_lite, g2p, kjv_model, lenets, minilm, resnets
from benchmarks.tasks.task import Measure, Task
from modelzip_jax.naming import require_known

__all__ = ["NAMES", "Measure", "Task", "load"]

_MODULES = (minilm, efficientnet_lite, g2p, crepe, kjv_model, lenets, resnets)
_LOADERS = {name: module.load for module in _MODULES for name in module.NAMES}
NAMES = tuple(_LOADERS)


def load(name: str, *, quick: bool = False) -> Task:
    """One of `NAMES`. With `quick` it is judged by fewer examples.

    A network that no package carries is trained when it is loaded for the first time, for minutes, and kept in
    `runs/tasks/`.

    Raises:
      ConfigError: no task has this name.
      MissingPackageError, MissingExtraError: a package of weights or of data is not installed; the message names it.
      DataError: a data set is not prepared; the message has the command.
    """
    return _LOADERS[require_known("task", name, NAMES)](name, quick)
