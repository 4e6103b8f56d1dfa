"""The adapter's own CUDA kernels.

Each is made from the module `cupy`, given as an argument, so that the tests can compile the same
source by NVRTC without a GPU, and run it on a CPU.

Those that compute are compiled without contraction of products and sums into fused multiply-adds:
rounded one after the other, arithmetic, divisions and square roots give NumPy's results to the bit,
and a rule the same ones on every device. These kernels wait for memory; the instructions cost
nothing.
"""

from __future__ import annotations

import re
from math import prod
from typing import Any

from xpmlp.rng import Stream
from xpmlp.typing import Array, Kernel, Operand, Rule
from xpmlp_cupy.tracing import CTYPES, arithmetic, body

OPTIONS = ("-fmad=false",)


class RuleKernel:
    """A rule as one kernel for each combination of dtypes and kinds of operands it meets.

    Parameters
    ----------
    cupy : module
    rule : Rule
    whole_arrays : Kernel
        Applies the rule in as many kernels as it has operations. It takes what cannot be traced:
        functions that no rule of the library uses, or outs that are not float32 or float64.
    """

    def __init__(self, cupy: Any, rule: Rule, whole_arrays: Kernel) -> None:
        self._cupy = cupy
        self._rule = rule
        self._whole_arrays = whole_arrays
        self._kernels: dict[Any, Any] = {}

    def __call__(self, outs: tuple[Array, ...], *operands: Operand) -> None:
        array = self._cupy.ndarray
        key = (
            tuple([out.dtype for out in outs]),
            tuple([(x.dtype, x.ndim == 0) if isinstance(x, array) else None for x in operands]),
        )
        if key not in self._kernels:
            self._kernels[key] = self._make(*key)
        kernel = self._kernels[key]
        if kernel is None:
            self._whole_arrays(outs, *operands)
        else:
            kernel(*operands, *outs)

    def _make(self, outs: tuple[Any, ...], operands: tuple[tuple[Any, bool] | None, ...]) -> Any:
        """The kernel, or None."""
        dtype = arithmetic([str(operand[0]) for operand in operands if operand], str(outs[0]))
        try:
            declared, loads = [], []
            for place, operand in enumerate(operands):
                kind, single = operand or (dtype, False)
                # An array of one element is read as it is: broadcast, it would keep CuPy from
                # treating the others as flat.
                declared.append(f"{'raw ' if single else ''}{kind} in{place}")
                loads.append(f"in{place}[0]" if single else f"in{place}")
            results = [f"out{place}" for place in range(len(outs))]
            operation = body(self._rule, loads, results, CTYPES[dtype])
        except Exception:  # whatever a foreign rule raises; its own faults it raises again
            return None
        name = re.sub(r"\W", "_", getattr(self._rule, "__name__", "rule"))
        return self._cupy.ElementwiseKernel(
            ", ".join(declared),
            ", ".join(f"{kind} {out}" for kind, out in zip(outs, results, strict=True)),
            operation,
            f"xpmlp_{name}",
            no_return=True,
            options=OPTIONS,
        )


PHILOX = """
// One block of Philox4x64-10 (Salmon et al. 2011): four words from a counter and a key.
__device__ inline void xpmlp_philox(unsigned long long k0, unsigned long long k1,
                                    unsigned long long (&c)[4]) {
  for (int round = 0; round < 10; ++round) {
    const unsigned long long m0 = 0xD2E7470EE14C6C93ULL, m1 = 0xCA5A826395121157ULL;
    const unsigned long long high0 = __umul64hi(m0, c[0]), high1 = __umul64hi(m1, c[2]);
    const unsigned long long low0 = m0 * c[0], low1 = m1 * c[2];
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += 0x9E3779B97F4A7C15ULL;
    k1 += 0xBB67AE8584CAA73BULL;
  }
}
"""


_FILL_UNIFORM = """
unsigned long long words[4] = {{c0 + i, c1, {c2}, {c3}}};
bool carry = words[0] < c0;
for (int j = 1; carry && j < 4; ++j) carry = ++words[j] == 0;
xpmlp_philox(k0, k1, words);
for (int j = 0; j < 8 && 8 * i + j < out.size(); ++j) {{
  // The lower half of a word comes first; 24 bits of it, times 2^-24.
  const unsigned int half = words[j / 2] >> 32 * (j % 2);
  out[8 * i + j] = (half >> 8) * 5.9604644775390625e-08f;
}}
"""


