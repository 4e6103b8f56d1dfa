"""Adapters: the reference implementation of the primitives, and the way to find an adapter.

The library names its adapters only as strings and imports one when it is asked for. Third
parties add theirs through the entry-point group ``xpmlp.backends``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, cached_property
from importlib import import_module
from math import isfinite
from threading import Lock
from typing import Any, Self, cast

import array_api_compat

from xpmlp import rules
from xpmlp.errors import (
    BackendUnavailableError,
    DeviceFallbackWarning,
    unknown_name,
    warn_user,
)
from xpmlp.rng import Stream
from xpmlp.typing import (
    Array,
    Backend,
    DTypePolicy,
    Host,
    HostMatrix,
    Kernel,
    Namespace,
    Operand,
    Replay,
    Rule,
    RuleFunctions,
)

__all__ = [
    "Array",
    "Backend",
    "DTypePolicy",
    "Kernel",
    "Namespace",
    "ReferenceBackend",
    "Rule",
    "available_backends",
    "backend_of",
    "get_backend",
    "host",
]

# In order of preference for device="auto", which NumPy always can serve. Found by name, so that a
# bare checkout works too.
_SHIPPED = {
    "cupy": "xpmlp_cupy:CupyBackend",
    "numpy": "xpmlp_numpy:NumpyBackend",
    "torch": "xpmlp_torch:TorchBackend",
}
_ENTRY_POINTS = "xpmlp.backends"


def functions_of(xp: Namespace) -> RuleFunctions:
    """The functions for rules, from an Array API namespace alone."""

    class Functions:
        abs = staticmethod(xp.abs)
        exp = staticmethod(xp.exp)
        expm1 = staticmethod(xp.expm1)
        log = staticmethod(xp.log)
        log1p = staticmethod(xp.log1p)
        maximum = staticmethod(xp.maximum)
        minimum = staticmethod(xp.minimum)
        sign = staticmethod(xp.sign)
        sqrt = staticmethod(xp.sqrt)
        tanh = staticmethod(xp.tanh)
        where = staticmethod(xp.where)

        @staticmethod
        def erf(x: Any) -> Any:
            # The standard has no erf. This series (DLMF 7.6.2) has positive terms only, so
            # nothing cancels; from |x| = 5.9 on the result is 1 in float64.
            inner = xp.maximum(xp.minimum(x, 5.9), -5.9)
            term = total = inner
            for n in range(1, 150):
                term = term * (inner * inner) * (2.0 / (2 * n + 1))
                total = total + term
            series = 1.1283791670955126 * xp.exp(-inner * inner) * total  # 2/sqrt(pi)
            bounded = xp.maximum(xp.minimum(series, 1.0), -1.0)
            return xp.where(xp.abs(x) < 5.9, bounded, xp.sign(x))

    return cast(RuleFunctions, Functions)


class ReferenceBackend(Backend):
    """Every primitive by Array API functions alone: right for any conforming library, not fast.

    Parameters
    ----------
    xp : namespace
        The library's Array API namespace.
    device : str
        The name under which the device is known to users.
    xp_device : object, optional
        The library's own device object; None for its default device.
    """

    name = "array-api"
    library = ""
    immediate = True
    policies: tuple[DTypePolicy, ...] = (
        DTypePolicy("float32", "float32", "float64"),
        DTypePolicy("float64", "float64", "float64"),
    )
    precisions: tuple[str, ...] = ("ieee",)
    precision = "ieee"

    def __init__(self, xp: Namespace, device: str = "cpu", xp_device: Any = None) -> None:
        self.xp = xp
        self.device = device
        self.xp_device = xp_device

    def __deepcopy__(self, memo: dict[int, Any]) -> ReferenceBackend:
        return self  # one for each device

    def __reduce__(self) -> tuple[Any, ...]:
        return reopen, (self.device, self.name, self.precision)

    def __repr__(self) -> str:
        precision = "" if self.precision == "ieee" else f" in {self.precision}"
        return f"<{self.name} adapter on {self.device}{precision}>"

    @cached_property
    def functions(self) -> RuleFunctions:  # type: ignore[override]
        return functions_of(self.xp)

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        return ("cpu",)

    @classmethod
    def version(cls) -> str:
        return "unknown"

    @classmethod
    def accepts(cls, device: str) -> bool:
        return device == "cpu"

    def with_precision(self, name: str) -> Self:
        if name not in self.precisions:
            known = ", ".join(repr(precision) for precision in self.precisions)
            raise ValueError(f"precision must be one of {known} on {self!r}, got {name!r}")
        if name not in self._by_precision:
            other = object.__new__(type(self))
            # The same arrays, and what else is kept by now.
            vars(other).update(vars(self), precision=name)
            return self._by_precision.setdefault(name, other)
        return self._by_precision[name]

    @cached_property
    def _by_precision(self) -> dict[str, Self]:
        return {self.precision: self}

    def memory(self) -> tuple[int, int] | None:
        return None

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def synchronize(self) -> None:
        pass

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return cast(Array, self.xp.empty(shape, dtype=self._dtype(dtype), device=self.xp_device))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        return cast(Array, self.xp.zeros(shape, dtype=self._dtype(dtype), device=self.xp_device))

    def owns(self, x: object) -> bool:
        if not array_api_compat.is_array_api_obj(x):
            return False
        here = self.xp_device
        return array_api_compat.array_namespace(x) is self.xp and (
            here is None or array_api_compat.device(x) == here
        )

    def from_host(self, x: Any) -> Array:
        return cast(Array, self.xp.asarray(x, device=self.xp_device))

    def to_host(self, x: Array) -> Any:
        try:
            return host().from_host(x)
        except (RuntimeError, TypeError, ValueError) as error:  # not in host memory
            for device in ("cpu", self.xp.__array_namespace_info__().default_device()):
                with suppress(Exception):  # every library has errors of its own
                    return host().from_host(array_api_compat.to_device(x, device))
            raise error

    def read(self, x: Array) -> float:
        return float(cast(Any, x))

    def finite(self, x: Array) -> bool:
        return isfinite(self.read(x))

    def copy(self, x: Array, out: Array) -> None:
        out[...] = self.xp.astype(x, out.dtype, copy=False)

    def load_rows(self, x: HostMatrix, rows: Any, out: Array) -> None:
        self.copy(self.from_host(x[rows]), out)

    def matmul(self, a: Array, b: Array, out: Array) -> None:
        out[...] = self.xp.matmul(a, b)

    def elementwise(self, rule: Rule) -> Kernel:
        def kernel(outs: tuple[Array, ...], *operands: Operand) -> None:
            results = rule(self.functions, *operands)
            for out, result in zip(
                outs, results if isinstance(results, tuple) else (results,), strict=True
            ):
                out[...] = result

        return kernel

    def sum_columns(self, x: Array, out: Array) -> None:
        out[...] = self.xp.sum(x, axis=-2)

    def sum_rows(self, x: Array, out: Array) -> None:
        out[...] = self.xp.sum(x, axis=-1, keepdims=True)

    def max_rows(self, x: Array, out: Array) -> None:
        out[...] = self.xp.max(x, axis=-1, keepdims=True)

    def total(self, x: Array, out: Array) -> None:
        out[...] = self.xp.sum(x, dtype=out.dtype)

    def total_squares(self, x: Array, out: Array) -> None:
        wide = self.xp.astype(x, out.dtype, copy=False)
        out[...] = self.xp.sum(wide * wide)

    def softmax_log_loss(
        self,
        logits: Array,
        y: Array,
        elements: Array,
        d: Array,
        columns: tuple[Array, Array, Array],
    ) -> None:
        maximum, total, target_total = columns
        exp_of_rows(self, logits, d, maximum, total)
        self.sum_rows(y, target_total)
        self.elementwise(rules.categorical_log_loss_from_softmax)(
            (elements, d), d, logits, y, maximum, total, target_total
        )

    def take_rows(self, x: Array, indices: Array, out: Array) -> None:
        self.copy(self.xp.take(x, indices, axis=0), out)

    def recordable(self) -> Backend:
        return self

    def capture(
        self, step: Callable[[int], None], n: int, n_steps: int, work: float
    ) -> Replay | None:
        return None

    def fill_uniform(self, out: Array, stream: Stream) -> None:
        drawn = host().empty(out.shape, "float32")
        host().fill_uniform(drawn, stream)
        out[...] = self.from_host(drawn)

    def _dtype(self, name: str) -> Any:
        return getattr(self.xp, name)


def exp_of_rows(backend: Backend, z: Array, e: Array, maximum: Array, total: Array) -> None:
    """The numerators and the denominator of softmax: ``e = exp(z - maximum)`` and its row sums.

    Subtracting the row maximum changes no quotient but keeps exp from overflowing. `maximum` and
    `total`, of shape ``(n, 1)``, may be one array, which then ends as the sums.
    """
    backend.max_rows(z, maximum)
    backend.elementwise(rules.exp_shifted)((e,), z, maximum)
    backend.sum_rows(e, total)


def sum_of(backend: Backend, x: Array, dtype: str) -> float:
    """The sum of all elements of `x`, accumulated in `dtype`; waits for the device."""
    total = backend.empty((), dtype)
    backend.total(x, total)
    return backend.read(total)


def available_backends() -> dict[str, str]:
    """The state of every known adapter on this machine.

    Returns
    -------
    dict of str to str
        Adapter name to ``"usable"``, or to the reason why it cannot be used.
    """
    return {name: _why_not(name) or "usable" for name in _known()}


def get_backend(device: str = "auto", name: str | None = None, fallback: bool = True) -> Backend:
    """The adapter for a device.

    Parameters
    ----------
    device : str, default "auto"
        ``"auto"`` (the best device that works), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or what a
        third party's adapter adds.
    name : str, optional
        Take this adapter only, for instance ``"cupy"``; see :func:`available_backends`.
    fallback : bool, default True
        If the device cannot be used, take the CPU with a :class:`DeviceFallbackWarning` that
        states the reason. False raises instead.

    Returns
    -------
    Backend
        One instance per adapter and device; later calls return the same.

    Raises
    ------
    BackendUnavailableError
        If the device cannot be used and `fallback` is False.
    ValueError
        If no adapter knows the device or the name.
    """
    if not isinstance(device, str):
        raise TypeError(f"device must be a string such as 'cpu' or 'cuda:0', got {device!r}")
    names = list(_known())
    if name is not None and name not in names:
        raise unknown_name("backend", name, names)
    candidates = names if name is None else [name]
    reasons = []
    responsible = False
    for candidate in candidates:
        try:
            adapter = backend_class(candidate)
            accepted = device == "auto" or adapter.accepts(device)
        except Exception:  # a third party's package is broken
            reasons.append(f"{candidate}: {_why_not(candidate)}")
            continue
        if not accepted:
            continue
        responsible = True
        reason = _why_not(candidate)
        if reason is None:
            try:
                devices = adapter.devices()
                chosen = devices[0] if device == "auto" else _match(device, devices)
                if chosen is not None:
                    return _open(candidate, chosen)
                reason = f"it has only {', '.join(devices)}"
            except Exception as error:  # whatever a driver or a third party's package raises
                reason = f"{type(error).__name__}: {error}"
        reasons.append(f"{candidate}: {reason}")
    if not responsible and (name is None or not reasons):
        who = f"the {name} adapter" if name else "any adapter"
        raise ValueError(
            f"device={device!r} is not known to {who}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'"
        )
    wanted = f"device={device!r}" + (f", backend={name!r}" if name else "")
    message = f"{wanted} cannot be used ({'; '.join(reasons)})"
    if not fallback or device == "cpu":
        raise BackendUnavailableError(message)
    warn_user(f"{message}; falling back to the CPU", DeviceFallbackWarning)
    return host()


def reopen(device: str, name: str, precision: str = "ieee") -> Backend:
    """The adapter that something was pickled on; where it is missing, the CPU with a warning."""
    if name in _known():
        backend = get_backend(device, name)
        return backend.with_precision(offered(precision, backend))
    warn_user(f"the adapter {name!r} is not installed; taking the CPU", DeviceFallbackWarning)
    return host()


def offered(precision: str, backend: Backend) -> str:
    """The precision, or where the device does not offer it IEEE arithmetic, which is stricter."""
    return precision if precision in backend.precisions else "ieee"


def host() -> Host:
    """The NumPy adapter: it draws what is drawn on the host, and every file passes through it."""
    return cast(Host, _open("numpy", "cpu"))


def backend_of(x: Array) -> Backend:
    """The adapter for the library and device that the array `x` lives on.

    An array of a library without an adapter gets the reference adapter for its namespace.
    """
    if host().owns(x):
        return host()
    library = type(x).__module__.partition(".")[0]
    for name in _known():
        if _library(name) == library and _why_not(name) is None:
            for label in backend_class(name).devices():
                backend = _open(name, label)
                if backend.owns(x):
                    return backend
    device = array_api_compat.device(x)
    return ReferenceBackend(array_api_compat.array_namespace(x), str(device), device)


class Held:
    """A setting of the whole process, made when the first enters and undone when the last leaves.

    Parameters
    ----------
    make : callable
        Makes it, and returns what undoes it.
    """

    def __init__(self, make: Callable[[], Callable[[], None]]) -> None:
        self._make = make
        self._lock, self._inside = Lock(), 0
        self._undo: Callable[[], None] = lambda: None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._undo = self._make()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo()


_instances: dict[tuple[str, str], Backend] = {}


def _open(name: str, device: str) -> Backend:
    if (name, device) not in _instances:
        _instances[name, device] = cast(Any, backend_class(name))(device)
    return _instances[name, device]


def _match(device: str, devices: tuple[str, ...]) -> str | None:
    """`device` among `devices`; without an index it is the first of its kind."""
    kind = re.compile(rf"{re.escape(device)}(:\d+)?")
    return next((d for d in devices if d == device or kind.fullmatch(d)), None)


@cache
def _known() -> dict[str, str]:
    from importlib.metadata import entry_points  # takes as long to import as half of xpmlp

    third_party = {
        point.name: point.value
        for point in entry_points(group=_ENTRY_POINTS)
        if point.name not in _SHIPPED
    }
    return _SHIPPED | third_party


@cache
def backend_class(name: str) -> type[Backend]:
    """The class of an adapter, without opening a device."""
    module, _, attribute = _known()[name].partition(":")
    return cast("type[Backend]", getattr(import_module(module), attribute))


def _library(name: str) -> str | None:
    try:
        return backend_class(name).library
    except Exception:  # a third party's package is broken
        return None


def _why_not(name: str) -> str | None:
    try:
        adapter = backend_class(name)
        reason = adapter.unavailable()
        if reason is None:
            adapter.devices()  # that it can tell them is the least
        return reason
    except Exception as error:
        return f"its package cannot be used ({type(error).__name__}: {error})"


def dtype_name(x: Array) -> str:
    """The name of an array's dtype, such as ``"float32"``, in any library."""
    return str(x.dtype).rpartition(".")[2]
