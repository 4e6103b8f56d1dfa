"""Sums and maxima in kernels that allocate nothing and give the same bits every time.

CuPy's own take scratch from its pool, which a CUDA graph may not. The order of a sum depends on
the shape alone: parts are added up by whichever block is the last to end, but in their order.
"""

from __future__ import annotations

from typing import Any

from xpmlp_cupy.kernels import OPTIONS
from xpmlp_cupy.scratch import Scratch
from xpmlp_cupy.tracing import CTYPES

# A block of column sums has 32 columns and takes so many rows; one of a total so many elements.
_ROWS = 256
_ELEMENTS = 8192

# {body} makes `value`, of the element in `row` and `column`, whose place is `i`.
_COLUMNS = """
extern "C" __global__ void __launch_bounds__(256) {name}(
    {parameters}{T}* total_out, volatile {T}* parts, int* arrived, long long n_rows,
    long long n_columns) {{
  const long long n_tiles = (n_columns + 31) / 32, n_parts = (n_rows + {rows} - 1) / {rows};
  const long long tile = blockIdx.x % n_tiles, part = blockIdx.x / n_tiles;
  const long long column = 32 * tile + threadIdx.x % 32;
  const long long stop = part + 1 < n_parts ? (part + 1) * {rows} : n_rows;
  {T} total = 0;
  if (column < n_columns) {{
    for (long long row = part * {rows} + threadIdx.x / 32; row < stop; row += 8) {{
      const long long i = row * n_columns + column;
      {body}
      total += value;
    }}
  }}
  __shared__ {T} sums[256];
  __shared__ bool last;
  sums[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x < 32 && column < n_columns) {{
    for (int j = 1; j < 8; ++j) total += sums[32 * j + threadIdx.x];
    if (n_parts == 1) total_out[column] = total;
    else parts[part * n_columns + column] = total;
  }}
  if (n_parts == 1) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived + tile, 1) == n_parts - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x < 32 && column < n_columns) {{
    total = 0;
    for (long long j = 0; j < n_parts; ++j) total += parts[j * n_columns + column];
    total_out[column] = total;
  }}
  if (threadIdx.x == 0) arrived[tile] = 0;
}}
"""

# {value} is made of `x[i]`; {end} does something with `total` when it is known.
_TOTAL = """
__device__ inline {A} xpmlp_add_up({A} total, {A}* sums) {{
  sums[threadIdx.x] = total;
  __syncthreads();
  for (int half = 128; half; half /= 2) {{
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    __syncthreads();
  }}
  return sums[0];
}}

extern "C" __global__ void __launch_bounds__(256) {name}(
    {parameters}const {T}* x, volatile {A}* parts, int* arrived, long long size) {{
  __shared__ {A} sums[256];
  __shared__ bool last;
  const long long first = blockIdx.x * {elements}LL;
  const long long stop = first + {elements} < size ? first + {elements} : size;
  {A} total = 0;
  for (long long i = first + threadIdx.x; i < stop; i += 256) total += {value};
  total = xpmlp_add_up(total, sums);
  if (gridDim.x > 1) {{
    if (threadIdx.x == 0) {{
      parts[blockIdx.x] = total;
      __threadfence();
      last = atomicAdd(arrived, 1) == (int)gridDim.x - 1;
    }}
    __syncthreads();
    if (!last) return;
    __threadfence();
    total = 0;
    for (long long j = threadIdx.x; j < gridDim.x; j += 256) total += parts[j];
    total = xpmlp_add_up(total, sums);
  }}
  if (threadIdx.x == 0) {{
    if (gridDim.x > 1) *arrived = 0;
    {end}
  }}
}}
"""

_OF_ROWS = """
// A warp for each row.
extern "C" __global__ void __launch_bounds__(128) {name}(
    const {T}* x, {T}* out, long long n_rows, long long n_columns) {{
  const long long row = blockIdx.x * 4LL + threadIdx.x / 32;
  if (row >= n_rows) return;
  x += row * n_columns;
  {T} result = {start};
  for (long long c = threadIdx.x % 32; c < n_columns; c += 32) {{
    const {T} other = x[c];
    result = {combine};
  }}
  for (int o = 16; o; o /= 2) {{
    const {T} other = __shfl_xor_sync(0xffffffffu, result, o);
    result = {combine};
  }}
  if (threadIdx.x % 32 == 0) out[row] = result;
}}
"""
# A NaN is passed on.
_MAXIMUM = "other > result || other != other ? other : result"


