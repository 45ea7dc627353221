"""Whatever settings of JAX a user has on: files are read, networks compressed and trained as without them.

A reader under them gives the weights, and not the news that a sound file is damaged.
"""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import settings_story

import modelzip_jax as mz

EACH = {
    "disable_jit": jax.disable_jit,
    "rank promotion raises": lambda: jax.numpy_rank_promotion("raise"),
    "strict dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "transfers disallowed": lambda: jax.transfer_guard("disallow"),
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "enable_checks": lambda: jax.enable_checks(True),
    "checking leaks": jax.checking_leaks,
    "matmul precision": lambda: jax.default_matmul_precision("highest"),
    "a default device": lambda: jax.default_device(jax.devices("cpu")[0]),
    "rbg keys": lambda: jax.default_prng_impl("rbg"),
    "keys that are arrays": lambda: jax.enable_custom_prng(True),
    "legacy keys are errors": lambda: jax.legacy_prng_key("error"),
    "keys used once": lambda: jax.debug_key_reuse(True),
    "threefry as it was": lambda: jax.threefry_partitionable(False),
    "64 bits": lambda: jax.enable_x64(True),
}
ALL = tuple(settings_story.PARTS)
TOGETHER = {
    "promotion": (("rank promotion raises", "strict dtype promotion"), ("reading", "training")),
    "watched": (("transfers disallowed", "debug_nans", "debug_infs", "enable_checks"), ALL),
    "leaks": (("checking leaks",), ("reading", "training")),
    "keys": (("rbg keys", "keys that are arrays", "legacy keys are errors", "keys used once"), ("training",)),
    "precision": (("64 bits", "matmul precision", "a default device"), ("reading", "compressing")),
    "without jit": (("disable_jit",), ("reading",)),
}
"""What is told in every run; all of it under each alone is slow."""


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    settings_story.write(folder)
    return folder, settings_story.told(folder)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, (dtype, shape, data) in wanted.items():
        assert found[name][:2] == (dtype, shape), name
        if name.startswith("sums/"):
            a, b = (np.frombuffer(x, dtype) for x in (found[name][2], data))
            assert np.all(np.abs(a - b) <= 4 * np.spacing(np.abs(b).max())), name
        else:
            assert found[name][2] == data, name


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        *(pytest.param(*case, id=name) for name, case in TOGETHER.items()),
        *(pytest.param((name,), ALL, id=name, marks=pytest.mark.slow) for name in EACH),
    ],
)
def test_the_story_under_settings(without, names, parts):
    folder, wanted = without
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error", FutureWarning)
        for name in names:
            stack.enter_context(EACH[name]())
        found = settings_story.told(folder, parts)
    assert found
    assert parts != ALL or found.keys() == wanted.keys()
    same(found, {name: wanted[name] for name in found})


FLAGS = {
    "fast math": ("--xla_cpu_enable_fast_math=true --xla_cpu_enable_fast_min_max=true", {}),
    "8 devices, the last one the default": ("--xla_force_host_platform_device_count=8", {"LAST_DEVICE": "1"}),
    "64 bits from the beginning": ("", {"JAX_ENABLE_X64": "1"}),
}
EXACT = ("loaded/", "unpacked/", "tensor/", "checkpoint/")
"""What is decoded by one product or one read of a table."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "fast math" else pytest.mark.slow) for n in FLAGS]
)
def test_a_file_is_read_alike_under_flags_of_xla(without, name):
    folder, wanted = without
    flags, more = FLAGS[name]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    run = subprocess.run(
        [sys.executable, Path(settings_story.__file__), folder],
        capture_output=True, text=True, check=False, timeout=300, env=environment | more,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    exact = [key for key in wanted if key.startswith(EXACT)]
    assert len(exact) > 10
    assert {key: found[key] for key in exact} == {key: settings_story.digest(wanted[key]) for key in exact}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAGS)
def test_every_golden_file_is_read_alike_under_flags_of_xla(name):
    flags, more = FLAGS[name]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    golden = Path(__file__).with_name("coding") / "test_golden.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", f"{golden}::test_a_golden_file"],
        capture_output=True, text=True, check=False, timeout=600, env=environment | more,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-2000:]


@pytest.mark.parametrize(
    "setting", [lambda: jax.numpy_rank_promotion("raise"), lambda: jax.transfer_guard("disallow")]
)
def test_a_search_with_data_finds_the_same(setting):
    drawn = np.random.default_rng(5)
    params = {"kernel": drawn.normal(size=(40, 48)).astype("f4")}
    inputs = jax.device_put(drawn.normal(size=(64, 40)).astype("f4"))

    def found():
        search = mz.smallest(bytes=900)
        return mz.unpack(mz.compress(params, search, calibrate=(lambda p, x: x @ p["kernel"], [inputs])))[
            "kernel"
        ]

    expected = np.asarray(found())
    with setting():
        held = found()
    np.testing.assert_array_equal(held, expected)
