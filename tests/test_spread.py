"""Eight devices teach, tune and search as one does. Processes of their own: the number of devices is fixed at start."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import modelzip_jax as mz
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment, records

LOSSES = (
    "soft_targets", "decoupled", "standardized", "correlation", "top_k", "hint", "attention_transfer", "flow",
    "similarity", "relational_distance", "relational_angle", "correlation_congruence", "in_batch_contrastive",
    "contrastive", "review", "whitened", "variational", "info_nce", "donsker_varadhan", "discriminator", "weak",
)  # fmt: skip
# Of each kind one, and what Explicit meshes refused.
QUICK = (
    "similarity Auto",
    "contrastive Explicit",
    "relational_distance Explicit",
    "similarity Unset",
    "taught Auto",
    "tuned Auto",
    "lined Explicit",
)
OTHERS = ("game", "tuned", "searched", "lined")
KINDS = ("Auto", "Explicit")
EVERY = ["taught Auto", *(f"{name} {kind}" for name in (*LOSSES, *OTHERS) for kind in KINDS)]
EVERY += [f"{name} Unset" for name in LOSSES]
SLOW = tuple(case for case in EVERY if case not in QUICK)


def on_eight_devices(*arguments):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    script = Path(__file__).with_name("spread_script.py")
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


gaps = functools.cache(on_eight_devices)


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_what_is_found_on_eight_devices_is_what_one_finds(case):
    found = gaps(*(QUICK if case in QUICK else SLOW))[case]
    assert not isinstance(found, str), found
    # Sums over the batch in another order; a run's steps carry them on.
    assert found < (1e-4 if "taught" in case else 3e-6)


TAUGHT = {
    "relations": {"distill": {"features": {"loss": "relational_distance", "layers": ("Dense_1",)}}},
    "projected": {
        "distill": {
            "balance": "uncertainty", "loss": "correlation",
            "features": {"loss": "similarity", "layers": ("Dense_1",), "projector": "orthogonal"},
        }
    },
    "cached": {"distill": {"cache": "float32", "loss": "decoupled"}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TAUGHT)
def test_a_taught_run_on_eight_devices_is_that_on_one(tmp_path, name):
    pytest.importorskip("sklearn")
    teacher = configs.base()
    teacher.model.options, teacher.steps = {"widths": (24,)}, 30
    experiment.run(teacher, tmp_path / "teacher", quiet=True)
    changes = {"steps": 20, "block": 5, "record_every": 5, "model": {"options": {"widths": (16,)}}}
    changes["distill"] = {"teacher": str(tmp_path / "teacher"), **TAUGHT[name]["distill"]}
    config = configs.base()
    config.update(json.loads(json.dumps(changes)))
    result = experiment.run(config, tmp_path / "one", quiet=True)
    logged, test = on_eight_devices("run", str(tmp_path / "eight"), json.dumps(changes))
    for ours, theirs in zip(records.read_records(tmp_path / "one" / "log.jsonl"), logged, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"steps_per_second"}:
            assert theirs[key] == pytest.approx(ours[key], rel=2e-4, abs=1e-6), key
    assert test["accuracy"] == pytest.approx(result["test"]["accuracy"], abs=0.01)
    one, eight = (mz.unpack(mz.load(tmp_path / run / "model.mz")) for run in ("one", "eight"))
    for layer, leaves in one.items():
        for leaf, x in leaves.items():
            np.testing.assert_allclose(eight[layer][leaf], x, rtol=1e-3, atol=1e-4)
