"""What the library asks of arrays, namespaces and adapters, as typed protocols."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from xpmlp.rng import Stream


class Array(Protocol):
    """The part of the Array API's array object that the core uses."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def size(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def mT(self) -> Any: ...  # the standard's name

    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...


Operand: TypeAlias = "Array | float"


class Namespace(Protocol):
    """An Array API namespace (``xp``): functions looked up by their standard names."""

    def __getattr__(self, name: str) -> Any: ...


class RuleFunctions(Protocol):
    """The functions that an element-wise rule may call on the namespace it is given."""

    @property
    def abs(self) -> Callable[..., Any]: ...
    @property
    def erf(self) -> Callable[..., Any]: ...
    @property
    def exp(self) -> Callable[..., Any]: ...
    @property
    def expm1(self) -> Callable[..., Any]: ...
    @property
    def log(self) -> Callable[..., Any]: ...
    @property
    def log1p(self) -> Callable[..., Any]: ...
    @property
    def maximum(self) -> Callable[..., Any]: ...
    @property
    def minimum(self) -> Callable[..., Any]: ...
    @property
    def sign(self) -> Callable[..., Any]: ...
    @property
    def sqrt(self) -> Callable[..., Any]: ...
    @property
    def tanh(self) -> Callable[..., Any]: ...
    @property
    def where(self) -> Callable[..., Any]: ...


Rule: TypeAlias = Callable[..., Any]
"""``rule(xp, *operands)``: a pure function of values; see :mod:`xpmlp.rules`."""


class HostMatrix(Protocol):
    """A matrix in host memory, dense or sparse."""

    shape: tuple[int, ...]
    dtype: Any

    def __getitem__(self, rows: Any, /) -> Any:
        """Rows as a NumPy array."""

    def write(self, rows: Any, out: Any) -> None:
        """Write rows to a NumPy array of the same dtype."""


class Kernel(Protocol):
    """A rule made runnable by an adapter: writes its results into `outs`."""

    def __call__(self, outs: tuple[Array, ...], *operands: Operand) -> None: ...


@dataclass(frozen=True)
class DTypePolicy:
    """One combination of dtypes that an adapter can train in.

    Attributes
    ----------
    parameter : str
        dtype of parameters, gradients and optimizer state.
    compute : str
        dtype of activations and error terms.
    accumulate : str
        dtype in which the loss and norms are summed.
    """

    parameter: str
    compute: str
    accumulate: str


