"""Matrix products by cublasLt, NVIDIA's library of products that keeps no state of its own.

Each product is given its stream and its workspace, which is what a CUDA graph can capture; CuPy
refuses cuBLAS's own handle there. The constants and structures are those of ``cublasLt.h``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from copy import copy
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache
from typing import Any, NamedTuple

# Of each kind of product: the operands' cudaDataType_t, the result's, and what is computed in.
_F32, _F64, _BF16 = 0, 1, 14
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70
KINDS = {
    "float32": (_F32, _F32, _COMPUTE_32F),
    "tf32": (_F32, _F32, _COMPUTE_32F_FAST_TF32),
    "bfloat16": (_BF16, _F32, _COMPUTE_32F),
    "float64": (_F64, _F64, _COMPUTE_64F),
}
# Attributes of a description and of what is asked of the heuristic.
TRANSPOSE_A, TRANSPOSE_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8
MAX_WORKSPACE, REDUCTION_SCHEMES, ALIGNMENT_A, ALIGNMENT_B, ALIGNMENT_C, ALIGNMENT_D = (
    1,
    3,
    5,
    6,
    7,
    8,
)
# Parts of a long sum are added up in a workspace, in a fixed order. What is left out, adding in
# place, is done in the order in which the parts happen to end.
_REPRODUCIBLE = 2 | 4
# What is done with a product before it is written: a vector is added to each row, and then ReLU
# taken.
BIAS, RELU_BIAS = 4, 6
WORKSPACE_BYTES = 32 << 20  # what NVIDIA recommends for Hopper
CANDIDATES = 8


class Product(NamedTuple):
    """What decides how a product of row-major matrices is computed.

    Attributes
    ----------
    kind : str
        One of :data:`KINDS`.
    n, k, m : int
        The product is of shapes ``(n, k)`` and ``(k, m)``.
    a, b : (bool, int)
        Whether the columns of the operand, not its rows, lie one after the other, and how many
        elements apart.
    alignments : (int, int, int)
        Bytes that the addresses of both operands and of the result are multiples of.
    """

    kind: str
    n: int
    k: int
    m: int
    a: tuple[bool, int]
    b: tuple[bool, int]
    alignments: tuple[int, int, int]


class Heuristic(Structure):
    """An algorithm and what it needs; ``cublasLtMatmulHeuristicResult_t``."""

    _fields_ = [
        ("algorithm", c_uint64 * 8),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


class LtError(Exception):
    """A status other than success."""


_P = c_void_p
_SIGNATURES: dict[str, list[Any]] = {
    "cublasLtCreate": [POINTER(_P)],
    "cublasLtMatmulDescCreate": [POINTER(_P), c_int, c_int],
    "cublasLtMatmulDescSetAttribute": [_P, c_int, _P, c_size_t],
    "cublasLtMatrixLayoutCreate": [POINTER(_P), c_int, c_uint64, c_uint64, c_int64],
    "cublasLtMatmulPreferenceCreate": [POINTER(_P)],
    "cublasLtMatmulPreferenceSetAttribute": [_P, c_int, _P, c_size_t],
    "cublasLtMatmulPreferenceDestroy": [_P],
    "cublasLtMatmulAlgoGetHeuristic": [
        _P, _P, _P, _P, _P, _P, _P, c_int, POINTER(Heuristic), POINTER(c_int),
    ],
    "cublasLtMatmulAlgoCheck": [_P, _P, _P, _P, _P, _P, POINTER(Heuristic), POINTER(Heuristic)],
    "cublasLtMatmul": [
        _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, POINTER(Heuristic), _P, c_size_t, _P,
    ],
}  # fmt: skip


@cache
def library(major: int) -> Any:
    """The installed cublasLt of CUDA `major`, with the signatures of its functions.

    Raises
    ------
    OSError
        If there is none.
    """
    try:  # as CuPy finds its libraries from version 14 on
        from cuda.pathfinder import load_nvidia_dynamic_lib

        path = load_nvidia_dynamic_lib("cublasLt").abs_path
    except Exception:  # its own errors, which are not those of loading; or it is not there
        path = None
    # By its bare name the one is found that cuBLAS has loaded.
    lt = ctypes.CDLL(path or f"libcublasLt.so.{major}")
    for name, types in _SIGNATURES.items():
        function = getattr(lt, name)
        function.argtypes, function.restype = types, c_int
    return lt


def installed(cupy: Any) -> Any:
    """The cublasLt that belongs to a CuPy, or None where it is not found."""
    try:
        return library(cupy.cuda.runtime.runtimeGetVersion() // 1000)
    except OSError:
        return None


def aligned(address: int) -> int:
    """Bytes that `address` is a multiple of: a power of two, at most 256."""
    return min(256, address & -address) if address else 256


class Plan:
    """How one kind of product is computed.

    cublasLt stores columns one after the other, so what it sees are transposes: out' = b' a'. Its
    A is `b`, its B is `a`.

    Parameters
    ----------
    lt : library
        From :func:`library`.
    product : Product

    Attributes
    ----------
    candidates : list of Heuristic
        Algorithms, the most promising one first; empty if there is none.
    chosen : Heuristic
        The first, until :meth:`choose` finds a faster one.
    """

    def __init__(self, lt: Any, handle: Any, product: Product) -> None:
        self._lt, self._handle = lt, handle
        operand, result, _ = KINDS[product.kind]
        number = c_double if product.kind == "float64" else c_float
        self._one, self._zero = number(1.0), number(0.0)
        _, n, k, m, (a_turned, a_apart), (b_turned, b_apart), alignments = self.product = product
        self._description = self._describe()
        layout = "cublasLtMatrixLayoutCreate"
        self._a = self._new(layout, operand, *((k, m) if b_turned else (m, k)), b_apart)
        self._b = self._new(layout, operand, *((n, k) if a_turned else (k, n)), a_apart)
        self._d = self._new(layout, result, m, n, m)
        self.candidates = self._ask(alignments)
        if self.candidates:
            self.chosen = self.candidates[0]

    @property
    def workspace(self) -> int:
        """Bytes that :meth:`run` needs."""
        return int(self.chosen.workspace)

    def ending(self, epilogue: int, bias: int) -> Plan | None:
        """The same product by the same algorithm, which also does what follows; None if it cannot.

        Parameters
        ----------
        epilogue : {BIAS, RELU_BIAS}
        bias : int
            The address of the vector.
        """
        other, found = copy(self), Heuristic()
        other._description = self._describe()
        for attribute, value in ((EPILOGUE, c_uint32(epilogue)), (BIAS_POINTER, c_void_p(bias))):
            self._set("cublasLtMatmulDescSetAttribute", other._description, attribute, value)
        status = self._lt.cublasLtMatmulAlgoCheck(
            self._handle, other._description, self._a, self._b, self._d, self._d,
            byref(self.chosen), byref(found),
        )  # fmt: skip
        if status or found.state or found.workspace > WORKSPACE_BYTES:
            return None
        found.algorithm = self.chosen.algorithm
        other.chosen = found
        return other

    def run(self, a: int, b: int, out: int, workspace: int, stream: int) -> None:
        """Compute a product, given addresses in device memory.

        Raises
        ------
        LtError
        """
        _check(
            self._lt.cublasLtMatmul(
                self._handle, self._description, byref(self._one), b, self._a, a, self._b,
                byref(self._zero), out, self._d, out, self._d, byref(self.chosen), workspace,
                self.chosen.workspace, stream,
            ),
            "cublasLtMatmul",
        )  # fmt: skip

    def choose(
        self,
        run: Callable[[], None],
        milliseconds: Callable[[Callable[[], None]], float] | None = None,
    ) -> None:
        """Keep the first candidate that `run` can use; given a clock, the fastest. It has run last.

        Parameters
        ----------
        run : callable
            Computes the product by what is chosen.
        milliseconds : callable, optional
            The time that the device takes for a function like that.

        Raises
        ------
        LtError
            If there is none: not all that the heuristic suggests can be run.
        """
        times = []
        for candidate in self.candidates:
            self.chosen = candidate
            try:
                run()  # what is loaded with the first call does not count
                if milliseconds is None:
                    return
                times.append((milliseconds(run), candidate))
            except LtError:
                continue
        if not times:
            raise LtError("no candidate can be run")
        self.chosen = min(times, key=lambda pair: pair[0])[1]
        run()

    def _describe(self) -> c_void_p:
        """A description of the product, without what follows."""
        _, _, compute = KINDS[self.product.kind]
        wide = int(self.product.kind == "float64")
        description = self._new("cublasLtMatmulDescCreate", compute, wide)
        for attribute, (turned, _) in (
            (TRANSPOSE_A, self.product.b),
            (TRANSPOSE_B, self.product.a),
        ):
            self._set("cublasLtMatmulDescSetAttribute", description, attribute, c_int32(turned))
        return description

    def _ask(self, alignments: tuple[int, int, int]) -> list[Heuristic]:
        """What the heuristic suggests."""
        preference = self._new("cublasLtMatmulPreferenceCreate")
        a, b, d = alignments
        wanted: list[tuple[int, Any]] = [
            (MAX_WORKSPACE, c_uint64(WORKSPACE_BYTES)),
            (REDUCTION_SCHEMES, c_uint32(_REPRODUCIBLE)),
            (ALIGNMENT_A, c_uint32(b)),
            (ALIGNMENT_B, c_uint32(a)),
            (ALIGNMENT_C, c_uint32(d)),
            (ALIGNMENT_D, c_uint32(d)),
        ]
        for attribute, value in wanted:
            self._set("cublasLtMatmulPreferenceSetAttribute", preference, attribute, value)
        found, count = (Heuristic * CANDIDATES)(), c_int()
        status = self._lt.cublasLtMatmulAlgoGetHeuristic(
            self._handle, self._description, self._a, self._b, self._d, self._d, preference,
            CANDIDATES, found, byref(count),
        )  # fmt: skip
        self._lt.cublasLtMatmulPreferenceDestroy(preference)
        return [] if status else [x for x in found[: count.value] if x.state == 0]

    def _new(self, function: str, *arguments: Any) -> c_void_p:
        """Something that cublasLt makes. Plans are few and kept, and so is what they consist of."""
        made = c_void_p()
        _check(getattr(self._lt, function)(byref(made), *arguments), function)
        return made

    def _set(self, function: str, of: c_void_p, attribute: int, value: Any) -> None:
        _check(getattr(self._lt, function)(of, attribute, byref(value), ctypes.sizeof(value)),
               f"{function} {attribute}")  # fmt: skip


def create_handle(lt: Any) -> c_void_p:
    """A handle for the current device; it belongs to no stream or thread."""
    handle = c_void_p()
    _check(lt.cublasLtCreate(byref(handle)), "cublasLtCreate")
    return handle


def _check(status: int, what: str) -> None:
    if status:
        raise LtError(f"{what}: status {status}")
