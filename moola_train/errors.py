"""Errors of the training layer, under moola's one base; each names thing, value and remedy."""

from __future__ import annotations

from moola_features import errors


class TrainError(errors.MoolaError, ValueError):
    """Base of the training layer's errors."""


class ConfigError(TrainError, errors.ConfigError):
    """A setting that is out of bounds, unknown or contradicts another."""


class LabelsError(TrainError):
    """Labels that cannot be read, or that do not fit their windows."""


class SplitError(TrainError):
    """A split that leaks, or that does not fit its labels."""


class LoaderError(TrainError):
    """A loader asked for something it cannot serve, or a state that is not its own."""


class ModelError(TrainError):
    """A model that cannot be built, or weights that do not fit it."""


class CheckpointError(TrainError):
    """A checkpoint that cannot be read, or that belongs to another run."""


class RunError(TrainError):
    """A run that had to stop, or a run folder that cannot be used."""
