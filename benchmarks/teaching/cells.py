"""Results of single runs by name, kept as each is finished, so that a study that is stopped goes on where it stood."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rates.records import OutOfTimeError
from modelzip_jax.atomic import atomic_file

__all__ = ["Cells", "OutOfTimeError", "climb"]

Cell = dict[str, Any]


class Cells:
    """path: of the JSON file, None to keep nothing. seconds: after which no further run begins."""

    def __init__(self, path: Path | None, seconds: float = math.inf):
        self.path, self.end = path, time.monotonic() + seconds
        self.found: dict[str, Cell] = self._kept()

    def get(self, name: str, make: Callable[[], Cell]) -> Cell:
        """What is kept under a name; made and kept where there is nothing.

        Raises:
          OutOfTimeError: it would have to be made, and the time is over.
        """
        if name not in self.found and self.path:  # Another process may have made it by now.
            self.found |= self._kept()
        if name not in self.found:
            if time.monotonic() > self.end:
                raise OutOfTimeError
            began = time.perf_counter()
            made = make()
            said = ", ".join(f"{k} {v:.2f}" for k, v in made.items() if isinstance(v, float))
            print(f"{name}: {said} ({time.perf_counter() - began:.0f} s)", flush=True)
            # Another process may have been at another part.
            self.found = {**(self._kept() if self.path else self.found), name: made}
            if self.path:
                with atomic_file(self.path) as file:
                    file.write((json.dumps(self.found, indent=0) + "\n").encode())
        return self.found[name]

    def _kept(self) -> dict[str, Cell]:
        return json.loads(self.path.read_text()) if self.path and self.path.exists() else {}


def climb(values: Sequence[float], factor: float, score: Callable[[float], float], further: int = 1) -> float:
    """The best of `values`, in ascending order; while that is the last or the first, `factor` further on that side.

    At most `further` of these.

    >>> climb((1.0, 3.0), 3.0, lambda x: -abs(x - 20.0))
    9.0
    """
    scores = {x: score(x) for x in values}
    for _ in range(further):
        best, tried = max(scores, key=lambda x: scores[x]), sorted(scores)
        if best == tried[-1]:
            new = best * factor
        elif best == tried[0]:
            new = best / factor
        else:
            break
        scores[new] = score(new)
    return max(scores, key=lambda x: scores[x])
