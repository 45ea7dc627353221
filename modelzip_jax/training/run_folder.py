"""The folder of a run: of one config, and of one run at a time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from modelzip_jax.atomic import atomic_file
from modelzip_jax.errors import ConfigError, RunError
from modelzip_jax.training import config as configs

__all__ = ["LOCK", "RunFolderWarning", "claimed_folder", "sole_run"]

LOCK = "run.lock"


class RunFolderWarning(UserWarning):
    """Two runs in one folder would not be noticed."""


@contextlib.contextmanager
def claimed_folder(folder: Path, config: Any) -> Iterator[None]:
    """Takes a folder for one run, and writes the config into it, or checks that it is the one there.

    Where nothing was trained, as after a start that was refused, there is nothing to go on with, and ours is written.

    Raises:
      ConfigError: the folder cannot be made, or holds a run of another config. RunError: as of `sole_run`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be made: {error.strerror}") from error
    with sole_run(folder):
        _write_or_compare(folder, config)
        yield


def _write_or_compare(folder: Path, config: Any) -> None:
    ours = json.loads(json.dumps({k: v for k, v in config.to_dict().items() if k != "distributed"}))
    theirs = configs.stored_fields(folder)
    if theirs is None or not _trained(folder):
        if jax.process_index() == 0:
            with atomic_file(folder / configs.STORED) as file:
                file.write((json.dumps(ours, indent=1) + "\n").encode())
        return
    # A run that began before there was a field has the field's default.
    defaults = json.loads(json.dumps(configs.base().to_dict()))
    theirs = _completed(theirs, {k: v for k, v in defaults.items() if k in ours})
    changed = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
    if changed:
        raise ConfigError(
            f"{folder} holds a run of another config: {', '.join(changed)} differ; choose another folder, or "
            "remove it to begin anew"
        )


def _trained(folder: Path) -> bool:
    """Whether a step was ever recorded, saved or shipped in this folder."""
    log = folder / "log.jsonl"
    if (folder / "model.mz").exists() or (log.exists() and log.stat().st_size > 0):
        return True
    return any(path.name.isdecimal() for path in (folder / "checkpoints").glob("*"))


def _completed(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Stored fields, and the defaults of those that were not stored, in groups of fields as well."""
    both = {
        name: x for name, x in stored.items() if isinstance(x, dict) and isinstance(defaults.get(name), dict)
    }
    return {**defaults, **stored, **{name: _completed(x, defaults[name]) for name, x in both.items()}}


@contextlib.contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Holds a run's folder; the system lets go of it when the process ends, however it ends.

    The processes of a data-parallel run are one run: the first of them holds the folder, for all. The lock is
    `flock`'s, which on network file systems goes as far as they support it; Windows has none.

    Raises:
      RunError: another run holds it; the message says which process.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, sole_run(Path(folder)):
    ...     try:
    ...         with sole_run(Path(folder)):
    ...             pass
    ...     except RunError as error:
    ...         print(str(error).endswith("wait for it or end it, or choose another folder"))
    True
    """
    path, descriptor, holder = folder / LOCK, None, None
    if jax.process_index() == 0:
        descriptor, holder = _taken(path)
    if jax.process_count() > 1:
        free = bool(multihost_utils.broadcast_one_to_all(np.asarray(holder is None)))
        holder = holder or (None if free else "a process of another run")
    if holder is not None:
        raise RunError(
            f"{folder} is in use: {holder} holds {path.name}; wait for it or end it, or choose another folder"
        )
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # somebody has removed the folder
                os.unlink(path)
            os.close(descriptor)


def _taken(path: Path) -> tuple[int | None, str | None]:
    """What is open and locked, or None where there are no locks; and who has it instead of us."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None, None
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            return None, holder or "another process"
        except OSError as error:
            os.close(descriptor)
            text = f"no locks in {path.parent} ({error.strerror}): nothing keeps other runs out of it"
            warnings.warn(text, RunFolderWarning, stacklevel=4)
            return None, None
        # The run that held it may have ended and removed the file in between.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return descriptor, None
        os.close(descriptor)
