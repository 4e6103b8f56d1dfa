"""Matrix products of an adapter, in each precision: shapes, orders, roundings, NaN, infinities."""

from __future__ import annotations

import math
from typing import Any

from xpmlp.adapter_checks import LARGE, buffer, compare, normal, orders, with_specials
from xpmlp.backends import host
from xpmlp.comparing import assert_close, round_to_bfloat16
from xpmlp.typing import Array, Backend

# Tensor cores add up less exactly than float32 does elsewhere, the more the longer a sum is. How
# TF32 rounds is the hardware's business: to 11 bits at least.
SUMS = {"ieee": 0.0, "bfloat16": 1e-5, "tf32": 5e-3}
_LONG = 3e-8

_SHAPES = [
    (1, 1, 1),
    (3, 5, 4),
    (64, 33, 17),
    (7, 200, 9),
    (5, 1030, 6),
    (9, 9, 9),  # only its strides tell a matrix from its transpose
    (LARGE[0], 20, LARGE[1]),
    (2, 3, 5, 4),
    (2, 3, 4, 1, 6),
]


def check_products(backend: Backend, dtype: str) -> float:
    """Check ``matmul``; gives the largest relative difference.

    Raises
    ------
    AssertionError
        At the first product that is wrong.
    """
    worst = 0.0
    for shape in _SHAPES:
        *leading, n, k, m = shape
        a, b = normal((*leading, n, k), dtype), normal((*leading, k, m), dtype, 1)
        for precision in backend.precisions:
            expected = _exact(a, b, dtype, precision)
            for left, one in orders(backend, a):
                for right, other in orders(backend, b):
                    what = f"matmul of {a.shape}{left} and {b.shape}{right} in {precision}"
                    least = max(SUMS[precision], k * _LONG if precision == "bfloat16" else 0.0)
                    out = _product(backend, one, other, (*leading, n, m), dtype, precision)
                    worst = max(worst, compare(backend, what, out, expected, dtype, least))
    for precision in backend.precisions:
        a, b = with_specials(normal((9, 5), dtype)), normal((5, 4), dtype, 1)
        expected = _exact(a, b, dtype, precision)
        one, other = backend.from_host(a), backend.from_host(b)
        out = _product(backend, one, other, (9, 4), dtype, precision)
        what = f"matmul of NaN and infinities in {precision}"
        worst = max(worst, compare(backend, what, out, expected, dtype, SUMS[precision]))
        _check_roundings(backend, dtype, precision)
    return worst


def _product(
    backend: Backend, a: Array, b: Array, shape: tuple[int, ...], dtype: str, precision: str
) -> Array:
    out = buffer(backend, shape, dtype)
    backend.with_precision(precision).matmul(a, b, out)
    return out


def _exact(a: Any, b: Any, dtype: str, precision: str) -> Any:
    if precision == "bfloat16" and dtype == "float32":
        a, b = round_to_bfloat16(a), round_to_bfloat16(b)
    with host().context():
        return a.astype("float64") @ b.astype("float64")


def _check_roundings(backend: Backend, dtype: str, precision: str) -> None:
    """Numbers times one: halfway between two of bfloat16, too large for it, NaN and infinities."""
    xp = host().xp
    halfway = [1.00390625, -1.00390625, 1.01171875, 1.0 + 2.0**-8 + 2.0**-20]
    large = [3.4e38, -3.4e38] if precision != "tf32" else [1e38]  # TF32's largest is not defined
    values = xp.asarray([*halfway, *large, math.nan, math.inf, -math.inf, 0.0, 0.1], dtype=dtype)
    values = values[:, None]
    expected, tolerance = values, 0.0
    if dtype == "float32" and precision == "bfloat16":
        expected = round_to_bfloat16(values)
    elif dtype == "float32" and precision == "tf32":
        tolerance = 2.0**-9
    one = xp.ones((1, 1), dtype=dtype)
    for a, b, exact in ((values, one, expected), (one, values.T.copy(), expected.T)):
        out = _product(
            backend, backend.from_host(a), backend.from_host(b), exact.shape, dtype, precision
        )
        found = backend.to_host(out).reshape(-1)
        for got, right in zip(found, exact.reshape(-1), strict=True):  # each of its own size
            what = f"{backend!r}, {dtype}, matmul of one number and 1 in {precision}"
            assert_close(got.reshape(1), right.reshape(1), tolerance, what)
