"""NNCodec (DeepCABAC, ISO/IEC 15938-17) on float tensors: quantized and coded by itself, and decoded again.

Run by an interpreter of its own, since NNCodec needs NumPy 1.26 and PyTorch; `nncodec_client.py` asks it:

    $MODELZIP_NNCODEC_PYTHON benchmarks/peers/nncodec_float_worker.py in.npz out.npz '[{"qp": -28}, {"qp": -32}]'

in.npz holds float32 arrays of one axis and more, none of them empty. For each setting of the list all of them are coded
into one bitstream by

    nncodec.nnc.compress(tensors, **options)       nncodec.nnc.decompress(bitstream)

with the options below under those of the setting: `qp` (of tensors of two axes and more), `nonweight_qp` (of others),
`qp_per_tensor` (by name), `opt_qp` (NNCodec's own shares by size and standard deviation), `lambda_scale` (of the rate
in its quantizer; 0 for none), `use_dq` (dependent, trellis-coded quantization) and all others that compress() takes.
A step is (4 + (qp & 3)) · 2^((qp >> 2) − 2) at the default `qp_density` of 2.

out.npz holds `I|NAME`, float32, as setting I decodes. Printed is a line of JSON: `version`, and `results`, for each
setting `bytes` (the whole bitstream), `encode_s` and `decode_s` (seconds inside this process, imports excluded; CPU
seconds if it may use one core only).
"""

import contextlib
import importlib.metadata
import io
import json
import os
import sys
import time
from typing import Any

import numpy as np

# What NNCodec's front end for networks, nncodec.nn.encode, turns on.
OPTIONS = {
    "nonweight_qp": -75,
    "use_dq": True,
    "param_opt": True,
    "row_skipping": True,
    "cabac_unary_length_minus1": 10,
}

# As `harness.clock`: on one core, what other programs take does not count.
now = time.process_time if len(os.sched_getaffinity(0)) == 1 else time.perf_counter


def tensors_of(path: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """The archive's names, and its arrays under names in which NNCodec finds no meaning (`_G` and `_H` have one)."""
    with np.load(path, allow_pickle=False) as archive:
        names, arrays = archive.files, [archive[name] for name in archive.files]
    for name, array in zip(names, arrays, strict=True):
        if array.dtype != np.float32 or not array.size or not array.ndim:
            raise SystemExit(f"{name} must be float32 of at least one axis, not {array.dtype} {array.shape}")
    return names, {f"t{i:05d}": np.ascontiguousarray(array) for i, array in enumerate(arrays)}


def options_of(setting: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """What compress() is called with."""
    options = {**OPTIONS, **setting}
    if options.get("qp_per_tensor") is not None:
        unknown = set(options["qp_per_tensor"]) - set(names)
        if unknown:
            raise SystemExit(f"qp_per_tensor names no tensor: {', '.join(sorted(unknown))}")
        options["qp_per_tensor"] = {
            f"t{i:05d}": np.int32(options["qp_per_tensor"][name])
            for i, name in enumerate(names)
            if name in options["qp_per_tensor"]
        }
    return options


def main(source: str, target: str, settings: str) -> None:
    """Codes an archive's tensors by each setting and prints the results."""
    names, tensors = tensors_of(source)
    found, results = {}, []
    # NNCodec prints as it works, and standard output is for the result alone.
    with contextlib.redirect_stdout(io.StringIO()):
        from nncodec import nnc

        for i, setting in enumerate(json.loads(settings)):
            options = options_of(setting, names)
            own = {name: array.copy() for name, array in tensors.items()}
            start = now()
            stream = nnc.compress(own, bitstream_path=None, return_bitstream=True, **options)
            middle = now()
            decoded = nnc.decompress(stream, verbose=False)
            results.append(
                {
                    "bytes": len(stream),
                    "encode_s": round(middle - start, 6),
                    "decode_s": round(now() - middle, 6),
                }
            )
            for name, (short, array) in zip(names, tensors.items(), strict=True):
                found[f"{i}|{name}"] = np.asarray(decoded[short], np.float32).reshape(array.shape)
    np.savez(target, **found)  # type: ignore[arg-type]
    print(json.dumps({"version": importlib.metadata.version("nncodec"), "results": results}))


if __name__ == "__main__":
    main(*sys.argv[1:])
