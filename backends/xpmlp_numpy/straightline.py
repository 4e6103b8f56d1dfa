"""Rules as Python source: straight-line calls of ufuncs, each of which writes where it may.

Of Adam, whose outputs are the parameters and the two moments::

    multiply(c5, o1, out=s0)
    multiply(c6, i1, out=s1)
    add(s0, s1, out=o1)
    ...
    subtract(o0, s0, out=o0)

``o0`` to ``o2`` are the outputs, ``i1`` is an operand that is none of them, ``c5`` a number as an
array, and ``s0`` and ``s1`` are scratch: each is used again when its value is not needed any more.

A truth value is a mask, a whole number of the operands' size with all bits 0 or all 1, by which
``where`` picks bits. That takes the same time whatever is picked; `numpy.where` takes many times as
long where the processor cannot guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xpmlp.tracing import COMPARISONS, FUNCTIONS, Argument, Value, trace
from xpmlp.typing import Rule

_UFUNCS = {
    "+": "add", "-": "subtract", "*": "multiply", "/": "divide", "<": "less", "<=": "less_equal",
    ">": "greater", ">=": "greater_equal", "==": "equal", "!=": "not_equal", "&": "bitwise_and",
    "|": "bitwise_or", "~": "invert", "abs": "absolute",
}  # fmt: skip
_LOGICAL = ("&", "|", "~")
_OF_NUMBERS = ("+", "-", "*", "/", "negative")
_INTEGERS = {"float32": np.dtype("int32"), "float64": np.dtype("int64")}


class Source(NamedTuple):
    """Two functions in Python.

    Attributes
    ----------
    text : str
        ``run(*outs, *moving, *fixed, *scratch)`` applies the rule; moving operands are wide ones
        and columns. ``fixed(*operands)`` gives what it needs of the others, numbers as arrays.
    names : dict
        What the text refers to.
    n_scratch : int
        How many arrays of the shape and dtype of the outputs `run` writes into besides.
    apart : list of (int, int)
        Outputs and operands that must not share memory: the one is written before the other is
        read for the last time.
    """

    text: str
    names: dict[str, Any]
    n_scratch: int
    apart: list[tuple[int, int]]


def source(
    rule: Rule, functions: Any, dtype: str, kinds: Sequence[str | int], n_outs: int
) -> Source:
    """Write down `rule` for operands of the kinds of :func:`xpmlp_numpy.ufuncs.kinds_of`.

    Raises
    ------
    Exception
        What the rule raises that does more than it may, or :class:`TypeError` for what is not
        provided for here.
    """
    return _Writer(rule, functions, dtype, kinds, n_outs).source()


class _Writer:
    """Values have the kinds of operands. Those that are not wide are left to the rule's own way."""

    def __init__(
        self, rule: Rule, functions: Any, dtype: str, kinds: Sequence[str | int], n_outs: int
    ) -> None:
        self.nodes, results = trace(rule, len(kinds))
        self.results = [x.place for x in results if isinstance(x, Value) and x.place >= len(kinds)]
        if not len({*self.results}) == len(results) == n_outs:
            raise TypeError("each result must be a value of its own, and no operand")
        self.operands, self.dtype = kinds, np.dtype(dtype)
        self.names = {"f": functions, "array": np.array, "T": self.dtype, "I": _INTEGERS[dtype]}
        self.last = self._last_uses()
        self.apart: list[tuple[int, int]] = []
        self.targets = self._targets()
        self.kinds: list[str] = []
        self.truths = [node.operation in COMPARISONS for node in self.nodes]
        self.held: dict[int, str] = {}  # the array of each wide value
        self.arrays: dict[int, str] = {}  # numbers that are needed as arrays
        self.raw: set[str] = set()  # numbers that are needed as they are
        self.masks: set[str] = set()  # arrays that are needed as whole numbers, too
        self.numbers: list[str] = []
        self.lines: list[str] = []
        self.free: list[str] = []
        self.n_scratch = 0

    def source(self) -> Source:
        for place, (operation, arguments) in enumerate(self.nodes):
            if operation == "operand":
                kind = self.operands[place]
                self.kinds.append("wide" if isinstance(kind, int) else kind)
                self.held[place] = f"o{kind}" if isinstance(kind, int) else f"i{place}"
                continue
            self.kinds.append(self._kind(operation, arguments))
            if self.kinds[place] == "wide":
                write = self._write_where if operation == "where" else self._write_call
                write(place, operation, arguments)
            else:
                line = f"v{place} = {self._expression(operation, arguments)}"
                if self.kinds[place] == "number":
                    self.numbers.append(line)
                    continue
                self.lines.append(line)
                values = [x for x in arguments if isinstance(x, Value)]
                self.raw |= {self._name(x) for x in values if self.kinds[x.place] == "number"}
        for number, place in enumerate(self.results):
            if self.kinds[place] != "wide" or self.truths[place]:
                raise TypeError("each result must be a number for each element")
            if place not in self.targets:
                self.lines.append(f"o{number}[...] = {self.held[place]}")
        return self._assembled()

    # --- What is known beforehand -------------------------------------------------------------

    def _last_uses(self) -> list[int]:
        """The node that reads each value last; for results, one beyond the last."""
        last = [-1] * len(self.nodes)
        for place, node in enumerate(self.nodes):
            for x in node.arguments:
                if isinstance(x, Value):
                    last[x.place] = place
        for place in self.results:
            last[place] = len(self.nodes)
        return last

    def _targets(self) -> dict[int, str]:
        """The outputs that results are computed into, where no operand is in the way."""
        targets = {}
        for number, place in enumerate(self.results):
            later = [i for i in range(len(self.operands)) if self.last[i] > place]
            if all(self.operands[i] != number for i in later):
                targets[place] = f"o{number}"
                arrays = ("wide", "row", "column", "scalar")
                self.apart += [(number, i) for i in later if self.operands[i] in arrays]
        return targets

    def _kind(self, operation: str, arguments: Sequence[Argument]) -> str:
        kinds = [self.kinds[x.place] if isinstance(x, Value) else "number" for x in arguments]
        truths = [isinstance(x, Value) and self.truths[x.place] for x in arguments]
        n_truths = 1 if operation == "where" else len(kinds) if operation in _LOGICAL else 0
        if truths != [i < n_truths for i in range(len(kinds))]:
            raise TypeError("a truth value is not a number")
        if "wide" in kinds or {"row", "column"} <= {*kinds}:
            if any(kind != "wide" for kind in kinds[:n_truths]):
                raise TypeError("a truth value that is not wide is no mask")
            return "wide"
        kind = max(kinds, key=["number", "scalar", "row", "column"].index)
        if kind == "number" and operation not in _OF_NUMBERS:
            raise TypeError("NumPy's functions make float64 of Python's numbers")
        return kind

    # --- Operations ---------------------------------------------------------------------------

    def _expression(self, operation: str, arguments: Sequence[Argument]) -> str:
        """A value that is not wide."""
        texts = [self._name(x) if isinstance(x, Value) else repr(x) for x in arguments]
        if operation in FUNCTIONS:
            return f"f.{operation}({', '.join(texts)})"
        if len(texts) == 1:
            return f"{'-' if operation == 'negative' else operation}{texts[0]}"
        return f"{texts[0]} {operation} {texts[1]}"

    def _write_call(self, place: int, operation: str, arguments: Sequence[Argument]) -> None:
        name = _UFUNCS.get(operation, operation)
        ufunc = getattr(self.names["f"] if name == "erf" else np, name)
        if not isinstance(ufunc, np.ufunc):
            raise TypeError(f"{ufunc!r} cannot write into an array")
        self.names[name] = ufunc
        logical = operation in _LOGICAL
        texts = ", ".join((self._bits if logical else self._array)(x) for x in arguments)
        if not self.truths[place]:
            self._release(place, arguments)
            self.lines.append(f"{name}({texts}, out={self._hold(place)})")
            return
        out = self._mask(self._hold(place))
        self._release(place, arguments)
        if logical:
            self.lines.append(f"{name}({texts}, out={out})")
        else:
            self.lines.append(f"{name}({texts}, out={out}, casting='unsafe')")
            self.lines.append(f"negative({out}, out={out})")
            self.names["negative"] = np.negative

    def _write_where(self, place: int, operation: str, arguments: Sequence[Argument]) -> None:
        self.names |= {"bitwise_and": np.bitwise_and, "bitwise_xor": np.bitwise_xor}
        mask, x, y = map(self._bits, arguments)
        if str(arguments[2]) == "0.0":  # and not -0.0
            self._release(place, arguments)
            self.lines.append(f"bitwise_and({x}, {mask}, out={self._mask(self._hold(place))})")
            return
        between = self._take()
        t = self._mask(between)
        self._release(place, arguments)
        self.lines += [
            f"bitwise_xor({x}, {y}, out={t})",
            f"bitwise_and({t}, {mask}, out={t})",
            f"bitwise_xor({t}, {y}, out={self._mask(self._hold(place))})",
        ]
        self.free.append(between)

    # --- Names --------------------------------------------------------------------------------

    def _name(self, x: Value) -> str:
        return f"i{x.place}" if x.place < len(self.operands) else f"v{x.place}"

    def _array(self, x: Argument) -> str:
        if not isinstance(x, Value):
            name = f"k{len(self.names)}"
            self.names[name] = np.array(x, self.dtype)
            return name
        if self.kinds[x.place] == "number":
            self.arrays[x.place] = self._name(x)
            return f"c{x.place}"
        return self.held.get(x.place, f"v{x.place}")

    def _bits(self, x: Argument) -> str:
        """An array as whole numbers."""
        name = self._array(x)
        return self._mask(name) if name[0] in "ios" else f"{name}.view(I)"

    def _mask(self, name: str) -> str:
        self.masks.add(name)
        return f"m{name}"

    def _hold(self, place: int) -> str:
        """Where a wide value is written: its output, or scratch."""
        self.held[place] = self.targets.get(place) or self._take()
        return self.held[place]

    def _take(self) -> str:
        if not self.free:
            self.free.append(f"s{self.n_scratch}")
            self.n_scratch += 1
        return self.free.pop()

    def _release(self, place: int, arguments: Sequence[Argument]) -> None:
        """Give back the scratch of what the node at `place` reads as the last."""
        for x in {x.place for x in arguments if isinstance(x, Value)}:
            if self.last[x] == place and self.held.get(x, "").startswith("s"):
                self.free.append(self.held[x])

    def _assembled(self) -> Source:
        kinds = dict(enumerate(self.operands))
        outs = [f"o{i}" for i in range(len(self.results))]
        moving = [f"i{i}" for i, kind in kinds.items() if kind in ("wide", "column")]
        # What is fixed, by name. A scalar of two axes would not suit outputs seen as a vector.
        fixed = {f"i{i}": f"i{i}" for i, kind in kinds.items() if kind == "row"}
        fixed |= {f"i{i}": f"i{i}.reshape(())" for i, kind in kinds.items() if kind == "scalar"}
        fixed |= {name: name for name in sorted(self.raw)}
        fixed |= {f"c{i}": f"array({name}, T)" for i, name in self.arrays.items()}
        scratch = [f"s{i}" for i in range(self.n_scratch)]
        views = [f"m{name} = {name}.view(I)" for name in sorted(self.masks)]
        lines = [
            f"def fixed({', '.join(f'i{i}' for i in kinds)}):",
            *(f"    {line}" for line in self.numbers),
            f"    return [{', '.join(fixed.values())}]",
            f"def run({', '.join([*outs, *moving, *fixed, *scratch])}):",
            *(f"    {line}" for line in views + self.lines),
        ]
        return Source("\n".join(lines), self.names, self.n_scratch, self.apart)
