"""Recorded primitives as calls of kernels, on a part of the work for each thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xpmlp.backends import Rule
from xpmlp.rng import Stream
from xpmlp.tape import CannotCapture
from xpmlp_numpy import kernels, native

# A thread's share is at least so many rows or columns, if it can be.
_LEAST = 16
# Elements of a sum that one thread adds up.
_PART = 16384
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class View:
    """A matrix in memory, the same at every step or a constant distance further on."""

    address: int
    advance: int
    dtype: str
    rows: int
    cols: int
    row_bytes: int
    col_bytes: int

    @classmethod
    def of(cls, first: Any, second: Any) -> View:
        """Of an array with up to two axes, as it was in two successive steps."""
        if not isinstance(first, np.ndarray) or not isinstance(second, np.ndarray):
            raise CannotCapture(f"{type(first).__name__} is no array")
        same = first.shape == second.shape and first.strides == second.strides
        if not same or first.dtype != second.dtype or first.ndim > 2 or not first.dtype.isnative:
            raise CannotCapture(f"arrays of shape {first.shape} and {second.shape}")
        shape = (1,) * (2 - first.ndim) + first.shape
        strides = (0,) * (2 - first.ndim) + first.strides
        return cls(
            first.ctypes.data,
            second.ctypes.data - first.ctypes.data,
            first.dtype.name,
            *shape,
            *strides,
        )

    @property
    def place(self) -> tuple[int, int]:
        """Where it begins, and how much further on at the next step."""
        return self.address, self.advance

    @property
    def itemsize(self) -> int:
        return np.dtype(self.dtype).itemsize

    @property
    def end(self) -> int:
        last = (self.rows - 1) * self.row_bytes + (self.cols - 1) * self.col_bytes
        return self.address + last + self.itemsize

    def overlaps(self, other: View) -> bool:
        return other.address < self.end and self.address < other.end

    @property
    def flat(self) -> bool:
        """Whether all elements lie one after the other."""
        along = self.col_bytes == self.itemsize or self.cols == 1
        return along and (self.rows == 1 or self.row_bytes == self.cols * self.itemsize)

    def part(self, rows: slice, cols: slice) -> View:
        """Some rows and columns; an axis of one element is for all."""
        start, n_rows = (0, 1) if self.rows == 1 else (rows.start, rows.stop - rows.start)
        left, n_cols = (0, 1) if self.cols == 1 else (cols.start, cols.stop - cols.start)
        address = self.address + start * self.row_bytes + left * self.col_bytes
        return replace(self, address=address, rows=n_rows, cols=n_cols)

    def moved(self, elements: int, rows: int, cols: int) -> View:
        """A contiguous matrix inside a contiguous vector."""
        size = self.itemsize
        return replace(
            self, address=self.address + elements * size, rows=rows, cols=cols,
            row_bytes=cols * size, col_bytes=size,
        )  # fmt: skip


@dataclass(frozen=True)
class Use:
    """A read or write, and which part is a thread's own: of its rows, of its columns, or all."""

    view: View
    writes: bool
    share: str

    def meets(self, other: Use) -> bool:
        """Whether one thread may touch what another touches, in a way that order matters."""
        if not (self.writes or other.writes):
            return False
        if not self.view.overlaps(other.view):
            return False
        if self.share == other.share == "one":
            return False
        own = self.view == other.view and self.share == other.share and self.share != "all"
        return not own


