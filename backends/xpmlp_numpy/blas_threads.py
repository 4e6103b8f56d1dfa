"""How many threads BLAS uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

from xpmlp.backends import Held


class OwnThreads(Held):
    """While somebody is inside, BLAS computes on the threads that call it, in the whole process.

    Threads that it starts would go on as the one that starts them computes with denormal numbers.
    """

    def __init__(self) -> None:
        super().__init__(self._limit)

    def _limit(self) -> Callable[[], None]:
        self._most = max_threads()
        _let_anyone_limit()
        limit = _pools().limit(limits=1)

        def restore() -> None:
            _let_anyone_limit()
            limit.restore_original_limits()
            _let_anyone_limit()

        return restore

    def max_threads(self) -> int:
        """As many as BLAS may use while nobody is inside."""
        with self._lock:
            return self._most if self._inside else max_threads()

    def after_fork(self) -> None:
        """Forget who was inside in the process that this one is a copy of."""
        self._lock = Lock()
        if self._inside:
            self._inside = 0
            self._undo()


def max_threads() -> int:
    """As many as BLAS may use now."""
    return max((pool["num_threads"] for pool in _pools().info()), default=1)


@cache
def _pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _let_anyone_limit() -> None:
    """From threadpoolctl 3.8 on only the thread that limited OpenBLAS first may do so again."""
    for pool in _pools().lib_controllers:
        clear = getattr(pool, "clear_controlling_thread", None)
        if clear is not None:
            clear(force=True)
