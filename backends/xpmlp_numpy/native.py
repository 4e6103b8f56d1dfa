"""What captured steps need of machine code and Numba does not offer by itself.

Pointers from addresses, calls of functions at an address, a barrier for threads, what a processor
does with denormal numbers, the BLAS that NumPy itself uses, and NumPy's own vectorised loops.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from math import sqrt
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import carray, float32, float64, types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["carray", "float32", "float64", "sqrt", "uint64"]  # what kernels are written in, too

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_VOID = ir.IntType(8).as_pointer()


def _pointer_to(numba_type: Any) -> Any:
    @intrinsic
    def pointer(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = context.get_value_type(signature.return_type)
            return builder.inttoptr(args[0], kind)

        return types.CPointer(numba_type)(types.int64), codegen

    return pointer


DTYPES = ("bool", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
          "uint32", "uint64")  # fmt: skip
for _name in DTYPES:  # float32_at(address) and so on
    globals()[f"{_name}_at"] = _pointer_to(getattr(types, "boolean" if _name == "bool" else _name))


@intrinsic
def call(typingctx: Any, address: Any, p: Any, d: Any, c: Any) -> Any:
    """Call ``int64 kernel(int64* p, int64* d, int64* c)`` at an address; all are addresses."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _I64.as_pointer()
        function = ir.FunctionType(_I64, [pointer] * 3).as_pointer()
        return builder.call(
            builder.inttoptr(args[0], function),
            [builder.inttoptr(x, pointer) for x in args[1:]],
        )

    return types.int64(*[types.int64] * 4), codegen


@intrinsic
def call_ufunc_loop(
    typingctx: Any, address: Any, arguments: Any, n: Any, steps: Any, data: Any
) -> Any:
    """Call a loop of a ufunc, ``void loop(char**, npy_intp const*, npy_intp const*, void*)``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [_VOID] * 4).as_pointer()
        pointers = [builder.inttoptr(x, _VOID) for x in args[1:]]
        builder.call(builder.inttoptr(args[0], function), pointers)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def call_yield(typingctx: Any, address: Any) -> Any:
    """Call ``int yield(void)`` at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(_I32, []).as_pointer()
        builder.call(builder.inttoptr(args[0], function), [])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def _gemm(numba_type: Any, llvm_type: Any, int_type: Any) -> Any:
    @intrinsic
    def gemm(
        typingctx: Any, address: Any, ta: Any, tb: Any, m: Any, n: Any, k: Any,
        a: Any, lda: Any, b: Any, ldb: Any, c: Any, ldc: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            def number(x: Any) -> Any:
                return x if int_type is _I64 else builder.trunc(x, _I32)

            function = ir.FunctionType(
                ir.VoidType(),
                [_I32] * 3 + [int_type] * 3 + [llvm_type, _VOID, int_type, _VOID, int_type]
                + [llvm_type, _VOID, int_type],
            ).as_pointer()  # fmt: skip
            where, ta, tb, m, n, k, a, lda, b, ldb, c, ldc = args
            one, zero = ir.Constant(llvm_type, 1.0), ir.Constant(llvm_type, 0.0)
            a, b, c = (builder.inttoptr(x, _VOID) for x in (a, b, c))
            builder.call(
                builder.inttoptr(where, function),
                [
                    ir.Constant(_I32, 101), builder.trunc(ta, _I32), builder.trunc(tb, _I32),
                    number(m), number(n), number(k), one, a, number(lda), b, number(ldb),
                    zero, c, number(ldc),
                ],
            )  # fmt: skip
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), codegen

    return gemm


gemm_float32_64 = _gemm(types.float32, ir.FloatType(), _I64)
gemm_float64_64 = _gemm(types.float64, ir.DoubleType(), _I64)
gemm_float32_32 = _gemm(types.float32, ir.FloatType(), _I32)
gemm_float64_32 = _gemm(types.float64, ir.DoubleType(), _I32)


