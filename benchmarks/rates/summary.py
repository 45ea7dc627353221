"""All networks in one section: bytes of ours over each peer's, geometric means over networks that differ by a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from benchmarks.rates.curves import geometric_mean
from benchmarks.rates.goals import Goals
from benchmarks.rates.methods import METHODS
from benchmarks.rates.tables import OURS, ratio

__all__ = ["TITLE", "groups", "tables"]

TITLE = "Rate and distortion: all networks"
Table = tuple[str, list[str], list[list[Any]]]


def groups(names: Sequence[str]) -> dict[str, list[str]]:
    """Tasks that differ by the seed at the end, by what they have in common.

    >>> groups(["lenet5-mnist-0", "lenet5-mnist-1", "g2p"])
    {'lenet5-mnist': ['lenet5-mnist-0', 'lenet5-mnist-1'], 'g2p': ['g2p']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"-\d+$", "", name), []).append(name)
    return found


def tables(data: Sequence[dict[str, Any]]) -> list[Table]:
    """A table for each of ours: rows are networks and drops of each measure, columns are peers.

    Networks on which ours, or all peers, have not been measured yet are left out.
    """
    by_name = {task["task"]: task for task in data}
    found = []
    for ours in OURS:
        peers = [method for method in METHODS if method not in OURS]
        rows = []
        for group, names in groups(list(by_name)).items():
            tasks = [by_name[name] for name in names]
            for goals in (
                Goals(g["measure"], tuple(g["drops"]), g["logarithmic"]) for g in tasks[0]["goals"]
            ):
                for drop in goals.drops:
                    cells = [
                        _cell([ratio(task, ours, peer, goals, drop) for task in tasks]) for peer in peers
                    ]
                    if any(cell is not None for cell in cells):
                        rows.append([group, f"{goals.measure}, drop {drop:g}", *cells])
        title = f"Bytes of {METHODS[ours].title} over the peer's at equal drop on the validation part"
        found.append((title, ["network", "at", *(METHODS[peer].title for peer in peers)], rows))
    return found


def _cell(ratios: Sequence[float | None]) -> float | str | None:
    """The geometric mean; how many networks it is of, where not of all."""
    known = [x for x in ratios if x is not None]
    if not known:
        return None
    mean = float(f"{geometric_mean(known):.3g}")
    return mean if len(known) == len(ratios) else f"{mean:g} ({len(known)} of {len(ratios)})"
