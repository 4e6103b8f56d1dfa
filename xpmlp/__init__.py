"""Multilayer perceptrons, written once against the Array API standard."""

from xpmlp.backends import available_backends, get_backend
from xpmlp.callbacks import Callback, EarlyStopping
from xpmlp.errors import (
    BackendUnavailableError,
    DeviceFallbackWarning,
    ModelFileError,
    NonFiniteLossError,
    TrainingInterruptedWarning,
)
from xpmlp.history import History
from xpmlp.layers import Dense, Dropout
from xpmlp.network import Gradient, Network
from xpmlp.training import fit

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "Callback",
    "Dense",
    "DeviceFallbackWarning",
    "Dropout",
    "EarlyStopping",
    "Gradient",
    "History",
    "ModelFileError",
    "Network",
    "NonFiniteLossError",
    "TrainingInterruptedWarning",
    "available_backends",
    "fit",
    "get_backend",
]
