"""Where the `modelzip` command begins: outside of the package, whose import takes the first second."""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Imports the command and runs it; an interrupt before it runs, and after, ends in one line, too."""

    def end(number: int, _frame: object) -> None:
        # At once: raised inside of an import, an exception may be taken for one of the module's own.
        os.write(2, b"modelzip: interrupted; every file is whole, or as it was\n")
        with contextlib.suppress(Exception):  # a pipe that nobody reads any more
            sys.stdout.flush()
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    from modelzip_jax.cli import main as command

    command()


if __name__ == "__main__":
    main()
