"""How good the float networks are; those that are to be trained are trained first.

python -m benchmarks.tasks [NAME ...] [--quick]
"""

from __future__ import annotations

import argparse

from benchmarks import harness, tasks
from benchmarks.networks import MissingPackageError
from modelzip_jax.errors import DataError, MissingExtraError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(tasks.NAMES))
    parser.add_argument("--quick", action="store_true", help="fewer examples")
    chosen = parser.parse_args()
    for name in chosen.names or tasks.NAMES:
        try:
            task = tasks.load(name, quick=chosen.quick)
        except (MissingPackageError, MissingExtraError, DataError) as error:
            print(f"{name} is left out: {error}")
            continue
        print(f"{name}: {task.weights:,} weights", flush=True)
        for part in task.parts:
            found = task.scores(task.params, part)
            measured = [m for m in task.measures if m.name in found]
            said = (f"{m.name} {harness.said(found[m.name], digits=4)} {m.unit}".strip() for m in measured)
            print(f"  {part}: {', '.join(said)}, of {len(found[measured[0].name]):,} examples", flush=True)


if __name__ == "__main__":
    main()
