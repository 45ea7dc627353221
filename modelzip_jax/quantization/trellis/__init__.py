"""Trellis-coded quantization: which multiples of a step a weight may become depends on those before it in its line."""
