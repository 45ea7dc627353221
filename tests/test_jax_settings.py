"""Whatever settings of JAX a user has on: files are read, networks compressed and trained as without them."""

import jax
import numpy as np
import pytest
import settings_story

SETTINGS = {
    "disable_jit": jax.disable_jit,
    "rank promotion raises": lambda: jax.numpy_rank_promotion("raise"),
    "strict dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "transfers disallowed": lambda: jax.transfer_guard("disallow"),
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "matmul precision": lambda: jax.default_matmul_precision("highest"),
    "a default device": lambda: jax.default_device(jax.devices("cpu")[0]),
    "enable_checks": lambda: jax.enable_checks(True),
    "checking leaks": jax.checking_leaks,
    "rbg keys": lambda: jax.default_prng_impl("rbg"),
    "keys that are arrays": lambda: jax.enable_custom_prng(True),
    "legacy keys are errors": lambda: jax.legacy_prng_key("error"),
    "keys used once": lambda: jax.debug_key_reuse(True),
    "threefry as it was": lambda: jax.threefry_partitionable(False),
}


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    settings_story.write(folder)
    return folder, settings_story.told(folder)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, (dtype, shape, data) in wanted.items():
        assert found[name][:2] == (dtype, shape), name
        if name.startswith("sums/"):  # XLA fuses and rounds them as it likes.
            a, b = (np.frombuffer(x, dtype) for x in (found[name][2], data))
            assert np.all(np.abs(a - b) <= 4 * np.spacing(np.abs(b).max())), name
        else:
            assert found[name][2] == data, name


@pytest.mark.parametrize("name", SETTINGS)
def test_the_story_under_a_setting(without, name):
    folder, wanted = without
    with SETTINGS[name]():
        found = settings_story.told(folder)
    same(found, wanted)


def test_of_64_bits(without):
    folder, wanted = without
    with jax.enable_x64(True):
        found = settings_story.told(folder)
    same(found, wanted)
