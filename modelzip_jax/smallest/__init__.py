"""Rate and distortion: the smallest file within a number of bytes, or within a drop of quality.

mz.compress(params, mz.smallest(bytes=5_000_000))                                   # without data
mz.compress(params, mz.smallest(bytes=5_000_000), calibrate=(apply_fn, batches))    # by what errors do to outputs
"""
