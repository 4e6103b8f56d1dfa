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

from typing import TYPE_CHECKING, Any

from xpmlp.backends import available_backends, get_backend
from xpmlp.callbacks import Callback, EarlyStopping, GradientNorms
from xpmlp.checkpoint import Checkpoint
from xpmlp.errors import (
    BackendUnavailableError,
    DeviceFallbackWarning,
    DeviceMemoryError,
    ModelFileError,
    NonFiniteLossError,
    TrainingInterruptedWarning,
)
from xpmlp.history import History
from xpmlp.layers import Dense, Dropout
from xpmlp.network import Gradient, Network
from xpmlp.serialization import load, save
from xpmlp.training import Run, fit

if TYPE_CHECKING:
    from xpmlp.displays import GradientFlowDisplay, LossCurveDisplay
    from xpmlp.estimators import MLPClassifier, MLPRegressor
    from xpmlp.export import export_onnx

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailableError",
    "Callback",
    "Checkpoint",
    "Dense",
    "DeviceFallbackWarning",
    "DeviceMemoryError",
    "Dropout",
    "EarlyStopping",
    "Gradient",
    "GradientFlowDisplay",
    "GradientNorms",
    "History",
    "LossCurveDisplay",
    "MLPClassifier",
    "MLPRegressor",
    "ModelFileError",
    "Network",
    "NonFiniteLossError",
    "Run",
    "TrainingInterruptedWarning",
    "available_backends",
    "export_onnx",
    "fit",
    "get_backend",
    "load",
    "save",
]

# What imports scikit-learn, matplotlib or much else is imported when it is asked for.
_LAZY = {
    "export_onnx": "xpmlp.export",
    "GradientFlowDisplay": "xpmlp.displays",
    "LossCurveDisplay": "xpmlp.displays",
    "MLPClassifier": "xpmlp.estimators",
    "MLPRegressor": "xpmlp.estimators",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'xpmlp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
