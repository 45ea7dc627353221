"""Drawn chains of everything obey the laws: some thirty always, two thousand six hundred at length."""

import dataclasses
import random

import pytest
from drawn_chains import LATEST, SINCE, draw, drawn

import modelzip_jax as mz
from modelzip_jax import recipe
from modelzip_jax.errors import ModelzipError

AT_LENGTH = 2600
FAULTS = (398, 405, 667, 941, 982, 999, 1178, 1628)
"""Drawn chains that found one."""
RUN = {*range(10), *range(SINCE, SINCE + 8), *range(LATEST, LATEST + 6), *FAULTS}


@pytest.mark.parametrize(
    "seed",
    [pytest.param(n, marks=() if n in RUN else pytest.mark.slow) for n in range(AT_LENGTH)],
)
def test_laws(seed):
    case = draw(seed)
    mz.testing.check_laws(case.transform, case.params, given=case.given, steps=2, ulp=case.ulp)


def classes_in(node):
    """Of every transform and strategy within a transform."""
    yield type(node)
    if dataclasses.is_dataclass(node):
        node = tuple(
            mz.allocation.resolve(value) if field.name == "allocation" else value
            for field in dataclasses.fields(node)
            for value in [getattr(node, field.name)]
        )
    if isinstance(node, tuple):
        for part in node:
            yield from classes_in(part)


# Schedules that `prune` makes of other schedules, what no recipe holds, and what has to be told the loss.
NOT_DRAWN = {"Followed", "Constant", "Opaque", "ErrorControlled", "SampledFeatures", "ByReceptiveField"}
"""The last two are of networks that the draws have not: see test_sparse_dense.py and test_receptive_fields.py."""


def test_draws_leave_nothing_out():
    found = set()
    for seed in (*range(600), *range(SINCE, AT_LENGTH)):
        try:
            found |= set(classes_in(drawn(random.Random(seed), seed)[1]))
        except ModelzipError:
            continue
    ours = {cls for cls in recipe._classes.values() if cls.__module__.startswith("modelzip_jax")}
    ours = {cls for cls in ours if not issubclass(cls, mz.activations.ActivationQuantizer)}  # Of no weights.
    assert {cls.__name__ for cls in ours - found} == NOT_DRAWN & set(recipe._classes)
