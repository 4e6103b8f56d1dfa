"""Peak memory of a contender in a process of its own."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench.contenders import CONTENDERS, initial_weights
from bench.data import MIN_ROWS, fashion_mnist

METHOD = (
    "tracemalloc, from before the model is made to after its first epoch, in a fresh process; "
    "data, imports and compiled code excluded; 1 MB = 10**6 bytes"
)


def peak_megabytes(name: str, path: Path | None, rows: int, dtype: str, batch: int) -> float:
    """The highest memory in use by the model and one epoch, beyond the data.

    tracemalloc sees every allocation of NumPy and Python, so the number hardly varies.
    The peak resident set is not used: a child inherits its parent's on Linux, loading the data
    sets a mark that training may not reach, and it counts BLAS's own buffers, which all share.
    """
    # A worker serves one task: a fresh interpreter, not a fork with what this process has cached.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return pool.submit(_peak, name, path, rows, dtype, batch).result()


def _peak(name: str, path: Path | None, rows: int, dtype: str, batch: int) -> float:
    X, y = fashion_mnist("train", path, dtype, rows)
    weights = initial_weights(dtype)
    # What is imported or compiled at first use is no memory of the epoch.
    few = min(rows, batch + MIN_ROWS)
    CONTENDERS[name](X[:few], y[:few], batch, weights).epoch()
    tracemalloc.start()
    CONTENDERS[name](X, y, batch, weights).epoch()
    return tracemalloc.get_traced_memory()[1] / 1e6
