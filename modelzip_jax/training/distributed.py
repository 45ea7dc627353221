"""Data parallelism: the same loop on every device of every process."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from modelzip_jax.errors import ConfigError
from modelzip_jax.tree import PyTree

__all__ = ["Placement", "initialize"]


def initialize(coordinator: str, processes: int, process: int) -> None:
    """Joins the processes of a run, before JAX has a backend. One process needs nothing.

    Args:
      coordinator: "host:port" of process 0. processes: how many. process: which one this is.

    Raises:
      ConfigError: no coordinator, or a process that there is not.
    """
    if processes == 1:
        return
    if not coordinator or not 0 <= process < processes:
        raise ConfigError(
            f"{processes} processes need distributed.coordinator='host:port' and distributed.process from 0 to "
            f"{processes - 1}, not {coordinator!r} and {process}"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    before = signal.getsignal(signal.SIGTERM)
    jax.distributed.initialize(coordinator, num_processes=processes, process_id=process)
    # JAX takes the signal for the notice of a preemption, and goes on: the process would only end by being killed.
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


class Placement:
    """Where a data-parallel run keeps things: batches split over all devices, the rest on each.

    Batch statistics and gradients are those of the global batch: `jit` sees global arrays, and XLA puts
    in the sums over devices.

    Args:
      batch_size: the global one; a multiple of the number of devices.
      devices: all of them by default.

    >>> Placement(batch_size=8).replicate({"w": np.ones(2)})["w"].is_fully_replicated
    True
    """

    def __init__(self, batch_size: int, devices: list[jax.Device] | None = None):
        devices = jax.devices() if devices is None else devices
        if batch_size % len(devices):
            raise ConfigError(
                f"a batch of {batch_size} cannot be split evenly over {len(devices)} devices; choose a multiple"
            )
        self.mesh = Mesh(np.asarray(devices), ("data",))
        self._everywhere = NamedSharding(self.mesh, PartitionSpec())
        self._split = NamedSharding(self.mesh, PartitionSpec(None, "data"))

    def replicate(self, tree: PyTree) -> PyTree:
        """The tree on every device. Each process passes the same values."""
        if self.mesh.size == 1:
            return jax.device_put(tree, self._everywhere)
        return jax.tree.map(self._replicate_leaf, tree)

    def _replicate_leaf(self, x: Any) -> jax.Array:
        if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
            words = self._replicate_leaf(jax.random.key_data(x))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
        return jax.make_array_from_process_local_data(self._everywhere, np.asarray(x), np.shape(x))

    def split(self, items: PyTree) -> PyTree:
        """A block's items, `(steps, local batch, ...)` of this process, as global `(steps, batch, ...)`."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._split, x), items)
