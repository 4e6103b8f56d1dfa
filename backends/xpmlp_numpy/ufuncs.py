"""Rules as straight-line calls of ufuncs that write into reused blocks of scratch.

Applied to arrays, a rule makes a temporary for each of its operations. Here it is written down once
and becomes Python source with the same operations in the same order on the same dtypes, so that
every bit of the result is the same, but each writes into a block whose value is not needed any
more, or into an output. Adam, where ``c2`` to ``c8`` are its numbers::

    multiply(c5, o1, out=s0)
    multiply(c6, i1, out=s1)
    add(s0, s1, out=o1)
    ...

A truth value is a mask, a whole number of the operands' size with all bits 0 or all 1, by which
``where`` picks bits: it takes the same time whatever is picked.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpmlp.tracing import COMPARISONS, FUNCTIONS, Argument, Value, trace
from xpmlp.typing import Rule

_OPERATORS = {
    "+": "add", "-": "subtract", "*": "multiply", "/": "divide", "<": "less", "<=": "less_equal",
    ">": "greater", ">=": "greater_equal", "==": "equal", "!=": "not_equal", "&": "bitwise_and",
    "|": "bitwise_or", "~": "invert", "negative": "negative", "abs": "absolute",
}  # fmt: skip
_INTEGERS = {"float32": np.dtype("int32"), "float64": np.dtype("int64")}


class Program(NamedTuple):
    """A rule for operands of certain kinds.

    Attributes
    ----------
    run : callable
        ``run(*outs, *those of moving, *fixed, *scratch)``: some rows or all.
    moving : list of int
        The operands that have rows.
    fixed : callable
        ``fixed(*operands)``: the others, and the numbers among them as arrays.
    n_scratch : int
        How many arrays of the shape and dtype of the outputs `run` writes into besides.
    apart : list of (int, int)
        Outputs and operands that must not share memory: the one is written before the other is
        read for the last time.
    flat : bool
        Whether rows do not matter.
    """

    run: Callable[..., None]
    moving: list[int]
    fixed: Callable[..., Sequence[Any]]
    n_scratch: int
    apart: list[tuple[int, int]]
    flat: bool

    def suits(self, outs: Sequence[Any], operands: Sequence[Any]) -> bool:
        """Whether no arrays share memory that must not."""
        return not any(np.may_share_memory(outs[k], operands[i]) for k, i in self.apart)

    def __call__(self, outs: Sequence[Any], operands: Sequence[Any], block: int) -> None:
        """Apply the rule, as many rows at a time as have `block` elements of eight bytes."""
        arrays = [*outs, *(operands[place] for place in self.moving)]
        fixed = self.fixed(*operands)
        if not self.n_scratch:
            self.run(*arrays, *fixed)
            return
        block = block * 8 // outs[0].itemsize
        if outs[0].size > block and self.flat and all(x.flags.c_contiguous for x in arrays):
            arrays = [x.reshape(-1) for x in arrays]
        shape, dtype = arrays[0].shape, arrays[0].dtype
        if arrays[0].size <= block:
            self.run(*arrays, *fixed, *_scratch(self.n_scratch, shape, dtype))
            return
        rows = max(1, block * shape[0] // arrays[0].size)
        scratch = _scratch(self.n_scratch, (rows, *shape[1:]), dtype)
        for start in range(0, shape[0], rows):
            some = [x[start : start + rows] for x in arrays]
            if start + rows > shape[0]:
                scratch = [x[: shape[0] - start] for x in scratch]
            self.run(*some, *fixed, *scratch)


def kinds_of(outs: Sequence[Any], operands: Sequence[Any]) -> tuple[str | int, ...] | None:
    """What :func:`program` is to know of each operand; None if the rule has to be applied as it is.

    The place of the output that it is, ``"wide"`` for another array of its shape, ``"column"`` of
    shape ``(..., 1)``, ``"row"`` of shape ``(d,)`` or ``"scalar"`` for one that is broadcast,
    ``"number"``.
    """
    first = outs[0]
    dtype, shape = first.dtype, first.shape
    places = {id(out): place for place, out in enumerate(outs)} if len(outs) > 1 else {}
    kinds: list[str | int] = []
    for x in operands:
        if x is first:
            kinds.append(0)
        elif type(x) is float or type(x) is int:
            kinds.append("number")
        elif getattr(x, "dtype", None) != dtype:
            return None
        elif x.shape == shape:
            kinds.append(places.get(id(x), "wide"))
        elif x.size == 1:
            kinds.append("scalar")
        elif x.shape == shape[-1:]:
            kinds.append("row")
        elif x.shape == (*shape[:-1], 1):
            kinds.append("column")
        else:
            return None
    if len(outs) > 1 and any(out.dtype != dtype for out in outs):
        return None
    return tuple(kinds)


def program(
    rule: Rule, functions: Any, dtype: str, kinds: Sequence[str | int], n_outs: int
) -> Program | None:
    """`rule` for operands of `kinds`, or None if it does what is not provided for here."""
    try:
        return _Writer(rule, functions, dtype, kinds, n_outs).program()
    except Exception:  # whatever a rule raises that does more than it may
        return None


class _Unsuited(Exception):
    pass


class _Writer:
    """Writes a program.

    Values have the kinds of operands. Those that are not wide are computed as the rule does it.
    """

    def __init__(
        self,
        rule: Rule,
        functions: Any,
        dtype: str,
        kinds: Sequence[str | int],
        n_outs: int,
    ) -> None:
        self.nodes, self.results = trace(rule, len(kinds))
        self.dtype, self.operands, self.n_outs = np.dtype(dtype), kinds, n_outs
        names = {*_OPERATORS.values(), *FUNCTIONS, "bitwise_xor"} - {"where", "abs", "erf"}
        self.names: dict[str, Any] = {name: getattr(np, name) for name in names}
        if any(node.operation == "erf" for node in self.nodes):
            self.names["erf"] = functions.erf
        self.names |= {"f": functions, "array": np.array, "I": _INTEGERS[dtype], "T": self.dtype}
        self.kinds: list[str] = []
        self.truths = [node.operation in COMPARISONS for node in self.nodes]
        self.place_of: dict[int, str] = {}  # the array that holds a wide value
        self.wanted: dict[int, str] = {}  # numbers that are needed as arrays
        self.lines: list[str] = []
        self.numbers: list[str] = []
        self.free: list[str] = []
        self.n_scratch = 0
        self.masks: set[str] = set()  # the arrays that are needed as whole numbers, too
        self.apart: list[tuple[int, int]] = []

    def program(self) -> Program:
        self.last = self._last_uses()
        targets = self._targets()
        for place, node in enumerate(self.nodes):
            if node.operation == "operand":
                kind = self.operands[place]
                self.kinds.append("wide" if isinstance(kind, int) else kind)
                self.place_of[place] = f"o{kind}" if isinstance(kind, int) else f"i{place}"
                continue
            if self.last[place] < 0:  # nothing needs it
                self.kinds.append("")
                continue
            self.kinds.append(self._kind(node.operation, node.arguments))
            if self.kinds[place] == "wide":
                self._write(place, targets.get(place))
            else:
                lines = self.numbers if self.kinds[place] == "number" else self.lines
                lines.append(f"v{place} = {self._expression(node.operation, node.arguments)}")
        for number, result in enumerate(self.results):
            assert isinstance(result, Value)
            if self.kinds[result.place] != "wide" or self.truths[result.place]:
                raise _Unsuited
            if result.place not in targets:
                self.lines.append(f"o{number}[...] = {self.place_of[result.place]}")
        return self._compiled()

    def _last_uses(self) -> list[int]:
        """The node that reads each value last: itself and below if none does, results beyond."""
        last = [-1] * len(self.nodes)
        places = [x.place for x in self.results if isinstance(x, Value)]
        if len({*places}) < self.n_outs or len(self.results) != self.n_outs:
            raise _Unsuited
        for place in places:
            if self.nodes[place].operation == "operand":
                raise _Unsuited
            last[place] = len(self.nodes)
        for place in reversed(range(len(self.nodes))):
            if last[place] >= 0:
                for x in self.nodes[place].arguments:
                    if isinstance(x, Value):
                        last[x.place] = max(last[x.place], place)
        return last

    def _targets(self) -> dict[int, str]:
        """The outputs that results are computed into, where no operand is in the way."""
        targets = {}
        for number, result in enumerate(self.results):
            assert isinstance(result, Value)
            place = result.place
            later = [i for i, _ in enumerate(self.operands) if self.last[i] > place]
            if all(self.operands[i] != number for i in later):
                targets[place] = f"o{number}"
                arrays = ("wide", "row", "column", "scalar")
                self.apart += [(number, i) for i in later if self.operands[i] in arrays]
        return targets

    def _kind(self, operation: str, arguments: Sequence[Argument]) -> str:
        kinds = [self.kinds[x.place] if isinstance(x, Value) else "number" for x in arguments]
        truths = [isinstance(x, Value) and self.truths[x.place] for x in arguments]
        expected = 1 if operation == "where" else len(kinds) if operation in ("&", "|", "~") else 0
        if truths != [place < expected for place in range(len(kinds))]:
            raise _Unsuited
        if "wide" in kinds or {"row", "column"} <= {*kinds}:
            if any(kind != "wide" and truth for kind, truth in zip(kinds, truths, strict=True)):
                raise _Unsuited  # it is no mask
            return "wide"
        kind = max(kinds, key=["number", "scalar", "row", "column"].index)
        if kind == "number" and operation not in {"+", "-", "*", "/", "negative"}:
            raise _Unsuited  # NumPy's functions of Python's numbers are of float64
        return kind

    def _expression(self, operation: str, arguments: Sequence[Argument]) -> str:
        """A value that is not wide, as the rule itself computes it."""
        texts = [repr(x) if not isinstance(x, Value) else self._raw(x) for x in arguments]
        if operation in FUNCTIONS:
            return f"f.{operation}({', '.join(texts)})"
        if len(texts) == 1:
            return f"{'-' if operation == 'negative' else operation}{texts[0]}"
        return f"{texts[0]} {operation} {texts[1]}"

    def _raw(self, x: Value) -> str:
        return f"i{x.place}" if x.place < len(self.operands) else f"v{x.place}"

    def _array(self, x: Argument) -> str:
        """What a ufunc is given."""
        if not isinstance(x, Value):
            return self._literal(x)
        if self.kinds[x.place] == "number":
            self.wanted[x.place] = self._raw(x)
            return f"c{x.place}"
        return self.place_of.get(x.place) or f"v{x.place}"

    def _literal(self, x: float) -> str:
        name = f"k{len(self.names)}"
        self.names[name] = np.array(x, self.dtype)
        return name

    def _bits(self, x: Argument) -> str:
        """The same as a whole number."""
        name = self._array(x)
        if name[0] in "ios":
            self.masks.add(name)
            return f"m{name}"
        return f"{name}.view(I)"

    def _write(self, place: int, target: str | None) -> None:
        """The calls that compute a wide value or a mask."""
        operation, arguments = self.nodes[place]
        self.place_of[place] = target or ""
        if operation == "where":
            condition, x, y = (self._bits(argument) for argument in arguments)
            none = arguments[2]
            if not isinstance(none, Value) and none == 0.0 and math.copysign(1.0, none) > 0:
                self._release(arguments, place)
                out = self._bits_of(target or self._take())
                self.lines.append(f"bitwise_and({x}, {condition}, out={out})")
            else:
                between = self._take()
                t = self._bits_of(between)
                self._release(arguments, place)
                out = self._bits_of(target or self._take())
                self.lines += [
                    f"bitwise_xor({x}, {y}, out={t})",
                    f"bitwise_and({t}, {condition}, out={t})",
                    f"bitwise_xor({t}, {y}, out={out})",
                ]
                self.free.append(between)
            self.place_of[place] = out[1:]
            return
        name = _OPERATORS.get(operation, operation)
        logical = operation in ("&", "|", "~")
        texts = [(self._bits if logical else self._array)(x) for x in arguments]
        self._release(arguments, place)
        held = self.place_of[place] = target or self._take()
        if not isinstance(self.names[name], np.ufunc):
            raise _Unsuited
        if not self.truths[place]:
            self.lines.append(f"{name}({', '.join(texts)}, out={held})")
            return
        bits = self._bits_of(held)
        if logical:
            self.lines.append(f"{name}({', '.join(texts)}, out={bits})")
        else:
            self.lines += [
                f"{name}({', '.join(texts)}, out={bits}, casting='unsafe')",
                f"negative({bits}, out={bits})",
            ]

    def _bits_of(self, name: str) -> str:
        self.masks.add(name)
        return f"m{name}"

    def _take(self) -> str:
        """A block of scratch that is free."""
        if not self.free:
            self.free.append(f"s{self.n_scratch}")
            self.n_scratch += 1
        return self.free.pop()

    def _release(self, arguments: Sequence[Argument], place: int) -> None:
        """Give back the scratch of values that are read for the last time."""
        for x in {x.place for x in arguments if isinstance(x, Value)}:
            if self.last[x] == place and self.place_of.get(x, "")[:1] == "s":
                self.free.append(self.place_of[x])

    def _compiled(self) -> Program:
        kinds = dict(enumerate(self.operands))
        moving = [place for place, kind in kinds.items() if kind in ("wide", "column")]
        fixed = [place for place, kind in kinds.items() if kind in ("row", "scalar", "number")]
        outs = [f"o{i}" for i in range(self.n_outs)]
        scratch = [f"s{i}" for i in range(self.n_scratch)]
        names = [f"i{i}" for i in fixed] + [f"c{i}" for i in self.wanted]
        # A scalar of two axes would not suit outputs that are taken as a vector.
        values = [f"i{i}" + ".reshape(())" * (kinds[i] == "scalar") for i in fixed]
        values += [f"array({x}, T)" for x in self.wanted.values()]
        lines = [
            f"def fixed({', '.join(f'i{place}' for place in kinds)}):",
            *(f"    {line}" for line in self.numbers),
            f"    return [{', '.join(values)}]",
            f"def run({', '.join([*outs, *(f'i{i}' for i in moving), *names, *scratch])}):",
            *(f"    {line}" for line in self.numbers),
            *(f"    m{name} = {name}.view(I)" for name in sorted(self.masks)),
            *(f"    {line}" for line in self.lines),
        ]
        exec("\n".join(lines), self.names)
        run, values_of = self.names["run"], self.names["fixed"]
        flat = not {"row", "column"} & {*kinds.values()}
        return Program(run, moving, values_of, self.n_scratch, self.apart, flat)


class _Scratch(threading.local):
    """Memory that each thread keeps from one call to the next."""

    def __init__(self) -> None:
        self._kept = np.empty(0, "int64")

    def __call__(self, n: int, shape: tuple[int, ...], dtype: Any) -> list[Any]:
        """`n` arrays of what values the memory happens to hold."""
        size = n * math.prod(shape)
        if size * dtype.itemsize > self._kept.nbytes:
            self._kept = np.empty(size, "int64")
        return [*self._kept.view(dtype)[:size].reshape(n, *shape)]


_scratch = _Scratch()
