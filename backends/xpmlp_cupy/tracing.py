"""Rules as CUDA C++: a rule is called once with symbolic values, which write down what is done.

Nothing here needs CuPy. A function gives what NumPy's gives, for NaN, infinity and zeros of either
sign too; the one difference on the GPU is that CuPy compiles with ``-ftz=true``, which takes
float32 numbers below 1.2e-38 for zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from numbers import Real
from typing import Any

from xpmlp.typing import Rule


def body(rule: Rule, operands: Sequence[str], outs: Sequence[str], ctype: str) -> str:
    """The statements that apply `rule` to one element.

    Parameters
    ----------
    rule : Rule
    operands, outs : sequence of str
        C++ expressions for the values read, and for the places written to. All are read before
        the first is written, so that an out may be an operand.
    ctype : {"float", "double"}
        The type of the arithmetic.

    Raises
    ------
    Exception
        Whatever the rule raises if it does more than a rule may. Applied to whole arrays it may
        work all the same.
    """
    tracer = Tracer(ctype)
    values = [tracer.variable(operand) for operand in operands]
    result = rule(tracer, *values)
    results = result if isinstance(result, tuple) else (result,)
    stores = [f"{out} = {tracer.text(value)};" for out, value in zip(outs, results, strict=True)]
    return "\n".join([*tracer.statements, *stores])


class Tracer:
    """The functions for a rule that is being traced, and the statements it has come to.

    Each value is a local constant: whether it costs a register or an instruction is the
    compiler's business.
    """

    def __init__(self, ctype: str) -> None:
        self.ctype = ctype
        self.statements: list[str] = []

    def variable(self, expression: str, ctype: str | None = None) -> Value:
        """A new local constant."""
        name = f"v{len(self.statements)}"
        self.statements.append(f"const {ctype or self.ctype} {name} = {expression};")
        return Value(self, name)

    def text(self, x: Any) -> str:
        """A value's name; a number as a literal of the arithmetic's type, rounded to it once."""
        if isinstance(x, Value):
            return x.name
        if isinstance(x, Real) and isfinite(x):
            return f"{self.ctype}({float(x)!r})"
        raise TypeError(f"a rule computes with its operands and finite numbers, got {x!r}")

    def call(self, function: str, x: Any) -> Value:
        """`function` of one argument, overloaded for both types in CUDA as in C++."""
        return self.variable(f"{function}({self.text(x)})")

    def abs(self, x: Any) -> Value:
        return self.call("fabs", x)

    def erf(self, x: Any) -> Value:
        return self.call("erf", x)

    def exp(self, x: Any) -> Value:
        return self.call("exp", x)

    def expm1(self, x: Any) -> Value:
        return self.call("expm1", x)

    def log(self, x: Any) -> Value:
        return self.call("log", x)

    def log1p(self, x: Any) -> Value:
        return self.call("log1p", x)

    def sqrt(self, x: Any) -> Value:
        return self.call("sqrt", x)

    def tanh(self, x: Any) -> Value:
        return self.call("tanh", x)

    # CUDA's fmax and fmin drop a NaN; NumPy's pass it on, and take the second of two equals.

    def maximum(self, x: Any, y: Any) -> Value:
        a, b = self.text(x), self.text(y)
        return self.variable(f"{a} > {b} || {a} != {a} ? {a} : {b}")

    def minimum(self, x: Any, y: Any) -> Value:
        a, b = self.text(x), self.text(y)
        return self.variable(f"{a} < {b} || {a} != {a} ? {a} : {b}")

    def sign(self, x: Any) -> Value:
        a, zero, one = self.text(x), self.text(0.0), self.text(1.0)
        # NaN is what is neither above, below nor at zero.
        return self.variable(
            f"{a} > {zero} ? {one} : {a} < {zero} ? -{one} : {a} == {zero} ? {zero} : {a}"
        )

    def where(self, condition: Any, x: Any, y: Any) -> Value:
        return self.variable(f"{self.text(condition)} ? {self.text(x)} : {self.text(y)}")


class Value:
    """A value of a rule that is being traced: the name of a local constant."""

    __hash__ = None  # type: ignore[assignment]  # == is written down, too

    def __init__(self, tracer: Tracer, name: str) -> None:
        self.tracer = tracer
        self.name = name

    def __bool__(self) -> bool:
        raise TypeError("a rule chooses between values by xp.where, not by if, and, or, not")

    def _binary(self, operator: str, x: Any, y: Any, ctype: str | None = None) -> Value:
        text = self.tracer.text
        return self.tracer.variable(f"{text(x)} {operator} {text(y)}", ctype)

    def __add__(self, other: Any) -> Value:
        return self._binary("+", self, other)

    def __radd__(self, other: Any) -> Value:
        return self._binary("+", other, self)

    def __sub__(self, other: Any) -> Value:
        return self._binary("-", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._binary("-", other, self)

    def __mul__(self, other: Any) -> Value:
        return self._binary("*", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self._binary("*", other, self)

    def __truediv__(self, other: Any) -> Value:
        return self._binary("/", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._binary("/", other, self)

    def __neg__(self) -> Value:
        return self.tracer.variable(f"-{self.name}")

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return self.tracer.abs(self)

    def __lt__(self, other: Any) -> Value:
        return self._binary("<", self, other, "bool")

    def __le__(self, other: Any) -> Value:
        return self._binary("<=", self, other, "bool")

    def __gt__(self, other: Any) -> Value:
        return self._binary(">", self, other, "bool")

    def __ge__(self, other: Any) -> Value:
        return self._binary(">=", self, other, "bool")

    def __eq__(self, other: object) -> Value:  # type: ignore[override]
        return self._binary("==", self, other, "bool")

    def __ne__(self, other: object) -> Value:  # type: ignore[override]
        return self._binary("!=", self, other, "bool")

    def __and__(self, other: Any) -> Value:
        return self._binary("&&", self, other, "bool")

    def __or__(self, other: Any) -> Value:
        return self._binary("||", self, other, "bool")

    def __invert__(self) -> Value:
        return self.tracer.variable(f"!{self.name}", "bool")
