"""What the command prints: sizes, notes, tables, and how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

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

__all__ = ["err", "human_bytes", "out", "phase", "print_notes"]

# A table that is not read on a terminal need not fit one.
out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True)

Tell = Callable[[str, int], None]


@contextmanager
def phase(text: str, quiet: bool, total_bytes: int = 0, tensors: int = 0) -> Iterator[Tell]:
    """Shows on a terminal that a long phase is under way: since when, and with a total how much and how long still.

    Args:
      text: what is being done. quiet: show nothing, as with `--json`.
      total_bytes: what the sizes that are told will sum to; 0 if nobody knows.
      tensors: how many names will be told; 0 if nobody knows.

    Yields:
      A function to tell of each tensor that is done: its name and its bytes.
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
        task = bar.add_task(text, total=total_bytes or None, seen="")
        done, names = 0, set()

        def tell(name: str, size: int) -> None:
            nonlocal done
            done += size
            names.add(name)
            of = f" of {tensors:,}" if tensors else ""
            seen = f"{len(names):,}{of} tensors, {human_bytes(done)} of {human_bytes(max(total_bytes, done))}"
            bar.update(task, completed=done, seen=seen)

        yield tell


def print_notes(notes: Iterable[str]) -> None:
    """Sentences that the user should read, on standard error: the output may be piped."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def human_bytes(size: int) -> str:
    """A size with a decimal unit.

    >>> human_bytes(90_900_000), human_bytes(512)
    ('90.9 MB', '512 B')
    """
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
