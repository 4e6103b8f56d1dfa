"""Multilayer perceptrons, written once against the Array API standard.

>>> from xpmlp import Dense, Network, fit
>>> X, y = [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [0, 1, 1, 0]
>>> network = Network(2, [Dense(8, "tanh"), Dense(1, "sigmoid")], device="cpu")
>>> history = fit(network, X, y, loss="log_loss", optimizer="adam", epochs=5, verbose=0)
>>> network.predict(X).shape
(4, 1)

Activations, losses, optimizers, schedules and initialisers are names, or objects with arguments
from the modules of these names: ``xpmlp.optimizers.Adam(learning_rate=0.01)``.
"""

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
from xpmlp.serialization import load, save
from xpmlp.training import Run, fit

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
    "Run",
    "TrainingInterruptedWarning",
    "available_backends",
    "fit",
    "get_backend",
    "load",
    "save",
]
