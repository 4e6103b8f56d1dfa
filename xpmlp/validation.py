"""Data at the door of the estimators: scikit-learn's checks, for arrays of any library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import array_api_compat
import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import column_or_1d, validate_data

from xpmlp.backends import backend_of
from xpmlp.data import is_foreign


def checked_X(estimator: Any, X: Any, reset: bool) -> Any:
    """X as an array of its own library, or CSR or CSC; its dtype stays."""
    refuse_masked("X", X)
    if not is_foreign(X):
        return validate_data(
            estimator, X, accept_sparse=["csr", "csc"], dtype="numeric", reset=reset
        )
    if X.ndim != 2:
        raise ValueError(f"Expected 2D array X, got one of shape {tuple(X.shape)}. Reshape it.")
    return validate_data(estimator, X, skip_check_array=True, reset=reset)


def checked_y(estimator: Any, X: Any, y: Any, name: str) -> Any:
    """Targets as a NumPy array, one-dimensional where they have one column, or sparse."""
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires {name} to be passed, but the target y is None"
        )
    refuse_masked(name, y)
    y = check_array(
        hosted(y),
        accept_sparse="csr",
        ensure_2d=False,
        ensure_min_samples=0,
        dtype=estimator._target_dtype,
        input_name=name,
        estimator=estimator,
    )
    if y.ndim == 0 or y.ndim > 2:
        raise ValueError(f"{name} must have one or two dimensions, got shape {y.shape}")
    if y.shape[0] != X.shape[0]:
        raise ValueError(
            f"Found input variables with inconsistent numbers of samples: X has "
            f"{X.shape[0]}, {name} has {y.shape[0]}"
        )
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y


def checked_weight(X: Any, weight: Any) -> Any:
    """Sample weights as a NumPy array; one number stands for all."""
    refuse_masked("sample_weight", weight)
    weight = np.asarray(hosted(weight))
    if weight.ndim == 0:
        weight = np.full(X.shape[0], weight)
    return weight.astype(float) if weight.dtype.kind == "b" else weight


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of the argument into the errors of checks that know none."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def take(X: Any, rows: Any) -> Any:
    """Some rows of an array of any library, or of a sparse matrix."""
    if is_foreign(X):
        return array_api_compat.array_namespace(X).take(X, backend_of(X).from_host(rows), axis=0)
    return X[rows]


def hosted(value: Any) -> Any:
    """An array of another library as NumPy's; anything else as it is."""
    return backend_of(value).to_host(value) if is_foreign(value) else value


def refuse_masked(name: str, value: Any) -> None:
    if isinstance(value, np.ma.MaskedArray) and value.mask.any():
        raise ValueError(
            f"{name} has {int(value.mask.sum())} masked values; fill them or leave their rows out"
        )


def check_labels(name: str, y: Any) -> None:
    """Refuse labels that have no common order, or are times."""
    if y.dtype.kind in "mM":
        raise ValueError(f"{name} must hold class labels, got {y.dtype}")
    if y.dtype.kind == "O":
        kinds = {
            str if isinstance(v, str) else Real if isinstance(v, Real) else type(v) for v in y.flat
        }
        if not kinds <= {str} and not kinds <= {Real}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(f"{name} must hold labels of one kind, text or numbers, got {names}")