@dataclass(frozen=True)
class _Elementwise:
    """A rule, where it writes and what it reads."""

    rule: Rule
    outs: list[View]
    operands: list[View]

    def then(self, other: _Elementwise) -> _Elementwise | None:
        """Both in one pass, if each element of the second needs only the same one of the first."""
        size = self.outs[0].rows, self.outs[0].cols
        if size != (other.outs[0].rows, other.outs[0].cols):
            return None
        if self.outs[0].dtype != other.outs[0].dtype:
            return None
        for written, touched in (
            *((out, x) for out in self.outs for x in [*other.operands, *other.outs]),
            *((out, x) for out in other.outs for x in self.operands),
        ):
            if written.overlaps(touched) and written != touched:
                return None
        operands = [*self.operands, *(x for x in other.operands if x not in self.outs)]
        outs = [*self.outs, *(x for x in other.outs if x not in self.outs)]
        n = len(self.operands)
        sources = [self.outs.index(x) if x in self.outs else None for x in other.operands]

        def rule(xp: Any, *values: Any) -> Any:
            first = self.rule(xp, *values[:n])
            first = first if isinstance(first, tuple) else (first,)
            rest = iter(values[n:])
            taken = [next(rest) if source is None else first[source] for source in sources]
            second = other.rule(xp, *taken)
            second = second if isinstance(second, tuple) else (second,)
            results = list(first)
            for out, value in zip(other.outs, second, strict=True):
                if out in self.outs:
                    results[self.outs.index(out)] = value
                else:
                    results.append(value)
            return tuple(results)

        return _Elementwise(rule, outs, operands)


@dataclass
class Call:
    """A kernel and, for each thread, its addresses with their advance, and sizes; or nothing."""

    kernel: int
    parts: list[tuple[list[tuple[int, int]], list[int]] | None]
    uses: list[Use]


