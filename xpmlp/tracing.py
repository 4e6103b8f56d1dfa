"""Rules written down: a rule is called once with symbolic values, which note what is done to them.

An adapter turns the note into the language that it compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

from xpmlp.typing import Rule

FUNCTIONS = {
    "abs": 1, "erf": 1, "exp": 1, "expm1": 1, "log": 1, "log1p": 1, "maximum": 2, "minimum": 2,
    "sign": 1, "sqrt": 1, "tanh": 1, "where": 3,
}  # fmt: skip
"""The functions that a rule may call, and how many arguments each takes."""

COMPARISONS = {"<", "<=", ">", ">=", "==", "!=", "&", "|", "~"}
"""The operators whose result is a truth value."""


class Node(NamedTuple):
    """One operation: its sign or name, or ``"operand"``, and values or numbers it is applied to."""

    operation: str
    arguments: tuple[Argument, ...]


class Trace(NamedTuple):
    """What a rule does to one element: its operations in order, and its results."""

    nodes: list[Node]
    results: tuple[Argument, ...]


def trace(rule: Rule, n_operands: int) -> Trace:
    """Write down `rule`.

    The first `n_operands` nodes are its operands.

    Raises
    ------
    Exception
        Whatever the rule raises if it does more than a rule may. Applied to whole arrays it may
        work all the same.
    """
    tracer = _Tracer()
    operands = [tracer.note("operand", place) for place in range(n_operands)]
    result = rule(tracer, *operands)
    results = result if isinstance(result, tuple) else (result,)
    return Trace(tracer.nodes, tuple(_argument(value) for value in results))


class _Tracer:
    """The functions for a rule that is being traced, and the operations it has come to."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def note(self, operation: str, *arguments: Any) -> Value:
        checked = tuple(_argument(x) for x in arguments)
        self.nodes.append(Node(operation, checked))
        return Value(self, len(self.nodes) - 1)

    def __getattr__(self, name: str) -> Callable[..., Value]:
        if name not in FUNCTIONS:
            raise AttributeError(f"a rule cannot call {name!r}, only {', '.join(FUNCTIONS)}")

        def function(*arguments: Any) -> Value:
            if len(arguments) != FUNCTIONS[name]:
                raise TypeError(f"{name} takes {FUNCTIONS[name]} arguments, got {len(arguments)}")
            return self.note(name, *arguments)

        return function


class Value:
    """A value of a rule that is being traced: the result of the operation at `place`."""

    __hash__ = None  # type: ignore[assignment]  # == is written down, too

    def __init__(self, tracer: _Tracer, place: int) -> None:
        self.tracer = tracer
        self.place = place

    def __bool__(self) -> bool:
        raise TypeError("a rule chooses between values by xp.where, not by if, and, or, not")

    def __add__(self, other: Any) -> Value:
        return self.tracer.note("+", self, other)

    def __radd__(self, other: Any) -> Value:
        return self.tracer.note("+", other, self)

    def __sub__(self, other: Any) -> Value:
        return self.tracer.note("-", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self.tracer.note("-", other, self)

    def __mul__(self, other: Any) -> Value:
        return self.tracer.note("*", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self.tracer.note("*", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self.tracer.note("/", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self.tracer.note("/", other, self)

    def __neg__(self) -> Value:
        return self.tracer.note("negative", self)

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return self.tracer.note("abs", self)

    def __lt__(self, other: Any) -> Value:
        return self.tracer.note("<", self, other)

    def __le__(self, other: Any) -> Value:
        return self.tracer.note("<=", self, other)

    def __gt__(self, other: Any) -> Value:
        return self.tracer.note(">", self, other)

    def __ge__(self, other: Any) -> Value:
        return self.tracer.note(">=", self, other)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]
        return self.tracer.note("==", self, other)

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return self.tracer.note("!=", self, other)

    def __and__(self, other: Any) -> Value:
        return self.tracer.note("&", self, other)

    def __or__(self, other: Any) -> Value:
        return self.tracer.note("|", self, other)

    def __invert__(self) -> Value:
        return self.tracer.note("~", self)


Argument: TypeAlias = Value | float


def _argument(x: Any) -> Argument:
    if isinstance(x, Value):
        return x
    if isinstance(x, Real) and isfinite(x):
        return float(x)
    raise TypeError(f"a rule computes with its operands and finite numbers, got {x!r}")
