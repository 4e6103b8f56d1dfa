"""The NumPy adapter: the CPU, and the host of everything that is drawn or read there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any, cast

import array_api_compat.numpy
import numpy as np

from xpmlp.backends import Array, Backend, Kernel, ReferenceBackend, Rule, functions_of
from xpmlp.rng import Stream
from xpmlp.tape import StepRecorder
from xpmlp.tracing import FUNCTIONS
from xpmlp.typing import Operand, Replay, RuleFunctions
from xpmlp_numpy.ufuncs import Kinds, Program, kinds_of

_log = logging.getLogger("xpmlp")

# Elements, of eight bytes, that a rule is applied to at a time: its scratch stays in the cache, and
# its size does not grow with the batch or the number of parameters.
BLOCK = 16384
# Elements up to which a rule is applied as it is: temporaries so small cost less than to look up
# how to do without.
SMALL = 2048
# Elements from which a compiled rule, where Numba is installed, saves enough to be worth compiling.
THRESHOLD = 32768
# A run that takes so long one primitive at a time is captured. Loading what is compiled takes a
# part of it, compiling what no run has needed before some seconds.
SECONDS_TO_CAPTURE = 1.0


class NumpyBackend(ReferenceBackend):
    """NumPy arrays in host memory."""

    name = "numpy"
    library = "numpy"

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(array_api_compat.numpy, device)
        self._kernels: dict[Rule, Kernel] = {}
        self._ones: dict[str, np.ndarray[Any, Any]] = {}

    @cached_property
    def functions(self) -> RuleFunctions:  # type: ignore[override]
        return _Functions()

    @classmethod
    def version(cls) -> str:
        return f"NumPy {np.__version__}"

    def memory(self) -> tuple[int, int] | None:
        import os

        try:
            page = os.sysconf("SC_PAGE_SIZE")
            return page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, OSError, ValueError):  # not a POSIX system
            return None

    def context(self) -> AbstractContextManager[Any]:
        # Overflow shows up in the loss, where training stops with an error that says where.
        return np.errstate(all="ignore")

    def owns(self, x: object) -> bool:
        return isinstance(x, np.ndarray)

    def from_host(self, x: Any) -> Array:
        array = np.asarray(x)
        # Foreign byte orders, float16 and long double: what no other library takes.
        if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
            array = array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
        elif not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        return cast(Array, array)

    def to_host(self, x: Array) -> Any:
        return np.asarray(x)

    def copy(self, x: Array, out: Array) -> None:
        out[...] = x

    def matmul(self, a: Array, b: Array, out: Array) -> None:
        np.matmul(_nd(a), _nd(b), out=_nd(out))

    def elementwise(self, rule: Rule) -> Kernel:
        if rule not in self._kernels:
            self._kernels[rule] = _kernel(rule, self.functions)
        return self._kernels[rule]

    def sum_columns(self, x: Array, out: Array) -> None:
        # A product with ones: fast, and more accurate than adding row by row.
        rows, dtype = x.shape[-2], _nd(x).dtype
        ones = self._ones.get(dtype.char)
        if ones is None or ones.size < rows:
            ones = self._ones[dtype.char] = np.ones(rows, dtype)  # threads may do this twice
        np.matmul(ones[:rows], _nd(x), out=_nd(out))

    def sum_rows(self, x: Array, out: Array) -> None:
        np.add.reduce(_nd(x), axis=-1, keepdims=True, out=_nd(out))

    def max_rows(self, x: Array, out: Array) -> None:
        np.maximum.reduce(_nd(x), axis=-1, keepdims=True, out=_nd(out))

    def total(self, x: Array, out: Array) -> None:
        np.add.reduce(_nd(x), axis=None, dtype=_nd(out).dtype, out=_nd(out))

    def total_squares(self, x: Array, out: Array) -> None:
        flat = _nd(x).reshape(-1)
        out[...] = 0.0
        for start in range(0, flat.size, BLOCK):
            part = flat[start : start + BLOCK].astype(out.dtype, copy=False)
            out += part @ part

    def take_rows(self, x: Array, indices: Array, out: Array) -> None:
        if x.dtype == out.dtype and _nd(x).flags.c_contiguous:
            # mode="clip" writes straight into `out`; the default goes through a buffer. Of an
            # array in another order `take` would make a whole copy.
            _nd(x).take(_nd(indices), axis=0, out=_nd(out), mode="clip")
            return
        rows = max(1, BLOCK // max(1, out.size // out.shape[0]))
        for start in range(0, out.shape[0], rows):
            out[start : start + rows] = x[indices[start : start + rows]]

    def fill_uniform(self, out: Array, stream: Stream) -> None:
        self.generator(stream).random(out=_nd(out), dtype=np.float32)

    def recordable(self) -> Backend:
        # What an adapter derived from this one overrides would not be captured.
        if type(self) is NumpyBackend and numba_installed():
            return cast(Backend, Recorder(self))
        return self

    def generator(self, stream: Stream) -> np.random.Generator:
        bits = np.random.Philox(key=stream.key, counter=stream.counter)
        return np.random.Generator(bits)


class Recorder(StepRecorder):
    """Stands in for the adapter in a step, which so can be written down."""

    def capture(
        self, step: Callable[[int], None], n: int, n_steps: int, work: float
    ) -> Replay | None:
        # What Python's part of a step takes, and its products.
        if n_steps * (2.5e-4 + work / 1e11) < SECONDS_TO_CAPTURE or not numba_works():
            return None
        from xpmlp_numpy.capture import Tape, capture

        return capture(lambda: self.record(step, n, Tape), work)


class _Functions:
    """NumPy's functions for rules, and SciPy's erf, loaded when a rule first asks for it."""

    abs = np.abs
    exp = np.exp
    expm1 = np.expm1
    log = np.log
    log1p = np.log1p
    maximum = np.maximum
    minimum = np.minimum
    sign = np.sign
    sqrt = np.sqrt
    tanh = np.tanh
    where = staticmethod(np.where)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a rule cannot call {name!r}, only {', '.join(FUNCTIONS)}")

    @cached_property
    def erf(self) -> Callable[[Any], Any]:
        try:
            from scipy.special import erf
        except ImportError:  # scikit-learn brings it, but a bare checkout runs too
            erf = functions_of(array_api_compat.numpy).erf
        # SciPy wraps it for other libraries' arrays if SCIPY_ARRAY_API is set.
        function: Callable[[Any], Any] = getattr(erf, "__wrapped__", erf)
        return function


def _kernel(rule: Rule, functions: Any) -> Kernel:
    """A kernel that runs a rule compiled, or block by block."""
    programs: dict[tuple[Any, Kinds], Program | None] = {}  # None: the rule is applied as it is

    def kernel(outs: tuple[Array, ...], *operands: Operand) -> None:
        size = outs[0].size
        if size > BLOCK and size >= THRESHOLD and numba_works():
            from xpmlp_numpy.kernels import run_rule

            if run_rule(rule, outs, operands):
                return
        if size > SMALL and (kinds := kinds_of(outs, operands)):
            key = _nd(outs[0]).dtype, kinds
            if key not in programs:
                try:
                    made = Program(rule, functions, str(outs[0].dtype), kinds, len(outs))
                except Exception:  # whatever a rule raises that does more than it may
                    made = None
                programs[key] = made
            found = programs[key]
            if found is not None and found.suits(outs, operands):
                found(outs, operands, 8 * BLOCK)
                return
        _apply(rule, functions, outs, operands)

    return kernel


def _apply(
    rule: Rule, functions: Any, outs: tuple[Array, ...], operands: tuple[Operand, ...]
) -> None:
    """Apply a rule as it is, block by block along the first axis."""

    def run(outs: tuple[Array, ...], operands: tuple[Operand, ...]) -> None:
        results = rule(functions, *operands)
        if len(outs) == 1:
            outs[0][...] = results
            return
        for out, result in zip(outs, results, strict=True):
            out[...] = result

    shape = outs[0].shape
    if outs[0].size <= BLOCK:
        run(outs, operands)
        return
    if all(_is_scalar(x) or _is_flat(x, shape) for x in (*outs, *operands)):
        outs = tuple(_nd(out).reshape(-1) for out in outs)
        operands = tuple(x if _is_scalar(x) else _nd(x).reshape(-1) for x in operands)
        shape = outs[0].shape
    rows = max(1, BLOCK * shape[0] // outs[0].size)
    sliced = [
        not _is_scalar(x) and _nd(x).ndim == len(shape) and _nd(x).shape[0] == shape[0]
        for x in operands
    ]
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        run(
            tuple(out[part] for out in outs),
            tuple(
                x[part] if cut else x  # type: ignore[index]
                for x, cut in zip(operands, sliced, strict=True)
            ),
        )


@cache
def numba_installed() -> bool:
    return find_spec("numba") is not None


@cache
def numba_works() -> bool:
    """Whether Numba is there, can be imported, which takes a while, and compiles."""
    if not numba_installed():
        return False
    try:
        import numba
    except Exception as error:  # NumPy is newer than it knows, or it is broken
        _log.info("nothing is compiled: Numba cannot be imported (%s)", error)
        return False
    return not numba.config.DISABLE_JIT


def _is_scalar(x: Any) -> bool:
    return getattr(x, "ndim", 0) == 0


def _is_flat(x: Any, shape: tuple[int, ...]) -> bool:
    return x.shape == shape and bool(x.flags.c_contiguous)


def _nd(x: Any) -> np.ndarray[Any, Any]:
    """The same array, for the type checker."""
    array: np.ndarray[Any, Any] = x
    return array
