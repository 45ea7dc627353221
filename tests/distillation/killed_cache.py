"""Fills a cache and ends itself in the middle: `killed_cache.py FOLDER BLOCKS WHERE`."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
from small_teacher import INPUTS, OPTIONS, teacher

from modelzip_jax.distillation import cache_outputs
from modelzip_jax.distillation.block_files import BlockFiles


def main(folder, blocks, where):
    write = BlockFiles.write

    def write_until_killed(files, block, arrays):
        if block < blocks:
            return write(files, block, arrays)
        if (
            where == "inside"
        ):  # what is on the disk is not what belongs there, and the journal's line is cut off
            write(files, block, {name: np.zeros_like(x) for name, x in arrays.items()})
            path = files.folder / "journal.jsonl"
            path.write_text(path.read_text()[:-20])
        os.kill(os.getpid(), signal.SIGKILL)

    BlockFiles.write = write_until_killed
    cache_outputs(folder, teacher(), INPUTS, **OPTIONS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
