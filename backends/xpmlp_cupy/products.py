"""Matrix products in TF32: float32 operands rounded to 11 significant bits, sums in float32.

CuPy's own switch for it is one for the whole process, whatever its threads compute. So cuBLAS is
called directly, which takes the precision with each product.
"""

from __future__ import annotations

from ctypes import addressof, c_float
from typing import Any

_ONE, _ZERO = c_float(1.0), c_float(0.0)


def matmul_tf32(cublas: Any, handle: int, a: Any, b: Any, out: Any) -> bool:
    """``out[...] = a @ b`` in TF32, if cuBLAS takes the arrays as they are.

    Parameters
    ----------
    cublas : module
        ``cupy.cuda.cublas``.
    handle : int
        cuBLAS's, of the current device.
    a, b, out : array of shape (n, k), (k, m), (n, m)
        `a` and `b` may be transposed views or rows of wider arrays.

    Returns
    -------
    bool
        False if nothing was done: not all are float32 matrices, one is empty, or the elements of
        neither the rows nor the columns of `a` or `b` are neighbours.
    """
    if not all(x.ndim == 2 and x.dtype == "float32" and x.size for x in (a, b, out)):
        return False
    left, right = _layout(cublas, a), _layout(cublas, b)
    if left is None or right is None or not out.flags.c_contiguous:
        return False
    (n, k), m = a.shape, b.shape[1]
    # cuBLAS stores columns one after the other, so what it sees are transposes: out' = b' a'.
    cublas.gemmEx(
        handle, right[0], left[0], m, n, k,
        addressof(_ONE), b.data.ptr, _CUDA_R_32F, right[1], a.data.ptr, _CUDA_R_32F, left[1],
        addressof(_ZERO), out.data.ptr, _CUDA_R_32F, m,
        cublas.CUBLAS_COMPUTE_32F_FAST_TF32, cublas.CUBLAS_GEMM_DEFAULT,
    )  # fmt: skip
    return True


_CUDA_R_32F = 0  # of cudaDataType_t, in library_types.h


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
