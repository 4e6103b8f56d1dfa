"""Captured steps: the primitives of a step, written down once and run as machine code.

A step is called with a :class:`Tape` for its adapter, twice: what differs between the two
recordings is where the numbers of the next step stand. Each primitive becomes a call of a kernel
with addresses and sizes, for each thread on a part of its own. :func:`_run` walks that list step by
step, without Python; threads meet at a barrier where one reads what another has written.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, Lock
from typing import Any

import numba
import numpy as np
from numba import types

from xpmlp.tape import CannotCapture, StepTape
from xpmlp_numpy import NumpyBackend, kernels, native
from xpmlp_numpy.blas_threads import OwnThreads
from xpmlp_numpy.lowering import Call, Lowering, Use
from xpmlp_numpy.native import (
    atomic_add,
    atomic_load,
    call,
    call_yield,
    flush_denormals,
    relax,
    restore,
)

_log = logging.getLogger("xpmlp")

# Operations of a step from which one more thread pays.
_WORK_OF_A_THREAD = 1e7
# The most that a kernel is given.
_ADDRESSES = 64


# --- Recording --------------------------------------------------------------------------------


class Tape(StepTape):
    """A tape for NumPy's adapter."""

    def __init__(self) -> None:
        super().__init__(NumpyBackend())


def _barriers(calls: list[Call]) -> list[bool]:
    """Whether threads must meet before each call: always before the first, for the step before."""
    waits: list[bool] = []
    since: list[Use] = []
    for one in calls:
        waits.append(not waits or any(a.meets(b) for a in one.uses for b in since))
        since = [*one.uses] if waits[-1] else [*since, *one.uses]
    return waits


def _encode(calls: list[Call], waits: list[bool], thread: int) -> np.ndarray[Any, Any]:
    """Calls of one thread in a line of numbers: see :func:`_run`."""
    code: list[int] = []
    for one, wait in zip(calls, waits, strict=True):
        p, d = one.parts[thread] or ([], [])
        skip = one.parts[thread] is None
        code += [0 if skip else one.kernel, wait, len(p), len(d)]
        code += [address for address, _ in p] + [advance for _, advance in p] + d
    return np.array(code, np.int64)


def _run(code: Any, n: int, context: Any, n_threads: int) -> int:
    """Run `n` steps of one thread's calls; returns how many were done.

    Denormal numbers, on which a processor may be several times as slow, count as zero: where a
    network is sure of its answers, its derivatives are such numbers.

    `context` is the address of the barrier's counter and of a flag that ends all waiting, that of
    the system's yield, and the epoch, batch and step, which kernels are given.
    """
    p = np.empty(64, np.int64)  # _ADDRESSES
    before = flush_denormals()
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
                    if spins > 4000:
                        if atomic_load(context[0] + 8) != 0:
                            restore(before)
                            return step
                        if context[1] != 0:
                            call_yield(context[1])
            k += 4
            for i in range(n_p):
                p[i] = code[k + i] + step * code[k + n_p + i]
            k += 2 * n_p
            if (
                kernel != 0
                and call(kernel, p.ctypes.data, here + 8 * k, context.ctypes.data + 16) != 0
            ):
                restore(before)
                return step
            k += n_d
    restore(before)
    return n


@cache
def _compiled_run() -> Callable[..., int]:
    # A signature has it compiled now, and not by several threads when they first call it.
    line = types.Array(types.int64, 1, "C")
    signature = types.int64(line, types.int64, line, types.int64)
    run: Callable[..., int] = kernels.compiled(
        inspect.getsource(_run), "_run", numba.njit, signature, nogil=True
    )
    return run


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
        parts = [part for one in lowering.calls for part in one.parts if part]
        if any(len(p) > _ADDRESSES for p, _ in parts):
            raise CannotCapture("a rule of too many operands")
        self._kept = lowering.kept, tapes
        waits = _barriers(lowering.calls)
        self._codes = [_encode(lowering.calls, waits, thread) for thread in range(n_threads)]
        self._counter = np.zeros(2, np.int64)
        self._contexts = np.zeros((n_threads, 8), np.int64)
        self._contexts[:, 0] = self._counter.ctypes.data
        self._contexts[:, 1] = native.yield_address()
        self._pool = _threads(n_threads - 1) if n_threads > 1 else None

    def __call__(self, n: int, epoch: int, batch: int) -> int:
        self._contexts[:, 2:4] = epoch, batch
        codes, contexts, run = self._codes, self._contexts, _compiled_run()
        if self._pool is None:
            with _blas:
                return int(run(codes[0], n, contexts[0], 1))
        with _turn, _blas:  # all cores work for one fit at a time
            self._counter[:] = 0
            others = []
            try:
                for code, context in zip(codes[1:], contexts[1:], strict=True):
                    others.append(self._pool.submit(run, code, n, context, len(codes)))
                return int(run(codes[0], n, contexts[0], len(codes)))
            except BaseException:  # an interrupt before it began
                self._counter[1] = 1
                raise
            finally:
                for other in others:
                    other.result()


def _threads(n: int) -> ThreadPoolExecutor:
    """A pool whose threads have been started: later it would be too late to notice a limit."""
    pool, ready = ThreadPoolExecutor(n), Barrier(n + 1)
    try:
        for _ in range(n):
            pool.submit(ready.wait)
        ready.wait()
    except RuntimeError as error:
        ready.abort()
        raise CannotCapture(str(error)) from error
    return pool


_turn = Lock()
_blas = OwnThreads()


def _after_fork() -> None:
    """Without the threads that have been in here nobody would end their turn."""
    global _turn
    _turn = Lock()
    _blas.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads_for(work: float) -> int:
    """How many threads a step of so many operations is shared out to."""
    return max(1, min(_blas.max_threads(), int(work / _WORK_OF_A_THREAD)))


def capture(record: Callable[[], list[Tape]], work: float) -> Captured | None:
    """Steps as one call, or None with a line in the log that says why not."""
    try:
        return Captured(record(), threads_for(work))
    except CannotCapture as reason:
        _log.info("steps are run one primitive at a time: %s", reason)
        return None
