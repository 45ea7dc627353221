"""Errors as the command shows them: one line, or the user's own traceback."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelzip_jax.errors import ModelzipError

__all__ = ["OwnCodeError", "named", "one_line", "own_code"]

PACKAGE = Path(__file__).parents[1]


class OwnCodeError(ModelzipError):
    """Code of the user's raised an error; `trace` is its traceback without the frames of this library."""

    def __init__(self, message: str, trace: str):
        super().__init__(message)
        self.trace = trace


def one_line(error: BaseException) -> str:
    """An error as one line: of an error of the system the file and what is wrong, not its number.

    >>> one_line(FileNotFoundError(2, "No such file or directory", "model.mz"))
    'model.mz: No such file or directory'
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        files = [str(name) for name in (error.filename, error.filename2) if name is not None]
        text = ": ".join([" and ".join(files), error.strerror] if files else [error.strerror])
    if isinstance(error, MemoryError) and not isinstance(error, ModelzipError):
        text = f"not enough memory{': ' if text else ''}{text}"
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Gives errors of the system that name no file (a full disk, a broken one) the name of this one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def own_code(what: str, *known: type[Exception]) -> Iterator[None]:
    """Runs code of the user's: what it raises becomes an `OwnCodeError`, whatever it is but for `known` errors."""
    try:
        yield
    except known:
        raise
    except Exception as error:
        raise OwnCodeError(f"{what} raised {type(error).__name__}", _trimmed(error)) from error


def _trimmed(error: BaseException) -> str:
    """The traceback from the user's first frame to their last: nothing of this library or of what imports modules.

    JAX hides its own frames already, and says so.
    """
    told = traceback.TracebackException.from_exception(error)
    chain: list[traceback.TracebackException] = [told]
    while chain:
        part = chain.pop()
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if _is_own(f.filename)])
        chain += [p for p in (part.__cause__, part.__context__) if p is not None]
    return "".join(told.format())


def _is_own(filename: str) -> bool:
    if filename.startswith("<frozen importlib") or filename == importlib.__file__:
        return False
    return PACKAGE not in Path(filename).parents
