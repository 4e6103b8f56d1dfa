"""The primitives as machine code: functions ``int64 kernel(int64* p, int64* d, int64* c)``.

`p` holds addresses, `d` sizes and distances, `c` the epoch, the batch and the step. A kernel
returns 0, or 1 to end the run. It is written as Python source for one dtype and one rule, so that
Numba can keep what it compiles in a folder of the user's, from one process to the next.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, c_int64, c_void_p
from functools import cache
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types

from xpmlp.backends import Rule
from xpmlp.errors import warn_user
from xpmlp.tracing import COMPARISONS, Argument, Trace, Value, trace
from xpmlp_numpy import native

LOOPS = {"erf", "exp", "expm1", "log", "log1p", "tanh"}
"""Functions that are left to NumPy's and SciPy's own loops, which use vector instructions."""
BLOCK = 256
"""Elements between two such loops: a few of these fit into the fastest cache."""

_SIGNATURE = types.int64(*[types.CPointer(types.int64)] * 3)
_HEAD = """\
def kernel(p_, d_, c_):
    p, d, c = carray(p_, 64), carray(d_, 64), carray(c_, 8)
"""
_TEXTS = {
    "negative": "-{0}",
    "~": "not {0}",
    "abs": "abs({0})",
    "sqrt": "sqrt({0})",
    "maximum": "{0} if ({0} > {1}) | ({0} != {0}) else {1}",
    "minimum": "{0} if ({0} < {1}) | ({0} != {0}) else {1}",
    "sign": "{0} if {0} != {0} else {T}(1) if {0} > 0 else {T}(-1) if {0} < 0 else {T}(0)",
    "where": "{1} if {0} else {2}",
}


# --- Sources ----------------------------------------------------------------------------------


class RuleSource(NamedTuple):
    """A kernel of a rule, the names of the LOOPS it calls, in order, and elements of scratch."""

    text: str
    loops: list[str]
    scratch: int


def rule_source(
    rule: Rule, dtype: str, kinds: Sequence[str | int], n_outs: int, narrow: Sequence[int] = ()
) -> RuleSource:
    """A kernel of `rule` over rows.

    ``p`` is the outs, the operands, and where LOOPS are used an address of scratch and of five
    integers; ``d`` is rows, columns, the bytes from row to row of each out and operand, and address
    and data of each loop.

    Parameters
    ----------
    rule : Rule
    dtype : str
    kinds : sequence
        For each operand ``"row"`` (an element for each column), ``"one"`` (an element a row), or
        the place of the out that it is: a loop that read and wrote one array under two names
        would not be vectorised.
    n_outs : int
    narrow : sequence of int
        Operands that are float32 whatever the dtype.
    """
    written = trace(rule, len(kinds))
    if len(written.results) != n_outs:
        raise ValueError(f"{rule!r} has {len(written.results)} results, expected {n_outs}")
    given = [place for place, kind in enumerate(kinds) if not isinstance(kind, int)]
    rows = []
    for index, name in enumerate([*(f"o{i}" for i in range(n_outs)), *(f"i{i}" for i in given)]):
        one = name[0] == "i" and kinds[int(name[1:])] == "one"
        own = "float32" if name[0] == "i" and int(name[1:]) in narrow else dtype
        row = f"carray({own}_at(p[{index}] + r * d[{2 + index}]), {1 if one else 'cols'})"
        rows.append(f"{name} = {row}{'[0]' if one else ''}")
    operands = [
        f"o{kind}[j]" if isinstance(kind, int) else f"i{place}" + ("[j]" if kind == "row" else "")
        for place, kind in enumerate(kinds)
    ]
    operands = [f"{dtype}({x})" if i in narrow else x for i, x in enumerate(operands)]
    n, size = n_outs + len(given), np.dtype(dtype).itemsize
    stages = _stages(written, dtype, operands)
    if len(stages) == 1:
        body = ["for j in range(cols):", *_indented(stages[0][0])]
        lines = ["rows, cols = d[0], d[1]", "for r in range(rows):", *_indented(rows + body)]
        return RuleSource(_function(lines), [], 0)
    body = []
    names: list[str] = []
    for lines, loops in stages:
        body += ["for j in range(start, stop):", *_indented(lines)]
        for place in loops:
            address, data = (f"d[{2 + n + 2 * len(names) + i}]" for i in (0, 1))
            body += [
                f"q[0] = q[1] = p[{n}] + {place * BLOCK * size}",
                f"call_ufunc_loop({address}, q_, q_ + 16, q_ + 24, {data})",
            ]
            names.append(written.nodes[place].operation)
    text = _function(
        [
            "rows, cols = d[0], d[1]",
            f"q_ = p[{n + 1}]",
            "q = carray(int64_at(q_), 5)",
            f"q[3] = q[4] = {size}",
            *(
                f"t{place} = carray({dtype}_at(p[{n}] + {place * BLOCK * size}), {BLOCK})"
                for place in range(len(written.nodes))
            ),
            "for r in range(rows):",
            *_indented(rows),
            f"    for start in range(0, cols, {BLOCK}):",
            f"        stop = min(start + {BLOCK}, cols)",
            "        q[2] = stop - start",
            *_indented(_indented(body)),
        ]
    )
    return RuleSource(text, names, BLOCK * len(written.nodes))


def _stages(
    written: Trace, dtype: str, operands: Sequence[str]
) -> list[tuple[list[str], list[int]]]:
    """A rule as statements on an element and, behind each group of these, the LOOPS to be called.

    ``v3`` is the value of node 3, ``t3`` its block of scratch: it holds a loop's argument and then
    its result, or a value that later statements read.
    """
    nodes = written.nodes
    stage: list[int] = []  # how many loops come before a value
    for operation, arguments in nodes:
        before = [stage[x.place] for x in arguments if isinstance(x, Value)]
        stage.append(max(before, default=0) + (operation in LOOPS))
    last = max(stage, default=0)

    def text(x: Argument) -> str:
        return f"v{x.place}" if isinstance(x, Value) else f"{dtype}({x!r})"

    def places(arguments: Sequence[Argument]) -> set[int]:
        return {x.place for x in arguments if isinstance(x, Value)}

    def computed(place: int, now: int) -> bool:
        return stage[place] == now and nodes[place].operation not in {"operand", *LOOPS}

    used = [
        (place, stage[user] - (node.operation in LOOPS))
        for user, node in enumerate(nodes)
        for place in places(node.arguments)
    ]
    used += [(place, last) for place in places(written.results)]
    groups = []
    for now in range(last + 1):
        loops = [
            i for i, node in enumerate(nodes) if node.operation in LOOPS and stage[i] == now + 1
        ]
        kept = sorted({place for place, user in used if user > now and computed(place, now)})
        results = written.results if now == last else ()
        wanted = {*kept, *places(results)}.union(*(places(nodes[i].arguments) for i in loops))
        for place in reversed(range(len(nodes))):
            if place in wanted and computed(place, now):
                wanted |= places(nodes[place].arguments)
        lines = []
        for place in sorted(wanted):
            operation, arguments = nodes[place]
            if operation == "operand":
                value = operands[place]
            elif computed(place, now):
                template = _TEXTS.get(operation, "{0} " + operation + " {1}")
                value = template.format(*map(text, arguments), T=dtype)
            else:
                value = f"t{place}[j - start]" + (" != 0" if operation in COMPARISONS else "")
            lines.append(f"v{place} = {value}")
        for place in kept:
            number = f"{dtype}(v{place})"  # of a truth value, too
            lines.append(f"t{place}[j - start] = {number}")
        lines += [f"t{place}[j - start] = {text(nodes[place].arguments[0])}" for place in loops]
        lines += [f"o{i}[j] = {text(x)}" for i, x in enumerate(results)]
        groups.append((lines, loops))
    return groups


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def copy_source(dtype: str, out: str, indexed: bool, gaps: bool) -> str:
    """``p``: x, out, indices; ``d``: rows, columns, bytes from row to row of x and of out, and with
    gaps from column to column of x."""
    row = "k[r]" if indexed else "r"
    element = f"carray({dtype}_at(p[0] + {row} * d[2] + j * d[4]), 1)[0]" if gaps else "x[j]"
    return _function(
        [
            "rows, cols = d[0], d[1]",
            "k = carray(int64_at(p[2]), rows)" if indexed else "",
            "for r in range(rows):",
            "" if gaps else f"    x = carray({dtype}_at(p[0] + {row} * d[2]), cols)",
            f"    out = carray({out}_at(p[1] + r * d[3]), cols)",
            "    for j in range(cols):",
            f"        out[j] = {out}({element})",
        ]
    )


def sum_source(dtype: str, out: str, squared: bool = False) -> str:
    """Sum of each row, or of its squares. ``p``: x, out; ``d``: rows, columns, bytes from row to
    row of both."""
    value = f"{out}(x[{{0}}])" + (f" * {out}(x[{{0}}])" if squared else "")
    return _function(
        [
            "rows, cols = d[0], d[1]",
            "first = cols - cols % 8",
            "for r in range(rows):",
            f"    x = carray({dtype}_at(p[0] + r * d[2]), cols)",
            *(f"    s{i} = {out}(0)" for i in range(8)),
            "    for j in range(0, first, 8):",
            *(f"        s{i} += {value.format(f'j + {i}')}" for i in range(8)),
            "    s = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))",
            "    for j in range(first, cols):",
            f"        s += {value.format('j')}",
            f"    carray({out}_at(p[1] + r * d[3]), 1)[0] = s",
        ]
    )


def max_source(dtype: str) -> str:
    """Maximum of each row. ``p``: x, out; ``d``: rows, columns, bytes from row to row of both."""
    return _function(
        [
            "rows, cols = d[0], d[1]",
            "for r in range(rows):",
            f"    x = carray({dtype}_at(p[0] + r * d[2]), cols)",
            "    s = x[0]",
            "    for j in range(1, cols):",
            "        s = x[j] if (x[j] > s) | (x[j] != x[j]) else s",
            f"    carray({dtype}_at(p[1] + r * d[3]), 1)[0] = s",
        ]
    )


def finite_source(dtype: str) -> str:
    """Ends the run if the element of ``p[0]`` is not finite."""
    lines = [f"x = carray({dtype}_at(p[0]), 1)[0]", "if x - x != 0:", "    return 1"]
    return _function(lines)


def gemm_source(dtype: str, bits: int) -> str:
    """``p``: a, b, out; ``d``: address of gemm, CBLAS's codes of a and b, m, n, k, and the elements
    from row to row of each."""
    sizes = ", ".join(f"d[{i}]" for i in range(6))
    return _function([f"gemm_{dtype}_{bits}({sizes}, p[0], d[6], p[1], d[7], p[2], d[8])"])


def uniform_source() -> str:
    """Philox4x64-10 as NumPy's generator draws float32.

    ``p``: out; ``d``: first and number of elements, key in two words, the layer's word.
    """
    rounds: list[str] = []
    for number in range(10):
        if number:
            rounds += [
                "k0 += uint64(0x9E3779B97F4A7C15)",
                "k1 += uint64(0xBB67AE8584CAA73B)",
            ]
        rounds += [
            "h0, l0 = high_product(m0, x0), m0 * x0",
            "h1, l1 = high_product(m1, x2), m1 * x2",
            "x0, x1, x2, x3 = h1 ^ x1 ^ k0, l1, h0 ^ x3 ^ k1, l0",
        ]
    lines = [
        "first, n = d[0], d[1]",
        "out = carray(float32_at(p[0]), n)",
        "m0, m1 = uint64(0xD2E7470EE14C6C93), uint64(0xCA5A826395121157)",
        "for block in range((n + 7) // 8):",
        "    k0, k1 = uint64(d[2]), uint64(d[3])",
        # NumPy counts up before the first draw.
        "    x0, x1 = uint64(first // 8 + block + 1), uint64(d[4])",
        "    x2, x3 = uint64(c[1] + c[2]), uint64(c[0])",
        *(f"    {line}" for line in rounds),
        "    for i in range(min(8, n - 8 * block)):",
        "        word = x0 if i < 2 else x1 if i < 4 else x2 if i < 6 else x3",
        "        half = (word >> uint64(32 * (i % 2))) & uint64(0xFFFFFFFF)",
        "        out[8 * block + i] = float32(half >> uint64(8)) * float32(2.0**-24)",
    ]
    return _function(lines)


def _function(lines: Sequence[str]) -> str:
    return _HEAD + "".join(f"    {line}\n" for line in [*lines, "return 0"] if line)


# --- Outside of captured steps ----------------------------------------------------------------


def run_rule(rule: Rule, outs: Sequence[Any], operands: Sequence[Any]) -> bool:
    """Apply a rule in one compiled loop; False if nothing was done.

    It is not for a rule that calls one of LOOPS, which NumPy does as fast, or does more than a rule
    may, nor for views with gaps.
    """
    shape, dtype = outs[0].shape, outs[0].dtype
    if not _compilable(rule, len(operands)) or not all(_whole(out, shape) for out in outs):
        return False
    size, cols = outs[0].size, shape[-1]
    places = {id(out): place for place, out in enumerate(outs)}
    kinds: list[str | int] = []
    given, strides = [*outs], [cols * dtype.itemsize] * len(outs)
    for x in operands:
        if id(x) in places:
            kinds.append(places[id(x)])
            continue
        array = np.asarray(x, dtype)
        if array.size == 1 and cols > 1:
            kind, stride = "one", 0
        elif _whole(array, shape):
            kind, stride = "row", cols * dtype.itemsize
        elif _whole(array, (*shape[:-1], 1)):
            kind, stride = "one", dtype.itemsize
        elif array.size == cols and _whole(array, array.shape):
            kind, stride = "row", 0
        else:
            return False
        kinds.append(kind)
        given.append(array)
        strides.append(stride)
    rows = size // cols
    if all(stride == cols * dtype.itemsize or array.size == 1
           for array, stride in zip(given, strides, strict=True)):  # fmt: skip
        rows, cols = 1, size
    p = np.array([x.ctypes.data for x in given])
    d = np.array([rows, cols, *strides])
    _entry(rule, dtype.name, tuple(kinds), len(outs))(p.ctypes.data, d.ctypes.data, d.ctypes.data)
    return True


def _whole(x: np.ndarray[Any, Any], shape: tuple[int, ...]) -> bool:
    return x.shape == shape and x.flags.c_contiguous


@cache
def _compilable(rule: Rule, n_operands: int) -> bool:
    try:
        return not any(node.operation in LOOPS for node in trace(rule, n_operands).nodes)
    except Exception:  # whatever a rule raises that does more than it may
        return False


@cache
def _entry(
    rule: Rule, dtype: str, kinds: tuple[str | int, ...], n_outs: int
) -> Callable[[int, int, int], int]:
    function = CFUNCTYPE(c_int64, *[c_void_p] * 3)
    entry: Callable[[int, int, int], int] = function(
        address(rule_source(rule, dtype, kinds, n_outs).text)
    )
    return entry


# --- Machine code -----------------------------------------------------------------------------


@cache
def address(source: str) -> int:
    """The address of the compiled kernel, which stays loaded."""
    kernel = compiled(source, "kernel", numba.cfunc, _SIGNATURE, error_model="numpy")
    _LOADED.append(kernel)
    return kernel.address  # type: ignore[no-any-return]


_LOADED: list[Any] = []


def compiled(source: str, name: str, decorator: Any, *arguments: Any, **options: Any) -> Any:
    """The function `name` of a source as `decorator` of Numba compiles it, kept if it can be.

    The source stands in the namespace of :mod:`xpmlp_numpy.native`: Numba looks there when it reads
    what it has kept.
    """
    path = _file(source)
    for attempt in (1, 2):
        if path is None:
            break
        try:
            return decorator(*arguments, cache=True, **options)(_execute(source, name, str(path)))
        except Exception as error:  # what was kept is damaged, or there is no room to keep it
            for kept in path.parent.glob(f"__pycache__/{path.stem}.*"):
                kept.unlink(missing_ok=True)
            if attempt == 2:
                _warn_of_cache(path.parent, error)
    return decorator(*arguments, **options)(_execute(source, name, "<compiled>"))


def _execute(source: str, name: str, path: str) -> Callable[..., Any]:
    scope = dict(vars(native))
    exec(compile(source, path, "exec"), scope)
    function: Callable[..., Any] = scope[name]
    return function


@cache
def _file(source: str) -> Path | None:
    """Where the source stands, which is what Numba's cache asks for; None without such a place."""
    folder = cache_folder()
    if folder is None:
        return None
    versions = f"{numba.__version__} {np.__version__} {sys.version} {_own_code()}"
    path = folder / f"{blake2b((versions + source).encode(), digest_size=12).hexdigest()}.py"
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        if not path.exists():
            beside.write_text(source, encoding="utf-8")
            os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        _warn_of_cache(folder, error)
        return None
    return path


@cache
def _own_code() -> str:
    return blake2b(Path(native.__file__).read_bytes(), digest_size=12).hexdigest()


@cache
def cache_folder() -> Path | None:
    """A folder of the user's for compiled kernels, or None with a warning."""
    named = os.environ.get("XPMLP_CACHE_DIR")
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    folder = Path("~/.cache/xpmlp")
    try:
        folder = Path(named) if named else Path(base or Path.home() / ".cache") / "xpmlp"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "geteuid") and folder.stat().st_uid != os.geteuid():
            raise PermissionError("it belongs to somebody else, whose code would be run")
        with TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # there may be no home
        _warn_of_cache(folder, error)
        return None
    return folder


def _warn_of_cache(folder: Path, error: Exception) -> None:
    if folder not in _WARNED:
        _WARNED.add(folder)
        warn_user(f"compiled code cannot be kept in {folder} ({error}); each process compiles anew")


_WARNED: set[Path] = set()
