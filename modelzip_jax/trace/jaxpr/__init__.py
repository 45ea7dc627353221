"""Jaxprs: flattened programs, abstract interpretation, evaluation with visitors."""