@intrinsic
def atomic_add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to the int64 at an address; returns what was there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def atomic_load(typingctx: Any, address: Any) -> Any:
    """The int64 at an address, as other threads have left it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def relax(typingctx: Any) -> Any:
    """Tell the processor that this thread waits: what shares the core with it goes on faster."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _X86:
            _call_llvm(builder, "x86.sse2.pause")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def flush_denormals(typingctx: Any) -> Any:
    """Have this thread take denormal numbers for zero; returns what :func:`restore` is given."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _flush(builder)

    return types.int64(), codegen


@intrinsic
def restore(typingctx: Any, before: Any) -> Any:
    """Have this thread compute as before :func:`flush_denormals`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _write_control(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


_PROCESSOR = binding.get_process_triple()
_X86, _ARM = _PROCESSOR.startswith("x86_64"), _PROCESSOR.startswith(("aarch64", "arm64"))


def _flush(builder: Any) -> Any:
    before = _read_control(builder)
    # Of denormal results and operands in x86's MXCSR, and of both in ARM's FPCR.
    bits = 1 << 15 | 1 << 6 if _X86 else 1 << 24
    _write_control(builder, builder.or_(before, ir.Constant(_I64, bits)))
    return before


def _call_llvm(builder: Any, name: str, *arguments: Any, result: Any = None) -> Any:
    kind = ir.FunctionType(result or ir.VoidType(), [x.type for x in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}")
    return builder.call(function, arguments)


def _read_control(builder: Any) -> Any:
    """What the processor is told of floating-point numbers; of a kind not known here, 0."""
    if _X86:
        place = cgutils.alloca_once(builder, _I32)
        _call_llvm(builder, "x86.sse.stmxcsr", builder.bitcast(place, _VOID))
        return builder.zext(builder.load(place), _I64)
    if _ARM:
        return _call_llvm(builder, "aarch64.get.fpcr", result=_I64)
    return ir.Constant(_I64, 0)


def _write_control(builder: Any, value: Any) -> None:
    if _X86:
        place = cgutils.alloca_once(builder, _I32)
        builder.store(builder.trunc(value, _I32), place)
        _call_llvm(builder, "x86.sse.ldmxcsr", builder.bitcast(place, _VOID))
    elif _ARM:
        _call_llvm(builder, "aarch64.set.fpcr", value)


@intrinsic
def high_product(typingctx: Any, x: Any, y: Any) -> Any:
    """The upper 64 of the 128 bits of a product."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(value, wide) for value in args))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), _I64)

    return types.uint64(types.uint64, types.uint64), codegen


# --- What NumPy brings ------------------------------------------------------------------------


@cache
def blas() -> tuple[dict[str, int], int] | None:
    """Addresses of gemm by dtype in the BLAS that NumPy's own products use, and its int's bits."""
    try:
        library = ctypes.CDLL(import_module("numpy._core._multiarray_umath").__file__)
    except (ImportError, OSError):
        return None
    # As the wheels' OpenBLAS names it; then ILP64 and LP64 builds of others.
    for text, bits in (("scipy_cblas_{}64_", 64), ("cblas_{}64_", 64), ("cblas_{}", 32)):
        try:
            found = {
                dtype: ctypes.cast(getattr(library, text.format(name)), ctypes.c_void_p).value
                for dtype, name in (("float32", "sgemm"), ("float64", "dgemm"))
            }
        except AttributeError:
            continue
        return {dtype: address for dtype, address in found.items() if address}, bits
    return None


def ufunc_loop(ufunc: Any, dtype: str) -> tuple[int, int]:
    """Address and data of the loop of a ufunc of one argument, by NumPy's C interface.

    Raises
    ------
    ValueError
        If it has no such loop.
    """
    code = np.dtype(dtype).char
    place = ufunc.types.index(f"{code}->{code}")

    # PyUFuncObject: the object's head, four ints, then `functions` and `data`.
    head = id(ufunc) + object.__basicsize__ + 4 * ctypes.sizeof(ctypes.c_int)
    functions, data = ((ctypes.c_void_p * 2).from_address(head))[:]
    size = ctypes.sizeof(ctypes.c_void_p)
    address = ctypes.c_void_p.from_address(functions + place * size).value
    own = ctypes.c_void_p.from_address(data + place * size).value if data else 0
    return int(address or 0), int(own or 0)


@cache
def yield_address() -> int:
    """The system's function that lets another thread run, or 0."""
    try:
        function = ctypes.CDLL(None).sched_yield
    except (AttributeError, OSError, TypeError):  # not a POSIX system
        return 0
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def scipy_is_quiet() -> bool:
    """Whether SciPy's functions report no errors of values, which takes Python."""
    from scipy.special import geterr

    return {value for kind, value in geterr().items() if kind != "memory"} == {"ignore"}
