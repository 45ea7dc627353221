"""Where a run's numbers go: a JSON-lines file, a progress bar, TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modelzip_jax.atomic import atomic_file
from modelzip_jax.errors import MissingExtraError, RunError

__all__ = ["JsonLines", "TensorBoard", "progress", "read_records"]

Record = Mapping[str, float]


class JsonLines:
    """Appends one JSON object a line, written out at once.

    A run that goes on from a checkpoint repeats the steps after it, so lines of later steps than
    `step`, and a line cut short by a crash, are removed first.

    Raises:
      RunError: a line before that is damaged; the message names it.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> for begin in (0, 1):
    ...     with JsonLines(path, begin) as log:
    ...         log({"step": begin + 1, "loss": 0.5})
    ...         log({"step": begin + 2, "loss": 0.25})
    >>> [record["step"] for record in read_records(path)]
    [1, 2, 3]
    """

    def __init__(self, path: str | Path, step: int = 0):
        self.path = Path(path)
        kept = _lines_until(self.path, step) if step else []
        with atomic_file(self.path) as file:
            file.write(b"".join(kept))
        self._file = open(self.path, "a")  # noqa: SIM115

    def __call__(self, record: Record) -> None:
        """Writes one record."""
        self._file.write(json.dumps(dict(record)) + "\n")
        self._file.flush()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file that `JsonLines` wrote, without a last line that was cut short.

    Raises:
      RunError: another line is damaged; the message names it.
    """
    lines = _lines(Path(path))
    found = [_record(line) for line in lines]
    _refuse_damaged(Path(path), found[:-1])
    return [record for record in found if isinstance(record, dict)]


def _lines_until(path: Path, step: int) -> list[bytes]:
    """The lines of steps up to this one, byte for byte."""
    lines = _lines(path)
    found = [_record(line) for line in lines]
    ours = [isinstance(record, dict) and record["step"] <= step for record in found]
    last = max((i for i, x in enumerate(ours) if x), default=-1)
    # Damage behind is in what the run writes anew.
    _refuse_damaged(path, found[: last + 1])
    return [line for line, kept in zip(lines, ours, strict=True) if kept]


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _record(line: bytes) -> dict[str, Any] | str:
    """A line's record, or what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return " ".join(str(error).split())
    if not isinstance(record, dict) or not isinstance(record.get("step"), int | float):
        return "it is no object with a step"
    return record if line.endswith(b"\n") else "it is cut short"


def _refuse_damaged(path: Path, found: list[dict[str, Any] | str]) -> None:
    for number, record in enumerate(found, start=1):
        if isinstance(record, str):
            raise RunError(f"{path}, line {number}, is damaged: {record[:200]}; mend or remove this line")


@contextmanager
def progress(steps: int, begin: int = 0, quiet: bool = False) -> Iterator[Any]:
    """A progress bar on a terminal's stderr, as a function that takes records."""
    console = Console(stderr=True)
    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(),
    )  # fmt: skip
    shown = dict[str, float]()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("", total=steps, completed=begin)

        def show(record: Record) -> None:
            shown.update({name: x for name, x in record.items() if name.endswith(("loss", "accuracy"))})
            text = "  ".join(f"{name} {x:.4f}" for name, x in shown.items())
            bar.update(task, completed=record["step"], description=text)

        yield show


class TensorBoard:
    """Writes records as TensorBoard scalars.

    Raises:
      MissingExtraError: the package tensorboardX is not installed.
    """

    def __init__(self, folder: str | Path):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("TensorBoard logs need tensorboardX: pip install tensorboardX") from error
        self._writer = SummaryWriter(str(folder))

    def __call__(self, record: Record) -> None:
        """Writes one record."""
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))
        self._writer.flush()
