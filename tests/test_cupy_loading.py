"""Whatever reads or writes a buffer of streamed batches is ordered by streams and events.

Every piece of work is noted with what it surely comes after; two that use one buffer, and not both
to read it, must not be free to run at once.
"""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from xpmlp_cupy.loading import RowLoader


class Timeline:
    """Streams and events of CUDA that do nothing but note what comes after what."""

    def __init__(self):
        self.work = []  # what each reads and writes, and what it surely comes after
        self.host = Stream(self)
        self.current = Stream(self)
        self.ignored = None
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking: Stream(self),
            Event=lambda disable_timing: Event(self),
            get_current_stream=lambda: self.current,
        )

    def do(self, stream, reads=(), writes=()):
        before = set().union(*({n} | self.work[n][2] for n in stream.done | self.host.done))
        self.work.append(({*reads}, {*writes}, before))
        stream.done = {len(self.work) - 1}

    def conflicts(self):
        return [
            (i, j)
            for (i, a), (j, b) in combinations(enumerate(self.work), 2)
            if (a[0] & b[1] or a[1] & b[0] or a[1] & b[1]) and i not in b[2]
        ]


class Stream:
    def __init__(self, timeline):
        self.timeline, self.done = timeline, set()

    def wait_event(self, event):
        who = "the computation" if self is self.timeline.current else "the copies"
        if self.timeline.ignored != f"{who} wait":
            self.done = self.done | event.done


class Event:
    def __init__(self, timeline):
        self.timeline, self.done = timeline, set()

    def record(self, stream):
        who = "the computation" if stream is self.timeline.current else "the copies"
        if self.timeline.ignored != f"{who} record":
            self.done = set(stream.done)

    def synchronize(self):
        if self.timeline.ignored != "the host waits":
            self.timeline.host.done = self.timeline.host.done | self.done


class Buffer:
    """Memory of a batch, on the host or the device."""

    def __init__(self, timeline, name, shape, dtype):
        self.timeline, self.name, self.shape = timeline, name, shape
        self.nbytes = np.zeros(shape, dtype).nbytes
        self.ctypes = SimpleNamespace(data=name)
        self.data = SimpleNamespace(copy_from_host_async=self._copy)

    def __getitem__(self, rows):
        return self

    def _copy(self, source, n_bytes, stream):
        self.timeline.do(stream, reads=[source], writes=[self.name])


def stream_batches(ignored=None):
    """What happens in a run of batches of two sizes, whose rows a step reads."""
    timeline = Timeline()
    timeline.ignored = ignored

    def buffer(kind):
        return lambda shape, dtype: Buffer(timeline, (kind, len(timeline.work)), shape, dtype)

    def copy(device, out):
        timeline.do(timeline.current, reads=[device.name], writes=[out.name])

    loader = RowLoader(timeline, buffer("pinned"), buffer("device"), copy)
    x = SimpleNamespace(
        dtype="uint8", write=lambda rows, out: timeline.do(timeline.host, writes=[out.name])
    )
    for n_rows in (8, 8, 8, 3, 8, 8, 3, 8):
        out = Buffer(timeline, "batch", (n_rows, 4), "float32")
        loader(x, slice(0, n_rows), out)
        timeline.do(timeline.current, reads=["batch"])
    return timeline


def test_nothing_uses_a_buffer_that_something_else_still_uses():
    timeline = stream_batches()
    assert len(timeline.work) == 4 * 8
    assert not timeline.conflicts()


def test_copies_run_beside_the_computation_on_the_batch_before():
    timeline = stream_batches()
    copies = range(1, len(timeline.work), 4)  # written on the host, copied, cast, read
    # New memory, of the first two, may still be read by what had it before.
    assert all(copy - 2 not in timeline.work[copy][2] for copy in copies[2:])


@pytest.mark.parametrize("ignored", [
    "the computation wait", "the copies wait", "the computation record", "the copies record",
    "the host waits",
])  # fmt: skip
def test_each_event_is_needed(ignored):
    assert stream_batches(ignored).conflicts()