class FillUniform:
    """NumPy's float32 uniforms at an address; a thread makes one block of words, eight numbers."""

    def __init__(self, cupy: Any) -> None:
        self._words = cupy.uint64
        address = "uint64 k0, uint64 k1, uint64 c0, uint64 c1, uint64 c2, uint64 c3"
        self._kernel, self._moving = (
            cupy.ElementwiseKernel(
                parameters,
                "raw float32 out",
                _FILL_UNIFORM.format(c2=c2, c3=c3),
                name,
                preamble=PHILOX,
                no_return=True,
                options=OPTIONS,
            )
            for name, parameters, c2, c3 in (
                ("xpmlp_fill_uniform", address, "c2", "c3"),
                (
                    "xpmlp_fill_uniform_of_step",
                    f"{address}, raw int64 context",
                    "c2 + context[1] + context[2]",
                    "c3 + context[0]",
                ),
            )
        )

    def __call__(self, out: Array, stream: Stream, context: Array | None = None) -> None:
        """Fill `out`; in a captured step at the epoch and batch in `context`, on the device.

        That holds an epoch, the number of the first step's batch and the step, which are added to
        those of `stream`.
        """
        # NumPy counts up before it makes a block.
        numbers = [*_words(stream.key, 2), *_words(stream.counter + 1, 4)]
        words = map(self._words, numbers)
        size = -(-out.size // 8)
        if context is None:
            self._kernel(*words, out, size=size)
        else:
            self._moving(*words, context, out, size=size)


def _words(number: int, count: int) -> list[int]:
    """The 64-bit words of a number, the lowest first; what is above them is dropped."""
    return [number >> 64 * place & 0xFFFFFFFFFFFFFFFF for place in range(count)]


class TakeRows:
    """Rows gathered and cast at once. X, I and O are the dtypes that CuPy finds in a call."""

    def __init__(self, cupy: Any) -> None:
        self._kernel = cupy.ElementwiseKernel(
            "raw X x, raw I indices, int64 width",
            "O out",
            "out = x[indices[i / width] * width + i % width]",
            "xpmlp_take_rows",
            no_return=True,
        )

    def __call__(self, x: Array, indices: Array, out: Array) -> None:
        self._kernel(x, indices, prod(x.shape[1:]), out)


BFLOAT16 = """
// A float32 number as the bits of the nearest bfloat16, of two the even one. bfloat16 is the upper
// half of float32. What is rounded up may carry into the exponent, and so become infinity; a NaN is
// only cut, with a bit set that keeps it from becoming infinity.
__device__ inline unsigned short xpmlp_bfloat16(float x) {
  const unsigned int bits = __float_as_uint(x);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return is_nan ? bits >> 16 | 0x40u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
"""


class RoundToBfloat16:
    """float32 numbers as the bits of the nearest bfloat16."""

    def __init__(self, cupy: Any) -> None:
        self._kernel = cupy.ElementwiseKernel(
            "float32 x",
            "uint16 out",
            "out = xpmlp_bfloat16(x)",
            "xpmlp_round_to_bfloat16",
            preamble=BFLOAT16,
            no_return=True,
        )

    def __call__(self, x: Array, out: Array) -> None:
        self._kernel(x, out)


SOFTMAX_LOG_LOSS = """
// A warp for each row. A lane reads back only what it has written itself. The maximum may miss a
// NaN: the total does not.
extern "C" __global__ void __launch_bounds__(128) xpmlp_softmax_log_loss(
    const T* __restrict__ logits, const T* __restrict__ y, T* __restrict__ elements,
    T* __restrict__ d, long long n_rows, long long n_columns) {
  const long long row = blockIdx.x * 4LL + threadIdx.x / 32;
  if (row >= n_rows) return;
  logits += row * n_columns;
  y += row * n_columns;
  elements += row * n_columns;
  d += row * n_columns;
  const long long lane = threadIdx.x % 32;
  T maximum = logits[0], total = 0, target_total = 0;
  for (long long c = lane; c < n_columns; c += 32) maximum = fmax(maximum, logits[c]);
  for (int o = 16; o; o /= 2) maximum = fmax(maximum, __shfl_xor_sync(0xffffffffu, maximum, o));
  for (long long c = lane; c < n_columns; c += 32) {
    d[c] = exp(logits[c] - maximum);
    total += d[c];
    target_total += y[c];
  }
  for (int o = 16; o; o /= 2) {
    total += __shfl_xor_sync(0xffffffffu, total, o);
    target_total += __shfl_xor_sync(0xffffffffu, target_total, o);
  }
  const T log_total = log(total);
  for (long long c = lane; c < n_columns; c += 32) {
    elements[c] = y[c] * (log_total - (logits[c] - maximum));
    d[c] = target_total * (d[c] / total) - y[c];
  }
}
"""


class SoftmaxLogLoss:
    """The multiclass log loss of logits and its derivative, each array read and written once.

    ``rules.categorical_log_loss_from_softmax`` has the formulas.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._kernels = {
            dtype: cupy.RawKernel(
                f"typedef {ctype} T;{SOFTMAX_LOG_LOSS}", "xpmlp_softmax_log_loss", OPTIONS
            )
            for dtype, ctype in CTYPES.items()
        }

    def takes(self, *arrays: Any) -> bool:
        """Whether the arrays are what the kernel assumes: of one dtype, and rows in sequence."""
        dtypes = {str(x.dtype) for x in arrays}
        return (
            len(dtypes) == 1
            and dtypes <= self._kernels.keys()
            and all(x.flags.c_contiguous for x in arrays)
        )

    def __call__(self, logits: Array, y: Array, elements: Array, d: Array) -> None:
        n_columns = logits.shape[-1]
        n_rows = prod(logits.shape[:-1])
        sizes = map(self._cupy.int64, (n_rows, n_columns))
        if n_rows and n_columns:
            kernel = self._kernels[str(logits.dtype)]
            kernel((-(-n_rows // 4),), (128,), (logits, y, elements, d, *sizes))
