"""Cases of the primitives, on NumPy arrays: what an adapter's override and its reference share.

``CASES[primitive][name](backend, dtype)`` returns one or more arrays. What stands before a
semicolon in a name is a group of cases: one test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import array_api_compat.numpy
import numpy as np
from optional import optional
from xpmlp_numpy import BLOCK, THRESHOLD

from xpmlp import rules
from xpmlp.backends import Backend, ReferenceBackend, get_backend
from xpmlp.rng import stream
from xpmlp.typing import RuleFunctions

special = optional("scipy.special")

REFERENCE = ReferenceBackend(array_api_compat.numpy)
NUMPY = get_backend("cpu", "numpy")

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, math.inf, -math.inf, math.nan, 1e30, -1e30]


def edge_values(dtype: str) -> np.ndarray:
    info = np.finfo(dtype)
    tiny = [info.smallest_subnormal, info.smallest_normal, info.smallest_normal / 4, info.eps]
    large = [info.max, info.max / 2]
    signed = [sign * float(x) for x in (*tiny, *large) for sign in (1, -1)]
    return np.array(SPECIAL + signed, dtype)


def normal(shape: Any, dtype: str = "float64", seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def strided(x: np.ndarray) -> np.ndarray:
    """The same values, every second element of a wider array, the rows backwards in memory."""
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan).astype(x.dtype)
    view = wide[..., ::2][::-1]
    view[...] = x
    return view


def transposed(x: np.ndarray) -> np.ndarray:
    """The same values in the memory order of the transpose."""
    return np.asfortranarray(x)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": np.ascontiguousarray,
    "transposed": transposed,
    "strided": strided,
}


def assert_same(got: Any, expected: Any, ulps: float = 0.0, scale: Any = 0.0) -> None:
    """Equal in shape, dtype, NaN, infinity and sign of zero; by default to the bit.

    With `ulps` the values may differ by so many units in the last place, of themselves or of
    `scale`, the size of what was added up.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    if not ulps:
        np.testing.assert_array_equal(got, expected)
        number = ~np.isnan(expected)
        assert (np.signbit(got)[number] == np.signbit(expected)[number]).all()
        return
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    size = np.maximum(np.abs(expected), np.broadcast_to(scale, expected.shape))[finite]
    info = np.finfo(got.dtype)
    allowed = ulps * (float(info.eps) * size.astype("float64") + float(info.smallest_subnormal))
    error = np.abs(got[finite].astype("float64") - expected[finite])
    assert (error <= allowed).all(), (error / allowed).max()


# --- The cases ----------------------------------------------------------------------------------

Run = Callable[[Backend, str], Any]
CASES: dict[str, dict[str, Run]] = {}
ULPS: dict[str, float] = {
    "matmul": 64, "sum_columns": 4096, "sum_rows": 64, "total": 4096, "total_squares": 512,
    "softmax_log_loss": 64,
}  # fmt: skip
"""Sums may be added up in another order; everything else is equal to the bit."""
COMPILED: set[str] = set()
"""Cases of `elementwise` of so many elements that Numba, if it is there, compiles the rule."""


def case(primitive: str, name: str) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        cases = CASES.setdefault(primitive, {})
        assert name not in cases
        cases[name] = run
        return run

    return add


def reducing(primitive: str, name: str, x: Callable[[str], np.ndarray]) -> None:
    """A case of a primitive ``(x, out)`` that reduces one of the last two axes."""

    @case(primitive, name)
    def _(backend: Backend, dtype: str) -> np.ndarray:
        values = x(dtype)
        if primitive == "sum_columns":
            shape = (*values.shape[:-2], values.shape[-1])
        else:
            shape = (*values.shape[:-1], 1)
        out = np.full(shape, 7.0, dtype)
        getattr(backend, primitive)(values, out)
        return out


SHAPES_2D = [(1, 1), (1, 9), (9, 1), (7, 5), (3, BLOCK + 3), (BLOCK + 3, 3), (300, 130), (2, 3, 4)]

for primitive in ("sum_columns", "sum_rows", "max_rows"):
    for shape in SHAPES_2D:
        for layout, view in LAYOUTS.items():
            reducing(
                primitive,
                f"{shape}; {layout}",
                lambda dtype, shape=shape, view=view: view(normal(shape, dtype)),
            )
    # One special value a row and column, among zeros and among numbers.
    for fill in (-0.0, 0.0, 2.0):
        reducing(
            primitive,
            f"edge values; among {fill}",
            lambda dtype, fill=fill: np.where(
                np.eye(edge_values(dtype).size, dtype=bool),
                edge_values(dtype),
                np.array(fill, dtype),
            ),
        )
