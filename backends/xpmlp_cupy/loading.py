"""Rows of host memory on their way to the device, while it computes on those before them."""

from __future__ import annotations

from collections.abc import Callable
from threading import local
from typing import Any

from xpmlp.typing import Array, HostMatrix


class _Lane:
    """A pinned buffer and its counterpart on the device, and events when either is free again."""

    def __init__(self, cupy: Any, host: Any, device: Any) -> None:
        self.host, self.device = host, device
        self.copied, self.read = (cupy.cuda.Event(disable_timing=True) for _ in range(2))


class RowLoader(local):
    """Batches that take turns in two pinned buffers, and go to the device by a stream of their own.

    They go in the dtype of the data, and are cast on the device. The host waits only for the batch
    before the last to have left its buffer; the device's work for nothing but its own rows. Threads
    have their own buffers.

    Parameters
    ----------
    cupy : module
    pinned : callable
        ``pinned(shape, dtype)``: a NumPy array in page-locked memory.
    empty, copy : callable
        The adapter's own.
    """

    def __init__(
        self,
        cupy: Any,
        pinned: Callable[[tuple[int, ...], str], Any],
        empty: Callable[[tuple[int, ...], str], Array],
        copy: Callable[[Array, Array], None],
    ) -> None:
        self._cupy, self._pinned, self._empty, self._copy = cupy, pinned, empty, copy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._lanes: dict[Any, _Lane] = {}
        self._turn = 0

    def __call__(self, x: HostMatrix, rows: Any, out: Array) -> None:
        """Write rows of `x` to `out`, in the order of the current stream."""
        lane = self._lane(out.shape, str(x.dtype))
        host, device = lane.host[: out.shape[0]], lane.device[: out.shape[0]]
        x.write(rows, host)
        current = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(lane.read)
        device.data.copy_from_host_async(host.ctypes.data, host.nbytes, self._stream)
        lane.copied.record(self._stream)
        current.wait_event(lane.copied)
        self._copy(device, out)
        lane.read.record(current)

    def _lane(self, shape: tuple[int, ...], dtype: str) -> _Lane:
        """The one whose turn it is, with room for so many rows, when its buffer is free."""
        self._turn = 1 - self._turn
        key = self._turn, shape[1:], dtype
        lane = self._lanes.get(key)
        if lane is not None:
            lane.copied.synchronize()
        if lane is None or lane.host.shape[0] < shape[0]:
            host, device = self._pinned(shape, dtype), self._empty(shape, dtype)
            # New memory may still be read by the current stream, which had it before.
            lane = self._lanes[key] = _Lane(self._cupy, host, device)
            lane.read.record(self._cupy.cuda.get_current_stream())
        return lane
