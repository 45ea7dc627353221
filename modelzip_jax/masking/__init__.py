"""Pruning: which weights to keep, how many, and when."""
