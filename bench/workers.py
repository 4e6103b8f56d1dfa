"""Contenders in processes of their own, timed in turns.

A fresh process has its own threads, memory and compiled code: what one contender leaves behind does
not help or hinder another, and a first call is a first call.
"""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any, Self

# Seconds before a call: threads of the call before it spin for a while until they sleep.
_PAUSE = 0.2

# Where libraries keep on disk what they have compiled.
_CACHES = ("XPMLP_CACHE_DIR", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")

_current: Callable[[], Any]


class Worker:
    """A fresh process that does one thing after another.

    Parameters
    ----------
    hidden : tuple of str, default ()
        Packages that the process shall not find.
    cache : Path, optional
        Folder of compiled code. Default: an empty one.
    """

    def __init__(self, hidden: tuple[str, ...] = (), cache: Path | None = None) -> None:
        self._folder = TemporaryDirectory()
        # A spawned interpreter, not a fork with what this process has cached.
        self._pool = ProcessPoolExecutor(
            1,
            mp_context=get_context("spawn"),
            initializer=_start,
            initargs=(hidden, cache or self._folder.name),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._folder.cleanup()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a module's function over there; what it returns, or its error."""
        return self._pool.submit(function, *arguments).result()

    def prepare(self, make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
        """Make over there what :meth:`run` then calls."""
        self.call(_prepare, make, *arguments)

    def run(self) -> tuple[float, Any]:
        """Seconds of one call, and what it returned."""
        sleep(_PAUSE)
        seconds, value = self.call(_run)
        return seconds, value

    def peak_megabytes(self) -> float:
        """The most memory that a call takes beyond what is there, as tracemalloc sees it."""
        return float(self.call(_peak))


def interleave(workers: Mapping[str, Worker], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call. In a round each runs once; who is first rotates."""
    names = list(workers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for shift in range(rounds):
        first = shift % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(workers[name].run()[0])
    return seconds


def paired_ratio(above: list[float], below: list[float]) -> float:
    """The median over rounds: what slows a whole round down does not move it."""
    return median(a / b for a, b in zip(above, below, strict=True))


def threads() -> list[str]:
    """The thread pools that threadpoolctl knows in this process, such as ``openblas x2``."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return ["unknown, threadpoolctl is not installed"]
    return sorted({f"{pool['internal_api']} x{pool['num_threads']}" for pool in threadpool_info()})


def _start(hidden: tuple[str, ...], cache: Path | str) -> None:
    os.environ.update(dict.fromkeys(_CACHES, str(cache)))
    # JAX would take three quarters of a GPU's memory, where other processes have data, too.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    for package in hidden:
        sys.modules[package] = None  # type: ignore[assignment]  # as if not installed


def _prepare(make: Callable[..., Callable[[], Any]], *arguments: Any) -> None:
    global _current
    _current = make(*arguments)


def _run() -> tuple[float, Any]:
    start = perf_counter()
    value = _current()
    return perf_counter() - start, value


def _peak() -> float:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    _current()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - before) / 1e6
