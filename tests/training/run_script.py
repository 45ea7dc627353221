"""A run in a process of its own, to be killed or joined by others: run_script.py FOLDER [--config.x=y ...]."""

import os
import sys
from pathlib import Path

if devices := os.environ.get("TEST_DEVICES"):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"

import modelzip_jax as mz
from modelzip_jax.training import config as configs
from modelzip_jax.training import experiment


def main() -> None:
    config = configs.load_config(Path(__file__).parents[2] / "configs" / "digits_mlp.py")
    config.model.options = {"widths": (32,)}
    config.data.batch_size = 64
    config.steps = 40
    config.block = 4
    config.record_every = 4
    config.evaluate_every = 20
    config.optimizer.average = 0.8
    config.optimizer.schedule.peak = 2e-2
    transform = mz.only(
        "Dense_0/kernel", mz.chain(mz.prune(sparsity=mz.schedules.cubic(0.6, 4, 20), every=4), mz.quantize(4))
    )
    experiment.run(configs.override(config, sys.argv[2:]), sys.argv[1], transform, quiet=True)


if __name__ == "__main__":
    main()
