"""Matrix products of float32 operands rounded to fewer bits, with sums in float32.

CuPy's own switch for TF32 is one for the whole process, whatever its threads compute, and it has
no product of bfloat16. So cuBLAS is called directly, which takes the precision with each product.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof, c_float
from threading import local
from typing import Any

from xpmlp.typing import Array
from xpmlp_cupy.kernels import RoundToBfloat16

_ONE, _ZERO = c_float(1.0), c_float(0.0)
_CUDA_R_32F, _CUDA_R_16BF = 0, 14  # of cudaDataType_t, in library_types.h


class RoundedProduct:
    """``out[...] = a @ b`` of rounded operands.

    Parameters
    ----------
    cupy : module
    empty : callable
        The adapter's own, for scratch.
    """

    def __init__(self, cupy: Any, empty: Callable[[tuple[int, ...], str], Array]) -> None:
        self._cupy = cupy
        self._empty = empty
        self._round = RoundToBfloat16(cupy)
        self._scratch = _Scratch()

    def __call__(self, precision: str, a: Any, b: Any, out: Any) -> bool:
        """Compute the product, if its operands are rounded in this precision.

        Parameters
        ----------
        precision : {"tf32", "bfloat16"}
            To 11 significant bits, by cuBLAS as it reads the operands; or to 8, before.
        a, b, out : array of shape (..., n, k), (..., k, m), (..., n, m)
            For TF32 the elements of the rows or of the columns of `a` and `b` have to be
            neighbours, as in transposed views and in rows of wider arrays.

        Returns
        -------
        bool
            False if the product is still to be computed, in IEEE arithmetic: not all are float32,
            one is empty, or TF32 cannot take the layout.
        """
        if not all(x.ndim > 1 and x.dtype == "float32" and x.size for x in (a, b, out)):
            return False
        if out.ndim > 2:
            stacks = (self._cupy.broadcast_to(x, out.shape[:-2] + x.shape[-2:]) for x in (a, b))
            return all(self(precision, *parts) for parts in zip(*stacks, out, strict=True))
        cublas = self._cupy.cuda.cublas
        kind, compute = _CUDA_R_32F, cublas.CUBLAS_COMPUTE_32F_FAST_TF32
        if precision == "bfloat16":
            kind, compute = _CUDA_R_16BF, cublas.CUBLAS_COMPUTE_32F
            a, b = self._rounded(a, "a"), self._rounded(b, "b")
        left, right = _layout(cublas, a), _layout(cublas, b)
        if left is None or right is None or not out.flags.c_contiguous:
            return False
        (n, k), m = a.shape, b.shape[1]
        # cuBLAS stores columns one after the other, so what it sees are transposes: out' = b' a'.
        cublas.gemmEx(
            self._cupy.cuda.device.get_cublas_handle(), right[0], left[0], m, n, k,
            addressof(_ONE), b.data.ptr, kind, right[1], a.data.ptr, kind, left[1],
            addressof(_ZERO), out.data.ptr, _CUDA_R_32F, m,
            compute, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
        return True

    def _rounded(self, x: Any, operand: str) -> Any:
        """The matrix `x` in bfloat16, in scratch: its rows, or its columns, one after the other.

        Scratch has the size of the next power of two, stays where it is and is never given back:
        a step allocates nothing after the first, and arrays of many sizes take less than four
        times the largest. Threads and streams have their own, since nothing orders what they do.
        """
        turned = x.strides[0] < x.strides[1]  # so that neighbours in memory are read together
        x = x.T if turned else x
        size = 1 << (x.size - 1).bit_length()
        key = operand, size, self._cupy.cuda.get_current_stream().ptr
        if key not in self._scratch.arrays:
            self._scratch.arrays[key] = self._empty((size,), "uint16")
        rounded = self._scratch.arrays[key][: x.size].reshape(x.shape)
        self._round(x, rounded)
        return rounded.T if turned else rounded


class _Scratch(local):
    def __init__(self) -> None:
        self.arrays: dict[tuple[str, int, int], Any] = {}


def _layout(cublas: Any, x: Any) -> tuple[int, int] | None:
    """How cuBLAS reads the transpose of `x`: an operation, and the distance of its columns."""
    rows, columns = x.shape
    down, along = (stride // x.itemsize for stride in x.strides)
    # An axis of one element has any stride.
    if (along == 1 or columns == 1) and (down >= columns or rows == 1):
        return cublas.CUBLAS_OP_N, max(down, columns)
    if (down == 1 or rows == 1) and along >= rows:
        return cublas.CUBLAS_OP_T, along
    return None
