"""The PyTorch adapter: tensors on a CPU, or on GPUs of NVIDIA, AMD, Intel and Apple.

Nothing of PyTorch's autograd is used. PyTorch is imported when it is first asked for, and never
for ``device="auto"``, since that takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from threading import Lock
from typing import Any

from xpmlp.backends import Array, DTypePolicy, ReferenceBackend, functions_of, host
from xpmlp.errors import out_of_device_memory
from xpmlp.typing import RuleFunctions

_ACCELERATORS = ("cuda", "xpu", "mps")  # AMD's GPUs are "cuda" to PyTorch


class TorchBackend(ReferenceBackend):
    """PyTorch tensors on one device.

    With the precision ``"bfloat16"`` products are computed by the tensor cores of GPUs whose
    PyTorch gives their sums in float32 (2.8 or newer). Elsewhere, as on the CPU, operands are
    rounded and multiplied in float32: the same numbers but for the order of the sums, and slower.
    That shows what the precision does to a network before it is trained on a GPU.
    """

    name = "torch"
    library = "torch"
    precisions = ("ieee", "bfloat16")

    def __init__(self, device: str = "cpu") -> None:
        import array_api_compat.torch
        import torch

        self.torch: Any = torch
        # As tensors name it: "mps:0" for "mps".
        super().__init__(array_api_compat.torch, device, torch.empty(0, device=device).device)
        self.kind = device.partition(":")[0]
        self.immediate = self.kind == "cpu"
        if self.kind == "mps":  # which has no float64
            self.policies = (DTypePolicy("float32", "float32", "float32"),)

    @cached_property
    def functions(self) -> RuleFunctions:  # type: ignore[override]
        functions: Any = functions_of(self.xp)
        functions.erf = staticmethod(self.torch.erf)
        chosen: RuleFunctions = functions
        return chosen

    @classmethod
    def unavailable(cls) -> str | None:
        return _unavailable()

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        import torch

        found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        if hasattr(torch, "xpu") and torch.xpu.is_available():
            found += [f"xpu:{index}" for index in range(torch.xpu.device_count())]
        if torch.backends.mps.is_available():
            found.append("mps")
        return (*found, "cpu")

    @classmethod
    def version(cls) -> str:
        import torch

        return f"PyTorch {torch.__version__}"

    @classmethod
    def accepts(cls, device: str) -> bool:
        kind, colon, index = device.partition(":")
        return device in ("cpu", "mps") or (
            kind in _ACCELERATORS[:2] and (not colon or index.isdecimal())
        )

    def memory(self) -> tuple[int, int] | None:
        if self.kind == "cuda":
            free, total = self.torch.cuda.mem_get_info(self.xp_device)
            return int(free), int(total)
        return host().memory() if self.kind == "cpu" else None

    @contextmanager
    def context(self) -> Iterator[None]:
        with _exact_products, self.torch.no_grad():
            yield

    def synchronize(self) -> None:
        if self.kind == "mps":
            self.torch.mps.synchronize()
        elif self.kind in _ACCELERATORS:
            getattr(self.torch, self.kind).synchronize(self.xp_device)

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self._memory(shape, dtype):
            return super().empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        with self._memory(shape, dtype):
            return super().zeros(shape, dtype)

    @contextmanager
    def _memory(self, shape: tuple[int, ...], dtype: str) -> Iterator[None]:
        """Turn PyTorch's errors of an allocation, which differ by device, into the library's."""
        try:
            yield
        except RuntimeError as error:
            if "memory" not in str(error) and "allocate" not in str(error):
                raise
            n_bytes = math.prod(shape) * getattr(self.torch, dtype).itemsize
            raise out_of_device_memory(self.device, n_bytes, self.memory()) from error

    def owns(self, x: object) -> bool:
        return isinstance(x, self.torch.Tensor) and x.device == self.xp_device

    def from_host(self, x: Any) -> Array:
        array: Any = host().from_host(x)
        # PyTorch takes neither read-only memory nor negative strides.
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()
        if self.kind == "mps" and str(array.dtype) == "float64":
            array = array.astype("float32")
        with self._memory(array.shape, str(array.dtype)):
            tensor: Array = self.torch.as_tensor(array, device=self.xp_device)
        return tensor

    def to_host(self, x: Array) -> Any:
        tensor: Any = x
        tensor = tensor.detach().cpu()
        return (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()

    def copy(self, x: Array, out: Array) -> None:
        target: Any = out
        target.copy_(x)

    def matmul(self, a: Any, b: Any, out: Any) -> None:
        if self.precision == "bfloat16" and a.dtype == b.dtype == self.torch.float32:
            with self._memory(out.shape, "bfloat16"):
                a, b = a.bfloat16(), b.bfloat16()
                if self._sums_in_float32 and out.ndim == 2:
                    self.torch.mm(a, b, out_dtype=self.torch.float32, out=out)
                    return
                a, b = a.float(), b.float()
        self.torch.matmul(a, b, out=out)

    @cached_property
    def _sums_in_float32(self) -> bool:
        """Whether PyTorch multiplies matrices of bfloat16 into one of float32 here."""
        square = self.torch.ones((8, 8), dtype=self.torch.bfloat16, device=self.xp_device)
        try:
            self.torch.mm(square, square, out_dtype=self.torch.float32)
        except (RuntimeError, TypeError):  # not on this device, not in this version
            return False
        return True

    def sum_columns(self, x: Array, out: Array) -> None:
        self.torch.sum(x, dim=-2, out=out)

    def sum_rows(self, x: Array, out: Array) -> None:
        self.torch.sum(x, dim=-1, keepdim=True, out=out)

    def max_rows(self, x: Array, out: Array) -> None:
        self.torch.amax(x, dim=-1, keepdim=True, out=out)

    def take_rows(self, x: Array, indices: Array, out: Array) -> None:
        if x.dtype == out.dtype:
            self.torch.index_select(x, 0, indices, out=out)
        else:
            self.copy(self.torch.index_select(x, 0, indices), out)


class _ExactProducts:
    """While entered, by any thread, no switch of PyTorch's rounds the operands of float32."""

    def __init__(self) -> None:
        self._lock, self._entered, self._before = Lock(), 0, ""

    def __enter__(self) -> None:
        import torch

        with self._lock:
            if not self._entered:
                self._before = torch.get_float32_matmul_precision()
                if self._before != "highest":
                    torch.set_float32_matmul_precision("highest")
            self._entered += 1

    def __exit__(self, *_: object) -> None:
        import torch

        with self._lock:
            self._entered -= 1
            if not self._entered and self._before != "highest":
                torch.set_float32_matmul_precision(self._before)


_exact_products = _ExactProducts()


@cache
def _unavailable() -> str | None:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            return f"PyTorch cannot be imported ({error})"
        return "PyTorch is not installed; pip install 'xpmlp[torch]'"
    except (ImportError, OSError) as error:  # a shared library is missing
        return f"PyTorch cannot be imported ({error})"
    try:
        float((torch.ones(2, 2) @ torch.ones(2, 2)).sum())
    except Exception as error:
        return f"PyTorch {torch.__version__} cannot compute ({type(error).__name__}: {error})"
    return None
