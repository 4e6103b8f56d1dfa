"""A stand-in for the module `cupy` that runs kernels on the CPU, over NumPy arrays.

CuPy itself writes the source of an ElementwiseKernel and indexes arrays in it; only the launch is
another. Compiling is slow to start, so that all kernels go into one library: they are recorded in
a first round of calls, which compute nothing, and run in a second.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cupy
import numpy as np
from cupy._core import _carray, _kernel, _scalar

from cuda_shim import shared_library
from cuda_shim.streams import Cuda

# Kinds of an argument, from cupy/_core/_kernel.pxd.
_ARRAY, _INDEXER, _SCALAR = 1, 2, 3
_HEADERS = Path(cupy.__file__).parent / "_core" / "include"


class _Argument(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("data", "shape", "strides")]


class DeviceArray(np.ndarray):
    """A NumPy array with an address as CuPy's has it, that notes when its value is asked for."""

    asked = 0

    def __setitem__(self, key: Any, value: Any) -> None:
        # From device to device, where NumPy would ask an array of one element for its number.
        super().__setitem__(
            key, value.view(np.ndarray) if isinstance(value, DeviceArray) else value
        )

    def __float__(self) -> float:
        DeviceArray.asked += 1
        return super().__float__()

    def __bool__(self) -> bool:
        DeviceArray.asked += 1
        return super().__bool__()

    def __int__(self) -> int:
        DeviceArray.asked += 1
        return super().__int__()

    @property
    def data(self) -> Any:
        address = self.__array_interface__["data"][0]

        def copy(source: int, n_bytes: int, stream: Any) -> None:
            assert stream.ptr, "the work of the default stream would wait for it"
            assert self.flags.c_contiguous
            assert n_bytes == self.nbytes
            ctypes.memmove(address, source, n_bytes)

        return SimpleNamespace(ptr=address, copy_from_host_async=copy)


class Emulator:
    """NumPy's functions under their names, and kernels that run on the CPU."""

    def __init__(self) -> None:
        self.cuda = Cuda()
        self.sources: dict[tuple[str, str], int] = {}
        """Source and kernel name, numbered in the order of their recording."""
        self.is_recording = False
        self._library: Any = None

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name)
        if name not in ("sum", "max", "matmul"):
            return function

        def computes(*args: Any, **kwargs: Any) -> Any:
            if name == "matmul" and self.cuda.taking is not None:
                raise NotImplementedError("cuBLAS cannot be captured")
            self.cuda.allocate(512)  # scratch
            return function(*args, **kwargs)

        return computes

    def copyto(self, out: Any, x: Any, casting: Any = "same_kind") -> None:
        self.cuda.run(lambda: np.copyto(out, x, casting=casting))

    def ElementwiseKernel(self, *args: Any, **kwargs: Any) -> Callable[..., None]:
        kernel = cupy.ElementwiseKernel(*args, **kwargs)

        def call(*args: Any, size: int | None = None) -> None:
            written = generated(kernel, args, size)
            if written is not None:
                source, arguments = written
                # Fewer threads than elements, so that each has several.
                self._run(source, kernel.name, arguments, (2, 3, False))

        return call

    def RawKernel(self, code: str, name: str, options: Any) -> Callable[..., None]:
        def call(grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
            exchanging = "__syncthreads" in code or "__shfl" in code
            self._run(code, name, [np.asarray(x) for x in args], (*grid, *block, exchanging))

        return call

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Calls are taken down, and compute nothing."""
        self.is_recording = True
        yield
        self.is_recording = False

    def build(self, folder: Path) -> None:
        """Compile what was recorded."""
        launches = "\n".join(
            f'extern "C" void launch_{number}(const Argument* a, unsigned int blocks, '
            f"unsigned int threads, bool exchanging) {{\n"
            f"  launch(kernel_{number}::{name}_{number}, a, blocks, threads, exchanging);\n}}"
            for (_, name), number in self.sources.items()
        )
        source = f'#include "cuda_on_cpu.h"\n{unit(self.sources)}{launches}\n'
        self._library = shared_library(source, folder, f"-I{_HEADERS}")

    def _run(self, source: str, name: str, arguments: list[Any], launch: Any) -> None:
        if self.is_recording:  # it compiles them all later
            self.sources.setdefault((source, name), len(self.sources))
        else:
            self.cuda.run(lambda: self._launch(source, name, arguments, launch))

    def _launch(self, source: str, name: str, arguments: list[Any], launch: Any) -> None:
        packed = (_Argument * len(arguments))()
        kept = []
        for place, x in zip(packed, arguments, strict=True):
            sizes = [(ctypes.c_ssize_t * x.ndim)(*values) for values in (x.shape, x.strides)]
            kept.append(sizes)
            address = x.__array_interface__["data"][0]
            place.data, place.shape, place.strides = address, *map(ctypes.addressof, sizes)
        getattr(self._library, f"launch_{self.sources[source, name]}")(packed, *launch)


def unit(sources: dict[tuple[str, str], int]) -> str:
    """Many kernels, some of one name, as one source."""
    return "".join(
        f"#define {name} {name}_{number}\nnamespace kernel_{number} {{\n{source}\n}}\n"
        f"#undef {name}\n"
        for (source, name), number in sources.items()
    )


def generated(kernel: Any, args: tuple[Any, ...], size: int | None) -> Any:
    """The source that CuPy writes for a call, and the arrays to launch it with.

    None if there is nothing to do. Follows ``ElementwiseKernel.__call__``.
    """
    params = kernel.in_params + kernel.out_params
    assert len(args) == len(params)
    dtypes = [x.dtype if isinstance(x, np.ndarray) else None for x in args]
    n_in = len(kernel.in_params)
    in_types, _, type_map = kernel._decide_params_type(tuple(dtypes[:n_in]), tuple(dtypes[n_in:]))
    flat = [isinstance(x, np.ndarray) and not p.raw for x, p in zip(args, params, strict=True)]
    shape = (size,) if size is not None else np.broadcast_shapes(
        *[x.shape for x, chosen in zip(args, flat, strict=True) if chosen])  # fmt: skip
    assert all(
        x.shape == shape for x, chosen in zip(args[n_in:], flat[n_in:], strict=True) if chosen
    )
    if 0 in shape:
        return None
    arrays = [np.broadcast_to(x, shape) if c else x for x, c in zip(args, flat, strict=True)]
    views = [x for x, chosen in zip(arrays, flat, strict=True) if chosen]
    if len(shape) > 1 and all(x.flags.c_contiguous for x in views):
        arrays = [x.reshape(-1) if c else x for x, c in zip(arrays, flat, strict=True)]
        shape = (int(np.prod(shape)),)
    infos, arguments = [], []
    for place, x in enumerate(arrays):
        if isinstance(x, np.ndarray):
            contiguous = x.flags.c_contiguous
            infos.append(_kernel._ArgInfo(_ARRAY, cupy.ndarray, x.dtype, x.ndim, contiguous, True))
            arguments.append(x)
        else:
            scalar = np.asarray(x, in_types[place])
            infos.append(_kernel._ArgInfo(_SCALAR, _scalar.CScalar, scalar.dtype, 0, True, True))
            arguments.append(scalar)
    indexer = np.empty(shape, "int8")
    infos.append(_kernel._ArgInfo(_INDEXER, _carray.Indexer, None, indexer.ndim, True, True))
    source = _kernel._get_elementwise_kernel_code(
        tuple(infos), type_map, kernel.params, kernel.operation, kernel.name, kernel.preamble,
        **kernel.kwargs,
    )  # fmt: skip
    return source, [*arguments, indexer]