reducing("max_rows", "rows of two edge values", lambda dtype: np.stack(
    [np.repeat(edge_values(dtype), edge_values(dtype).size),
     np.tile(edge_values(dtype), edge_values(dtype).size)], axis=1))  # fmt: skip


for shape in [(), (1,), (5,), (BLOCK,), (BLOCK + 1,), (3 * BLOCK - 7,), *SHAPES_2D]:
    for layout, view in LAYOUTS.items():
        if shape == () and layout == "strided":
            continue

        for primitive in ("total", "total_squares"):

            @case(primitive, f"{shape}; {layout}")
            def _(backend: Backend, dtype: str, shape: Any = shape, view: Any = view,
                    primitive: str = primitive) -> Any:  # fmt: skip
                values = view(normal(shape, dtype)).reshape(shape)
                total, narrow = np.empty((), "float64"), np.empty((), dtype)
                getattr(backend, primitive)(values, total)
                getattr(backend, primitive)(values, narrow)
                assert backend.read(total) == float(total)
                return total, narrow


@case("total", "edge values")
def _(backend: Backend, dtype: str) -> Any:
    outs = tuple(np.empty((), "float64") for _ in edge_values(dtype))
    for out, x in zip(outs, edge_values(dtype), strict=True):
        backend.total(np.array([x, 1.0], dtype), out)
    return outs


@case("total_squares", "edge values")
def _(backend: Backend, dtype: str) -> Any:
    # float32 is squared in float64, where nothing overflows and no subnormal is lost.
    outs = tuple(np.empty((), "float64") for _ in edge_values(dtype))
    for out, x in zip(outs, edge_values(dtype), strict=True):
        backend.total_squares(np.array([x, 0.0], dtype), out)
    return outs


for n, k, m in [(1, 1, 1), (1, 5, 3), (4, 1, 3), (4, 5, 1), (64, 33, 17), (130, 300, 65)]:
    for layout_a, view_a in LAYOUTS.items():
        for layout_b, view_b in LAYOUTS.items():

            @case("matmul", f"({n}, {k}) by ({k}, {m}); {layout_a} by {layout_b}")
            def _(backend: Backend, dtype: str, shape: Any = (n, k, m),
                    views: Any = (view_a, view_b)) -> np.ndarray:  # fmt: skip
                n, k, m = shape
                a, b = views[0](normal((n, k), dtype, 1)), views[1](normal((k, m), dtype, 2))
                out = np.full((n, m), np.nan, dtype)
                backend.matmul(a, b, out)
                return out


@case("matmul", "transposed views, as in the backward pass")
def _(backend: Backend, dtype: str) -> Any:
    x, w, d = normal((20, 4), dtype, 1), normal((4, 3), dtype, 2), normal((20, 3), dtype, 3)
    flat, dx = np.full(12 + 5, np.nan, dtype), np.empty_like(x)
    backend.matmul(x.mT, d, flat[:12].reshape(4, 3))
    backend.matmul(d, w.mT, dx)
    assert np.isnan(flat[12:]).all()
    return flat[:12], dx


@case("matmul", "leading axes")
def _(backend: Backend, dtype: str) -> Any:
    outs = []
    for leading in ((3,), (2, 3)):
        x, w = normal((*leading, 6, 5), dtype, 1), normal((*leading, 5, 4), dtype, 2)
        d = normal((*leading, 6, 4), dtype, 3)
        for a, b in [(x, w), (x.mT, d), (d, w.mT), (transposed(x), w)]:
            outs.append(np.full((*leading, a.shape[-2], b.shape[-1]), np.nan, dtype))
            backend.matmul(a, b, outs[-1])
    return tuple(outs)


@case("matmul", "infinity and NaN")
def _(backend: Backend, dtype: str) -> np.ndarray:
    a = np.diag(edge_values(dtype)[:8])
    out = np.empty((8, 8), dtype)
    backend.matmul(a, np.ones((8, 8), dtype), out)
    return out


