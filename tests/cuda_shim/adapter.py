"""The CuPy adapter as it is, over NumPy arrays and kernels that run on the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import array_api_compat.numpy
import numpy as np
from xpmlp_cupy import CupyBackend, Recorder

from cuda_shim.cublaslt import CublasLt
from cuda_shim.emulator import DeviceArray, Emulator
from xpmlp.backends import Array, Backend, ReferenceBackend, host


class EmulatedBackend(CupyBackend):
    precisions = ("ieee", "tf32", "bfloat16")

    def __init__(self) -> None:
        self.free = 1 << 30
        self.cupy = Emulator()
        ReferenceBackend.__init__(self, array_api_compat.numpy, "cuda:0")
        self.functions = host().functions
        self.lt = self._products._library = CublasLt(self.cupy.cuda)

    def recordable(self) -> Backend:
        recorder: Any = Recorder(self)
        return recorder

    def context(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def owns(self, x: object) -> bool:
        return isinstance(x, DeviceArray)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        self.cupy.cuda.allocate(1)
        fill = 0xFF if dtype == "uint8" else np.nan  # what is not written shows
        fill = 0 if self.cupy.is_recording else fill  # where nothing is, and a run shall go on
        return np.full(shape, fill, dtype).view(DeviceArray)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        self.cupy.cuda.allocate(1)
        return np.zeros(shape, dtype).view(DeviceArray)

    def from_host(self, x: Any) -> Array:
        self.cupy.cuda.allocate(1)
        return np.array(x).view(DeviceArray)

    def _pinned(self, shape: tuple[int, ...], dtype: str) -> Any:
        return np.empty(shape, dtype)

    def memory(self) -> tuple[int, int] | None:
        return self.free, 2 * self.free

    def to_host(self, x: Array) -> Any:
        self.cupy.cuda.calls["to_host"] += 1
        return np.array(x)

    def read(self, x: Array) -> float:
        self.cupy.cuda.calls["read"] += 1
        return super().read(x)

    def synchronize(self) -> None:
        self.cupy.cuda.calls["synchronize"] += 1

    def matmul(self, a: Any, b: Any, out: Any) -> None:
        super().matmul(*(x.view(DeviceArray) for x in (a, b, out)))
