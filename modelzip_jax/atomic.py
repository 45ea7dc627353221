"""Files and directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_directory", "atomic_file"]


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yields a binary file that takes the name `path` when the block ends without an exception.

    The bytes are written under a temporary name in the same directory, flushed to the disk and
    renamed; a reader sees the old file or the new one, never a part. After an exception, a
    `KeyboardInterrupt` included, the temporary file is gone and an old file is as it was; what a
    killed process has left, the next writer of that name removes. A symbolic link is followed; an
    old file's permissions are kept.

    Raises:
      IsADirectoryError: `path` is a directory.
      FileExistsError: `path` is neither a regular file nor a directory (a device, a pipe).
      OSError: the parent directory is missing or not writable, or the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     target = Path(folder) / "weights.bin"
    ...     with atomic_file(target) as file:
    ...         _ = file.write(b"abc")
    ...     target.read_bytes(), os.listdir(folder)
    (b'abc', ['weights.bin'])
    """
    target = Path(os.path.realpath(path))
    mode = _replaceable_mode(target)
    _sweep(target)
    temporary, descriptor = _created(target)
    try:
        with _naming(target, temporary), open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(target.parent)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields an empty directory that takes the name `path` when the block ends without error.

    A writer may use names beside the yielded directory for temporaries of its own: they share a
    parent that is removed in every case. A directory that holds anything is never replaced, since
    it might hold more than an older checkpoint.

    Raises:
      FileExistsError: `path` is a file, or a directory that is not empty.
      OSError: the parent directory is missing or not writable, or the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_directory(Path(folder) / "step_1") as directory:
    ...         _ = (directory / "data").write_bytes(b"abc")
    ...     os.listdir(folder), os.listdir(Path(folder) / "step_1")
    (['step_1'], ['data'])
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file, and a directory is to be written there")
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(f"{target} is a directory that is not empty; remove it first")
    _sweep(target)
    staging = _temporary_name(target)
    with _naming(target, staging):
        staging.mkdir()
    with contextlib.ExitStack() as owner:
        with contextlib.suppress(OSError):  # Windows opens no directory, and has nothing to sweep.
            held = os.open(staging, os.O_RDONLY)
            owner.callback(os.close, held)
            _is_free(held)
        yield from _filled(target, staging)
    _sync_directory(target.parent)


def _filled(target: Path, staging: Path) -> Iterator[Path]:
    try:
        content = staging / "content"
        content.mkdir()
        yield content
        _sync_tree(content)
        if target.is_dir():
            target.rmdir()  # Windows does not rename onto an empty directory
        os.rename(content, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _created(target: Path) -> tuple[Path, int]:
    """A new file under a temporary name, owned by whoever has it open, and its descriptor."""
    while True:
        temporary = _temporary_name(target)
        # O_EXCL: never write through a file or link that somebody put at the temporary name.
        with _naming(target, temporary):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
        # Another writer may have taken it for a leftover in between.
        if _is_free(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)


def _is_free(descriptor: int) -> bool | None:
    """Whether nobody alive owns what is open, which is now ours; None where the system has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _sweep(target: Path) -> None:
    """Removes what writers of this name have left behind that did not live to do so."""
    pattern = re.compile(re.escape(f".{target.name[:40]}.") + r"[0-9a-f]{12}\.tmp")
    with contextlib.suppress(OSError):
        for name in filter(pattern.fullmatch, os.listdir(target.parent)):
            _remove_leftover(target.parent / name)


def _remove_leftover(path: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | _O_NOFOLLOW | _O_BINARY)
        try:
            if _is_free(descriptor):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    os.unlink(path)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _naming(target: Path, temporary: Path) -> Iterator[None]:
    """Errors of the system name the file that is to be written: not a temporary one, or none at all."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(target)
        raise


_O_BINARY: int = getattr(os, "O_BINARY", 0)
_O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)


def _replaceable_mode(target: Path) -> int | None:
    """The permissions of the regular file at `target`, or None where there is nothing yet."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{target} is a directory, and a file is to be written there")
    if not stat.S_ISREG(mode):
        raise FileExistsError(f"{target} is not a regular file, and is not replaced")
    return stat.S_IMODE(mode)


def _temporary_name(target: Path) -> Path:
    # Cut: a file system allows 255 bytes for a name, and the target may use all of them.
    return target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            with open(os.path.join(folder, name), "rb+") as file:
                os.fsync(file.fileno())
        _sync_directory(Path(folder))


def _sync_directory(directory: Path) -> None:
    """Makes a rename outlast a power cut, where the system can (Windows opens no directory)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
