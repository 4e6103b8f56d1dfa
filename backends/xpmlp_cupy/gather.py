"""The rows of a batch, of samples and targets at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from xpmlp_cupy.fused import View
from xpmlp_cupy.kernels import BFLOAT16
from xpmlp_cupy.scratch import Scratch

_CTYPES = {
    "bool": "bool", "int8": "signed char", "int16": "short", "int32": "int", "int64": "long long",
    "uint8": "unsigned char", "uint16": "unsigned short", "uint32": "unsigned int",
    "uint64": "unsigned long long", "float32": "float", "float64": "double",
}  # fmt: skip
_MOST_BLOCKS = 4096

_GATHER = """
extern "C" __global__ void __launch_bounds__(256) xpmlp_gather(
    {parameters}const {index}* indices, long long n_rows) {{
  const long long first = blockIdx.x * 256LL + threadIdx.x, apart = 256LL * gridDim.x;
{loops}
}}
"""
_LOOP = """  for (long long i = first; i < n_rows * width{k}; i += apart) {{
    const {T} value = x{k}[indices[i / width{k}] * width{k} + i % width{k}];
    out{k}[i] = value;{also}
  }}"""


@dataclass
class Gather:
    """Rows of several matrices, the same ones of each, cast to the dtypes of their outs.

    Attributes
    ----------
    indices : array of shape (n,)
    pairs : list of (array, array)
        Matrices and outs.
    rounded : dict
        By the place of a pair, where its rows are written as the bits of bfloat16, too.
    """

    indices: Any
    pairs: list[tuple[Any, Any]]
    rounded: dict[int, Any] = field(default_factory=dict)

    @staticmethod
    def takes(x: Any, indices: Any, out: Any) -> bool:
        """Whether rows can be gathered so: all arrays are C-contiguous, and of a usual dtype."""
        arrays = (x, indices, out)
        return all(str(a.dtype) in _CTYPES and a.flags.c_contiguous for a in arrays) and x.ndim == 2

    @property
    def reads(self) -> list[View]:
        return [View.of(self.indices), *(View.of(x) for x, _ in self.pairs)]

    @property
    def outs(self) -> list[Any]:
        return [*(out for _, out in self.pairs), *self.rounded.values()]

    @property
    def writes(self) -> list[View]:
        return [View.of(out) for out in self.outs]

    def launch(
        self, cupy: Any, kernels: dict[str, Any], scratch: Scratch
    ) -> tuple[Any, tuple[int], tuple[int], tuple[Any, ...]]:
        """As :meth:`xpmlp_cupy.fused.Group.launch`."""
        parameters, arguments, loops = "", [], []
        for k, (x, out) in enumerate(self.pairs):
            types = _CTYPES[str(x.dtype)], _CTYPES[str(out.dtype)]
            parameters += f"const {types[0]}* x{k}, {types[1]}* out{k}, long long width{k}, "
            arguments += [x, out, cupy.int64(x.shape[1])]
            also = ""
            if k in self.rounded:
                parameters += f"unsigned short* rounded{k}, "
                arguments.append(self.rounded[k])
                also = f" rounded{k}[i] = xpmlp_bfloat16(value);"
            loops.append(_LOOP.format(k=k, T=types[1], also=also))
        source = (BFLOAT16 if self.rounded else "") + _GATHER.format(
            parameters=parameters, index=_CTYPES[str(self.indices.dtype)], loops="\n".join(loops)
        )
        if source not in kernels:
            kernels[source] = cupy.RawKernel(source, "xpmlp_gather", ())
        most = max(out.size for out in self.outs)
        n_blocks = min(max(1, -(-most // 256)), _MOST_BLOCKS)
        arguments += [self.indices, cupy.int64(self.indices.size)]
        return kernels[source], (n_blocks,), (256,), tuple(arguments)
