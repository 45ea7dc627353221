"""Rate and distortion of ours and peers: what `benchmarks.rate_distortion` is made of."""