for source in ("float32", "float64", "int64", "int32", "uint8", "bool"):
    for layout, view in LAYOUTS.items():

        @case("copy", f"{source}; {layout}")
        def _(backend: Backend, dtype: str, source: str = source, view: Any = view) -> Any:
            values = view((100 * np.abs(normal((7, 5)))).astype(source))
            out, flat = np.full((7, 5), np.nan, dtype), np.full(50, np.nan, dtype)
            backend.copy(values, out)
            backend.copy(values, flat[:35].reshape(7, 5))
            return out, flat

        for rows, width in [(1, 3), (9, 1), (40, 6), (BLOCK // 6 + 9, 6), (3, BLOCK + 5)]:

            @case("take_rows", f"{source}; {layout}, {rows} rows of {width}")
            def _(backend: Backend, dtype: str, source: str = source, view: Any = view,
                    shape: Any = (rows, width)) -> Any:  # fmt: skip
                rows, width = shape
                values = view((100 * np.abs(normal((25, width)))).astype(source))
                outs = []
                for kind in ("int64", "int32"):
                    # Any order, with repeats, the first and the last row.
                    indices = np.random.default_rng(1).integers(25, size=rows).astype(kind)
                    indices[[0, -1]] = 0, 24
                    out = np.full((rows + 1, width), np.nan, dtype)
                    backend.take_rows(values, indices, out[:-1])
                    outs.append(out)
                return tuple(outs)


@case("copy", "edge values, which float32 may not hold")
def _(backend: Backend, dtype: str) -> Any:
    outs = np.empty((2, edge_values("float64").size), dtype)
    backend.copy(edge_values("float64"), outs[0])
    backend.copy(edge_values("float32"), outs[1, :])
    return outs


@case("copy", "onto itself, and of one number")
def _(backend: Backend, dtype: str) -> Any:
    x, one = normal((4, 3), dtype), np.empty((), dtype)
    backend.copy(x, x)
    backend.copy(np.asarray(np.float64(0.1)), one)
    return x, one


@case("take_rows", "edge values")
def _(backend: Backend, dtype: str) -> Any:
    outs = []
    for source in ("float32", "float64"):
        values = edge_values(source)[:, None]
        out = np.empty((values.shape[0], 1), dtype)
        backend.take_rows(values, np.arange(values.shape[0])[::-1], out)
        outs.append(out)
    return tuple(outs)


@case("take_rows", "indices that are a strided view")
def _(backend: Backend, dtype: str) -> Any:
    out = np.empty((5, 2), dtype)
    backend.take_rows(normal((10, 2), "float64"), np.arange(10)[::-2], out)
    return out


def softmax_log_loss(name: str, make: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> None:
    """A case of logits and targets."""

    @case("softmax_log_loss", name)
    def _(backend: Backend, dtype: str) -> Any:
        logits, y = make(dtype)
        elements, d = np.full_like(logits, np.nan), np.full_like(logits, np.nan)
        scratch = [np.full((*logits.shape[:-1], 1), np.nan, dtype) for _ in range(3)]
        backend.softmax_log_loss(logits, y, elements, d, (scratch[0], scratch[1], scratch[2]))
        return elements, d


# Around the warps of 32 lanes and the blocks of four rows that a GPU takes.
for shape in [(1, 1), (1, 9), (3, 2), (4, 31), (5, 32), (9, 33), (66, 10), (2, 1000), (2, 3, 4)]:
    softmax_log_loss(
        f"one class of {shape}",
        lambda dtype, shape=shape: (
            normal(shape, dtype, 1),
            np.eye(shape[-1], dtype=dtype)[normal(shape[:-1]).argsort(axis=-1) % shape[-1]],
        ),
    )
    softmax_log_loss(
        f"shares of {shape}, and rows of any sum",
        lambda dtype, shape=shape: (3 * normal(shape, dtype, 1), np.abs(normal(shape, dtype, 2))),
    )
    softmax_log_loss(
        f"transposed logits of {shape}",
        lambda dtype, shape=shape: (transposed(normal(shape, dtype)), np.ones(shape, dtype)),
    )
softmax_log_loss(
    "logits far apart, and far from zero",
    lambda dtype: (
        np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [3e4, 3e4, 0], [88, 89, -745]], dtype),
        np.array([[0, 1, 0], [0.2, 0.3, 0.5], [0, 0, 0], [1, 1, 1]], dtype),
    ),
)
softmax_log_loss(
    "one logit that overflows if it is not subtracted, in any place",
    lambda dtype: (1e3 * np.eye(70, dtype=dtype), np.eye(70, dtype=dtype)[::-1].copy()),
)
softmax_log_loss(
    "one edge value a row",
    lambda dtype: (
        np.where(np.eye(edge_values(dtype).size, dtype=bool), edge_values(dtype), 0).astype(dtype),
        np.eye(edge_values(dtype).size, dtype=dtype),
    ),
)


for shape in [(1,), (7,), (3, 5), (BLOCK + 1,), (0,)]:

    @case("fill_uniform", str(shape))
    def _(backend: Backend, dtype: str, shape: Any = shape) -> np.ndarray:
        out = np.full(shape, np.nan, "float32")
        backend.fill_uniform(out, stream(3, "dropout", epoch=1, batch=2, layer=3))
        return out


@case("fill_uniform", "leading rows of a buffer")
def _(backend: Backend, dtype: str) -> np.ndarray:
    buffer = np.full((9, 4), 7.0, "float32")
    backend.fill_uniform(buffer[:5], stream(3, "dropout"))
    assert (buffer[5:] == 7).all()
    return buffer


@case("owns", "arrays and others")
def _(backend: Backend, dtype: str) -> Any:
    own = [np.zeros(3), np.zeros((2, 2), dtype)[:, 1], np.zeros(2, bool)]
    foreign: list[Any] = [[1.0, 2.0], 3.0, None, "array"]
    return np.array([backend.owns(x) for x in own + foreign])


@case("from_host", "dtypes and layouts")
def _(backend: Backend, dtype: str) -> Any:
    arrays = [normal((3, 4), dtype).T, np.arange(3), np.zeros((2, 2), "uint8"), np.array([True])]
    moved = [backend.from_host(x) for x in arrays]
    assert all(new.dtype == old.dtype for new, old in zip(moved, arrays, strict=True))
    return tuple(moved)


@case("to_host", "dtypes and layouts")
def _(backend: Backend, dtype: str) -> Any:
    arrays = [normal((3, 4), dtype).T, np.arange(3), np.zeros((), dtype)]
    hosted = tuple(backend.to_host(x) for x in arrays)
    assert all(type(x) is np.ndarray for x in hosted)
    return hosted


# --- Element by element -------------------------------------------------------------------------


def affine_pair(xp: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Two results, either of which shows it where the wrong elements meet."""
    return x + 2.0 * y, x - y


def elementwise(
    name: str, shape: tuple[int, ...], operands: Callable[[str], tuple[Any, Any]], alias: str = ""
) -> None:
    """A case of two operands and two outputs; `alias` names outputs that are an operand."""
    if math.prod(shape) >= THRESHOLD:
        COMPILED.add(name)

    @case("elementwise", name)
    def _(backend: Backend, dtype: str) -> tuple[np.ndarray, ...]:
        x, y = operands(dtype)
        first = x if "first" in alias else np.full(shape, np.nan, dtype)
        second = y if "second" in alias else np.full(shape, np.nan, dtype)
        backend.elementwise(affine_pair)((first, second), x, y)
        return np.array(first), np.array(second)


SHAPES = [
    (),
    (1,),
    (9,),
    (BLOCK,),
    (BLOCK + 1,),
    (2 * BLOCK,),
    (3 * BLOCK - 5,),
    (1, 1),
    (1, 9),
    (9, 1),
    (1, BLOCK + 7),
    (BLOCK + 7, 1),
    (2, BLOCK + 7),
    (2, BLOCK),
    (BLOCK // 8 + 3, 17),
    (129, 128),
    (130, 130),
    (300, 130),
    (4, 90, 60),
    (30, 30, 30),
    (1, 3 * BLOCK // 20, 20),
    (0, 3),
]
BROADCASTING: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "row": lambda shape: shape[-1:],
    "slice of the first axis": lambda shape: shape[1:],
    "row of two axes": lambda shape: (1,) * (len(shape) - 1) + shape[-1:],
    "column": lambda shape: (*shape[:-1], 1),
    "one element": lambda shape: (1,) * len(shape),
    "0-d array": lambda shape: (),
    "one element of one axis": lambda shape: (1,),
}

for shape in SHAPES:
    for alias in ("", "first", "first second"):
        elementwise(
            f"{shape}; {alias or 'apart'}",
            shape,
            lambda dtype, shape=shape: (normal(shape, dtype, 1), normal(shape, dtype, 2)),
            alias,
        )
    elementwise(
        f"{shape}; with a float",
        shape,
        lambda dtype, shape=shape: (normal(shape, dtype, 1), 0.3),
        "first",
    )
    if not shape:
        continue
    for layout in ("transposed", "strided"):
        view = LAYOUTS[layout]
        elementwise(
            f"{shape}; with a {layout} operand",
            shape,
            lambda dtype, shape=shape, view=view: (
                normal(shape, dtype, 1),
                view(normal(shape, dtype, 2)),
            ),
            "first",
        )
        elementwise(
            f"{shape}; with two {layout} operands",
            shape,
            lambda dtype, shape=shape, view=view: (
                view(normal(shape, dtype, 1)),
                view(normal(shape, dtype, 2)),
            ),
        )
    for kind, shape_of in BROADCASTING.items():
        other = shape_of(shape)
        elementwise(
            f"{shape}; with a {kind}",
            shape,
            lambda dtype, shape=shape, other=other: (
                normal(shape, dtype, 1),
                normal(other, dtype, 2),
            ),
            "first",
        )
        elementwise(
            f"{shape}; a {kind} first",
            shape,
            lambda dtype, shape=shape, other=other: (
                normal(other, dtype, 1),
                normal(shape, dtype, 2),
            ),
            "second",
        )

for shape in [(9,), (BLOCK + 1,)]:
    elementwise(
        f"with a whole number; {shape}",
        shape,
        lambda dtype, shape=shape: (normal(shape, dtype, 1), 2),
    )
elementwise(
    "pairs of edge values",
    (600, 60),
    lambda dtype: (
        np.resize(np.repeat(edge_values(dtype), edge_values(dtype).size), (600, 60)),
        np.resize(np.tile(edge_values(dtype), edge_values(dtype).size), (600, 60)),
    ),
)


# A rule is any pure function of values, however it was written. The library's own are plainer,
# so that Numba compiles them; what it cannot compile has to stay with NumPy.


def helper(xp: Any, x: Any) -> Any:
    return xp.maximum(x, 0.0)


def with_helper(xp: Any, x: Any, y: Any) -> Any:
    return helper(xp, x) * y


def with_slow_helper(xp: Any, x: Any, y: Any) -> Any:
    return rules.sigmoid(xp, x) * y


def with_default(xp: Any, x: Any, y: Any, slope: Any = 0.25) -> Any:
    return xp.where(x > y, x, slope * x)


def closure(slope: float) -> Callable[..., Any]:
    def rule(xp: Any, x: Any, y: Any) -> Any:
        return xp.where(x > y, x, slope * x)

    return rule


class Slope:
    def rule(self, xp: Any, x: Any, y: Any) -> Any:
        return xp.where(x > y, x, 0.25 * x)


KINDS_OF_RULES = {
    "calls a function": with_helper,
    "calls a rule": with_slow_helper,
    "has a default": with_default,
    "is a closure": closure(0.25),
    "is a partial function": partial(with_default, slope=0.125),
    "is a method": Slope().rule,
}
for kind, own_rule in KINDS_OF_RULES.items():
    for size in (9, BLOCK + 1, 3 * BLOCK):

        @case("elementwise", f"a rule that {kind}; {size} elements")
        def _(backend: Backend, dtype: str, rule: Any = own_rule, size: int = size) -> Any:
            out = np.full(size, np.nan, dtype)
            backend.elementwise(rule)((out,), normal(size, dtype, 1), normal(size, dtype, 2))
            return out


@case("elementwise", "outputs that are views of larger buffers")
def _(backend: Backend, dtype: str) -> Any:
    buffer = np.full(3 * BLOCK, 7.0, dtype)
    out = buffer[5 : 5 + 2 * BLOCK]
    other = np.full((2 * BLOCK, 3), 7.0, dtype)
    x, y = normal(2 * BLOCK, dtype, 1), normal(2 * BLOCK, dtype, 2)
    backend.elementwise(affine_pair)((out, other[:, 1]), x, y)
    return buffer, other


@case("elementwise", "a uint8 operand")
def _(backend: Backend, dtype: str) -> Any:
    labels = np.arange(2 * BLOCK, dtype="uint8").reshape(-1, 2)
    out = np.empty((BLOCK, 2), dtype)
    backend.elementwise(lambda xp, x: xp.where(x == 3, 1.0, 0.0))((out,), labels)
    return out


# --- Functions: one case for each, on edge values -----------------------------------------------

FUNCTIONS = [name for name in vars(RuleFunctions) if not name.startswith("_")]
ERF_ULPS = 16  # the series of the reference adds up some forty terms

for name in FUNCTIONS:

    @case("functions", name)
    def _(backend: Backend, dtype: str, name: str = name) -> np.ndarray:
        function = getattr(backend.functions, name)
        x = np.concatenate([edge_values(dtype), normal(500, dtype), 3 * normal(500, dtype)])
        y = np.concatenate([edge_values(dtype)[::-1], normal(1000, dtype, 1)])
        if name == "where":
            return np.asarray(function(x > y, x, 0.0))
        result = np.asarray(function(x, y) if name in ("maximum", "minimum") else function(x))
        # The erf of the reference is less accurate; it has tests of its own.
        return special.erf(x) if name == "erf" and backend is REFERENCE else result
