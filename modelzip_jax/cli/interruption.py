"""Ctrl-C and SIGTERM: the command takes back what it began, says so in one line, and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

__all__ = ["Interrupted", "end_process", "listening"]

Handler = Callable[[int, FrameType | None], None]

_received: list[int] = []


class Interrupted(BaseException):
    """A signal asked the command to end. `code` is what a shell says then: 130 of SIGINT, 143 of SIGTERM."""

    def __init__(self, number: int):
        super().__init__(number)
        self.code = 128 + number


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise a `KeyboardInterrupt`, so that `with` and `finally` clean up.

    Batch systems send SIGTERM a while before they kill; by itself it would end Python without cleaning up.

    Raises:
      Interrupted: a signal came, and what was inside ended in whatever exception.
    """
    _received.clear()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to no other.
        yield
        return
    handlers: dict[signal.Signals, Handler] = {signal.SIGINT: _interrupt, signal.SIGTERM: _interrupt}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = _interrupt_again
    before = {number: signal.getsignal(number) for number in handlers}
    hook, sys.unraisablehook = sys.unraisablehook, _notice_swallowed
    try:
        for number, handler in handlers.items():
            # What was set to be ignored stays so: by `nohup`, and by shells for what runs in the background.
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    except BaseException as error:
        # Not only `KeyboardInterrupt`: JAX turns one inside of a callback into an error of its own.
        if _received:
            raise Interrupted(_received[0]) from error
        raise
    finally:
        sys.unraisablehook = hook
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, earlier in before.items():
            if earlier is not None:  # one that is not Python's
                signal.signal(number, earlier)


def end_process(code: int) -> NoReturn:
    """Ends the process now, after what was printed.

    An interrupt leaves computations running in XLA's threads. Python's own way out takes apart the modules
    and the backend under them, which can end in a segmentation fault instead of the exit code. What has to
    be cleaned up was, as the exception went through the `with` blocks.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a pipe that nobody reads any more
            stream.flush()
    os._exit(code)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt


def _interrupt_again(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _notice_swallowed(problem: Any, usual: Any = sys.__unraisablehook__) -> None:
    """Python drops what is raised in a callback of the garbage collector, of which JAX has some: once more."""
    if isinstance(problem.exc_value, KeyboardInterrupt) and hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        usual(problem)
