"""What drop of quality each task's files are compared at, and how much calibration data all methods get."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.tasks import Task

__all__ = ["Goals", "Plan", "plan_of"]


class Goals(NamedTuple):
    """Drops of the mean of one measure, rising.

    logarithmic: whether curves are nearly straight in the logarithm of the drop.
    """

    measure: str
    drops: tuple[float, ...]
    logarithmic: bool = False

    @property
    def broken(self) -> float:
        """A drop beyond which curves need not be followed."""
        return 4 * self.drops[-1]


class Plan(NamedTuple):
    """goals: of the task's first measure, by which points are sought, and of further measures of the same points.

    calibration: examples that calibrate ours and peers. sizes: numbers of them that ours is tried with beside.
    near: two files on both sides of a goal are near enough at this ratio of bytes. targets: random numbers of bytes
    that ours is asked to meet.
    """

    goals: tuple[Goals, ...]
    calibration: int
    sizes: tuple[int, ...] = (8, 32, 128, 512, 2000)
    near: float = 1.15
    targets: int = 20


_CLASSES = Goals("accuracy", (0.001, 0.005, 0.01)), Goals("log-likelihood", (0.005, 0.02, 0.05))
_COSINES = (0.001, 0.01, 0.03)
_PLANS = {
    "lenet": Plan(_CLASSES, 2000),
    "resnet20": Plan(_CLASSES, 512, sizes=(8, 32, 128, 512), targets=5),
    "crepe": Plan(
        (
            Goals("minus pitch error", (1.0, 5.0, 20.0)),
            Goals("cosine to the float beliefs", _COSINES, logarithmic=True),
        ),
        128, sizes=(8, 32, 128), targets=5,
    ),
    "g2p": Plan((Goals("minus phoneme edits", (0.01, 0.03, 0.1)),), 512, targets=5),
    "kjv": Plan(
        (Goals("minus bits a byte", (0.01, 0.03, 0.1), logarithmic=True),),
        256, sizes=(8, 32, 128, 512), targets=5,
    ),
    "efficientnet": Plan(
        (Goals("cosine to the float logits", _COSINES, logarithmic=True),),
        64, sizes=(8, 32, 128), near=1.3, targets=5,
    ),
    "minilm": Plan(
        (Goals("cosine to the float embedding", _COSINES, logarithmic=True),),
        512, near=1.3, targets=5,
    ),
}  # fmt: skip


def plan_of(task: Task, quick: bool = False) -> Plan:
    """The plan of a task; a quick one has fewer of everything."""
    plan = next(plan for start, plan in _PLANS.items() if task.name.startswith(start))
    measures = {measure.name for measure in task.measures}
    if plan.goals[0].measure != task.measures[0].name or any(g.measure not in measures for g in plan.goals):
        raise ValueError(f"the goals of {task.name} are not of its measures, {', '.join(sorted(measures))}")
    if quick:
        return plan._replace(calibration=min(plan.calibration, 200), sizes=(8, 32), near=2.0, targets=2)
    return plan
