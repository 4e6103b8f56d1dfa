"""Data at the door: checked, moved to the device once, and handed out in batches.

Checks come before anything is changed. Data keeps its own dtype on the device and is cast batch
by batch, so that a uint8 image set never grows into a float copy of itself.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any

import array_api_compat

from xpmlp.backends import backend_of, dtype_name, host
from xpmlp.errors import check_number
from xpmlp.losses import Loss
from xpmlp.rng import stream
from xpmlp.typing import Array, Backend

_log = logging.getLogger("xpmlp")

# Elements added up at a time, and looked at one by one, so that checking needs no memory of the
# data's size.
_SUM_ELEMENTS = 1 << 19
_CHECK_ELEMENTS = 16384
# What of a device's free memory X may take at most: the rest is for batches.
_RESIDENT_SHARE = 0.75


class HostRows:
    """A matrix that stays in host memory, whose rows are moved batch by batch.

    Parameters
    ----------
    array : NumPy array of shape (n_samples, n_features)
    """

    def __init__(self, array: Any) -> None:
        self._rows = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype = array.dtype

    def __getitem__(self, rows: Any) -> Any:
        """The given rows as a NumPy array."""
        return self._rows[rows]

    def write(self, rows: Any, out: Any) -> None:
        """Write the given rows to a NumPy array of the same dtype."""
        if isinstance(rows, slice):
            out[...] = self._rows[rows]
        else:
            host().take_rows(self._rows, rows, out)


class SparseRows(HostRows):
    """A sparse matrix on the host, whose rows become dense batch by batch.

    Parameters
    ----------
    matrix : SciPy sparse matrix or array of shape (n_samples, n_features)
    """

    def __init__(self, matrix: Any) -> None:
        csr = matrix.tocsr()
        if not csr.has_canonical_format:  # entries at one place count as their sum
            csr = csr.copy()
            csr.sum_duplicates()
        super().__init__(csr)

    def __getitem__(self, rows: Any) -> Any:
        """The given rows as a NumPy array."""
        return self._rows[rows].toarray()

    def write(self, rows: Any, out: Any) -> None:
        out[...] = self[rows]


def as_matrix(
    backend: Backend,
    value: Any,
    name: str,
    dtype: str,
    n_columns: int | None = None,
    beside: int = 0,
) -> Any:
    """`value` as a checked array of shape ``(n_samples, n_columns)`` on the backend's device.

    A sparse matrix becomes :class:`SparseRows`, one that does not fit into the device's memory
    beside so many bytes and a batch :class:`HostRows`; :func:`copy_rows` and :func:`take_rows` read
    all.

    Raises
    ------
    TypeError
        If it does not hold real numbers.
    ValueError
        If it is not 2-D, has no rows or no columns, another number of columns, or values that
        are NaN, infinite or beyond `dtype`.
    """
    sparse = hasattr(type(value), "tocsr")
    x = value if sparse else _real_array(value, name)
    if x.ndim != 2:
        hint = f"; reshape one feature with {name}.reshape(-1, 1)" if x.ndim == 1 else ""
        raise ValueError(
            f"{name} must be 2-D, (n_samples, n_features), got shape {tuple(x.shape)}{hint}"
        )
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(
            f"{name} must have at least one row and one column, got shape {tuple(x.shape)}"
        )
    if n_columns is not None and x.shape[1] != n_columns:
        raise ValueError(
            f"{name} must have {n_columns} columns, the network's n_features, "
            f"got shape {tuple(x.shape)}"
        )
    if sparse:
        rows = SparseRows(x)
        _check_values(_real_array(rows._rows.data, name), name, dtype)
        return rows
    _check_values(x, name, dtype)
    if not backend.immediate and host().owns(x):
        memory = backend.memory()
        if memory is not None and x.nbytes > _RESIDENT_SHARE * (memory[0] - beside):
            _log.info(
                "%s stays in host memory: of %s's %s bytes %s are free, it has %s",
                name, backend.device, *(f"{n:,}" for n in (memory[1], memory[0], x.nbytes)),
            )  # fmt: skip
            return HostRows(x)
    return to_backend(backend, x)


def copy_rows(backend: Backend, x: Any, rows: slice, out: Array) -> None:
    """Write consecutive rows of a matrix from :func:`as_matrix` to `out`."""
    if isinstance(x, HostRows):
        backend.load_rows(x, rows, out)
    else:
        backend.copy(x[rows, :], out)


def take_rows(
    backend: Backend, x: Any, indices: Array, out: Array, on_host: Any | None = None
) -> None:
    """Write the rows `indices` of a matrix from :func:`as_matrix` to `out`.

    `on_host` are the same indices as a NumPy array, where they are known there: to ask the device
    for them would be to wait for it.
    """
    if isinstance(x, HostRows):
        rows = backend.to_host(indices) if on_host is None else on_host
        backend.load_rows(x, rows, out)
    else:
        backend.take_rows(x, indices, out)


def as_target(
    backend: Backend, value: Any, name: str, dtype: str, loss: Loss, n_samples: int, n_outputs: int
) -> tuple[Array, bool]:
    """`value` as targets that suit the loss, and whether they are class labels.

    Returns
    -------
    y : array of shape (n_samples, n_outputs), or (n_samples, 1) for class labels
    labels : bool

    Raises
    ------
    TypeError
        If it does not hold real numbers.
    ValueError
        If the shape does not suit the loss and the outputs, lengths differ, or values are out
        of the loss's range.
    """
    y = _real_array(value, name)
    labels = y.ndim == 1 and loss.labels_allowed(n_outputs)
    if not labels and not (
        (y.ndim == 1 and n_outputs == 1) or (y.ndim == 2 and y.shape[1] == n_outputs)
    ):
        shapes = f"({n_samples}, {n_outputs})"
        if n_outputs == 1 or loss.labels_allowed(n_outputs):
            shapes = f"({n_samples},) or {shapes}"
        raise ValueError(
            f"{name} for the loss {loss.name} and {n_outputs} output(s) must have shape "
            f"{shapes}, got {tuple(y.shape)}"
        )
    if y.shape[0] != n_samples:
        raise ValueError(
            f"{name} must have as many rows as X, {n_samples}, got shape {tuple(y.shape)}"
        )
    _check_values(y, name, dtype)
    xp = array_api_compat.array_namespace(y)
    with backend_of(y).context():
        _check_range(y, name, xp, loss, labels, n_outputs)
        return to_backend(backend, y if y.ndim == 2 else y[:, None]), labels


def _check_range(y: Any, name: str, xp: Any, loss: Loss, labels: bool, n_outputs: int) -> None:
    if labels and not xp.isdtype(y.dtype, "integral"):
        raise TypeError(
            f"{name} with one class label a row must hold integers 0 to {n_outputs - 1}, "
            f"got dtype {dtype_name(y)}"
        )
    low, high = (0, n_outputs - 1) if labels else loss.target_range
    if (low, high) != (-math.inf, math.inf) and not xp.isdtype(y.dtype, "bool"):
        smallest, largest = float(xp.min(y)), float(xp.max(y))
        if smallest < low or largest > high:
            kind = "class labels" if labels else "values"
            raise ValueError(
                f"{name} for the loss {loss.name} must hold {kind} from {low:g} to {high:g}, "
                f"got {smallest:g} to {largest:g}"
            )


def as_vector(backend: Backend, value: Any, name: str, dtype: str, n: int) -> Array:
    """`value` as a checked array of shape ``(n,)`` on the backend's device.

    Raises
    ------
    TypeError
        If it does not hold real numbers.
    ValueError
        If the shape differs, or values are NaN, infinite or beyond `dtype`.
    """
    x = _real_array(value, name)
    if tuple(x.shape) != (n,):
        raise ValueError(f"{name} must have shape ({n},), got {tuple(x.shape)}")
    _check_values(x, name, dtype)
    return to_backend(backend, x)


def as_weight(backend: Backend, value: Any, name: str, dtype: str, n_samples: int) -> Array:
    """`value` as sample weights of shape ``(n_samples, 1)``.

    Raises
    ------
    TypeError
        If it does not hold real numbers.
    ValueError
        If the shape differs from ``(n_samples,)``, a weight is negative, or all are zero.
    """
    weight = as_vector(backend, value, name, dtype, n_samples)
    xp = backend.xp
    if xp.isdtype(weight.dtype, "bool"):
        raise TypeError(f"{name} must hold numbers, got dtype bool")
    with backend.context():
        smallest, largest = float(xp.min(weight)), float(xp.max(weight))
        if smallest < 0 or largest == 0:
            raise ValueError(
                f"{name} must be >= 0 and not all zero, got values from {smallest:g} to {largest:g}"
            )
        cast = backend.empty((n_samples, 1), dtype)
        backend.copy(weight[:, None], cast)
        total = float(xp.sum(cast))
        if not 0.0 < total < math.inf:
            raise ValueError(f"{name} must have a positive finite sum in {dtype}, got {total:g}")
        return cast


def batch_rows(batch_size: Any, n_samples: int) -> int:
    """Rows of a batch: `batch_size`, at most all; None means all.

    Raises
    ------
    TypeError, ValueError
        If it is not a whole number from 1 on.
    """
    if batch_size is None:
        return n_samples
    check_number("batch_size", batch_size, minimum=1, integer=True)
    return min(int(batch_size), n_samples)


class Batches:
    """The order of the samples, epoch by epoch, on the device; the last batch may be smaller.

    Parameters
    ----------
    backend : Backend
    n_samples, n_rows : int
        Samples of an epoch, and rows of a full batch.
    order : callable, optional
        ``order(epoch)``, called once for each epoch in turn: the row numbers of the samples as a
        NumPy array of shape ``(n_samples,)``. Default: the order of the data.
    pure : bool, default False
        Whether nothing but its result comes of a call: then an epoch may be asked for early, and
        never come.
    """

    def __init__(
        self,
        backend: Backend,
        n_samples: int,
        n_rows: int,
        order: Callable[[int], Any] | None = None,
        *,
        pure: bool = False,
    ) -> None:
        self.backend = backend
        self.n_samples = n_samples
        self.n_rows = n_rows
        self._order = order
        self._pure = pure
        self._drawn: tuple[int, Any, Array] | None = None
        self._ahead: tuple[int, Any, Array] | None = None

    def __len__(self) -> int:
        return (self.n_samples + self.n_rows - 1) // self.n_rows

    def order(self, epoch: int) -> Array:
        """The row numbers of an epoch, batch after batch."""
        if self._drawn is None or (self._order and self._drawn[0] != epoch):
            known = self._ahead is not None and self._ahead[0] == epoch
            self._drawn = self._ahead if known else self._draw(epoch)
            self._ahead = None
        assert self._drawn is not None
        return self._drawn[2]

    def draw_ahead(self, epoch: int) -> None:
        """Draw what may be drawn early of an epoch that is to come, while a device is busy."""
        if self._order and self._pure:
            self._ahead = self._draw(epoch)

    def _draw(self, epoch: int) -> tuple[int, Any, Array]:
        rows = self._order(epoch) if self._order else host().xp.arange(self.n_samples)
        return epoch, rows, self.backend.from_host(rows)

    def on_host(self, epoch: int) -> Any:
        """The same as a NumPy array."""
        self.order(epoch)
        assert self._drawn is not None
        return self._drawn[1]

    def epoch(self, epoch: int) -> Iterator[Array]:
        """The row numbers of each batch of an epoch."""
        order = self.order(epoch)
        for part in blocks(self.n_samples, self.n_rows):
            yield order[part]


def shuffled(seed: int, n_samples: int) -> Callable[[int], Any]:
    """The order of :class:`Batches` that is a new permutation every epoch."""

    def order(epoch: int) -> Any:
        drawn = host().generator(stream(seed, "shuffle", epoch=epoch))
        return drawn.permutation(n_samples)

    return order


def blocks(n: int, n_rows: int) -> Iterator[slice]:
    """Slices of `n_rows` that cover 0 to n; the last may be shorter."""
    for start in range(0, n, n_rows):
        yield slice(start, min(start + n_rows, n))


def to_backend(backend: Backend, x: Array) -> Array:
    """`x` on the backend's device, as it is if it is there already."""
    return x if backend.owns(x) else backend.from_host(backend_of(x).to_host(x))


