"""A step written down: the primitives it calls, in order, with their operands.

For adapters that turn such a note into something that runs at once, see ``Backend.capture``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from xpmlp.backends import ReferenceBackend
from xpmlp.typing import Kernel, Rule

_WRITTEN = (
    "copy", "matmul", "sum_columns", "sum_rows", "max_rows", "total", "total_squares", "take_rows",
    "fill_uniform",
)  # fmt: skip
_REFUSED = ("empty", "zeros", "from_host", "to_host", "read", "load_rows")


class CannotCapture(Exception):
    """Why a step can only be run primitive by primitive."""


class StepTape:
    """Stands in for an adapter: writes primitives down and runs none.

    What else it is asked for the adapter answers, except that nothing is allocated or read.

    Parameters
    ----------
    backend : Backend
    composed : tuple of str, default ()
        Primitives that are made of others, such as ``"softmax_log_loss"``, and shall be written
        down as they are.

    Attributes
    ----------
    calls : list of (str, tuple)
        Names and arguments. Those of ``"elementwise"`` are the rule, the number of outputs, the
        outputs and the operands.
    """

    def __init__(self, backend: Any, composed: tuple[str, ...] = ()) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._backend = backend
        self._written = (*_WRITTEN, *composed)

    def elementwise(self, rule: Rule) -> Kernel:
        def kernel(outs: Sequence[Any], *operands: Any) -> None:
            self.calls.append(("elementwise", (rule, len(outs), *outs, *operands)))

        return kernel

    def finite(self, x: Any) -> bool:
        self.calls.append(("finite", (x,)))
        return True

    def softmax_log_loss(self, *arguments: Any) -> None:
        if "softmax_log_loss" in self._written:
            self._write("softmax_log_loss", *arguments)
        else:
            stand_in: Any = self
            ReferenceBackend.softmax_log_loss(stand_in, *arguments)

    def __getattr__(self, name: str) -> Any:
        if name in _WRITTEN:
            return partial(self._write, name)
        if name in _REFUSED:
            return partial(self._refuse, name)
        return getattr(self._backend, name)

    def _write(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))

    def _refuse(self, name: str, *arguments: Any) -> None:
        raise CannotCapture(f"{name} inside a step")


T = TypeVar("T", bound=StepTape)


class StepRecorder:
    """Stands in for an adapter in a step, which so can be written down.

    Each step has one of its own, and nothing else is written down with it. An adapter derives from
    this class, and gives it a method ``capture``.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = self._target = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __reduce__(self) -> Any:
        return self._backend.__reduce__()

    def record(self, step: Callable[[int], None], n: int, new_tape: Callable[[], T]) -> list[T]:
        """The first step and, where there are several, the second: the two show what moves."""
        tapes = [new_tape() for _ in range(min(n, 2))]
        for i, tape in enumerate(tapes):
            self._target = tape
            try:
                step(i)
            finally:
                self._target = self._backend
        return tapes
