"""Rules compiled by Numba into one loop each, where that beats NumPy and Numba is installed.

A rule of arithmetic and square roots alone gains several-fold: one pass over memory instead of one
for each operation. Rules with exp, log or tanh stay with NumPy, whose versions use vector
instructions. Compiled without any licence to reorder, a loop rounds as NumPy does, so both give the
same result to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from xpmlp.typing import Rule

# Elements from which a loop saves enough to be worth its compilation, about half a second.
THRESHOLD = 32768

_FAST = {"abs", "maximum", "minimum", "sign", "sqrt", "where"}


def compilable(rule: Rule) -> bool:
    """Whether the rule gains by compilation, and Numba is there to do it.

    A rule that uses anything besides its operands, literals and these functions, or has default
    arguments, is left to NumPy too.
    """
    return (
        isinstance(rule, FunctionType)
        and set(rule.__code__.co_names) <= _FAST
        and not (rule.__closure__ or rule.__defaults__ or rule.__kwdefaults__)
        and numba_installed()
    )


@cache
def loop(
    rule: Rule, dtype: str, sources: tuple[int | str, ...], n_outs: int
) -> Callable[..., None]:
    """``loop(*outs, *operands)`` over flat arrays, without the operands that are outs.

    Parameters
    ----------
    rule : Rule
    dtype : str
        Of the arithmetic.
    sources : tuple
        What each operand is: ``"array"``, ``"number"`` of that dtype, or the place of the out that
        it is. A loop that reads and writes one array under two names would not be vectorised.
    n_outs : int
    """
    import numba

    outs = [f"out{i}" for i in range(n_outs)]
    values = {"array": "in{}[i]", "number": "in{}"}
    operands = [f"in{place}" for place, source in enumerate(sources) if source in values]
    arguments = [
        values[source].format(place) if isinstance(source, str) else f"out{source}[i]"
        for place, source in enumerate(sources)
    ]
    code = (
        f"def run({', '.join(outs + operands)}):\n"
        f"    for i in range(out0.size):\n"
        f"        {', '.join(f'{out}[i]' for out in outs)} = rule(xp, {', '.join(arguments)})\n"
    )
    compiled = numba.njit(_with_literals(rule, np.dtype(dtype).type), error_model="numpy")
    scope: dict[str, Any] = {"rule": compiled, "xp": _functions()}
    exec(code, scope)
    run: Callable[..., None] = numba.njit(scope["run"], error_model="numpy")
    return run


def _with_literals(rule: Any, kind: Callable[[float], Any]) -> FunctionType:
    """The rule with its float literals in `kind`: a float64 literal would widen the arithmetic."""
    literals = tuple(kind(x) if isinstance(x, float) else x for x in rule.__code__.co_consts)
    return FunctionType(rule.__code__.replace(co_consts=literals), rule.__globals__, rule.__name__)


@cache
def _functions() -> ModuleType:
    """The functions for rules, on scalars. NaN passes through as in NumPy."""
    import numba

    module = ModuleType("xpmlp_numpy_scalar_functions")
    plain: dict[str, Callable[..., Any]] = {
        "abs": lambda x: abs(x),
        "sqrt": lambda x: np.sqrt(x),
        "sign": lambda x: abs(x) if x == 0 else np.sign(x),  # of -0.0 it is 0.0
        "maximum": lambda x, y: x if x > y or x != x else y,
        "minimum": lambda x, y: x if x < y or x != x else y,
        "where": lambda condition, x, y: x if condition else y,
    }
    for name, function in plain.items():
        setattr(module, name, numba.njit(function, error_model="numpy"))
    return module


@cache
def numba_installed() -> bool:
    return find_spec("numba") is not None
