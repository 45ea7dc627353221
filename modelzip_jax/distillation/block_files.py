"""Arrays on disk that are written block by block, may be interrupted anywhere, and appear when they are whole.

    NAME.partial/            while blocks are written             NAME/         when all are there
      manifest.json            what the arrays are of               the same files
      journal.jsonl            a line for each block written, with its checksum
      FIELD.npy                one array each; a block is a range of rows

A block counts if its line is in the journal and its bytes have the line's checksum: it does not matter where a process
was killed, nor in which order the system brought pages to the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modelzip_jax.atomic import atomic_file
from modelzip_jax.errors import DistillationError

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

__all__ = ["BlockFiles", "open_whole", "write_blocks"]

Manifest = dict[str, Any]
"""Plain data: `examples`, `rows` of a block, `fields` (`name -> [dtype, shape of an example]`), and what it is of."""


class BlockFiles:
    """The files in one folder.

    manifest: as in `manifest.json`. Blocks are numbered from 0; the last one may have fewer rows.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.blocks = -(-manifest["examples"] // manifest["rows"])
        self._heads = {name: _header(manifest, name) for name in manifest["fields"]}

    def reserve(self) -> None:
        """Makes each file as long as it will be, whatever is there of it; what is written stays."""
        for name, head in self._heads.items():
            self._path(name).touch()
            with open(self._path(name), "r+b") as file:
                file.write(head)
                file.truncate(self._end(name))

    def write(self, block: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes the rows of a block into each field, then its line into the journal."""
        for name, array in arrays.items():
            # Not through a memory map: a full disk would end the process with a signal.
            with open(self._path(name), "r+b") as file:
                file.seek(len(self._heads[name]) + self._row_bytes(name) * self._rows(block).start)
                file.write(np.ascontiguousarray(array).data)
        line = json.dumps({"block": block, "checksum": _checksum(arrays)})
        with open(self.folder / "journal.jsonl", "a", encoding="utf-8") as journal:
            # In a line of its own, also after one that was cut off.
            journal.write(f"\n{line}\n")

    def missing(self) -> list[int]:
        """The blocks that are not there, or not as they were written."""
        noted = self._journal()
        arrays = self.read()
        whole = lambda i: noted.get(i) == _checksum({k: v[self._rows(i)] for k, v in arrays.items()})  # noqa: E731
        return [i for i in range(self.blocks) if not whole(i)]

    def read(self) -> dict[str, np.ndarray]:
        """The fields as read-only memory maps.

        Raises:
          DistillationError: a file is missing, or is not what the manifest says.
        """
        return {name: self._read(name) for name in self._heads}

    def sync(self) -> None:
        """Waits until all is on the disk."""
        for path in self.folder.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())

    def _read(self, name: str) -> np.ndarray:
        path = self._path(name)
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                head = file.read(len(self._heads[name]))
        except FileNotFoundError:
            raise DistillationError(f"{path} is missing: remove {self.folder} to begin anew") from None
        if size != self._end(name) or head != self._heads[name]:
            raise DistillationError(
                f"{path} is damaged: its {size:,} bytes are not the {self._end(name):,} of the manifest, or its header "
                f"is another; remove {self.folder} to begin anew"
            )
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _journal(self) -> dict[int, str]:
        try:
            lines = (self.folder / "journal.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return {}
        noted = {}
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut off
                entry = json.loads(line)
                noted[int(entry["block"])] = str(entry["checksum"])
        return noted

    def _rows(self, block: int) -> slice:
        start = block * self.manifest["rows"]
        return slice(start, min(start + self.manifest["rows"], self.manifest["examples"]))

    def _row_bytes(self, name: str) -> int:
        dtype, shape = self.manifest["fields"][name]
        return int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64))

    def _end(self, name: str) -> int:
        return len(self._heads[name]) + self._row_bytes(name) * self.manifest["examples"]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


@contextlib.contextmanager
def write_blocks(folder: Path, manifest: Manifest) -> Iterator[BlockFiles | None]:
    """Yields the files to fill, which take the name `folder` at the end; None if another process has just done that.

    After an exception, or a kill, what is written stays in `folder.partial`, and the next call goes on with it. Other
    processes that fill the same folder wait here.

    Raises:
      DistillationError: `folder.partial` is of something else than `manifest`, or a file; not all blocks were written.
    """
    partial = folder.with_name(folder.name + ".partial")
    for path in (partial, *partial.parents):
        _require_no_file(path)
    partial.mkdir(parents=True, exist_ok=True)
    with _alone(partial):
        if folder.exists():
            yield None
            return
        if (partial / "manifest.json").exists():
            require_same(_manifest(partial), manifest, partial)
        else:
            with atomic_file(partial / "manifest.json") as file:
                file.write(json.dumps(manifest, indent=1).encode())
        files = BlockFiles(partial, manifest)
        files.reserve()
        yield files
        left = files.missing()
        if left:
            raise DistillationError(
                f"{partial}: block {left[0]} of {files.blocks} is not there, or not as written"
            )
        files.sync()
        os.rename(partial, folder)


def open_whole(folder: Path) -> BlockFiles:
    """The files of a folder that is whole; every byte is checked.

    Raises:
      DistillationError: there is none, or a file; it is of a newer version, or damaged.
    """
    _require_no_file(folder)
    files = BlockFiles(folder, _manifest(folder))
    bad = files.missing()
    if bad:
        rows = files._rows(bad[0])
        raise DistillationError(
            f"{folder} is damaged: rows {rows.start} to {rows.stop - 1} are not what was written; remove it to begin "
            "anew"
        )
    return files


def require_same(there: Manifest, here: Manifest, folder: Path) -> None:
    """Raises `DistillationError` if the manifest in a folder says anything else than ours; the message names it."""
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            raise DistillationError(
                f"{folder} holds what {_CALLED.get(name, 'was made with another ' + name)}: {there.get(name)} there, "
                f"{here.get(name)} here; choose another folder, or remove it to begin anew"
            )


_CALLED = {
    "teacher": "a teacher with other weights says",
    "data": "a teacher says of other data, or of this data in another order",
}


def _require_no_file(path: Path) -> None:
    if path.is_file():
        ours = path.name in ("manifest.json", "journal.jsonl") or path.suffix == ".npy"
        hint = path.parent if ours else "another path"
        raise DistillationError(f"{path} is a file, not a folder of a teacher's outputs: give {hint}")


def _manifest(folder: Path) -> Manifest:
    """What a folder's manifest says, as far as files can be found and read by it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        version = manifest["version"]
        if version == 1:
            numbers = [manifest["examples"], manifest["rows"]]
            for name, (dtype, shape) in manifest["fields"].items():
                numbers += [*shape, np.dtype(dtype).itemsize, name.isidentifier()]
            if any(number < 1 for number in numbers):
                raise ValueError("a number is below 1, or a field has no name")
    except (FileNotFoundError, NotADirectoryError):
        raise DistillationError(f"{folder} holds no teacher's outputs: it has no manifest.json") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DistillationError(f"{folder}/manifest.json is damaged ({error!r}): remove {folder}") from error
    if version != 1:
        raise DistillationError(
            f"{folder} is of version {version}, and this library knows 1: update modelzip_jax"
        )
    return manifest


def _header(manifest: Manifest, name: str) -> bytes:
    dtype, shape = manifest["fields"][name]
    file = io.BytesIO()
    content = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": (manifest["examples"], *shape),
    }
    np.lib.format.write_array_header_1_0(file, content)
    return file.getvalue()


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time in a folder; the system lets go of it when a process dies."""
    if fcntl is None:
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # another process has just given it its final name
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
