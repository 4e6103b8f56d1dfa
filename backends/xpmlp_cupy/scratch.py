"""Device memory that kernels use while they run."""

from __future__ import annotations

from collections.abc import Callable
from threading import local
from typing import Any

from xpmlp.typing import Array


class Scratch:
    """Arrays by name, which stay where they are and are never given back.

    A step allocates nothing after the first.

    Parameters
    ----------
    zeros : callable
        The adapter's own.
    owner : callable, optional
        Returns whose the memory is, such as a stream. Default: it is for one user alone.
    """

    def __init__(
        self,
        zeros: Callable[[tuple[int, ...], str], Array],
        owner: Callable[[], Any] = lambda: None,
    ) -> None:
        self._zeros = zeros
        self._owner = owner
        self._arrays: dict[Any, Any] = {}

    def __call__(self, name: str, size: int, dtype: str) -> Any:
        """A vector of `size` elements; zeros when it is first asked for, then what was left there.

        There is one for each next power of two, so that arrays of many sizes take less than four
        times the largest.
        """
        room = 1 << (size - 1).bit_length()
        key = name, room, dtype, self._owner()
        if key not in self._arrays:
            self._arrays[key] = self._zeros((room,), dtype)
        return self._arrays[key][:size]


class ThreadScratch(local, Scratch):
    """The same, where each thread has its own, until it ends: nothing orders what threads do."""
