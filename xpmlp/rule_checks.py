"""Element-wise rules on an adapter: every kind of operand that the library may pass to one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from xpmlp import rules
from xpmlp.adapter_checks import LARGE, buffer, compare, normal, orders
from xpmlp.backends import host
from xpmlp.typing import Array, Backend, Rule

_SHAPE = (5, 7)
# What broadcasts against it: rows, columns, single numbers.
_NARROW = ((7,), (1, 7), (5, 1), (), (1, 1))
# Operands of rules of two that are numbers; of longer ones the last always may be one.
_NUMBERS = {"limit", "tiny"}
# Where the place of an element is asked for, not its last digit: some rules subtract what is
# nearly equal.
_LOOSE = {"float64": 1e-9, "float32": 1e-4}
_EDGES = [0.0, -0.0, 1.0, -1.0, 1e3, -1e3, math.inf, -math.inf, math.nan, 1e-3, -2.5, 0.5]


def library_rules() -> list[Rule]:
    """All rules of the library."""
    functions = inspect.getmembers(rules, inspect.isfunction)
    return [function for _, function in functions]


def check_rule(backend: Backend, dtype: str, rule: Rule) -> None:
    """Check a rule on arrays, numbers, rows, columns, any order in memory, and in place.

    It is compared with NumPy in the same dtype, so that cancellation is no difference.

    Raises
    ------
    AssertionError
        At the first result that is wrong.
    """
    names = list(inspect.signature(rule).parameters)[1:]
    n = len(names)
    for what, operands, shape in _operands(names, dtype):
        results = _results(rule, operands)
        on_device = [x if isinstance(x, float) else backend.from_host(x) for x in operands]
        outs = tuple(buffer(backend, shape, dtype) for _ in results)
        backend.elementwise(rule)(outs, *on_device)
        _compare(
            backend, f"the rule {rule.__name__} {what}", outs, results, shape, dtype,
            _LOOSE[dtype] if shape in (_SHAPE, LARGE) else 0.0,
        )  # fmt: skip
    operands = _positive(n, _SHAPE, dtype)
    results = _results(rule, operands)
    for turn in range(3):
        on_device = [[*orders(backend, x)][(i + turn) % 3][1] for i, x in enumerate(operands)]
        outs = tuple(buffer(backend, _SHAPE, dtype) for _ in results)
        backend.elementwise(rule)(outs, *on_device)
        what = f"the rule {rule.__name__} of arrays by rows, by columns and with gaps"
        _compare(backend, what, outs, results, _SHAPE, dtype, _LOOSE[dtype])
    for first in range(n - len(results) + 1):
        own = [_own(backend, x, dtype) for x in operands]
        outs = tuple(own[first : first + len(results)])
        backend.elementwise(rule)(outs, *own)
        what = f"the rule {rule.__name__} into its operands from the {first + 1}. on"
        _compare(backend, what, outs, results, _SHAPE, dtype, _LOOSE[dtype])


def _operands(names: list[str], dtype: str) -> Iterator[tuple[str, list[Any], tuple[int, ...]]]:
    """What a case is called, an operand for each name, and the shape of the results."""
    n = len(names)
    for shape in ((3, 4), (2, 3, 4), (7001,), LARGE):
        yield "of arrays", _positive(n, shape, dtype), shape
    arrays = _positive(n, (3, 4), dtype)
    if n > 2 or names[-1] in _NUMBERS:
        yield "of arrays and a number", [*arrays[:-1], float(arrays[-1].flat[0])], (3, 4)
    signed = [_EDGES[i:] + _EDGES[:i] for i in range(n)]
    edges = [host().xp.asarray(x, dtype=dtype).reshape(3, 4) for x in signed]
    yield "of zeros, NaN and infinities", edges, (3, 4)
    for narrow in _NARROW:
        for turn in range(min(n, 2)):
            yield f"of operands of {narrow} and {_SHAPE}", [
                _positive(1, narrow if i % 2 == turn and n > 1 else _SHAPE, dtype, i)[0]
                for i in range(n)
            ], _SHAPE  # fmt: skip
    row, column = _positive(2, (1, 7), dtype)[0], _positive(2, (5, 1), dtype)[1]
    if n > 1:
        yield "of rows and columns", [(column, row)[i % 2] for i in range(n)], _SHAPE


def _positive(n: int, shape: tuple[int, ...], dtype: str, first: int = 0) -> list[Any]:
    """Arrays of numbers that suit rates, probabilities, denominators and roots alike."""
    return [_drawn(shape, dtype, first + i) for i in range(n)]


@cache
def _drawn(shape: tuple[int, ...], dtype: str, number: int) -> Any:
    return host().xp.asarray(0.25 + abs(normal(shape, dtype, number)) / 4.0, dtype=dtype)


def _results(rule: Rule, operands: list[Any]) -> tuple[Any, ...]:
    with host().context():
        results = rule(host().functions, *operands)
    return results if isinstance(results, tuple) else (results,)


def _own(backend: Backend, x: Any, dtype: str) -> Array:
    """`x` in an array that shares no memory with the host's."""
    out = buffer(backend, x.shape, dtype)
    backend.copy(backend.from_host(x), out)
    return out


def _compare(
    backend: Backend,
    what: str,
    outs: tuple[Array, ...],
    results: tuple[Any, ...],
    shape: tuple[int, ...],
    dtype: str,
    least: float,
) -> None:
    for out, result in zip(outs, results, strict=True):
        compare(backend, what, out, host().xp.broadcast_to(result, shape), dtype, least)
