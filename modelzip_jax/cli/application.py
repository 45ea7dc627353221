"""The command as a whole: its commands by name, and how it ends."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from modelzip_jax.cli.failures import OwnCodeError, one_line
from modelzip_jax.errors import ModelzipError

__all__ = ["AsJson", "Force", "app", "main"]

app = typer.Typer(
    name="modelzip",
    help="Makes trained networks small.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")]


def main() -> None:
    """Runs the command. Bad input ends in one line and exit code 2; an error of the user's own code in its
    traceback, without the frames of this library, and exit code 1.
    """
    try:
        app(standalone_mode=True)
    except OwnCodeError as error:
        print(error.trace, end="", file=sys.stderr)
        print(f"modelzip: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except (ModelzipError, OSError, MemoryError) as error:
        print(f"modelzip: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("modelzip: interrupted; no output was changed", file=sys.stderr)
        sys.exit(130)