def columns_source(name: str, ctype: str, parameters: str, body: str) -> str:
    """A kernel that sums each column of what `body` makes of an element.

    Parameters
    ----------
    parameters : str
        Declarations, each followed by a comma.
    body : str
        Statements that define ``value``.
    """
    return _COLUMNS.format(name=name, T=ctype, parameters=parameters, body=body, rows=_ROWS)


def total_source(name: str, ctype: str, wide: str, squared: bool, parameters: str, end: str) -> str:
    """A kernel that adds up all elements, and one of whose threads does `end` with ``total``."""
    value = f"({wide})x[i] * ({wide})x[i]" if squared else f"({wide})x[i]"
    return _TOTAL.format(
        name=name, T=ctype, A=wide, parameters=parameters, value=value, end=end, elements=_ELEMENTS
    )


class ColumnLaunch:
    """Blocks of a kernel of :func:`columns_source`, and its last arguments."""

    def __init__(self, cupy: Any, shape: tuple[int, int], out: Any, scratch: Scratch) -> None:
        n_rows, n_columns = shape
        n_tiles, n_parts = -(-n_columns // 32), -(-n_rows // _ROWS)
        dtype = str(out.dtype)
        parts = scratch("parts of columns", n_parts * n_columns if n_parts > 1 else 1, dtype)
        arrived = scratch("arrived", n_tiles, "int32")
        self.n_blocks = n_tiles * n_parts
        self.arguments = (out, parts, arrived, cupy.int64(n_rows), cupy.int64(n_columns))


class TotalLaunch:
    """Blocks of a kernel of :func:`total_source`, and its last arguments."""

    def __init__(self, cupy: Any, x: Any, wide: str, scratch: Scratch) -> None:
        self.n_blocks = -(-x.size // _ELEMENTS)
        parts = scratch("parts of a total", self.n_blocks, wide)
        arrived = scratch("arrived", 1, "int32")
        self.arguments = (x, parts, arrived, cupy.int64(x.size))


class Reductions:
    """Sums and maxima of C-contiguous arrays of float32 and float64.

    Each method returns whether the arrays are so that it can be computed, and was.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._made: dict[Any, Any] = {}

    def sum_columns(self, x: Any, out: Any, scratch: Scratch) -> bool:
        if x.ndim != 2 or not _plain(x, out) or x.dtype != out.dtype:
            return False
        ctype = CTYPES[str(x.dtype)]
        kernel = self._kernel(
            columns_source, "xpmlp_sum_columns", ctype, f"const {ctype}* x, ",
            f"const {ctype} value = x[i];",
        )  # fmt: skip
        launch = ColumnLaunch(self._cupy, x.shape, out, scratch)
        kernel((launch.n_blocks,), (256,), (x, *launch.arguments))
        return True

    def total(self, x: Any, out: Any, scratch: Scratch, squared: bool = False) -> bool:
        if not _plain(x, out) or out.itemsize < x.itemsize:
            return False
        wide = CTYPES[str(out.dtype)]
        name = "xpmlp_total_squares" if squared else "xpmlp_total"
        kernel = self._kernel(
            total_source, name, CTYPES[str(x.dtype)], wide, squared, f"{wide}* out, ",
            "*out = total;",
        )  # fmt: skip
        launch = TotalLaunch(self._cupy, x, str(out.dtype), scratch)
        kernel((launch.n_blocks,), (256,), (out, *launch.arguments))
        return True

    def sum_rows(self, x: Any, out: Any) -> bool:
        return self._of_rows("xpmlp_sum_rows", "0", "result + other", x, out)

    def max_rows(self, x: Any, out: Any) -> bool:
        return self._of_rows("xpmlp_max_rows", "x[0]", _MAXIMUM, x, out)

    def _of_rows(self, name: str, start: str, combine: str, x: Any, out: Any) -> bool:
        if x.ndim < 2 or not _plain(x, out) or x.dtype != out.dtype:
            return False
        kernel = self._kernel(_rows_source, name, CTYPES[str(x.dtype)], start, combine)
        n_columns = x.shape[-1]
        n_rows = x.size // n_columns
        sizes = map(self._cupy.int64, (n_rows, n_columns))
        kernel((-(-n_rows // 4),), (128,), (x, out, *sizes))
        return True

    def _kernel(self, source: Any, name: str, *arguments: Any) -> Any:
        key = name, *arguments
        if key not in self._made:
            text = source(name, *arguments)
            self._made[key] = self._cupy.RawKernel(text, name, OPTIONS)
        return self._made[key]


def _rows_source(name: str, ctype: str, start: str, combine: str) -> str:
    return _OF_ROWS.format(name=name, T=ctype, start=start, combine=combine)


def _plain(*arrays: Any) -> bool:
    return all(str(x.dtype) in CTYPES and x.size and x.flags.c_contiguous for x in arrays)
