"""The tries of a search on disk, so that one that was stopped goes on where it was."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path

from modelzip_jax.errors import TransformError

__all__ = ["SearchJournal"]

_FORMAT = "modelzip search 1"


class SearchJournal:
    """What steps came to, one line of JSON each, behind a line that says of which search they are.

    A file of another search, or one that is damaged at its end, counts as far as it fits: not at all, or up to the
    damage. `path` None keeps nothing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "tries")
    ...     SearchJournal(path, "a").note(0.5, [1000.0])
    ...     SearchJournal(path, "a").known(0.5), SearchJournal(path, "b").known(0.5)
    ([1000.0], None)
    """

    def __init__(self, path: str | os.PathLike[str] | None, key: str):
        """key: a digest of all that the tries depend on.

        Raises:
          TransformError: the file cannot be written.
        """
        self._path = None if path is None else Path(path)
        self._tries: dict[float, list[float]] = {}
        if self._path is None:
            return
        head = json.dumps({"format": _FORMAT, "of": key})
        try:
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            if not lines or lines[0] != head:
                lines = [head]
            for line in lines[1:]:
                step, figures = json.loads(line)
                self._tries[float(step)] = [math.inf if x is None else float(x) for x in figures]
        except (ValueError, TypeError):
            pass
        except OSError as error:
            raise self._refused(error) from error
        self._write([head, *(self._line(step, figures) for step, figures in self._tries.items())])

    def known(self, step: float) -> list[float] | None:
        """What a step came to, if it was tried before."""
        return self._tries.get(step)

    def note(self, step: float, figures: list[float]) -> None:
        """Keeps what a step came to, on the disk before it returns."""
        self._tries[step] = figures
        if self._path is not None:
            try:
                with self._path.open("a") as file:
                    file.write(self._line(step, figures) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._refused(error) from error

    def remove(self) -> None:
        """The search is over."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    @staticmethod
    def _line(step: float, figures: list[float]) -> str:
        return json.dumps([step, [x if math.isfinite(x) else None for x in figures]])

    def _write(self, lines: list[str]) -> None:
        assert self._path is not None
        try:
            self._path.write_text("".join(f"{line}\n" for line in lines))
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> TransformError:
        return TransformError(
            f"the journal of the search, {self._path}, cannot be kept: {error.strerror or error}"
        )
