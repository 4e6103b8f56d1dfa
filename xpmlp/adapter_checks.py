"""What an adapter's primitives must compute, on arrays of every order in memory, small and large.

Expected values are NumPy's in float64. Sizes matter because adapters take other paths for large
arrays, and orders because data comes in the user's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from xpmlp.backends import host
from xpmlp.comparing import assert_close
from xpmlp.data import HostRows
from xpmlp.rng import Stream, stream
from xpmlp.typing import Array, Backend

# How far one primitive may be from its definition in float64, relative to the largest value.
TOLERANCES = {"float64": 1e-13, "float32": 2e-6}
LARGE = (400, 300)
"""A shape of more than 10**5 elements."""

Check = Callable[[Backend, str], float]
PRIMITIVES: dict[str, Check] = {}
"""Primitive to a check of it, which gives the largest relative difference."""


# --- What the checks share ----------------------------------------------------------------------


def normal(shape: tuple[int, ...], dtype: str, number: int = 0) -> Any:
    """Normal numbers on the host."""
    drawn = host().generator(stream(number, "check")).standard_normal(shape)
    return drawn.astype(dtype)


def buffer(backend: Backend, shape: tuple[int, ...], dtype: str) -> Array:
    """An array on the device, full of what must be overwritten."""
    out = backend.empty(shape, dtype)
    backend.copy(backend.from_host(host().xp.full(shape, 99.0)), out)
    return out


def orders(backend: Backend, x: Any) -> Iterator[tuple[str, Array]]:
    """`x` on the device by rows, by columns, and with gaps between columns and after rows."""
    yield "", backend.from_host(x)
    if x.ndim > 1:
        yield " by columns", backend.from_host(x.mT.copy()).mT
    if x.ndim and x.dtype.kind != "b":
        wide = host().xp.full((*x.shape[:-1], 2 * x.shape[-1] + 2), 77, dtype=x.dtype)
        wide[..., :-2:2] = x
        yield " with gaps", backend.from_host(wide)[..., :-2:2]


def with_specials(x: Any) -> Any:
    """The matrix with a NaN, an infinity of each sign, and both in one row."""
    x[0, 0], x[1, 1], x[2, 2] = math.nan, math.inf, -math.inf
    x[3, 0], x[3, 1] = math.inf, -math.inf
    return x


def compare(
    backend: Backend, what: str, out: Array, expected: Any, dtype: str, least: float = 0.0
) -> float:
    """How far a result is from what is expected, in `dtype`; raises if it is too far."""
    actual, desired = backend.to_host(out), expected.astype(dtype)
    tolerance = max(least, TOLERANCES[dtype])
    return assert_close(actual, desired, tolerance, f"{backend!r}, {dtype}, {what}")


def same(backend: Backend, what: str, got: object, expected: object) -> None:
    """Raise unless the two are equal."""
    if got != expected:
        raise AssertionError(f"{backend!r}, {what}: got {got!r}, expected {expected!r}")


# --- Memory and transfers -----------------------------------------------------------------------


def check_memory(backend: Backend, dtype: str) -> None:
    """Check ``zeros``, ``from_host``, ``to_host``, ``read`` and ``finite``.

    Raises
    ------
    AssertionError
        At the first that is wrong.
    """
    xp = host().xp
    for kind in (dtype, "int64"):
        for shape in ((), (3,), (5, 4), LARGE):
            dirty = backend.empty(shape, kind)
            backend.copy(backend.from_host(xp.full(shape, 99.0)), dirty)
            del dirty  # an allocator may give the same memory again
            found, expected = (
                backend.to_host(backend.zeros(shape, kind)),
                xp.zeros(shape, dtype=kind),
            )
            assert_close(found, expected, 0.0, f"{backend!r}, zeros of {shape} in {kind}")
    for kind in ("bool", "uint8", "int32", "int64", dtype):
        for shape in ((), (1,), (5, 4), LARGE):
            x = (9.0 * normal(shape, "float64")).astype("int8").astype(kind)
            what = f"{backend!r}, {kind} of {shape} to the device and back"
            for order, there in orders(backend, x):
                assert_close(backend.to_host(there), x, 0.0, what + order)
    info = xp.finfo(dtype)
    ordinary = (0.0, -1.5, math.pi, float(info.max), -float(info.max), float(info.smallest_normal))
    for value in (*ordinary, math.nan, math.inf, -math.inf):
        there = backend.from_host(xp.asarray(value, dtype=dtype))
        expected = float(xp.asarray(value, dtype=dtype))
        same(backend, f"finite of {value!r} in {dtype}", bool(backend.finite(there)),
             math.isfinite(value))  # fmt: skip
        same(backend, f"read in {dtype}", repr(backend.read(there)), repr(expected))


# --- The primitives, but for products -----------------------------------------------------------


def _reduction(name: str, of: Any) -> None:
    def check(backend: Backend, dtype: str) -> float:
        worst = 0.0
        arrays = {
            f"of {shape}": normal(shape, dtype)
            for shape in ((1, 1), (1, 7), (9, 1), (200, 31), (3, 9, 5), (2, 1, 4, 3), LARGE)
        }
        arrays["of NaN and infinities"] = with_specials(normal((9, 5), dtype))
        for what, x in arrays.items():
            with host().context():
                expected = of(x.astype("float64"))
            for order, there in orders(backend, x):
                out = buffer(backend, expected.shape, dtype)
                getattr(backend, name)(there, out)
                worst = max(worst, compare(backend, f"{name} {what}{order}", out, expected, dtype))
        return worst

    PRIMITIVES[name] = check


_reduction("sum_columns", lambda x: x.sum(axis=-2))
_reduction("sum_rows", lambda x: x.sum(axis=-1, keepdims=True))
_reduction("max_rows", lambda x: x.max(axis=-1, keepdims=True))


def _primitive(check: Check) -> Check:
    PRIMITIVES[check.__name__.removeprefix("_check_")] = check
    return check


_KINDS = ("bool", "uint8", "int32", "int64", "float32", "float64")


def _kinds(backend: Backend) -> list[str]:
    """The dtypes that data may have there."""
    trained = [policy.parameter for policy in backend.policies]
    return [kind for kind in _KINDS if not kind.startswith("float") or kind in trained]


@_primitive
def _check_copy(backend: Backend, dtype: str) -> float:
    worst = 0.0
    for kind in _kinds(backend):
        for shape in ((5, 3), (7,), LARGE):
            x = (normal(shape, "float64") * 9.0).astype("int8").astype(kind)
            for order, there in orders(backend, x):
                out = buffer(backend, shape, dtype)
                backend.copy(there, out)
                what = f"copy of {shape} from {kind}{order}"
                worst = max(worst, compare(backend, what, out, x, dtype))
    x = normal((4, 3), dtype)
    out = buffer(backend, (9, 3), dtype)
    backend.copy(backend.from_host(x), out[2:6, :])
    expected = host().xp.full((9, 3), 99.0)
    expected[2:6] = x
    return max(worst, compare(backend, "copy into some rows", out, expected, dtype))


@_primitive
def _check_take_rows(backend: Backend, dtype: str) -> float:
    worst = 0.0
    for kind in _kinds(backend):
        for n, width, taken in ((5, 3, 4), (9, 1, 9), (700, 300, 400)):
            rows = (host().xp.arange(taken) * 3 + n - 1) % n
            x = (normal((n, width), "float64") * 9.0 + 30.0).astype(kind)
            for order, there in orders(backend, x):
                out = buffer(backend, (taken, width), dtype)
                backend.take_rows(there, backend.from_host(rows), out)
                what = f"take_rows of {x.shape} from {kind}{order}"
                worst = max(worst, compare(backend, what, out, x[rows], dtype))
    return worst


@_primitive
def _check_load_rows(backend: Backend, dtype: str) -> float:
    worst = 0.0
    for kind in _kinds(backend)[1:]:
        for n, width in ((9, 3), (700, 300)):
            x = (normal((n, width), "float64") * 9.0 + 30.0).astype(kind)
            # One after the other, as batches are: an adapter may move some at once.
            some = host().xp.arange(n // 2) * 3 % n
            chosen = [slice(0, n // 2), slice(n // 2 + 1, n), some, slice(n - 1, n)]
            outs = [buffer(backend, x[rows].shape, dtype) for rows in chosen]
            for rows, out in zip(chosen, outs, strict=True):
                backend.load_rows(HostRows(x), rows, out)
            what = f"load_rows of {x.shape} from {kind}"
            for rows, out in zip(chosen, outs, strict=True):
                worst = max(worst, compare(backend, what, out, x[rows], dtype))
    return worst


@_primitive
def _check_softmax_log_loss(backend: Backend, dtype: str) -> float:
    xp, worst = host().xp, 0.0
    for shape in ((1, 2), (9, 3), (50, 70), (4, 1000), (1000, 130), (9, 5)):
        z, y = normal(shape, dtype) * 200.0, abs(normal(shape, dtype, 1))
        y[-1] = 0.0  # a row without a class
        if shape == (9, 5):
            z = with_specials(z)
        with host().context():
            shifted = z.astype("float64") - z.max(axis=1, keepdims=True)
            total = xp.exp(shifted).sum(axis=1, keepdims=True)
            expected = (
                y * (xp.log(total) - shifted),
                y.sum(axis=1, keepdims=True) * xp.exp(shifted) / total - y,
            )
        for order, logits in orders(backend, z):
            outs = buffer(backend, shape, dtype), buffer(backend, shape, dtype)
            one, two, three = (buffer(backend, (shape[0], 1), dtype) for _ in range(3))
            backend.softmax_log_loss(logits, backend.from_host(y), *outs, (one, two, three))
            for out, values in zip(outs, expected, strict=True):
                what = f"softmax_log_loss of {shape}{order}"
                worst = max(worst, compare(backend, what, out, values, dtype))
    return worst


def check_sums(backend: Backend, dtype: str, accumulate: str) -> None:
    """Check that sums of `dtype` keep the digits that `accumulate` promises.

    Raises
    ------
    AssertionError
        At the first that does not.
    """
    allowed = 1e-10 if accumulate == "float64" else 1e-3
    for shape in ((300_001,), (1,), (7, 3), (1001, 130)):
        x = host().xp.full(shape, 0.1, dtype=dtype)
        exact = float(x.flat[0])
        for name, expected in (("total", x.size * exact), ("total_squares", x.size * exact**2)):
            for order, there in orders(backend, x):
                out = backend.empty((), accumulate)
                getattr(backend, name)(there, out)
                value = backend.read(out)
                if not abs(value / expected - 1.0) <= allowed:
                    raise AssertionError(
                        f"{backend!r}, {dtype}, {name} of {shape}{order} accumulated in "
                        f"{accumulate}: got {value!r}, expected {expected!r}"
                    )


def check_uniforms(backend: Backend) -> None:
    """Compare ``fill_uniform`` with NumPy's generator at the same address, to the bit.

    Raises
    ------
    AssertionError
        At the first that differs.
    """
    for shape in ((1, 1), (7, 3), (100, 41), LARGE):
        for address in (
            stream(3, "dropout"),
            stream(3, "dropout", epoch=2, batch=5, layer=1),
            stream(8, "dropout", epoch=1, batch=1, layer=3),
            stream(8, "dropout", epoch=2**33, batch=2**40, layer=17),
            Stream(stream(8, "dropout").key, 2**256 - 3),  # the counter overflows
            Stream(stream(8, "dropout").key, 2**128 - 2),  # a carry into its third word
        ):
            out, expected = buffer(backend, shape, "float32"), host().empty(shape, "float32")
            backend.fill_uniform(out, address)
            host().fill_uniform(expected, address)
            what = f"{backend!r}, fill_uniform of {shape}"
            assert_close(backend.to_host(out), expected, 0.0, what)
