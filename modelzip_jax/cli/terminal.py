"""What the command prints: sizes, notes, tables, and how far it is."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from modelzip_jax.decimal_units import human_bytes

__all__ = ["Meter", "err", "out", "phase", "print_notes", "warnings_as_notes"]

# A table that is not read on a terminal need not fit one.
out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True)


class Meter:
    """How far a phase is: called with the name and the bytes of each tensor that is done."""

    def __init__(self, bar: Progress, text: str, total_bytes: int, tensors: int):
        self._bar, self._text, self._total, self._tensors = bar, text, total_bytes, tensors
        self._task = bar.add_task(text, total=total_bytes or None, seen="")
        self._done, self._names = 0, set[str]()

    def __call__(self, name: str, size: int) -> None:
        self._done += size
        self._names.add(name)
        of = f" of {self._tensors:,}" if self._tensors else ""
        sizes = f"{human_bytes(self._done)} of {human_bytes(max(self._total, self._done))}"
        self._bar.update(self._task, completed=self._done, seen=f"{len(self._names):,}{of} tensors, {sizes}")

    def restart(self, last: str) -> None:
        """Begins from nothing, as all tensors are done once more. last: what came out of the last time."""
        self._done, self._names = 0, set()
        self._bar.update(self._task, completed=0, seen="", description=f"{self._text} ({last})")


@contextmanager
def phase(text: str, quiet: bool, total_bytes: int = 0, tensors: int = 0) -> Iterator[Meter]:
    """Shows on a terminal that a long phase is under way: since when, and with a total how much and how long still.

    Args:
      text: what is being done. quiet: show nothing, as with `--json`.
      total_bytes: what the sizes that are told will sum to; 0 if nobody knows.
      tensors: how many names will be told; 0 if nobody knows.

    Yields:
      What to tell of each tensor that is done: its name and its bytes.
    """
    known = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[seen]}"), TimeRemainingColumn())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        *(known if total_bytes else ()),
        TimeElapsedColumn(),
    )
    shown = err.is_terminal and not quiet
    with Progress(*columns, console=err, transient=True, disable=not shown) as bar:
        yield Meter(bar, text, total_bytes, tensors)


def print_notes(notes: Iterable[str]) -> None:
    """Sentences that the user should read, on standard error: the output may be piped."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Inside, warnings of this library are notes of a line, without the place in the code that they come from."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
        if category.__module__.partition(".")[0] == __name__.partition(".")[0]:
            print_notes([str(message)])
        else:
            usual(message, category, *place, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
