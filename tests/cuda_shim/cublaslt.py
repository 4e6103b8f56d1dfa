"""cublasLt acted out over host memory: the functions of its C interface that are called."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

_TYPES = {0: ctypes.c_float, 1: ctypes.c_double, 14: ctypes.c_uint16}
WORKSPACE = 512


def columns_at(address: int, rows: int, columns: int, distance: int, kind: int) -> Any:
    """A matrix as cuBLAS stores it: column by column, `distance` apart; 14 is bfloat16."""
    element = _TYPES[kind]
    flat = (element * (rows + (columns - 1) * distance)).from_address(address)
    array, size = np.ctypeslib.as_array(flat), ctypes.sizeof(element)
    array = np.lib.stride_tricks.as_strided(array, (rows, columns), (size, size * distance))
    return array if kind != 14 else (array.astype("uint32") << 16).view("float32")


class CublasLt:
    """Descriptions by number, and products by NumPy.

    Attributes
    ----------
    products : list of SimpleNamespace
        What was computed: ``transposes``, ``compute``, ``algorithm``, ``stream``, ``kinds``,
        ``epilogue``.
    asked : list of dict
        The preferences of each call of the heuristic.
    algorithms : int
        How many the heuristic finds.
    failing : set of int
        Those that cannot be run after all.
    epilogues : set of int
        What algorithms do besides.
    fault : {"fails", "drops NaN", "rounds"}, optional
        What is wrong with them.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._made: dict[int, Any] = {}
        self.products: list[SimpleNamespace] = []
        self.asked: list[dict[int, int]] = []
        self.algorithms = 2
        self.failing: set[int] = set()
        self.epilogues = {4, 6}
        self.fault = ""

    def _make(self, place: Any, what: Any) -> int:
        number = place._obj.value = len(self._made) + 1
        self._made[number] = what
        return 0

    def _set(self, of: Any, attribute: int, value: Any, size: int) -> int:
        assert size == ctypes.sizeof(value._obj)
        self._made[of.value].attributes[attribute] = value._obj.value
        return 0

    def cublasLtCreate(self, place: Any) -> int:
        return self._make(place, "handle")

    def cublasLtMatmulDescCreate(self, place: Any, compute: int, scale: int) -> int:
        return self._make(place, SimpleNamespace(compute=compute, scale=scale, attributes={}))

    def cublasLtMatrixLayoutCreate(
        self, place: Any, kind: int, rows: int, columns: int, distance: int
    ) -> int:
        assert distance >= rows
        return self._make(place, (rows, columns, distance, kind))

    def cublasLtMatmulPreferenceCreate(self, place: Any) -> int:
        return self._make(place, SimpleNamespace(attributes={}))

    cublasLtMatmulDescSetAttribute = _set
    cublasLtMatmulPreferenceSetAttribute = _set

    def cublasLtMatmulPreferenceDestroy(self, preference: Any) -> int:
        self.asked.append(self._made[preference.value].attributes)
        return 0

    def cublasLtMatmulAlgoGetHeuristic(
        self, handle: Any, description: Any, a: Any, b: Any, c: Any, d: Any, preference: Any,
        wanted: int, results: Any, count: Any,
    ) -> int:  # fmt: skip
        promised = self._made[preference.value].attributes
        layouts = a.value, b.value, d.value
        count._obj.value = min(wanted, self.algorithms)
        for place in range(count._obj.value):
            kept = (place, *(promised[attribute] for attribute in (5, 6, 8)), *layouts)
            results[place].algorithm[: len(kept)] = kept
            results[place].workspace = min(WORKSPACE, promised[1])
        return 0

    def cublasLtMatmulAlgoCheck(
        self, handle: Any, description: Any, a: Any, b: Any, c: Any, d: Any, algorithm: Any,
        result: Any,
    ) -> int:  # fmt: skip
        asked = self._made[description.value].attributes
        result._obj.workspace = WORKSPACE
        return 0 if asked[7] in self.epilogues else 15

    def cublasLtMatmul(
        self, handle: Any, description: Any, alpha: Any, a: int, a_layout: Any, b: int,
        b_layout: Any, beta: Any, c: int, c_layout: Any, d: int, d_layout: Any, heuristic: Any,
        workspace: int, workspace_size: int, stream: int,
    ) -> int:  # fmt: skip
        about = self._made[description.value]
        assert self._made[handle.value] == "handle"
        assert (alpha._obj.value, beta._obj.value, c, c_layout) == (1.0, 0.0, d, d_layout)
        assert ctypes.sizeof(alpha._obj) == (8 if about.scale else 4)
        assert stream == self._cuda.get_current_stream().ptr
        assert workspace
        assert workspace_size == WORKSPACE
        algorithm, *promised = heuristic._obj.algorithm[:7]
        assert not any(x % n for x, n in zip((a, b, d), promised[:3], strict=True))
        assert promised[3:] == [layout.value for layout in (a_layout, b_layout, d_layout)]
        epilogue = about.attributes.get(7, 1)
        if algorithm in self.failing or (epilogue != 1 and self.fault == "fails"):
            return 15  # not supported
        turned = [about.attributes[attribute] for attribute in (3, 4)]
        places = [(x, *self._made[layout.value]) for x, layout in ((a, a_layout), (b, b_layout))]
        result = (d, *self._made[d_layout.value])

        def compute() -> None:
            left, right = (
                columns_at(*place).T if t else columns_at(*place)
                for place, t in zip(places, turned, strict=True)
            )
            found = left @ right
            if epilogue & 4:
                bias = columns_at(
                    about.attributes[8], found.shape[0], 1, found.shape[0], result[-1]
                )
                found = found + bias
                if self.fault == "rounds":  # more than once
                    found *= np.where(bias, 1 + np.finfo("float32").eps, np.float32(1))
            if epilogue & 2:
                found = (np.fmax if self.fault == "drops NaN" else np.maximum)(found, 0)
            columns_at(*result)[...] = found
            self.products.append(
                SimpleNamespace(
                    transposes=tuple(turned), compute=about.compute, algorithm=algorithm,
                    stream=stream, epilogue=epilogue,
                    kinds=tuple(place[-1] for place in (*places, result)),
                )
            )  # fmt: skip

        self._cuda.run(compute)
        return 0
