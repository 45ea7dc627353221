"""Worked examples: each one command, `modelzip example NAME`, and each stage of it a few public functions."""
