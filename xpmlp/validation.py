"""Data at the door of the estimators: scikit-learn's checks, for arrays of any library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import array_api_compat
import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import column_or_1d, validate_data

from xpmlp.backends import backend_of
from xpmlp.data import is_foreign
from xpmlp.typing import Backend


def checked_X(estimator: Any, X: Any, reset: bool) -> Any:
    """X as an array of its own library, or CSR or CSC; its dtype stays."""
    refuse_masked("X", X)
    if not is_foreign(X):
        # Its dtype stays; but numbers may be written as text, in an array or in a list.
        text = isinstance(X, np.ndarray | list | tuple) and np.asarray(X).dtype.kind in "US"
        dtype = np.float64 if text else "numeric"
        return validate_data(estimator, X, accept_sparse=["csr", "csc"], dtype=dtype, reset=reset)
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
    if isinstance(y, list | tuple) and np.asarray(y).dtype.kind in "US":
        check_labels(name, np.array(y, dtype=object))  # NumPy makes text of everything
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


class LiveList(list[Any]):
    """Arrays of a network; assigning to an element writes into the network.

    Parameters
    ----------
    backend : Backend
        Of the network.
    views : sequence of array or None
        Its own arrays.
    on_host : bool
        Show them as NumPy arrays: views where the network is on the CPU, copies of a GPU's.
    """

    def __init__(self, backend: Backend, views: Sequence[Any], on_host: bool) -> None:
        super().__init__(v if v is None or not on_host else backend.to_host(v) for v in views)
        self._backend, self._views = backend, views

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(index, slice):
            places, values = range(len(self))[index], list(value)
            if len(values) != len(places):
                raise ValueError(f"expected {len(places)} arrays, got {len(values)}")
            for place, one in zip(places, values, strict=True):
                self[place] = one
            return
        view, array = self._views[index], np.asarray(hosted(value))
        if view is None or array.shape != tuple(view.shape) or array.dtype.kind not in "iuf":
            expected = "None" if view is None else f"numbers of shape {tuple(view.shape)}"
            raise ValueError(f"expected {expected}, got {array.dtype} of shape {array.shape}")
        with self._backend.context():
            self._backend.copy(self._backend.from_host(array), view)
        if not self._backend.owns(self[index]):  # a copy
            super().__setitem__(index, array)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def origin(X: Any) -> tuple[str, str] | None:
    """Library and device of an array; None for what NumPy holds."""
    if not is_foreign(X):
        return None
    return array_api_compat.array_namespace(X).__name__, str(array_api_compat.device(X))


def checked_weight(X: Any, weight: Any) -> Any:
    """Sample weights as a NumPy array; one number stands for all."""
    refuse_masked("sample_weight", weight)
    weight = np.asarray(hosted(weight))
    if weight.ndim == 0:
        weight = np.full(X.shape[0], weight)
    if weight.dtype.kind in "cmM":
        raise ValueError(f"sample_weight must hold real numbers, got {weight.dtype}")
    if weight.dtype.kind in "iuf":
        return weight
    try:
        return weight.astype(float)  # of bools, decimals and the like
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample_weight must hold numbers ({error})") from error


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
            words = {"str": "text", "Real": "numbers"}
            names = ", ".join(sorted(words.get(kind.__name__, kind.__name__) for kind in kinds))
            raise ValueError(f"{name} must hold labels of one kind, text or numbers, got {names}")
