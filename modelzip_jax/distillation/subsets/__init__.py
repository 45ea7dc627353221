"""Which examples to train on: those that cover the data, that have its mean, or that are hard to learn."""
