"""Streams, events and graphs of CUDA acted out: what a capturing stream is given runs later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


class Stream:
    def __init__(self, cuda: Cuda, ptr: int, non_blocking: bool) -> None:
        self.cuda, self.ptr, self.is_non_blocking = cuda, ptr, non_blocking
        self.taken: list[Callable[[], None]] | None = None

    def __enter__(self) -> Stream:
        self.cuda.entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.cuda.entered.pop()

    def wait_event(self, event: Any) -> None:
        pass  # all work is done when it is given

    def begin_capture(self) -> None:
        assert self.ptr, "the default stream cannot capture"
        assert self.is_non_blocking
        self.taken = []

    def end_capture(self) -> Graph:
        taken, self.taken = self.taken, None
        if self.cuda.broken or taken is None:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        graph = Graph(self.cuda, taken)
        self.cuda.graphs.append(graph)
        return graph


class Graph:
    """What a stream has taken; `launches` counts how often it was run."""

    def __init__(self, cuda: Cuda, nodes: list[Callable[[], None]]) -> None:
        self.cuda, self.nodes, self.launches = cuda, nodes, 0

    def launch(self) -> None:
        assert self.cuda.taking is None
        self.launches += 1
        for node in self.nodes:
            node()


class Cuda:
    """A stand-in for ``cupy.cuda``.

    Attributes
    ----------
    calls : Counter
        How often the host has waited for the device, and why.
    broken : bool
        Whether captures fail when they end.
    graphs : list of Graph
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.broken = False
        self.graphs: list[Graph] = []
        self.default = Stream(self, 0, False)
        self.entered: list[Stream] = []
        self.runtime = SimpleNamespace(runtimeGetVersion=lambda: 13000)
        self._streams = 0
        self._allocator: Callable[[int], Any] | None = None

    def Stream(self, non_blocking: bool = False) -> Stream:
        self._streams += 1
        return Stream(self, 16 * self._streams, non_blocking)

    def get_current_stream(self) -> Stream:
        return self.entered[-1] if self.entered else self.default

    @property
    def taking(self) -> list[Callable[[], None]] | None:
        """What the current stream has taken so far, if it is capturing."""
        return self.get_current_stream().taken

    def run(self, work: Callable[[], None]) -> None:
        """Do something that a stream can be given, now or with a graph."""
        taking = self.taking
        if taking is None:
            work()
        else:
            taking.append(work)

    def allocate(self, n_bytes: int) -> None:
        if self._allocator is not None:
            self._allocator(n_bytes)

    @contextmanager
    def using_allocator(self, allocator: Callable[[int], Any]) -> Iterator[None]:
        self._allocator = allocator
        try:
            yield
        finally:
            self._allocator = None

    def Event(self, disable_timing: bool = False) -> Any:
        def wait() -> None:
            self.calls["synchronize"] += 1

        return SimpleNamespace(record=lambda stream=None: None, synchronize=wait)

    def get_elapsed_time(self, start: Any, stop: Any) -> float:
        return 1.0