class Backend(Protocol):
    """What an adapter offers: one library's arrays on one device.

    The primitives below are all that the network, the optimizers and the training loop are
    written in. Arrays of `matmul`, `elementwise` and the sums and maxima of rows and columns may
    have leading axes in front of the ones named; ``out`` arrays are C-contiguous.
    :class:`xpmlp.backends.ReferenceBackend` implements every primitive with Array API functions
    alone, so an adapter derives from it and overrides what it can do better.
    """

    name: str
    """The adapter's name, for instance ``"numpy"``."""
    library: str
    """The top-level module that the library's arrays come from, for instance ``"numpy"``."""
    device: str
    """The device this instance computes on, for instance ``"cpu"`` or ``"cuda:0"``."""
    xp: Namespace
    """The library's Array API namespace."""
    functions: RuleFunctions
    """The functions given to rules."""
    immediate: bool
    """Whether results are there when a call returns, so that reading one waits for nothing."""
    policies: tuple[DTypePolicy, ...]
    """The dtype combinations that can be trained."""
    precisions: tuple[str, ...]
    """How it can compute: ``"ieee"``, and what it offers besides."""
    precision: str
    """How this instance computes."""

    @classmethod
    def unavailable(cls) -> str | None:
        """Why the adapter cannot be used on this machine, or None if it can."""

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """The usable devices, the default one first."""

    @classmethod
    def version(cls) -> str:
        """The version of the array library (and of what it drives)."""

    @classmethod
    def accepts(cls, device: str) -> bool:
        """Whether `device` is one of the device strings this adapter is responsible for."""

    def with_precision(self, name: str) -> Backend:
        """The adapter on the same device that computes in `name`, one of `precisions`."""

    def memory(self) -> tuple[int, int] | None:
        """Free and total bytes of the device, or None if unknown."""

    def context(self) -> AbstractContextManager[Any]:
        """Makes this device the current one for the calls inside a ``with`` block."""

    def synchronize(self) -> None:
        """Wait until all work given to the device is done."""

    # Allocation and transfer. Where a device's memory ends, xpmlp.DeviceMemoryError is raised.
    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new uninitialised C-contiguous array."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new C-contiguous array of zeros."""

    def owns(self, x: object) -> bool:
        """Whether `x` is this library's array on this device."""

    def from_host(self, x: Any) -> Array:
        """The NumPy array `x` on this device, dtype unchanged; may share memory."""

    def to_host(self, x: Array) -> Any:
        """`x` as a NumPy array; may share memory."""

    def read(self, x: Array) -> float:
        """The value of an array of size one; waits for the device."""

    def copy(self, x: Array, out: Array) -> None:
        """``out[...] = x``, cast to the dtype of `out`."""

    def load_rows(self, x: HostMatrix, rows: Any, out: Array) -> None:
        """Write rows of a matrix in host memory to `out`, cast to its dtype.

        `rows` is a slice or a NumPy array of row numbers. The call may return before they are
        there; what is computed after it finds them.
        """

    # Computation.
    def matmul(self, a: Array, b: Array, out: Array) -> None:
        """``out[...] = a @ b``; `a` and `b` may be transposed views."""

    def elementwise(self, rule: Rule) -> Kernel:
        """A kernel that applies `rule`.

        ``kernel(outs, *operands)``: operands are numbers or arrays that broadcast against the
        outputs, all of which have one shape; an output may be one of the operands.
        """

    def sum_columns(self, x: Array, out: Array) -> None:
        """Sum over rows: `x` of shape ``(n, d)`` into `out` of shape ``(d,)``."""

    def sum_rows(self, x: Array, out: Array) -> None:
        """Sum of each row: `x` of shape ``(n, d)`` into `out` of shape ``(n, 1)``."""

    def max_rows(self, x: Array, out: Array) -> None:
        """Maximum of each row: `x` of shape ``(n, d)`` into `out` of shape ``(n, 1)``."""

    def total(self, x: Array, out: Array) -> None:
        """Sum of all elements, accumulated in the dtype of `out`, which is 0-d."""

    def total_squares(self, x: Array, out: Array) -> None:
        """Sum of the squares of all elements, accumulated in the dtype of `out`, which is 0-d."""

    def finite(self, x: Array) -> bool:
        """Whether the element of an array of size one is finite; waits for the device."""

    def softmax_log_loss(
        self,
        logits: Array,
        y: Array,
        elements: Array,
        d: Array,
        columns: tuple[Array, Array, Array],
    ) -> None:
        """Multiclass log loss of ``softmax(logits)``, and its derivative by the logits.

        Writes ``y * (log sum(exp(logits)) - logits)`` into `elements` and
        ``sum(y) * softmax(logits) - y`` into `d`, where sums run over a row; `y` may hold any
        shares of the classes. All are of shape ``(n, k)``; `columns` are scratch of shape
        ``(n, 1)``. No two share memory.
        """

    def take_rows(self, x: Array, indices: Array, out: Array) -> None:
        """``out[...] = x[indices]``, cast to the dtype of `out`; indices are in range."""

    def fill_uniform(self, out: Array, stream: Stream) -> None:
        """Fill the float32 array `out` with the uniforms in [0, 1) of an addressed stream."""

    # Many steps at once.
    def recordable(self) -> Backend:
        """An adapter that computes the same, and that :meth:`capture` can write down."""

    def capture(
        self, step: Callable[[int], None], n: int, n_steps: int, work: float
    ) -> Replay | None:
        """`n` consecutive steps as one call, or None where that cannot be done or does not pay.

        ``step(i)`` does the work of step i by primitives of :meth:`recordable` alone. Steps differ
        in nothing but the numbers in their operands, the place of these in larger arrays, which
        advances evenly, and the batch of a stream.

        Parameters
        ----------
        step : callable
        n : int
        n_steps : int
            All steps that are to come.
        work : float
            Multiplications and additions of a step's matrix products, roughly.
        """


class Replay(Protocol):
    """Steps that an adapter has captured."""

    def __call__(self, n: int, epoch: int, batch: int) -> int:
        """Do the first `n` steps; returns how many were done.

        It is fewer if `finite` did not hold in the one after these. Streams draw what they do in
        `epoch` at batches from `batch` on.
        """


class Host(Backend, Protocol):
    """The adapter that also draws what only the host can draw."""

    def generator(self, stream: Stream) -> Any:
        """A ``numpy.random.Generator`` at an address."""
