"""What differs from step to step, brought to one place before each: a graph's addresses are fixed.

Rows to be gathered and an optimizer's numbers stand in arrays for many steps; a loss is written
into one. A step reads and writes pieces of the size of its own part instead, and one small kernel
between two steps exchanges them and counts. The count also addresses the masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xpmlp.rng import Stream
from xpmlp.tape import CannotCapture, StepTape
from xpmlp_cupy.fused import View, is_array
from xpmlp_cupy.lowering import Single

_THREADS = 256
_MOST_BLOCKS = 64
_ONE_BATCH = 1 << 128  # in a stream's counter

# The context holds the epoch, the number of the first step's batch, and the step. {leaving} brings
# away what step `step` has written, {entering} brings what step `next` reads. Words are copied. The
# block that is the last to end counts: all others have read the step then.
_ADVANCE = """
extern "C" __global__ void __launch_bounds__({threads}) xpmlp_advance(
    {parameters}long long* context, int* arrived, long long n_steps, long long begins,
    long long epoch, long long batch) {{
  const long long first = blockIdx.x * {threads}LL + threadIdx.x, apart = {threads}LL * gridDim.x;
  const long long step = begins ? -1 : context[2], next = step + 1;
  if (step >= 0) {{
{leaving}
  }}
  if (next < n_steps) {{
{entering}
  }}
  __syncthreads();
  if (threadIdx.x) return;
  if (gridDim.x > 1) {{
    __threadfence();
    if (atomicAdd(arrived, 1) != (int)gridDim.x - 1) return;
    *arrived = 0;
  }}
  if (begins) {{
    context[0] = epoch;
    context[1] = batch;
  }}
  context[2] = next;
}}
"""
_COPY = "    for (long long i = first; i < n{k}; i += apart) {left}[i] = {right}[i];"


@dataclass
class Piece:
    """Memory of one step in an array for many, and what stands in for it."""

    place: Any  # an array that begins where that of the first step does
    advance: int  # bytes
    enters: bool
    memory: Any


class Staging:
    """The calls of a step with what moves replaced by what stands still.

    Parameters
    ----------
    backend : CupyBackend
    tapes : list of StepTape
        Of the first step and, if there are several, the second.
    n_steps : int
        That the arrays have room for.

    Attributes
    ----------
    calls : list of (str, tuple)
    context : array of shape (3,)
        Epoch, number of the first batch, and step, in device memory.

    Raises
    ------
    CannotCapture
        If the steps differ in another way.
    """

    def __init__(self, backend: Any, tapes: list[StepTape], n_steps: int) -> None:
        self._backend = backend
        self._n_steps = n_steps
        first, second = tapes[0].calls, tapes[-1].calls
        if [name for name, _ in first] != [name for name, _ in second]:
            raise CannotCapture("steps that differ")
        pairs = [
            (one, other)
            for (_, arguments), (_, others) in zip(first, second, strict=True)
            for one, other in zip(arguments, others, strict=True)
        ]
        moving = {View.of(x): (x, y) for x, y in pairs if is_array(x) and _moves(x, y)}
        work = [Single(*call) for call in first]
        read = {view for one in work for view in one.reads}
        written = {view for one in work for view in one.writes}
        both = [view for view in moving if view in read and view in written]
        if both:
            raise CannotCapture(
                f"{both[0].dtype} of shape {both[0].shape} that moves and is updated"
            )
        self.pieces: list[Piece] = []
        self._stand_ins: dict[View, Any] = {}
        self._cut(moving, read)
        # So that the kernel does not depend on where memory happens to lie.
        self.pieces.sort(key=lambda piece: not piece.enters)
        self.calls = [
            (name, tuple(self._still(*pair) for pair in zip(arguments, others, strict=True)))
            for (name, arguments), (_, others) in zip(first, second, strict=True)
        ]
        self.context = backend.zeros((3,), "int64")
        self._arrived = backend.zeros((1,), "int32")
        most = max((piece.memory.size // 4 for piece in self.pieces), default=1)
        self._n_blocks = min(-(-most // _THREADS), _MOST_BLOCKS)
        self._kernel = self._compile()

    def advance(self, begins: bool = False, epoch: int = 0, batch: int = 0) -> None:
        """Exchange the pieces and count; or begin with the first step, at an epoch and batch."""
        cupy = self._backend.cupy
        arguments: list[Any] = []
        for piece in self.pieces:
            n_words = cupy.int64(piece.memory.size // 4)
            arguments += [piece.place, piece.memory, cupy.int64(piece.advance // 4), n_words]
        numbers = map(cupy.int64, (self._n_steps, int(begins), epoch, batch))
        given = (*arguments, self.context, self._arrived, *numbers)
        self._kernel((self._n_blocks,), (_THREADS,), given)

    def _cut(self, moving: dict[View, tuple[Any, Any]], read: set[View]) -> None:
        """Make the pieces: neighbours that move together are one."""
        runs: list[list[View]] = []
        for view in sorted(moving, key=lambda view: view.start):
            x, _ = moving[view]
            if not view.contiguous or x.nbytes % 4 or view.start % 4:
                raise CannotCapture(f"{view.dtype} of shape {view.shape} that moves in memory")
            last = runs[-1][-1] if runs else None
            alike = last is not None and (
                last.stop == view.start
                and last.dtype == view.dtype
                and _distance(*moving[last]) == _distance(*moving[view])
                and (last in read) == (view in read)
            )
            runs[-1].append(view) if alike else runs.append([view])
        for run in runs:
            place, after = moving[run[0]]
            n_bytes = run[-1].stop - run[0].start
            memory = self._backend.zeros((n_bytes,), "uint8")
            self.pieces.append(Piece(place, _distance(place, after), run[0] in read, memory))
            for view in run:
                part = memory[view.start - run[0].start : view.stop - run[0].start]
                self._stand_ins[view] = part.view(view.dtype).reshape(view.shape)

    def _still(self, one: Any, other: Any) -> Any:
        """An argument, the same in every step."""
        if is_array(one):
            return self._stand_ins.get(View.of(one), one) if _moves(one, other) else one
        if isinstance(one, Stream):
            moves = _ONE_BATCH if self._n_steps > 1 else 0
            if other != one._replace(counter=one.counter + moves):
                raise CannotCapture("a stream that does not advance by batches")
            return one
        if isinstance(one, tuple):
            return tuple(self._still(*pair) for pair in zip(one, other, strict=True))
        if one is not other and not (isinstance(one, int | float) and one == other):
            raise CannotCapture(f"{one!r} that becomes {other!r}")
        return one

    def _compile(self) -> Any:
        parameters = ""
        leaving: list[str] = []
        entering: list[str] = []
        for k, piece in enumerate(self.pieces):
            parameters += (
                f"unsigned int* place{k}, unsigned int* memory{k}, long long advance{k}, "
                f"long long n{k}, "
            )
            places = f"(place{k} + next * advance{k})", f"(place{k} + step * advance{k})"
            if piece.enters:
                pair = {"left": f"memory{k}", "right": places[0]}
            else:
                pair = {"left": places[1], "right": f"memory{k}"}
            (entering if piece.enters else leaving).append(_COPY.format(k=k, **pair))
        source = _ADVANCE.format(
            threads=_THREADS, parameters=parameters, leaving="\n".join(leaving),
            entering="\n".join(entering),
        )  # fmt: skip
        return self._backend.cupy.RawKernel(source, "xpmlp_advance", ())


def _moves(one: Any, other: Any) -> bool:
    if one.shape != other.shape or one.strides != other.strides or one.dtype != other.dtype:
        raise CannotCapture(f"arrays of shape {one.shape} and {other.shape}")
    return bool(_distance(one, other))


def _distance(one: Any, other: Any) -> int:
    return int(other.data.ptr - one.data.ptr)
