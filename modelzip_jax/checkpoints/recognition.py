"""What a file is by its first bytes, whatever its name says: for messages, never for reading."""

from __future__ import annotations

import contextlib
import os
import zipfile
from pathlib import Path

from modelzip_jax.coding.header import MAGIC

__all__ = ["absence", "kind_of"]

_PICKLE = "a pickle, such as PyTorch writes, which is never read: save its tensors with safetensors"
_STARTS = {
    MAGIC: "a compressed model: give it the suffix .mz",
    b"GGUF": "a GGUF file, which is not read: take the .safetensors of the same model",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, such as Keras writes: save its arrays with numpy.savez",
    b"\x93NUMPY": "a single array of NumPy: save it by a name, with numpy.savez",
    b"version https://git-lfs": "a pointer of Git LFS to a file that is not here: run `git lfs pull`",
    b"<!DOCTYPE": "a web page: the download went wrong",
    b"<html": "a web page: the download went wrong",
}


def kind_of(path: Path) -> str | None:
    """What a file looks like, and what to do about it, at the end the suffix that it should have; None if nobody knows.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
    ...     _ = file.write(b"GGUF" + bytes(60))
    ...     file.flush()
    ...     kind_of(Path(file.name))
    'a GGUF file, which is not read: take the .safetensors of the same model'
    """
    try:
        with open(path, "rb") as file:
            start, size = file.read(64), os.fstat(file.fileno()).st_size
    except OSError:
        return None
    for known, kind in _STARTS.items():
        if start.startswith(known):
            return kind
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    if start.startswith(b"PK\x03\x04"):
        return _of_archive(path)
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return "a safetensors file: give it the suffix .safetensors"
    if start.lstrip()[:1] in (b"{", b"["):
        return "JSON, which holds no weights"
    # A map is what flax writes; `flax.training.checkpoints` gives it no suffix.
    if start[:1] and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return "what flax.serialization writes: give it the suffix .msgpack"
    return None


def _of_archive(path: Path) -> str | None:
    with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return _PICKLE
        if any(name.endswith(".npy") for name in names):
            return "an archive of NumPy: give it the suffix .npz"
        if any(name.endswith(".weights.h5") for name in names):
            return "a .keras file: save its arrays with numpy.savez"
    return None


def absence(path: Path) -> str:
    """Why there is nothing at a path."""
    if path.is_symlink():
        return f"it is a link to {os.readlink(path)}, where there is nothing"
    return "there is no such file or directory"
