"""The CuPy adapter: NVIDIA GPUs. CuPy is imported when a device is first asked for."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, cached_property
from math import prod
from typing import Any, cast

from xpmlp.backends import Array, Backend, Kernel, ReferenceBackend, Rule, functions_of, host
from xpmlp.errors import out_of_device_memory
from xpmlp.rng import Stream
from xpmlp.tape import StepRecorder, StepTape
from xpmlp.typing import HostMatrix, Replay, RuleFunctions
from xpmlp_cupy import lt
from xpmlp_cupy.kernels import FillUniform, RuleKernel, SoftmaxLogLoss, TakeRows
from xpmlp_cupy.loading import RowLoader
from xpmlp_cupy.products import Products
from xpmlp_cupy.reductions import Reductions
from xpmlp_cupy.scratch import Scratch, ThreadScratch

# A run of so many steps is captured. Whether it is or not, the results are the same; a shorter one
# would not win back the time that compiling and capturing take.
STEPS_TO_CAPTURE = 200
# The most that is handed over without waiting.
_PINNED_BYTES = 1 << 24


class CupyBackend(ReferenceBackend):
    """CuPy arrays on one GPU.

    Arrays on another GPU are not its own: the library moves them through host memory, instead of
    letting kernels read them across the bus. All memory comes from CuPy's current allocator.
    """

    name = "cupy"
    library = "cupy"
    immediate = False

    def __init__(self, device: str = "cuda:0") -> None:
        import array_api_compat.cupy
        import cupy

        self.cupy: Any = cupy
        self.index = int(device.partition(":")[2])
        super().__init__(array_api_compat.cupy, device, cupy.cuda.Device(self.index))
        ampere = int(self.xp_device.compute_capability) >= 80
        if ampere and lt.installed(cupy) is not None:
            self.precisions = ("ieee", "tf32", "bfloat16")

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

    # --- The device and its memory ------------------------------------------------------------

    def memory(self) -> tuple[int, int] | None:
        pool = self.cupy.get_default_memory_pool()
        with self.context():
            free, total = self.xp_device.mem_info
            free += pool.free_bytes()  # held by the pool, and unused
            limit = pool.get_limit()
            if limit:
                free, total = min(free, limit - pool.used_bytes()), min(total, limit)
        return int(free), int(total)

    def context(self) -> AbstractContextManager[Any]:
        device: AbstractContextManager[Any] = self.cupy.cuda.Device(self.index)
        return device

    def synchronize(self) -> None:
        self.xp_device.synchronize()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        n_bytes = prod(shape) * self.cupy.dtype(dtype).itemsize
        return self._allocate(lambda: super(CupyBackend, self).empty(shape, dtype), n_bytes)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        n_bytes = prod(shape) * self.cupy.dtype(dtype).itemsize
        return self._allocate(lambda: super(CupyBackend, self).zeros(shape, dtype), n_bytes)

    def owns(self, x: object) -> bool:
        return isinstance(x, self.cupy.ndarray) and x.device.id == self.index

    def from_host(self, x: Any) -> Array:
        array: Any = host().from_host(x)
        if array.nbytes <= _PINNED_BYTES:
            return self._allocate(lambda: self.cupy.asarray(array), array.nbytes)

        def move() -> Array:
            out: Array = self.cupy.empty(array.shape, array.dtype)
            out.set(array)  # type: ignore[attr-defined]
            return out

        # asarray does not wait, but leaves a copy in page-locked memory, which CuPy keeps.
        return self._allocate(move, array.nbytes)

    def to_host(self, x: Array) -> Any:
        return self.cupy.asnumpy(x)

    def _allocate(self, make: Callable[[], Array], n_bytes: int) -> Array:
        """What `make` returns; where memory is short, once the pool has given back the unused."""
        out_of_memory = self.cupy.cuda.memory.OutOfMemoryError
        with self.context():
            try:
                return make()
            except out_of_memory:
                self.cupy.get_default_memory_pool().free_all_blocks()
            try:
                return make()
            except out_of_memory as error:
                raise out_of_device_memory(self.device, n_bytes, self.memory()) from error

    # --- Computation --------------------------------------------------------------------------

    def copy(self, x: Array, out: Array) -> None:
        self.cupy.copyto(out, x, casting="unsafe")

    def load_rows(self, x: HostMatrix, rows: Any, out: Array) -> None:
        self._load_rows(x, rows, out)

    def matmul(self, a: Array, b: Array, out: Array) -> None:
        if not self._products(self.precision, a, b, out, self._scratch):
            self.cupy.matmul(a, b, out=out)

    def elementwise(self, rule: Rule) -> Kernel:
        if rule not in self._rules:
            self._rules[rule] = RuleKernel(self.cupy, rule, super().elementwise(rule))
        return self._rules[rule]

    def sum_columns(self, x: Array, out: Array) -> None:
        if not self._reductions.sum_columns(x, out, self._scratch):
            self.cupy.sum(x, axis=-2, out=out)

    def sum_rows(self, x: Array, out: Array) -> None:
        if not self._reductions.sum_rows(x, out):
            self.cupy.sum(x, axis=-1, keepdims=True, out=out)

    def max_rows(self, x: Array, out: Array) -> None:
        if not self._reductions.max_rows(x, out):
            self.cupy.max(x, axis=-1, keepdims=True, out=out)

    def total(self, x: Array, out: Array) -> None:
        if not self._reductions.total(x, out, self._scratch):
            super().total(x, out)

    def total_squares(self, x: Array, out: Array) -> None:
        if not self._reductions.total(x, out, self._scratch, squared=True):
            super().total_squares(x, out)

    def take_rows(self, x: Array, indices: Array, out: Array) -> None:
        self._take_rows(x, indices, out)

    def fill_uniform(self, out: Array, stream: Stream) -> None:
        self._fill_uniform(out, stream)

    def softmax_log_loss(
        self,
        logits: Array,
        y: Array,
        elements: Array,
        d: Array,
        columns: tuple[Array, Array, Array],
    ) -> None:
        if self._softmax_log_loss.takes(logits, y, elements, d):
            self._softmax_log_loss(logits, y, elements, d)
        else:
            super().softmax_log_loss(logits, y, elements, d, columns)

    # --- Many steps at once -------------------------------------------------------------------

    def recordable(self) -> Backend:
        # What an adapter derived from this one overrides would not be captured.
        return cast(Backend, Recorder(self)) if type(self) is CupyBackend else self

    # --- What it computes with ----------------------------------------------------------------

    @cached_property
    def _scratch(self) -> Scratch:
        return ThreadScratch(self.zeros, lambda: self.cupy.cuda.get_current_stream().ptr)

    @cached_property
    def _load_rows(self) -> RowLoader:
        return RowLoader(self.cupy, self._pinned, self.empty, self.copy)

    def _pinned(self, shape: tuple[int, ...], dtype: str) -> Any:
        import cupyx

        return cupyx.empty_pinned(shape, dtype)

    @cached_property
    def _products(self) -> Products:
        return Products(self.cupy)

    @cached_property
    def _reductions(self) -> Reductions:
        return Reductions(self.cupy)

    @cached_property
    def fused(self) -> dict[str, Any]:
        """Kernels of merged rules by their source."""
        return {}

    @cached_property
    def _rules(self) -> dict[Rule, Kernel]:
        return {}

    @cached_property
    def _take_rows(self) -> TakeRows:
        return TakeRows(self.cupy)

    @cached_property
    def _fill_uniform(self) -> FillUniform:
        return FillUniform(self.cupy)

    @cached_property
    def _softmax_log_loss(self) -> SoftmaxLogLoss:
        return SoftmaxLogLoss(self.cupy)


class Recorder(StepRecorder):
    """Stands in for the adapter in a step, which so can be written down."""

    def capture(
        self, step: Callable[[int], None], n: int, n_steps: int, work: float
    ) -> Replay | None:
        if n_steps < STEPS_TO_CAPTURE:
            return None
        from xpmlp_cupy.capture import capture

        def tape() -> StepTape:
            return StepTape(self._backend, ("softmax_log_loss",))

        return capture(self._backend, lambda: self.record(step, n, tape), n)


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
    if os.environ.get("CUPY_TF32", "0") not in ("", "0"):  # of all products in the process
        return "CUPY_TF32 is set, which rounds products; unset it, precision='tf32' asks for that"
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
