"""Measuring what compression costs: tasks and metrics that need no download."""
