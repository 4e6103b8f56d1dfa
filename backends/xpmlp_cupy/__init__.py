"""The CuPy adapter: NVIDIA GPUs. CuPy is imported when a device is first asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache, cached_property
from typing import Any

from xpmlp.backends import Array, ReferenceBackend, functions_of
from xpmlp.typing import RuleFunctions


class CupyBackend(ReferenceBackend):
    """CuPy arrays on one GPU."""

    name = "cupy"
    library = "cupy"
    immediate = False

    def __init__(self, device: str = "cuda:0") -> None:
        import array_api_compat.cupy
        import cupy

        self.cupy: Any = cupy
        self.index = int(device.partition(":")[2])
        super().__init__(array_api_compat.cupy, device, cupy.cuda.Device(self.index))

    @cached_property
    def functions(self) -> RuleFunctions:  # type: ignore[override]
        from cupyx.scipy.special import erf

        functions: Any = functions_of(self.xp)
        functions.erf = staticmethod(erf)
        chosen: RuleFunctions = functions
        return chosen

    @classmethod
    def unavailable(cls) -> str | None:
        return _unavailable()

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        import cupy

        return tuple(f"cuda:{index}" for index in range(cupy.cuda.runtime.getDeviceCount()))

    @classmethod
    def version(cls) -> str:
        import cupy

        runtime = cupy.cuda.runtime.runtimeGetVersion()
        driver = cupy.cuda.runtime.driverGetVersion()
        numbers = [f"{v // 1000}.{v % 1000 // 10}" for v in (runtime, driver)]
        return f"CuPy {cupy.__version__}, CUDA {numbers[0]}, driver for CUDA {numbers[1]}"

    @classmethod
    def accepts(cls, device: str) -> bool:
        kind, colon, index = device.partition(":")
        return kind == "cuda" and (not colon or index.isdecimal())

    def memory(self) -> tuple[int, int] | None:
        free, total = self.xp_device.mem_info
        return int(free), int(total)

    def context(self) -> AbstractContextManager[Any]:
        device: AbstractContextManager[Any] = self.cupy.cuda.Device(self.index)
        return device

    def synchronize(self) -> None:
        self.xp_device.synchronize()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self.context():
            return super().empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self.context():
            return super().zeros(shape, dtype)

    def owns(self, x: object) -> bool:
        return isinstance(x, self.cupy.ndarray) and x.device.id == self.index

    def from_host(self, x: Any) -> Array:
        with self.context():
            array: Array = self.cupy.asarray(x)
            return array

    def to_host(self, x: Array) -> Any:
        return self.cupy.asnumpy(x)

    def copy(self, x: Array, out: Array) -> None:
        self.cupy.copyto(out, x, casting="unsafe")

    def matmul(self, a: Array, b: Array, out: Array) -> None:
        self.cupy.matmul(a, b, out=out)

    def sum_columns(self, x: Array, out: Array) -> None:
        self.cupy.sum(x, axis=-2, out=out)

    def sum_rows(self, x: Array, out: Array) -> None:
        self.cupy.sum(x, axis=-1, keepdims=True, out=out)

    def max_rows(self, x: Array, out: Array) -> None:
        self.cupy.max(x, axis=-1, keepdims=True, out=out)

    def take_rows(self, x: Array, indices: Array, out: Array) -> None:
        if x.dtype == out.dtype:
            self.cupy.take(x, indices, axis=0, out=out)
        else:
            self.copy(self.cupy.take(x, indices, axis=0), out)


@cache
def _unavailable() -> str | None:
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            return f"CuPy cannot be imported ({error})"
        return "CuPy is not installed; pip install 'xpmlp[cuda12]' or 'xpmlp[cuda13]'"
    except ImportError as error:
        return f"CuPy cannot be imported ({error})"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy {cupy.__version__} finds no usable GPU ({error})"
    if not count:
        return f"CuPy {cupy.__version__} finds no GPU"
    try:  # a product and a compiled kernel need libraries that a driver does not bring
        float((cupy.ones((2, 2)) @ cupy.ones((2, 2)) + 1.0).sum())
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return f"CuPy {cupy.__version__} cannot compute on the GPU ({what})"
    return None
