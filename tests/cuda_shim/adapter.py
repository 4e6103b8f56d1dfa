"""The CuPy adapter as it is, over NumPy arrays and kernels that run on the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import array_api_compat.numpy
import numpy as np
from xpmlp_cupy import CupyBackend

from cuda_shim.emulator import Emulator
from xpmlp.backends import Array, ReferenceBackend, host


class EmulatedBackend(CupyBackend):
    def __init__(self) -> None:
        self.cupy = Emulator()
        ReferenceBackend.__init__(self, array_api_compat.numpy, "cuda:0")
        self.functions = host().functions

    def context(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")

    def owns(self, x: object) -> bool:
        return isinstance(x, np.ndarray)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.full(shape, np.nan, dtype)  # what is not written shows

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.zeros(shape, dtype)

    def from_host(self, x: Any) -> Array:
        return np.array(x)

    def to_host(self, x: Array) -> Any:
        return np.array(x)
