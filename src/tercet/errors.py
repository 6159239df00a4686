"""Every error that tercet raises on purpose.

    TercetError                 exit code 1
    ├── ConfigError             exit code 2: a setting is unknown, missing or impossible; a path is not a run
    ├── DataError               exit code 2: an input file or row is malformed
    ├── CheckpointError         exit code 1: a run or checkpoint is damaged, incomplete or of another shape
    ├── ContextError            exit code 2: a text does not fit into the model's context window
    └── TrainingError           exit code 1: training cannot continue
        └── NonFiniteError      exit code 1: a loss or gradient is NaN or infinite

Each message says where the error is, what was found, what was wanted and how to fix it.
"""

from __future__ import annotations


class TercetError(Exception):
    """Base of all errors that tercet raises on purpose; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(TercetError):
    """A setting is unknown, missing or impossible, or a path that should be a run is not one."""

    exit_code = 2


class DataError(TercetError):
    """An input file or row is malformed."""

    exit_code = 2


class CheckpointError(TercetError):
    """A run directory is damaged, or a checkpoint is missing, damaged or made for another model."""


class ContextError(TercetError):
    """A text does not fit into the model's context window."""

    exit_code = 2


class TrainingError(TercetError):
    """Training cannot continue, for example because no token of a batch is trained on."""


class NonFiniteError(TrainingError):
    """A loss or a gradient is NaN or infinite."""
