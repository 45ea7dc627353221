"""Named errors: each says what was found, where, and what to do about it."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DistillationError",
    "EvaluationError",
    "FormatError",
    "LeafError",
    "MissingExtraError",
    "ModelError",
    "ModelzipError",
    "NonFiniteError",
    "OutOfMemoryError",
    "PatternError",
    "RecipeError",
    "RunError",
    "SilentLayerError",
    "TraceError",
    "TransformError",
    "TreeError",
    "WrapError",
]


class ModelzipError(Exception):
    """Base of every error that this library raises on purpose."""


class TransformError(ModelzipError, ValueError):
    """A transform was given hyperparameters it cannot work with, or chained in a wrong order."""


class TraceError(ModelzipError, ValueError):
    """A model's jaxpr cannot be read or evaluated as asked; the message names the equation."""


class TreeError(ModelzipError, ValueError):
    """Two trees that must have the same structure do not."""


class PatternError(ModelzipError, ValueError):
    """A path pattern matches nothing; the message lists the paths there are."""


class LeafError(ModelzipError, TypeError):
    """A leaf has a type, dtype or shape that the transform cannot encode; the message names it."""


class SilentLayerError(LeafError):
    """No input has reached a layer whose statistics are needed: they are all zero."""


class NonFiniteError(ModelzipError, ValueError):
    """A leaf holds NaN or infinity; the message names it."""


class OutOfMemoryError(ModelzipError, MemoryError):
    """This machine has too little memory for what a file holds, which may be sound; the message names what."""


class WrapError(ModelzipError, ValueError):
    """`mz.wrap` stands in a place where its updates would no longer land on decoded weights."""


class RecipeError(ModelzipError, ValueError):
    """A recipe cannot be recorded in a file, or names a transform that is not registered."""


class FormatError(ModelzipError, ValueError):
    """A `.mz` file is damaged, foreign or newer than this library; the message names the place."""


class CheckpointError(ModelzipError, ValueError):
    """A checkpoint in another format cannot be read or written."""


class ConfigError(ModelzipError, ValueError):
    """A run is configured in a way that cannot work; the message names the field and what would."""


class RunError(ModelzipError, ValueError):
    """The folder of a training run is in use by another run, or its log is damaged."""


class EvaluationError(ModelzipError, ValueError):
    """Predictions, labels or embeddings do not fit each other, or are too few to measure anything."""


class ModelError(ModelzipError, ValueError):
    """A model is asked for by an unknown name or option, or called with inputs that it cannot take."""


class DataError(ModelzipError, ValueError):
    """A data set is not there, or cannot give what it is asked for; the message says how to get it."""


class DistillationError(ModelzipError, ValueError):
    """A distillation loss is given arrays that do not fit each other, or hyperparameters it cannot work with."""


class MissingExtraError(ModelzipError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it."""
