"""The PyTorch adapter: tensors on a CPU, or on GPUs of NVIDIA, AMD, Intel and Apple.

Nothing of PyTorch's autograd is used. PyTorch is imported when it is first asked for, and never
for ``device="auto"``, since that takes seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property, wraps
from typing import Any

from xpmlp.backends import (
    Array,
    DTypePolicy,
    Held,
    ReferenceBackend,
    dtype_name,
    functions_of,
    host,
)  # fmt: skip
from xpmlp.errors import out_of_device_memory
from xpmlp.typing import Kernel, Operand, Rule, RuleFunctions

_ACCELERATORS = ("cuda", "xpu", "mps")  # AMD's GPUs are "cuda" to PyTorch
_EXACT = ("ieee", "none")  # values of fp32_precision that round nothing in a product
# What errors of memory say that are no torch.OutOfMemoryError: of the CPU, of Apple's GPUs, of
# CUDA's own allocations and of its libraries'.
_FULL = ("DefaultCPUAllocator", "out of memory", "_ALLOC_FAILED")


def _explained(primitive: Callable[..., None]) -> Callable[..., None]:
    """The primitive, whose last argument is what it writes, with the library's error of memory."""

    @wraps(primitive)
    def call(self: TorchBackend, *arrays: Any) -> None:
        try:
            primitive(self, *arrays)
        except RuntimeError as error:
            self._explain(error, arrays[-1].nbytes)
            raise

    return call


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
            self._explain(error, math.prod(shape) * getattr(self.torch, dtype).itemsize)
            raise

    def _explain(self, error: RuntimeError, n_bytes: int) -> None:
        """Raise the library's error if `error` is of memory for an array of `n_bytes`."""
        if isinstance(error, self.torch.OutOfMemoryError) or any(
            text in str(error) for text in _FULL
        ):
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

    @_explained
    def copy(self, x: Array, out: Array) -> None:
        target: Any = out
        target.copy_(x)

    @_explained
    def matmul(self, a: Any, b: Any, out: Any) -> None:
        if self.precision == "bfloat16" and a.dtype == b.dtype == self.torch.float32:
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

    def elementwise(self, rule: Rule) -> Kernel:
        kernel = super().elementwise(rule)

        def explained(outs: tuple[Array, ...], *operands: Operand) -> None:
            try:
                kernel(outs, *operands)
            except RuntimeError as error:
                of: Any = outs[0]
                self._explain(error, of.nbytes)  # a temporary is as large as a result
                raise

        return explained

    @_explained
    def sum_columns(self, x: Array, out: Array) -> None:
        self.torch.sum(x, dim=-2, out=out)

    @_explained
    def sum_rows(self, x: Array, out: Array) -> None:
        self.torch.sum(x, dim=-1, keepdim=True, out=out)

    @_explained
    def max_rows(self, x: Array, out: Array) -> None:
        self.torch.amax(x, dim=-1, keepdim=True, out=out)

    def total(self, x: Array, out: Array) -> None:
        with self._memory(x.shape, dtype_name(out)):
            super().total(x, out)

    def total_squares(self, x: Array, out: Array) -> None:
        with self._memory(x.shape, dtype_name(out)):
            super().total_squares(x, out)

    @_explained
    def take_rows(self, x: Array, indices: Array, out: Array) -> None:
        if x.dtype == out.dtype:
            self.torch.index_select(x, 0, indices, out=out)
        else:
            self.copy(self.torch.index_select(x, 0, indices), out)


def _be_exact() -> Callable[[], None]:
    """Have PyTorch compute products as they are; gives what restores the settings.

    Since 2.9 there is one for each library of products, ``fp32_precision``. The old switch writes
    these too, but raises when it is read after one of them was written.
    """
    import torch

    of: Any = torch.backends
    if not hasattr(of.cuda.matmul, "fp32_precision"):
        switch = torch.get_float32_matmul_precision()
        if switch != "highest":
            torch.set_float32_matmul_precision("highest")
        return lambda: torch.set_float32_matmul_precision(switch) if switch != "highest" else None
    products = (of.cuda.matmul, of.mkldnn.matmul)
    before = [(product, product.fp32_precision) for product in products]
    changed = [(product, value) for product, value in before if value not in _EXACT]
    for product, _ in changed:
        product.fp32_precision = "ieee"

    def undo() -> None:
        for product, value in changed:
            product.fp32_precision = "none"  # as torch.backends.fp32_precision says
            if product.fp32_precision != value:
                product.fp32_precision = value

    return undo


# No setting of PyTorch's rounds the operands of float32 then.
_exact_products = Held(_be_exact)


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
