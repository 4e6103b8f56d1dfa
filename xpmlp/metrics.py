"""Metrics of predictions, by scikit-learn, computed on the host once per epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from xpmlp.errors import unknown_name


@dataclass(frozen=True)
class Metric:
    """A named score of predictions.

    Attributes
    ----------
    name : str
        Its key in a history.
    function : callable
        ``function(y_true, y_pred) -> float`` on NumPy arrays: of shape ``(n,)`` where there is
        one output or class labels are the target, otherwise ``(n, n_outputs)``; `y_pred` is
        ``(n,)`` where there is one output. Sample weights play no part.
    higher_is_better : bool or None
        None where unknown.
    decides : bool
        Whether predictions become classes before they are scored.
    """

    name: str
    function: Callable[..., Any]
    higher_is_better: bool | None
    decides: bool

    def __call__(self, y_true: Any, y_pred: Any, activation: str) -> float:
        """The score, given the name of the output activation.

        Parameters
        ----------
        y_true : NumPy array of shape (n, n_outputs), or (n, 1) for class labels
        y_pred : NumPy array of shape (n, n_outputs)
        """
        if self.decides:
            y_pred = decide(y_pred, activation, y_true.shape[1])
            if y_true.shape[1] > 1 and y_pred.ndim == 1:
                y_true = y_true.argmax(axis=1)
            y_true = y_true > 0.5 if y_true.dtype.kind == "f" else y_true
        value = self.function(_squeezed(y_true), _squeezed(y_pred))
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TypeError(f"the metric {self.name} must return a number, got {value!r}") from None

    def check(self, y_true: Any, labels: bool, n_outputs: int) -> None:
        """Raise ValueError if targets of shape ``(n, n_columns)`` do not suit a named metric."""
        if self.decides and not labels and not ((y_true == 0) | (y_true == 1)).all():
            raise ValueError(f"the metric {self.name} needs class labels or targets of 0 and 1")
        if self.decides is False and self.higher_is_better is not None and labels:
            raise ValueError(
                f"the metric {self.name} needs one target for each of the {n_outputs} outputs, "
                "got class labels"
            )


def _squeezed(y: Any) -> Any:
    return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y


def decide(y_pred: Any, activation: str, n_targets: int) -> Any:
    """The class of each row: the most probable one, or with one output whether it exceeds 1/2.

    Several outputs without softmax and as many target columns are labels of their own
    (multilabel): a matrix of 0 and 1 then.
    """
    if y_pred.shape[1] == 1:
        return (y_pred[:, 0] > 0.5).astype(int)
    if activation == "softmax" or n_targets == 1:
        return y_pred.argmax(axis=1)
    return (y_pred > 0.5).astype(int)


def get_metric(value: Any) -> Metric:
    """The metric that `value` names, or one made of a callable ``(y_true, y_pred) -> float``.

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If `value` is neither a name nor callable.
    """
    if isinstance(value, Metric):
        return value
    if isinstance(value, str):
        if value not in _TABLE:
            raise unknown_name("metric", value, _TABLE)
        function, higher, decides = _TABLE[value]
        return Metric(value, _sklearn(function), higher, decides)
    if callable(value):
        return Metric(getattr(value, "__name__", type(value).__name__), value, None, False)
    raise TypeError(f"a metric must be a name or a callable (y_true, y_pred), got {value!r}")


_TABLE = {
    "accuracy": ("accuracy_score", True, True),
    "balanced_accuracy": ("balanced_accuracy_score", True, True),
    "f1_macro": ("f1_score", True, True),
    "r2": ("r2_score", True, False),
    "mean_absolute_error": ("mean_absolute_error", False, False),
    "mean_squared_error": ("mean_squared_error", False, False),
    "root_mean_squared_error": ("root_mean_squared_error", False, False),
}


def _sklearn(name: str) -> Callable[..., Any]:
    def score(y_true: Any, y_pred: Any) -> Any:
        options = {"average": "macro"} if name == "f1_score" else {}
        return getattr(import_module("sklearn.metrics"), name)(y_true, y_pred, **options)

    return score
