"""Captured steps: the primitives of a step, written down once and run as machine code.

A step is called with a :class:`Tape` for its adapter, twice: what differs between the two
recordings is where the numbers of the next step stand. Each primitive becomes a call of a kernel
with addresses and sizes, for each thread on a part of its own. :func:`_run` walks that list step by
step, without Python; threads meet at a barrier where one reads what another has written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numba
import numpy as np

from xpmlp.backends import Kernel, Rule
from xpmlp_numpy import NumpyBackend, native
from xpmlp_numpy.lowering import Call, CannotCapture, Lowering, Use
from xpmlp_numpy.native import atomic_add, atomic_load, call, call_yield, relax

_log = logging.getLogger("xpmlp")

# Operations of a step from which one more thread pays.
_WORK_OF_A_THREAD = 1e7


# --- Recording --------------------------------------------------------------------------------


class Tape(NumpyBackend):
    """An adapter that writes primitives down and runs none."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def elementwise(self, rule: Rule) -> Kernel:
        def kernel(outs: Sequence[Any], *operands: Any) -> None:
            self.calls.append(("elementwise", (rule, len(outs), *outs, *operands)))

        return kernel

    def finite(self, x: Any) -> bool:
        self.calls.append(("finite", (x,)))
        return True

    def _write_down(name: str) -> Any:  # type: ignore[misc]
        def primitive(self: Tape, *arguments: Any) -> None:
            self.calls.append((name, arguments))

        return primitive

    copy = _write_down("copy")
    matmul = _write_down("matmul")
    sum_columns = _write_down("sum_columns")
    sum_rows = _write_down("sum_rows")
    max_rows = _write_down("max_rows")
    total = _write_down("total")
    total_squares = _write_down("total_squares")
    take_rows = _write_down("take_rows")
    fill_uniform = _write_down("fill_uniform")

    def _refuse(name: str) -> Any:  # type: ignore[misc]
        def method(self: Tape, *arguments: Any) -> Any:
            raise CannotCapture(f"{name} inside a step")

        return method

    empty = _refuse("empty")
    zeros = _refuse("zeros")
    from_host = _refuse("from_host")
    to_host = _refuse("to_host")
    read = _refuse("read")


def _encode(calls: list[Call], thread: int) -> np.ndarray[Any, Any]:
    """Calls of one thread in a line of numbers: see :func:`_run`."""
    code: list[int] = []
    since: list[Use] = []
    for number, one in enumerate(calls):
        wait = number == 0 or any(a.meets(b) for a in one.uses for b in since)
        since = [*one.uses] if wait else [*since, *one.uses]
        p, d = one.parts[thread] or ([], [])
        skip = one.parts[thread] is None
        code += [0 if skip else one.kernel, wait, len(p), len(d)]
        code += [address for address, _ in p] + [advance for _, advance in p] + d
    return np.array(code, np.int64)


def _run(code: Any, n: int, context: Any, n_threads: int) -> int:
    """Run `n` steps of one thread's calls; returns how many were done.

    `context` is the address of the counter of the barrier, that of the system's yield, and the
    epoch, batch and step, which kernels are given.
    """
    p = np.empty(64, np.int64)
    here = code.ctypes.data
    for step in range(n):
        context[4] = step
        k = 0
        while k < code.size:
            kernel, wait, n_p, n_d = code[k], code[k + 1], code[k + 2], code[k + 3]
            if wait and n_threads > 1:
                ticket = atomic_add(context[0], 1)
                goal = (ticket // n_threads + 1) * n_threads
                spins = 0
                while atomic_load(context[0]) < goal:
                    spins += 1
                    relax()
                    if spins > 4000 and context[1] != 0:
                        call_yield(context[1])
            k += 4
            for i in range(n_p):
                p[i] = code[k + i] + step * code[k + n_p + i]
            k += 2 * n_p
            if (
                kernel != 0
                and call(kernel, p.ctypes.data, here + 8 * k, context.ctypes.data + 16) != 0
            ):
                return step
            k += n_d
    return n


@cache
def _compiled_run() -> Callable[..., int]:
    compiled: Callable[..., int]
    try:
        compiled = numba.njit(nogil=True, cache=True)(_run)
    except RuntimeError:  # no folder to keep it in
        compiled = numba.njit(nogil=True)(_run)
    return compiled


class Captured:
    """Steps as machine code; see :class:`xpmlp.typing.Replay`."""

    def __init__(self, tapes: list[Tape], n_threads: int) -> None:
        lowering = Lowering(n_threads, tapes[0].functions)
        first, second = tapes[0].calls, tapes[-1].calls
        if [name for name, _ in first] != [name for name, _ in second]:
            raise CannotCapture("steps that differ")
        for (name, one), (_, other) in zip(first, second, strict=True):
            lowering.lower(name, one, other)
        lowering.finish()
        self._kept = lowering.kept, tapes
        self._codes = [_encode(lowering.calls, thread) for thread in range(n_threads)]
        self._counter = np.zeros(1, np.int64)
        self._contexts = np.zeros((n_threads, 8), np.int64)
        self._contexts[:, 0] = self._counter.ctypes.data
        self._contexts[:, 1] = native.yield_address()
        self._pool = ThreadPoolExecutor(n_threads - 1) if n_threads > 1 else None

    def __call__(self, n: int, epoch: int, batch: int) -> int:
        self._contexts[:, 2:4] = epoch, batch
        codes, contexts, run = self._codes, self._contexts, _compiled_run()
        if self._pool is None:
            return int(run(codes[0], n, contexts[0], 1))
        with one_blas_thread():
            others = [
                self._pool.submit(run, code, n, context, len(codes))
                for code, context in zip(codes[1:], contexts[1:], strict=True)
            ]
            done = int(run(codes[0], n, contexts[0], len(codes)))
            for other in others:
                other.result()
        return done


_lock = Lock()
_users = 0
_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Products on the calling thread alone: the threads are ours."""
    global _users, _limit
    with _lock:
        _users += 1
        if _users == 1:
            _limit = native.blas_threads().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.restore_original_limits()


def threads_for(work: float) -> int:
    """How many threads a step of so many operations is shared out to."""
    return max(1, min(native.max_threads(), int(work / _WORK_OF_A_THREAD)))


def capture(record: Callable[[int], Tape], n: int, work: float) -> Captured | None:
    """Steps as one call, or None with a line in the log that says why not."""
    try:
        return Captured([record(i) for i in range(min(n, 2))], threads_for(work))
    except CannotCapture as reason:
        _log.info("steps are run one primitive at a time: %s", reason)
        return None
