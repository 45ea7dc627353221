"""Measuring what compression costs: tasks, their metrics with standard errors, latency and sizes.

The tasks `classification`, `generation` and `image_search` have one form: `evaluate(predict, inputs, labels)`
gives a dict of named numbers, as `modelzip evaluate --task` takes them, from scores of each example.
"""
