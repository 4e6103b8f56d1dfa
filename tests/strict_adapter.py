"""array-api-strict on its second device: anything outside the standard, and any stray host array,
raises there."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import array_api_strict
import numpy as np

from xpmlp.backends import Array, ReferenceBackend


class StrictBackend(ReferenceBackend):
    name = "array-api-strict"
    library = "array_api_strict"

    def __init__(self, device: str = "device1") -> None:
        super().__init__(array_api_strict, device, array_api_strict.Device(device))

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        return ("device1",)

    @classmethod
    def accepts(cls, device: str) -> bool:
        return device == "device1"

    def context(self) -> AbstractContextManager[Any]:
        return np.errstate(all="ignore")  # it computes with NumPy, which warns

    def to_host(self, x: Array) -> Any:
        return np.asarray(x.to_device(array_api_strict.Device("CPU_DEVICE")))
