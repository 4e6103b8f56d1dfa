"""Captured steps: a step's work as a CUDA graph, which the device runs without Python.

A step is written down twice (`xpmlp.tape`), what moves from one to the next is given a fixed place
(`staging`), and rules are merged (`lowering`). The work is then done once, so that kernels are
compiled and products planned, with what it overwrites put back; and given to a stream that only
takes it down. Nothing is allocated there: CuPy's pool would hand the memory on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from xpmlp.backends import host
from xpmlp.rng import Stream
from xpmlp.tape import CannotCapture, StepTape
from xpmlp_cupy.lowering import Single, Work, bias_behind, lowered, overwritten, rounded_once
from xpmlp_cupy.lt import LtError
from xpmlp_cupy.scratch import Scratch
from xpmlp_cupy.staging import Staging

_log = logging.getLogger("xpmlp")

# Steps of the longer graph: its launch then takes the host less time than the device its steps.
STEPS_OF_A_GRAPH = 16


class Captured:
    """Steps as CUDA graphs; see :class:`xpmlp.typing.Replay`.

    Parameters
    ----------
    backend : CupyBackend
    tapes : list of StepTape
    n_steps : int
        The most that one call does.

    Attributes
    ----------
    work : list of Group, Gather or Single
        What a step does.
    n_nodes : int
        Kernels and products of a step, with that which goes on to the next one. A product may
        itself be several kernels.
    n_biases : int
        Products that add a bias.
    """

    def __init__(self, backend: Any, tapes: list[StepTape], n_steps: int) -> None:
        self._backend = backend
        self._scratch = Scratch(backend.zeros)  # replays may run beside other work
        self._staging = Staging(backend, tapes, n_steps)
        calls = self._staging.calls
        if backend.precision == "bfloat16":
            calls = rounded_once(calls, backend.zeros)
        self.work = lowered(calls)
        self._launches = [self._launch(one) for one in self.work]
        self._warm_up(overwritten(self.work))
        self.work = self._with_biases(self.work)
        self.n_biases = sum(one.name == "matmul" and len(one.arguments) > 3 for one in self.work
                            if isinstance(one, Single))  # fmt: skip
        self._launches = [self._launch(one) for one in self.work]
        self.n_nodes = len(self.work) + 1
        self._one = self._graph(1)
        self._many = self._graph(STEPS_OF_A_GRAPH) if n_steps >= STEPS_OF_A_GRAPH else None

    def __call__(self, n: int, epoch: int, batch: int) -> int:
        self._staging.advance(begins=True, epoch=epoch, batch=batch)
        left = n
        while self._many is not None and left >= STEPS_OF_A_GRAPH:
            self._many.launch()
            left -= STEPS_OF_A_GRAPH
        for _ in range(left):
            self._one.launch()
        return n

    def _step(self) -> None:
        """Give the work of one step to the current stream."""
        for launch in self._launches:
            launch()
        self._staging.advance()

    def _launch(self, work: Work) -> Callable[[], None]:
        backend, scratch = self._backend, self._scratch
        if not isinstance(work, Single):
            kernel, blocks, threads, given = work.launch(backend.cupy, backend.fused, scratch)
            return lambda: kernel(blocks, threads, given)
        arguments = work.arguments
        if work.name == "matmul":
            return lambda: self._multiply(*arguments)
        if work.name == "round":
            return lambda: backend._products.round(*arguments)
        if work.name == "fill_uniform":
            context = self._staging.context
            return lambda: backend._fill_uniform(*arguments, context)
        if work.name == "elementwise":
            rule, n_outs, *arrays = arguments
            kernel = backend.elementwise(rule)
            return lambda: kernel(tuple(arrays[:n_outs]), *arrays[n_outs:])
        primitive = getattr(backend, work.name)
        return lambda: primitive(*arguments)

    def _multiply(self, a: Any, b: Any, out: Any, *ending: Any) -> None:
        backend = self._backend
        if not backend._products(backend.precision, a, b, out, self._scratch, *ending):
            raise CannotCapture(
                f"a product of {a.dtype}, {a.shape} and {b.shape}, that cublasLt does not compute"
            )

    def _warm_up(self, state: list[Any]) -> None:
        """Do a step that does not count."""
        copies = [x.copy() for x in state]
        try:
            self._staging.advance(begins=True)
            self._step()
        finally:
            for x, copy in zip(state, copies, strict=True):
                self._backend.cupy.copyto(x, copy)

    def _with_biases(self, work: list[Work]) -> list[Work]:
        """Work in which products add the bias behind them, where that gives the same bits."""
        result: list[Work] = []
        for one in work:
            last = result[-1] if result else None
            if last is not None and (found := bias_behind(last, one)):
                assert isinstance(last, Single)
                bias, relu, rest = found
                both = Single("matmul", (*last.arguments, bias, relu))
                if self._alike(both, [last, one]):
                    result[-1:] = [both, rest] if rest else [both]
                    if rest:
                        self._launch(rest)()  # compiled before a graph is made
                    continue
            result.append(one)
        return result

    def _alike(self, product: Single, parts: list[Work]) -> bool:
        """Whether a product with a bias gives what it and the rules give one after the other.

        No document says so: it is tried with the values of the step that has been done, biases of
        the size of the products, which at the start of training are zero, and a NaN, which has to
        be passed on.
        """
        backend, cupy = self._backend, self._backend.cupy
        _, _, out, bias, _ = product.arguments
        apart = [self._launch(part) for part in parts]
        before = bias.copy()
        drawn = host().generator(Stream(0, 0)).standard_normal(bias.shape)
        largest = cupy.abs(out).max()
        cupy.copyto(bias, backend.from_host(drawn) * largest, casting="unsafe")
        bias[:1] = float("nan")
        try:
            for launch in apart:
                launch()
            expected = out.copy()
            self._launch(product)()
            found = out.copy()
        except (CannotCapture, LtError):
            return False
        finally:
            cupy.copyto(bias, before)
            for launch in apart:  # what comes next shall be tried with numbers
                launch()
        same = (found == expected) & (cupy.signbit(found) == cupy.signbit(expected))
        return bool((same | cupy.isnan(found) & cupy.isnan(expected)).all())

    def _graph(self, n_steps: int) -> Any:
        """A graph of `n_steps` steps."""
        cuda = self._backend.cupy.cuda
        stream = cuda.Stream(non_blocking=True)
        with stream, _no_allocation(cuda):
            stream.begin_capture()
            try:
                for _ in range(n_steps):
                    self._step()
            except BaseException:
                # What was captured so far, if it is any: what counts is that it ends.
                with suppress(Exception):
                    stream.end_capture()
                raise
            return stream.end_capture()


@contextmanager
def _no_allocation(cuda: Any) -> Iterator[None]:
    def refuse(n_bytes: int) -> Any:
        raise CannotCapture(f"a step that allocates {n_bytes:,} bytes")

    with cuda.using_allocator(refuse):
        yield


def capture(backend: Any, record: Callable[[], list[StepTape]], n: int) -> Captured | None:
    """Steps as graphs, or None with a line in the log that says why not."""
    try:
        return Captured(backend, record(), n)
    except Exception as reason:  # of CUDA too: the step has not been changed, and can be run
        what = str(reason) if isinstance(reason, CannotCapture) else repr(reason)
        _log.info("steps are run one primitive at a time: %s", what)
        return None
