"""NNCodec (DeepCABAC, ISO/IEC 15938-17) on given integer symbols, as one line of JSON.

Run by an interpreter of its own, since NNCodec needs NumPy 1.26 and PyTorch:

    $MODELZIP_NNCODEC_PYTHON benchmarks/peers/nncodec_worker.py symbols.npz

The archive holds int8, int16 or int32 arrays of any shape, up to 2**31 - 1 in magnitude. They are
coded as they are: NNCodec quantizes float32 tensors and passes int32 tensors by its quantizer
("skip"), so that the same symbols meet the same question, how many bytes they need. Printed are
`bytes` (the whole bitstream), `encode_s` and `decode_s` (seconds inside this process, imports
excluded; CPU seconds if it may use one core only), `version` and `options`. The symbols are decoded
and compared; a difference is an error.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

# What NNCodec's own front end turns on for a tensor without side knowledge; dependent quantization
# (`use_dq`) has no meaning for symbols that are already integers.
OPTIONS = {
    "param_opt": True,
    "row_skipping": True,
    "cabac_unary_length_minus1": 10,
    "use_dq": False,
}


# As `harness.clock`: on one core, what other programs take does not count.
now = time.process_time if len(os.sched_getaffinity(0)) == 1 else time.perf_counter


def symbols_of(path: str) -> dict[str, np.ndarray]:
    """The archive's arrays under names that NNCodec's block guessing leaves alone, as int32."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = [archive[name] for name in archive.files]
    for array in arrays:
        if array.dtype not in (np.int8, np.int16, np.int32):
            raise SystemExit(f"symbols must be int8, int16 or int32, not {array.dtype}")
    # A scalar or an empty array has nothing that the codec can scan.
    shaped = [np.atleast_1d(array).astype(np.int32) for array in arrays if array.size]
    return {f"t{i:05d}": np.ascontiguousarray(array) for i, array in enumerate(shaped)}


def encode(nnc: Any, symbols: dict[str, np.ndarray], folder: str) -> tuple[bytes, float]:
    """The bitstream and the seconds it took."""
    start = now()
    stream = nnc.compress(
        symbols, bitstream_path=str(Path(folder) / "out.nnc"), return_bitstream=True, **OPTIONS
    )
    return stream, now() - start


def decode(nnc: Any, stream: bytes) -> tuple[dict[str, np.ndarray], float]:
    """The decoded tensors and the seconds they took."""
    start = now()
    decoded = nnc.decompress(stream, verbose=False)
    return decoded, now() - start


def main(path: str) -> None:
    """Codes the symbols of an archive and prints the result."""
    symbols = symbols_of(path)
    # NNCodec prints as it works, and standard output is for the result alone.
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        from nncodec import nnc

        stream, encode_s = encode(nnc, {name: x.copy() for name, x in symbols.items()}, folder)
        decoded, decode_s = decode(nnc, stream)
    wrong = [n for n, x in symbols.items() if not np.array_equal(np.asarray(decoded[n]), x)]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(symbols)} arrays were not decoded to what was coded")
    result = {
        "bytes": len(stream),
        "encode_s": round(encode_s, 6),
        "decode_s": round(decode_s, 6),
        "version": importlib.metadata.version("nncodec"),
        "options": OPTIONS,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
