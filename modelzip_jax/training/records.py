"""Where a run's numbers go: a JSON-lines file, a progress bar, TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modelzip_jax.errors import MissingExtraError

__all__ = ["JsonLines", "TensorBoard", "progress", "read_records"]

Record = Mapping[str, float]


class JsonLines:
    """Appends one JSON object a line, written out at once.

    A run that goes on from a checkpoint repeats the steps after it, so lines of later steps than
    `step`, and a line cut short by a crash, are removed first.

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
        kept = [line for line in read_records(self.path) if line["step"] <= step] if step else []
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, self.path)
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
    """The records of a file that `JsonLines` wrote, without a last line that was cut short."""
    if not Path(path).exists():
        return []
    records = []
    for line in Path(path).read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


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
            shown.update(
                {name: x for name, x in record.items() if name.endswith(("loss", "accuracy", "map_50"))}
            )
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
