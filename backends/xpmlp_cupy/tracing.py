"""Rules as CUDA C++.

Nothing here needs CuPy. A function gives what NumPy's gives, for NaN, infinity and zeros of either
sign too; the one difference on the GPU is that CuPy compiles with ``-ftz=true``, which takes
float32 numbers below 1.2e-38 for zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from xpmlp.tracing import COMPARISONS, Argument, Value, trace
from xpmlp.typing import Rule

CTYPES = {"float32": "float", "float64": "double"}

# What is not an operator, or a function of the same name, overloaded for both types in CUDA as in
# C++. Its fmax and fmin drop a NaN; NumPy's pass it on, and take the second of two equals.
_TEXTS = {
    "&": "{0} && {1}",
    "|": "{0} || {1}",
    "~": "!{0}",
    "negative": "-{0}",
    "abs": "fabs({0})",
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}",
    "minimum": "{0} < {1} || {0} != {0} ? {0} : {1}",
    # NaN is what is neither above, below nor at zero.
    "sign": "{0} > {T}(0.0) ? {T}(1.0) : {0} < {T}(0.0) ? -{T}(1.0) : "
    "{0} == {T}(0.0) ? {T}(0.0) : {0}",
    "where": "{0} ? {1} : {2}",
}


def arithmetic(operands: Sequence[str], out: str) -> str:
    """The dtype that a rule computes in: the widest float among those of its operands, as in NumPy.

    Integers and Python's numbers are converted to that; `out` is the dtype of the first result,
    where no operand is an array of floats.
    """
    return max([name for name in operands if name in CTYPES], default=out)


def body(rule: Rule, operands: Sequence[str], outs: Sequence[str], ctype: str) -> str:
    """The statements that apply `rule` to one element.

    Each value is a local constant: whether it costs a register or an instruction is the compiler's
    business.

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
        As :func:`xpmlp.tracing.trace`.
    """

    def text(x: Argument) -> str:
        # A number is a literal of the arithmetic's type, rounded to it once.
        return f"v{x.place}" if isinstance(x, Value) else f"{ctype}({x!r})"

    traced = trace(rule, len(operands))
    lines = []
    for place, (operation, arguments) in enumerate(traced.nodes):
        if operation == "operand":
            expression = operands[place]
        else:
            operator = not operation.isalnum()
            default = "{0} " + operation + " {1}" if operator else operation + "({0})"
            template = _TEXTS.get(operation, default)
            expression = template.format(*map(text, arguments), T=ctype)
        kind = "bool" if operation in COMPARISONS else ctype
        lines.append(f"const {kind} v{place} = {expression};")
    stores = zip(outs, traced.results, strict=True)
    return "\n".join([*lines, *(f"{out} = {text(result)};" for out, result in stores)])


def alike(rule: Rule, other: Rule, n_operands: int) -> bool:
    """Whether two rules that can be traced do the same, operation by operation."""
    operands = [f"x{place}" for place in range(n_operands)]
    texts = (body(one, operands, ["out"], "double") for one in (rule, other))
    return len({*texts}) == 1
