"""Rules that follow one another on the same elements, as one kernel.

Between two rules a value stays in a register, rounded to the dtype of the array that it is also
written to: the kernel gives the bits that the rules give one after the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import Any

from xpmlp.typing import Rule
from xpmlp_cupy.kernels import BFLOAT16, OPTIONS
from xpmlp_cupy.reductions import ColumnLaunch, TotalLaunch, columns_source, total_source
from xpmlp_cupy.scratch import Scratch
from xpmlp_cupy.tracing import CTYPES, arithmetic, body

_ELEMENTWISE = """
extern "C" __global__ void __launch_bounds__(256) {name}(
    {parameters}{I} size, {I} n_columns) {{
  for ({I} i = blockIdx.x * ({I})256 + threadIdx.x; i < size; i += ({I})256 * gridDim.x) {{
    {place}
    {body}
  }}
}}
"""
_MOST_BLOCKS = 4096
_STORED = CTYPES | {"uint16": "unsigned short"}  # the bits of bfloat16
_DTYPES = {ctype: dtype for dtype, ctype in CTYPES.items()}
# Elements from which their number needs 64 bits; less are counted faster.
_LONG = 1 << 31


def is_array(x: Any) -> bool:
    """Whether `x` is an array in device memory, and not a number of whatever type."""
    return hasattr(getattr(x, "data", None), "ptr")


@dataclass(frozen=True)
class View:
    """What an array covers in memory."""

    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]
    contiguous: bool

    @classmethod
    def of(cls, x: Any) -> View:
        start = stop = x.data.ptr
        for n, stride in zip(x.shape, x.strides, strict=True):
            start += min(0, (n - 1) * stride)
            stop += max(0, (n - 1) * stride)
        return cls(start, stop + x.itemsize, str(x.dtype), x.shape, bool(x.flags.c_contiguous))

    def overlaps(self, other: View) -> bool:
        return self.start < other.stop and other.start < self.stop

    def covers(self, other: View) -> bool:
        return self.contiguous and self.start <= other.start and other.stop <= self.stop


@dataclass
class Applied:
    """A rule and what it is applied to: all elements or, of vectors, the first `n_first`."""

    rule: Rule
    outs: tuple[Any, ...]
    operands: tuple[Any, ...]
    n_first: int | None = None


@dataclass
class Group:
    """Work on the elements of one shape that is done in one pass.

    Attributes
    ----------
    shape : tuple of int
        Of all outs.
    rules : list of Applied
        In order.
    columns : (array, array), optional
        What the columns of an array that the rules read or write sum up to, written in the end.
    total : (array, array, bool), optional
        Where `shape` is ``()``: the sum of all elements of the first array, or of their squares,
        written into the second before the first rule.
    """

    shape: tuple[int, ...]
    rules: list[Applied] = field(default_factory=list)
    columns: tuple[Any, Any] | None = None
    total: tuple[Any, Any, bool] | None = None

    @property
    def reads(self) -> list[View]:
        read = [x for one in self.rules for x in one.operands if is_array(x)]
        read += [x for one in self.rules if one.n_first is not None for x in one.outs]
        read += [pair[0] for pair in (self.columns, self.total) if pair]
        return [View.of(x) for x in read]

    @property
    def outs(self) -> list[Any]:
        outs = [out for one in self.rules for out in one.outs]
        return outs + [pair[1] for pair in (self.columns, self.total) if pair]

    @property
    def writes(self) -> list[View]:
        return [View.of(x) for x in self.outs]

    def launch(
        self, cupy: Any, kernels: dict[str, Any], scratch: Scratch
    ) -> tuple[Any, tuple[int], tuple[int], tuple[Any, ...]]:
        """A kernel, and the blocks, threads and arguments to launch it with.

        Parameters
        ----------
        cupy : module
        kernels : dict
            Kernels by their source, which is added to.
        scratch : Scratch
        """
        text = _Text(cupy, self.shape)
        if self.total:
            source, n_blocks, more = self._with_total(text, cupy, scratch)
        elif self.columns:
            source, n_blocks, more = self._with_columns(text, cupy, scratch)
        else:
            source, n_blocks, more = self._alone(text, cupy)
        source = text.preamble + source
        if source not in kernels:
            kernels[source] = cupy.RawKernel(source, self.name, OPTIONS)
        return kernels[source], (n_blocks,), (256,), (*text.arguments, *more)

    @property
    def name(self) -> str:
        """That of the kernel, as profilers show it."""
        names = [getattr(one.rule, "__name__", "rule") for one in self.rules]
        if self.total:
            names.insert(0, "total_squares" if self.total[2] else "total")
        if self.columns:
            names.append("sum_columns")
        return re.sub(r"\W", "_", "xpmlp_" + "_".join(names))[:100]

    def _alone(self, text: _Text, cupy: Any) -> tuple[str, int, tuple[Any, ...]]:
        """The source, the blocks, and the arguments that follow those of the text."""
        text.apply(self.rules)
        size = prod(self.shape)
        short = size < _LONG
        integer = "unsigned int" if short else "long long"
        place = f"const {integer} row = i / n_columns, column = i - row * n_columns;"
        source = _ELEMENTWISE.format(
            name=self.name, parameters=text.parameters, I=integer, body=text.body,
            place=place if text.uses_place else "",
        )  # fmt: skip
        number = cupy.uint32 if short else cupy.int64
        sizes = number(size), number(self.shape[-1] if self.shape else 1)
        return source, min(-(-size // 256), _MOST_BLOCKS), sizes

    def _with_columns(
        self, text: _Text, cupy: Any, scratch: Scratch
    ) -> tuple[str, int, tuple[Any, ...]]:
        assert self.columns
        x, out = self.columns
        ctype = CTYPES[str(x.dtype)]
        text.apply(self.rules)
        value = text.value(x)
        body = f"{text.body}\nconst {ctype} value = {value};"
        source = columns_source(self.name, ctype, text.parameters, body)
        launch = ColumnLaunch(cupy, x.shape, out, scratch)
        return source, launch.n_blocks, launch.arguments

    def _with_total(
        self, text: _Text, cupy: Any, scratch: Scratch
    ) -> tuple[str, int, tuple[Any, ...]]:
        assert self.total
        x, out, squared = self.total
        text.know(out, "total")
        text.apply(self.rules)
        ctypes = CTYPES[str(x.dtype)], CTYPES[str(out.dtype)]
        source = total_source(self.name, *ctypes, squared, text.parameters, text.body)
        launch = TotalLaunch(cupy, x, str(out.dtype), scratch)
        return source, launch.n_blocks, launch.arguments


class _Text:
    """The statements of a kernel for the element in `row` and `column`, whose place is `i`."""

    def __init__(self, cupy: Any, shape: tuple[int, ...]) -> None:
        self._cupy, self._shape = cupy, shape
        self._lines: list[str] = []
        self._places: dict[View, int] = {}
        self._written: dict[int, None] = {}
        self.uses_place = False
        self.preamble = ""
        self.parameters = ""
        self.arguments: list[Any] = []

    @property
    def body(self) -> str:
        place = "i" if self._shape else "0"
        stores = [f"p{k}[{place}] = w{k};" for k in self._written]
        return "\n".join([*self._lines, *stores])

    def know(self, x: Any, text: str) -> None:
        """`x` has been computed, and is still to be written."""
        k = self._place(x, text)
        self._written[k] = None

    def value(self, x: Any) -> str:
        """The element of an operand."""
        index = index_of(x, self._shape)
        assert index is not None
        self.uses_place |= index in ("row", "column")
        return f"w{self._place(x, f'p{{}}[{index}]')}"

    def apply(self, rules: list[Applied]) -> None:
        for one in rules:
            if one.rule is to_bfloat16:
                (x,), (out,) = one.operands, one.outs
                value, k = self.value(x), self._place(out, None)
                self._written[k] = None
                self._lines.append(f"w{k} = xpmlp_bfloat16({value});")
                self.preamble = BFLOAT16
                continue
            dtypes = [str(x.dtype) for x in one.operands if is_array(x)]
            ctype = CTYPES[arithmetic(dtypes, str(one.outs[0].dtype))]
            operands = [
                self.value(x) if is_array(x) else self._number(x, ctype) for x in one.operands
            ]
            if one.n_first is None:
                outs, condition = [self._place(x, None) for x in one.outs], ""
            else:  # the other elements are left as they are
                outs = [self._place(x, "p{}[i]") for x in one.outs]
                condition = (
                    f"if (i < {self._parameter('long long', self._cupy.int64, one.n_first)}) "
                )
            self._written |= dict.fromkeys(outs)
            statements = body(one.rule, operands, [f"w{k}" for k in outs], ctype)
            self._lines.append(f"{condition}{{\n{statements}\n}}")

    def _place(self, x: Any, text: str | None) -> int:
        """The number of an array, of whose element a local variable is made."""
        view = View.of(x)
        if view not in self._places:
            k = self._places[view] = len(self.arguments)
            ctype = _STORED[view.dtype]
            self.arguments.append(x)
            self.parameters += f"{ctype}* p{k}, "
            start = "" if text is None else f" = {text.format(k)}"
            self._lines.append(f"{ctype} w{k}{start};")
        return self._places[view]

    def _number(self, x: float, ctype: str) -> str:
        return self._parameter(ctype, getattr(self._cupy, _DTYPES[ctype]), x)

    def _parameter(self, ctype: str, dtype: Any, x: float) -> str:
        k = len(self.arguments)
        self.arguments.append(dtype(x))
        self.parameters += f"{ctype} c{k}, "
        return f"c{k}"


def index_of(x: Any, shape: tuple[int, ...]) -> str | None:
    """The index of an operand's element for a result of `shape`; None if there is no simple one."""
    if str(x.dtype) not in _STORED or not x.flags.c_contiguous:
        return None
    if x.size == 1:
        return "0"
    if x.shape == shape:
        return "i"
    if len(shape) == 2 and x.shape in (shape[1:], (1, *shape[1:])):
        return "column"
    if len(shape) == 2 and x.shape == (shape[0], 1):
        return "row"
    return None


def same(xp: Any, x: Any) -> Any:
    """The rule of a copy."""
    return x


def to_bfloat16(xp: Any, x: Any) -> Any:
    """Stands for the rounding of float32 numbers, which is no rule: its results are bits."""
    raise TypeError("to be computed in kernels only")


def may_join(group: Group, one: Applied) -> bool:
    """Whether a rule can be applied in the pass of those of a group, as the last of them."""
    if group.columns or one.outs[0].shape != group.shape:
        return False
    reads = [View.of(x) for x in one.operands if is_array(x)]
    writes = [View.of(x) for x in one.outs]
    # Each element may depend on the same element alone.
    crossing = [(w, x) for w in group.writes for x in (*reads, *writes)]
    crossing += [(w, x) for w in writes for x in group.reads]
    return not any(a.overlaps(b) and a != b for a, b in crossing)
