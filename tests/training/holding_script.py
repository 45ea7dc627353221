"""Holds the folder of a run until it is killed: holding_script.py FOLDER."""

import sys
import time
from pathlib import Path

from modelzip_jax.training.run_folder import sole_run

if __name__ == "__main__":
    with sole_run(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(600)