def like(value: Any, backend: Backend, result: Array) -> Any:
    """`result` in the library and on the device of the caller's `value`; of a list, in NumPy's."""
    if backend.owns(value):
        return result
    hosted = backend.to_host(result)
    return backend_of(value).from_host(hosted) if is_foreign(value) else hosted


def is_foreign(value: Any) -> bool:
    """Whether `value` is an array of a library other than NumPy."""
    return bool(array_api_compat.is_array_api_obj(value)) and not host().owns(value)


def _real_array(value: Any, name: str) -> Any:
    if hasattr(type(value), "toarray"):
        raise TypeError(f"{name} must be a dense array, got sparse {type(value).__name__}")
    if hasattr(type(value), "filled"):
        raise TypeError(f"{name} must be a plain array, got {type(value).__name__}; fill it first")
    if hasattr(type(value), "to_numpy"):
        value = _numbers_of_table(value.to_numpy(), name)
    if host().owns(value) or not array_api_compat.is_array_api_obj(value):
        try:
            value = host().from_host(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name} must be an array of real numbers, got {type(value).__name__} ({error})"
            ) from None
    xp = array_api_compat.array_namespace(value)
    if not xp.isdtype(value.dtype, ("bool", "integral", "real floating")):
        raise TypeError(f"{name} must hold real numbers, got dtype {dtype_name(value)}")
    return value


