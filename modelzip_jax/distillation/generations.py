"""Students that become teachers: generations of one size, and assistants of ever smaller ones."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Callable, Sequence

from modelzip_jax.distillation.argument_checks import check_function, check_made_by
from modelzip_jax.distillation.finite_numbers import check_count
from modelzip_jax.distillation.teachers import Teacher
from modelzip_jax.errors import DistillationError

__all__ = ["assistant_sizes", "assistants", "born_again"]


def born_again(train: Callable[[Teacher | None, int], Teacher], generations: int) -> list[Teacher]:
    """Born-again networks: each generation is taught by the one before, and the first one by the labels alone.

    Furlanello et al. 2018 (https://arxiv.org/abs/1805.04770): students of their teacher's own size exceed it, and
    the mean of all generations, `ensemble(born_again(...), average="logits")`, exceeds each.

    Args:
      train: `(teacher, generation) -> trained network`; generation 0 has the teacher None. Seeds should differ.
      generations: how many networks are trained, the first included.

    Returns:
      All of them, the first one first.

    Raises:
      DistillationError: fewer than one generation, or `train` returned something else.

    >>> grow = lambda teacher, k: Teacher(lambda p, x: p * x, 1.0 if teacher is None else 2.0 * teacher.params)
    >>> [network.params for network in born_again(grow, 3)]
    [1.0, 2.0, 4.0]
    """
    check_function(train, "born_again(train, generations)", "train", "(teacher, generation) -> Teacher")
    generations = check_count(generations, "generations")
    trained: list[Teacher] = []
    for generation in range(generations):
        trained.append(_checked(train(trained[-1] if trained else None, generation), generation))
    return trained


def assistants(
    train: Callable[[Teacher, int], Teacher], sizes: Sequence[int], teacher: Teacher
) -> list[Teacher]:
    """Teacher assistants: a large teacher reaches a small student over networks in between.

    Mirzadeh et al. 2020 (https://arxiv.org/abs/1902.03393): where the sizes lie far apart, a student learns more
    from an assistant between them, which has learned from the teacher, and two assistants help more than one.

    Args:
      train: `(teacher, size) -> trained network` of this size, taught by this teacher.
      sizes: widths, depths or whatever `train` takes for a size, falling; the last one is the student's. See
        `assistant_sizes`.
      teacher: of the first of them.

    Returns:
      The assistants and, last, the student.

    Raises:
      DistillationError: no sizes, sizes that do not fall, or `train` returned something else.

    >>> shrink = lambda teacher, size: Teacher(teacher.apply, teacher.params[:size])
    >>> chain = assistants(shrink, [3, 2], Teacher(lambda p, x: x, [1.0, 2.0, 3.0, 4.0]))
    >>> [network.params for network in chain]
    [[1.0, 2.0, 3.0], [1.0, 2.0]]
    """
    call = "assistants(train, sizes, teacher)"
    check_function(train, call, "train", "(teacher, size) -> Teacher")
    check_made_by(teacher, Teacher, call, "teacher", "Teacher(apply, params)")
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise DistillationError(
            f"{call}: sizes must be a list such as assistant_sizes gives, not {sizes!r:.100}"
        )
    if not sizes or any(b >= a for a, b in itertools.pairwise(sizes)):
        raise DistillationError(f"sizes={list(sizes)} must fall from the first assistant's to the student's")
    trained: list[Teacher] = []
    for size in sizes:
        trained.append(_checked(train(trained[-1] if trained else teacher, size), size))
    return trained


def assistant_sizes(teacher: int, student: int, count: int = 1) -> list[int]:
    """Sizes of `count` assistants and the student, each the same ratio below the one before, rounded.

    Raises:
      DistillationError: a size is no integer; so many different sizes do not lie between the two.

    >>> assistant_sizes(64, 4), assistant_sizes(64, 8, count=2)
    ([16, 4], [32, 16, 8])
    """
    whole = [isinstance(x, numbers.Integral) and not isinstance(x, bool) for x in (teacher, student, count)]
    if not all(whole):
        raise DistillationError(
            f"sizes and their count must be integers, not {teacher!r}, {student!r} and {count!r}"
        )
    if not 1 <= student < teacher or count < 0:
        raise DistillationError(
            f"count={count} assistants between the sizes {teacher} and {student}: there are none"
        )
    step = math.log(student / teacher) / (count + 1)
    sizes = [round(teacher * math.exp(step * k)) for k in range(1, count + 1)] + [student]
    if any(b >= a for a, b in itertools.pairwise([teacher, *sizes])):
        raise DistillationError(
            f"there is no room for {count} different sizes between {teacher} and {student}: take fewer assistants"
        )
    return sizes


def _checked(trained: Teacher, which: int) -> Teacher:
    if not isinstance(trained, Teacher):
        raise DistillationError(
            f"train(..., {which}) returned a {type(trained).__name__}; it returns the trained network as "
            "distillation.Teacher(apply, params), the next one's teacher"
        )
    return trained