class Lowering:
    """Turns recorded primitives into calls of kernels.

    Parameters
    ----------
    n_threads : int
    functions : RuleFunctions
        Whose loops are used for what a rule cannot do by arithmetic.
    """

    def __init__(self, n_threads: int, functions: Any) -> None:
        self.n_threads = n_threads
        self.functions = functions
        self.calls: list[Call] = []
        self.kept: list[Any] = []  # arrays that the calls point to
        # Matrices that products and sums write into a larger vector, with the shares of threads.
        self.written: list[tuple[View, str]] = []
        self._waiting: _Elementwise | None = None
        blas = native.blas()
        if blas is None:
            raise CannotCapture("the BLAS of this NumPy has no gemm by a known name")
        self.gemm, self.gemm_bits = blas

    def share(self, rows: int, cols: int) -> str:
        """How the elements of a matrix are shared out: along the longer side."""
        least = _LEAST * self.n_threads
        if rows >= max(cols, least):
            return "rows"
        if cols >= least:
            return "cols"
        return "rows" if rows >= self.n_threads else "one"

    def slices(self, share: str, rows: int, cols: int) -> Iterator[tuple[slice, slice] | None]:
        """The rows and columns of each thread."""
        n = self.n_threads
        for t in range(n):
            if share == "one":
                yield (slice(0, rows), slice(0, cols)) if t == 0 else None
            elif share == "rows":
                yield slice(rows * t // n, rows * (t + 1) // n), slice(0, cols)
            else:
                # In steps of what fits a vector register.
                cuts = [
                    min(cols, -(-cols * i // n // 16) * 16) if i < n else cols for i in (t, t + 1)
                ]
                yield slice(0, rows), slice(*cuts)

    def constant(self, values: Any, dtype: str) -> View:
        array = np.atleast_1d(np.array(values, dtype))
        self.kept.append(array)
        return View.of(array, array)

    def add(self, source: str, make: Callable[[slice, slice], Any], share: str,
            shape: tuple[int, int], uses: list[Use]) -> None:  # fmt: skip
        """A call whose parts are what `make` gives for the rows and columns of each thread."""
        parts = [
            make(*cut)
            if cut and cut[0].stop > cut[0].start and cut[1].stop > cut[1].start
            else None
            for cut in self.slices(share, *shape)
        ]
        self.calls.append(Call(kernels.address(source), parts, uses))

    def lower(self, name: str, first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
        """Add the calls of a primitive, as it was in two successive steps."""
        method = getattr(self, name, None)
        if method is None:
            raise CannotCapture(f"the primitive {name}")
        if name != "elementwise":
            self.finish()
        method(*zip(first, second, strict=True))

    def finish(self) -> None:
        """Add the calls of rules that waited for others to be computed in the same pass."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._elementwise(waiting)

    def matmul(self, a: Any, b: Any, out: Any) -> None:
        a, b, out = View.of(*a), View.of(*b), View.of(*out)
        if not a.dtype == b.dtype == out.dtype or out.dtype not in self.gemm or not out.flat:
            raise CannotCapture("a product of several dtypes, or into a view")
        codes, leads = [], []
        for x in (a, b):
            if x.col_bytes == x.itemsize or x.cols == 1:
                codes.append(111)
                leads.append(max(x.row_bytes // x.itemsize, x.cols))
            elif x.row_bytes == x.itemsize or x.rows == 1:
                codes.append(112)
                leads.append(max(x.col_bytes // x.itemsize, x.rows))
            else:
                raise CannotCapture("a product of views with gaps in both directions")
        share = self.share(out.rows, out.cols)
        inner = slice(0, a.cols)

        def make(rows: slice, cols: slice) -> Any:
            part = out.part(rows, cols)
            d = [self.gemm[out.dtype], *codes, part.rows, part.cols, a.cols, *leads, out.cols]
            return [x.place for x in (a.part(rows, inner), b.part(inner, cols), part)], d

        uses = [
            Use(a, False, "all" if share == "cols" else share),
            Use(b, False, "all" if share == "rows" else share),
            Use(out, True, share),
        ]
        self.add(kernels.gemm_source(out.dtype, self.gemm_bits), make, share,
                 (out.rows, out.cols), uses)  # fmt: skip
        self.written.append((out, share))

    def sum_columns(self, x: Any, out: Any) -> None:
        ones = np.ones(x[0].shape[:1], x[0].dtype)[None, :]
        self.kept.append(ones)
        self.matmul((ones, ones), x, tuple(array[None, :] for array in out))

    def elementwise(self, rule: Any, n_outs: Any, *arrays: Any) -> None:
        if rule[0] is not rule[1]:
            raise CannotCapture("a rule that differs from step to step")
        (rule, _), (n_outs, _) = rule, n_outs
        dtype = arrays[0][0].dtype.name
        if dtype not in ("float32", "float64"):
            raise CannotCapture(f"a rule on {dtype}")
        views = []
        for x in arrays:
            if isinstance(x[0], np.ndarray):
                views.append(View.of(*x))
            elif x[0] == x[1]:
                views.append(self.constant(float(x[0]), dtype))
            else:
                raise CannotCapture("a number that differs from step to step")
        outs, operands = views[:n_outs], views[n_outs:]
        if {x.dtype for x in outs} != {dtype} or {x.dtype for x in operands} - {dtype, "float32"}:
            raise CannotCapture("a rule on several dtypes")
        one = _Elementwise(rule, outs, operands)
        both = self._waiting and self._waiting.then(one)
        if both is None:
            self.finish()
        self._waiting = both or one

    def _elementwise(self, one: _Elementwise) -> None:
        views, n_outs = [*one.outs, *one.operands], len(one.outs)
        rows, cols = one.outs[0].rows, one.outs[0].cols
        vectors = all(x.flat and x.rows == 1 and x.cols in (1, cols) for x in views)
        if rows == 1 and vectors and self.n_threads > 1:
            for piece, share in self._pieces(views, cols):
                self._rule(replace(one, outs=piece[:n_outs], operands=piece[n_outs:]), share)
        else:
            self._rule(one, self.share(rows, cols))

    def _pieces(self, views: list[View], size: int) -> Iterator[tuple[list[View], str]]:
        """The parts of long vectors, shared out like what was last written into one of them.

        So each thread updates the parameters whose gradient it has computed.
        """
        inside = {}
        for written, share in self.written:
            for view in views:
                if view.cols == size and view.address <= written.address < view.end:
                    start = (written.address - view.address) // view.itemsize
                    inside[start] = written.rows, written.cols, share
        position = 0
        for start in [*sorted(inside), size]:
            if start > position:
                n = start - position
                yield ([x if x.cols == 1 else x.moved(position, 1, n) for x in views],
                       self.share(1, n))  # fmt: skip
            if start < size:
                rows, cols, share = inside[start]
                yield [x if x.cols == 1 else x.moved(start, rows, cols) for x in views], share
                position = start + rows * cols

    def _rule(self, one: _Elementwise, share: str) -> None:
        rule, outs, operands = one.rule, one.outs, one.operands
        rows, cols, dtype = outs[0].rows, outs[0].cols, outs[0].dtype
        kinds: list[str | int] = []
        given = []
        for x in operands:
            if x in outs:
                kinds.append(outs.index(x))
                continue
            if not (x.rows in (1, rows) and x.cols in (1, cols)):
                raise CannotCapture("operands that do not broadcast")
            if x.cols > 1 and x.col_bytes != x.itemsize:
                raise CannotCapture("an operand with gaps between its columns")
            whole = (x.rows, x.cols) == (rows, cols)
            kinds.append("row" if whole or x.cols == cols > 1 else "one")
            given.append(x)
        try:
            narrow = [i for i, x in enumerate(operands) if x.dtype != dtype]
            source = kernels.rule_source(rule, dtype, kinds, len(outs), narrow)
            loops = [
                native.ufunc_loop(getattr(self.functions, name), dtype) for name in source.loops
            ]
            if "erf" in source.loops and not native.scipy_is_quiet():
                raise ValueError("SciPy is asked to report errors of its special functions")
        except Exception as error:
            raise CannotCapture(f"{rule!r} ({type(error).__name__}: {error})") from error
        scratch: list[np.ndarray[Any, Any]] = []
        if loops:
            scratch = [
                np.zeros((self.n_threads, source.scratch), dtype),
                np.zeros((self.n_threads, 8), int),
            ]
            self.kept += scratch
        turn = iter(range(self.n_threads))
        everything = [*outs, *given]

        def make(rows: slice, cols: slice) -> Any:
            parts = [x.part(rows, cols) for x in everything]
            n_rows, n_cols = parts[0].rows, parts[0].cols
            if all((x.flat and x.rows == n_rows and x.cols == n_cols) or x.rows == x.cols == 1
                   for x in parts):  # fmt: skip
                n_rows, n_cols = 1, n_rows * n_cols
            thread = next(turn)
            p = [x.place for x in parts]
            p += [(memory[thread].ctypes.data, 0) for memory in scratch]
            d = [n_rows, n_cols, *(x.row_bytes if x.rows > 1 else 0 for x in parts)]
            return p, [*d, *(number for loop in loops for number in loop)]

        uses = [Use(x, True, share) for x in outs]
        uses += [Use(x, False, _share_of(x, rows, cols, share)) for x in operands]
        self.add(source.text, make, share, (rows, cols), uses)

    def copy(self, x: Any, out: Any) -> None:
        x, out = View.of(*x), View.of(*out)
        if (x.rows, x.cols) != (out.rows, out.cols) or not _rowwise(out):
            raise CannotCapture("a copy into a view")
        self._copy(x, out, None)

    def take_rows(self, x: Any, indices: Any, out: Any) -> None:
        x, indices, out = View.of(*x), View.of(*indices), View.of(*out)
        if indices.dtype != "int64" or not indices.flat or not _rowwise(out):
            raise CannotCapture("rows into a view")
        self._copy(x, out, replace(indices, rows=indices.cols, cols=1,
                                   row_bytes=8, col_bytes=8))  # fmt: skip

    def _copy(self, x: View, out: View, indices: View | None) -> None:
        if {x.dtype, out.dtype} - {*native.DTYPES}:
            raise CannotCapture(f"a copy from {x.dtype} to {out.dtype}")
        share = "rows" if out.rows >= self.n_threads else "one"

        def make(rows: slice, cols: slice) -> Any:
            part = out.part(rows, cols)
            source = x if indices else x.part(rows, cols)
            p = [source.place, part.place]
            if indices:
                p.append(indices.part(rows, slice(0, 1)).place)
            return p, [part.rows, part.cols, x.row_bytes, out.row_bytes, x.col_bytes]

        uses = [Use(out, True, share), Use(x, False, "all" if indices else share)]
        source = kernels.copy_source(x.dtype, out.dtype, indices is not None, not _rowwise(x))
        self.add(source, make, share, (out.rows, out.cols), uses)

    def sum_rows(self, x: Any, out: Any) -> None:
        self._of_rows(kernels.sum_source(str(x[0].dtype), str(x[0].dtype)), x, out)

    def max_rows(self, x: Any, out: Any) -> None:
        self._of_rows(kernels.max_source(str(x[0].dtype)), x, out)

    def _of_rows(self, kernel: str, x: Any, out: Any) -> None:
        x, out = View.of(*x), View.of(*out)
        if not _rowwise(x) or x.dtype != out.dtype:
            raise CannotCapture("rows with gaps")
        share = "rows" if x.rows >= self.n_threads else "one"

        def make(rows: slice, cols: slice) -> Any:
            source, part = x.part(rows, slice(0, x.cols)), out.part(rows, slice(0, 1))
            d = [part.rows, x.cols, x.row_bytes, out.row_bytes]
            return [source.place, part.place], d

        uses = [Use(x, False, share), Use(out, True, share)]
        self.add(kernel, make, share, (out.rows, 1), uses)

    def total(self, x: Any, out: Any) -> None:
        self._total(View.of(*x), View.of(*out), squared=False)

    def total_squares(self, x: Any, out: Any) -> None:
        self._total(View.of(*x), View.of(*out), squared=True)

    def _total(self, x: View, out: View, squared: bool) -> None:
        """By parts that do not depend on the number of threads, which are added up in order."""
        size = x.rows * x.cols
        if not x.flat:
            raise CannotCapture("the sum of a view")
        line = x.moved(0, 1, size)
        n_parts = -(-size // _PART)
        sums = np.zeros(n_parts, out.dtype)
        self.kept.append(sums)
        target = View.of(sums[:, None], sums[:, None]) if n_parts > 1 else out
        source = kernels.sum_source(x.dtype, out.dtype, squared)
        for number in range(n_parts):
            stop = min(size, (number + 1) * _PART)
            piece = line.part(slice(0, 1), slice(number * _PART, stop))
            place = target.part(slice(number, number + 1), slice(0, 1)) if n_parts > 1 else out
            owner = number * self.n_threads // n_parts
            parts: list[Any] = [None] * self.n_threads
            parts[owner] = [piece.place, place.place], [1, stop - number * _PART, 0, 0]
            share = "one" if owner == 0 else "all"
            uses = [Use(piece, False, share), Use(place, True, share)]
            self.calls.append(Call(kernels.address(source), parts, uses))
        if n_parts > 1:
            self._total(target.moved(0, 1, n_parts), out, squared=False)

    def finite(self, x: Any) -> None:
        view = View.of(*x)
        part = [view.place], [0]
        self.calls.append(
            Call(
                kernels.address(kernels.finite_source(view.dtype)),
                [part] * self.n_threads,
                [Use(view, False, "all")],
            )
        )

    def fill_uniform(self, out: Any, stream: tuple[Stream, Stream]) -> None:
        view = View.of(*out)
        first, second = stream
        one_batch_later = first._replace(counter=first.counter + (1 << 128))
        advances = second is first or second == one_batch_later
        if not view.flat or view.dtype != "float32" or not advances:
            raise CannotCapture("a stream that does not advance by batches")
        size = view.rows * view.cols
        line = view.moved(0, 1, size)
        words = [first.key & _MASK, first.key >> 64, first.counter >> 64 & _MASK]
        words = [word - (1 << 64) if word >> 63 else word for word in words]
        # Each thread draws whole blocks of eight numbers.
        blocks = -(-size // 8)

        def make(rows: slice, cols: slice) -> Any:
            start, stop = 8 * rows.start, min(size, 8 * rows.stop)
            part = line.part(slice(0, 1), slice(start, stop))
            return [part.place], [start, stop - start, *words]

        share = "rows" if blocks >= self.n_threads else "one"
        self.add(kernels.uniform_source(), make, share, (blocks, 1), [Use(view, True, "all")])


def _rowwise(x: View) -> bool:
    return x.col_bytes == x.itemsize or x.cols == 1


def _share_of(x: View, rows: int, cols: int, share: str) -> str:
    """How an operand that may have one row or one column is shared out."""
    if (share == "rows" and x.rows == 1 < rows) or (share == "cols" and x.cols == 1 < cols):
        return "all"
    return share