def _numbers_of_table(array: Any, name: str) -> Any:
    """The values of a table or a column of one, whose columns may be of several kinds."""
    if str(array.dtype) != "object":
        return array
    values = array.reshape(-1).tolist()
    for value in values:
        if not isinstance(value, Real):
            raise TypeError(f"{name} must hold real numbers, got {value!r}")
    whole = all(isinstance(value, Integral) for value in values)
    return array.astype("int64" if whole else "float64")


def _check_values(x: Any, name: str, dtype: str) -> None:
    xp = array_api_compat.array_namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        return
    largest = float(host().xp.finfo(getattr(host().xp, dtype)).max)
    wider = float(xp.finfo(x.dtype).max) > largest
    with backend_of(x).context():
        width = math.prod(x.shape[1:])
        # A finite sum has finite terms, and to add is faster than to look at each.
        parts = blocks(x.shape[0], max(1, _SUM_ELEMENTS // width))
        if not wider and all(bool(xp.isfinite(xp.sum(x[part, ...]))) for part in parts):
            return
        for part in blocks(x.shape[0], max(1, _CHECK_ELEMENTS // width)):
            rows = x[part, ...]
            if not bool(xp.all(xp.isfinite(rows))):
                what = "NaN" if bool(xp.any(xp.isnan(rows))) else "infinity"
                raise ValueError(f"{name} contains {what}, expected finite numbers")
            if wider and not bool(xp.all(xp.abs(rows) <= largest)):
                raise ValueError(f"{name} contains a value too large for {dtype}")
