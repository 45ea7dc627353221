"""The command as a whole: its commands by name, and how it ends."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Annotated

import typer

from modelzip_jax.cli import interruption
from modelzip_jax.cli.failures import OwnCodeError, one_line
from modelzip_jax.cli.terminal import warnings_as_notes
from modelzip_jax.errors import ModelzipError

__all__ = ["AsJson", "Force", "Limit", "app", "main", "path_of"]

app = typer.Typer(
    name="modelzip",
    help="Makes trained networks small.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an existing output.")]

Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=0,
        metavar="BYTES",
        help="What the tensors of a .mz file may take in memory; if left out, 256 MiB and 1,024 times the file's size.",
    ),
]


def path_of(text: str) -> Path:
    """A path that the user names. One of no characters is a variable of the shell that is not set."""
    if not text:
        raise typer.BadParameter("the path is empty; is a variable of the shell not set?")
    return Path(text)


def main() -> None:
    """Runs the command. Bad input ends in one line and exit code 2; an error of the user's own code in its
    traceback, without the frames of this library, and exit code 1; Ctrl-C in one line and 130, SIGTERM 143.
    """
    sys.exit(_run())


def _run() -> int:
    try:
        with interruption.listening(), warnings_as_notes():
            code = app(prog_name="modelzip", standalone_mode=False) or 0
            if code == 130:  # Newer versions of typer make a number of an interrupt, and say nothing.
                raise KeyboardInterrupt
            return code
    except interruption.Interrupted as stop:
        _say_interrupted()
        interruption.end_process(stop.code)
    except OwnCodeError as error:
        print(error.trace, end="", file=sys.stderr)
        return _say(error, 1)
    except (ModelzipError, OSError, MemoryError) as error:
        return _say(error, 2)
    except (KeyboardInterrupt, typer.Abort):
        _say_interrupted()
        return 130
    except Exception as error:
        # What the parser raises of options and arguments; its classes have moved between versions of typer.
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return 2
        command = getattr(getattr(error, "ctx", None), "command_path", "modelzip")
        text = " ".join(f"{error.format_message()}{_given(error)}".split())
        print(f"modelzip: {text} (see {command} --help)", file=sys.stderr)
        return 2


def _say_interrupted() -> None:
    kept = "every file is whole, or as it was"
    if sys.argv[1:2] == ["train"]:
        kept = "the same command goes on from the last checkpoint"
    print(f"modelzip: interrupted; {kept}", file=sys.stderr)


def _given(error: Exception) -> str:
    """What stands behind the option that an error is about, which the parser does not always say."""
    names = getattr(getattr(error, "param", None), "opts", ())
    pairs = [(word, after) for word, after in itertools.pairwise(sys.argv) if word in names]
    pairs += [
        (name, value)
        for name, equals, value in (word.partition("=") for word in sys.argv)
        if equals and name in names
    ]
    return f" ({pairs[0][0]} {pairs[0][1]})" if pairs else ""


def _say(error: Exception, code: int) -> int:
    print(f"modelzip: {one_line(error)}", file=sys.stderr)
    return code
