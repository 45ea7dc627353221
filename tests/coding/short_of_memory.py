"""Reads files with 8 MB more memory than a process has, and prints what each reader raises."""

import resource
import sys
from pathlib import Path

import numpy as np

import modelzip_jax as mz
from modelzip_jax import checkpoints

FOLDER = Path(sys.argv[1]) if __name__ == "__main__" else Path()
READERS = {
    "model.mz": (mz.load, lambda path: mz.load_tensor(path, "w"), mz.inspect),
    "model.npz": (checkpoints.read,),
    "model.safetensors": (checkpoints.read,),
}


def main():
    # Bytes that nothing makes smaller, so that no program of XLA runs: its threads may wait for ever for memory.
    weights = {"w": np.frombuffer(np.random.default_rng(0).bytes(48 << 20), np.uint8)}
    mz.save(FOLDER / "model.mz", mz.compress(weights, mz.identity()))
    for name in ("model.npz", "model.safetensors"):
        checkpoints.write(FOLDER / name, weights)
    del weights
    for name, readers in READERS.items():  # Once with enough: what is compiled stays.
        for reader in readers:
            reader(FOLDER / name)
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    used = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + (8 << 20), resource.RLIM_INFINITY))
    for name, readers in READERS.items():
        for reader in readers:
            try:
                reader(FOLDER / name)
            except MemoryError as error:
                print(type(error).__name__, str(error))


if __name__ == "__main__":
    main()
