"""Matrix products of arrays: which of them cublasLt computes, and how.

Operands of float32 may be rounded to fewer bits, with sums in float32. CuPy's own switch for TF32
is one for the whole process, whatever its threads compute, and it has no product of bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from xpmlp_cupy import lt
from xpmlp_cupy.kernels import RoundToBfloat16
from xpmlp_cupy.scratch import Scratch

# Calls of an algorithm that are timed together.
_TIMED = 20


class Products:
    """``out[...] = a @ b`` by cublasLt.

    In IEEE arithmetic the algorithm is the one that cublasLt holds for the best, so that the same
    run has the same bits in every process. Where operands are rounded anyway, the candidates are
    timed when a product of its kind is first computed: the choice, and with it the order of sums,
    is kept as long as the process lives.

    Parameters
    ----------
    cupy : module
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self.round = RoundToBfloat16(cupy)
        self._plans: dict[lt.Product, lt.Plan | None] = {}
        self._with_biases: dict[tuple[lt.Product, int, int], lt.Plan | None] = {}

    @cached_property
    def _library(self) -> Any:
        return lt.installed(self._cupy)

    @cached_property
    def _handle(self) -> Any:
        return lt.create_handle(self._library)

    def __call__(
        self,
        precision: str,
        a: Any,
        b: Any,
        out: Any,
        scratch: Scratch,
        bias: Any = None,
        relu: bool = False,
    ) -> bool:
        """Compute the product, if cublasLt does it.

        Parameters
        ----------
        precision : {"ieee", "tf32", "bfloat16"}
            What operands of float32 are rounded to: not at all; to 11 significant bits, by the
            device as it reads them; or to 8, before.
        a, b, out : array of shape (..., n, k), (..., k, m), (..., n, m)
            With bfloat16 `a` and `b` may have been rounded before, by :attr:`round`. Without, the
            elements of their rows or of their columns have to be neighbours, as in transposed
            views and in rows of wider arrays.
        scratch : Scratch
        bias : array of shape (m,), optional
            To be added to each row of a single product, by the algorithm that computes it without.
        relu : bool, default False
            Whether to take ``max(0, .)`` then.

        Returns
        -------
        bool
            False if the product is still to be computed: dtypes differ or are others than float32
            and float64, an operand is empty or its layout another, it is a stack in IEEE
            arithmetic, cublasLt has no algorithm, or the one it has does not add this bias.
        """
        dtype = str(out.dtype)
        if self._library is None or dtype not in ("float32", "float64"):
            return False
        rounded = dtype == "float32" and precision != "ieee"
        dtypes = (dtype, "uint16") if rounded and precision == "bfloat16" else (dtype,)
        if not all(x.ndim > 1 and str(x.dtype) in dtypes and x.size for x in (a, b, out)):
            return False
        if out.ndim > 2:
            if not rounded:
                return False
            stacks = (self._cupy.broadcast_to(x, out.shape[:-2] + x.shape[-2:]) for x in (a, b))
            parts = zip(*stacks, out, strict=True)
            return all(self(precision, x, y, z, scratch) for x, y, z in parts)
        if rounded and precision == "bfloat16":
            a, b = (
                x if str(x.dtype) == "uint16" else self._rounded(x, name, scratch)
                for name, x in (("a", a), ("b", b))
            )
        layouts = _layout(a), _layout(b)
        if None in layouts or not out.flags.c_contiguous:
            return False
        kind = precision if rounded else dtype
        (n, k), m = a.shape, b.shape[1]
        alignments = lt.aligned(a.data.ptr), lt.aligned(b.data.ptr), lt.aligned(out.data.ptr)
        product = lt.Product(kind, n, k, m, *layouts, alignments)

        def run(plan: lt.Plan) -> None:
            workspace = scratch("workspace", plan.workspace, "uint8") if plan.workspace else None
            place = workspace.data.ptr if workspace is not None else 0
            stream = self._cupy.cuda.get_current_stream().ptr
            plan.run(a.data.ptr, b.data.ptr, out.data.ptr, place, stream)

        if product not in self._plans:
            plan = self._plans[product] = self._plan(product, run, timed=rounded)
            if bias is None:
                return plan is not None
        plan = self._plans[product]
        if plan is not None and bias is not None:
            plan = self._with_bias(plan, bias, relu)
        if plan is not None:
            run(plan)
        return plan is not None

    def _with_bias(self, plan: lt.Plan, bias: Any, relu: bool) -> lt.Plan | None:
        # No alignment is documented; 16 bytes are the most that a thread reads at once.
        if lt.aligned(bias.data.ptr) < 16:
            return None
        key = plan.product, lt.RELU_BIAS if relu else lt.BIAS, bias.data.ptr
        if key not in self._with_biases:
            self._with_biases[key] = plan.ending(*key[1:])
        return self._with_biases[key]

    def _plan(
        self, product: lt.Product, run: Callable[[lt.Plan], None], timed: bool
    ) -> lt.Plan | None:
        """How to compute a kind of product, which has been done then; None if there is no way."""
        plan = lt.Plan(self._library, self._handle, product)
        clock = self._milliseconds if timed and len(plan.candidates) > 1 else None
        try:
            plan.choose(lambda: run(plan), clock)
        except lt.LtError:
            return None
        return plan

    def _milliseconds(self, run: Callable[[], None]) -> float:
        """The time that the device takes for some calls of `run`, without the host's."""
        cuda = self._cupy.cuda
        before, start, stop = cuda.Event(), cuda.Event(), cuda.Event()
        before.record()
        stream = self._clock
        stream.wait_event(before)
        with stream:
            run()  # takes scratch of this stream, which a graph may not
            stream.begin_capture()
            for _ in range(_TIMED):
                run()
            graph = stream.end_capture()
            graph.launch()
            start.record()
            graph.launch()
            stop.record()
        stop.synchronize()
        return float(cuda.get_elapsed_time(start, stop))

    @cached_property
    def _clock(self) -> Any:
        return self._cupy.cuda.Stream(non_blocking=True)

    def _rounded(self, x: Any, operand: str, scratch: Scratch) -> Any:
        """The matrix `x` in bfloat16, in scratch: its rows, or its columns, one after the other."""

        def write(rows: Any) -> Any:
            rounded = scratch(operand, rows.size, "uint16").reshape(rows.shape)
            self.round(rows, rounded)
            return rounded

        return by_rows(x, write)


def by_rows(x: Any, make: Callable[[Any], Any]) -> Any:
    """What `make` makes of a matrix, given it, or turned back, given its transpose.

    It is given that whose rows lie one after the other: neighbours in memory are read together.
    """
    return make(x.T).T if x.strides[0] < x.strides[1] else make(x)


def _layout(x: Any) -> Any:
    """Whether the columns of `x` are the neighbours, and how far apart they or the rows are."""
    rows, columns = x.shape
    down, along = (stride // x.itemsize for stride in x.strides)
    # An axis of one element has any stride.
    if (along == 1 or columns == 1) and (down >= columns or rows == 1):
        return False, max(down, columns)
    if (down == 1 or rows == 1) and along >= rows:
        return True, along
    return None
