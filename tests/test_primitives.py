"""What the NumPy adapter overrides equals the reference implementation.

The overrides are found by looking: one without cases here fails a test. Both sides compute on
NumPy arrays; the reference is ``ReferenceBackend(array_api_compat.numpy)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xpmlp_numpy
from primitive_cases import (
    CASES,
    COMPILED,
    ERF_ULPS,
    NUMPY,
    REFERENCE,
    ULPS,
    affine_pair,
    assert_same,
    normal,
    strided,
)
from rule_operands import (
    ARRAYS,
    NUMBERS,
    RULES,
    all_arrays,
    as_called,
    edges,
    is_arithmetic,
    n_results,
    parameters,
)
from scipy import special
from xpmlp_numpy import BLOCK, NumpyBackend

from xpmlp import rules
from xpmlp.backends import Backend, ReferenceBackend

each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)

# --- The tests ----------------------------------------------------------------------------------

# Not primitives: who the adapter is, and what it says of its device.
DESCRIPTIONS = {"name", "library", "version", "memory", "context", "recordable"}
# By the reference itself, of primitives that are overridden.
COMPOSED = {"softmax_log_loss", "total"}
PYTHONS_OWN = {"_abc_impl", "_is_protocol", "_is_runtime_protocol"}
OVERRIDES = {
    name
    for name, value in vars(NumpyBackend).items()
    if name in vars(ReferenceBackend)
    and not name.startswith("__")
    and name not in PYTHONS_OWN
    and value is not vars(ReferenceBackend)[name]
}
GROUPS: dict[tuple[str, str], list[str]] = {}
for primitive, cases in CASES.items():
    for name in cases:
        GROUPS.setdefault((primitive, name.partition("; ")[0]), []).append(name)


def never_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stay with NumPy, block by block, where Numba would compile a rule for so many elements."""
    monkeypatch.setattr(xpmlp_numpy, "THRESHOLD", 10**9)


def test_every_override_has_cases():
    assert type(NUMPY) is NumpyBackend
    assert {"matmul", "elementwise", "take_rows"} <= OVERRIDES
    missing = OVERRIDES - CASES.keys() - DESCRIPTIONS
    assert not missing, f"NumpyBackend overrides these without a case above: {sorted(missing)}"
    stale = (CASES.keys() - COMPOSED | DESCRIPTIONS) - OVERRIDES
    assert not stale, f"NumpyBackend no longer overrides these: {sorted(stale)}"
    assert set(CASES["functions"]) == {"abs", "erf", "exp", "expm1", "log", "log1p", "maximum",
                                       "minimum", "sign", "sqrt", "tanh", "where"}  # fmt: skip


@each_dtype
@pytest.mark.parametrize(("primitive", "group"), GROUPS, ids=map(": ".join, GROUPS))
def test_equals_the_reference(primitive, group, dtype, monkeypatch):
    for name in GROUPS[primitive, group]:
        compare_case(primitive, name, dtype)
    never_compile(monkeypatch)
    for name in COMPILED.intersection(GROUPS[primitive, group]):
        compare_case(primitive, name, dtype)


def compare_case(primitive: str, name: str, dtype: str) -> None:
    run = CASES[primitive][name]
    try:
        with np.errstate(all="ignore"):
            got, expected = run(NUMPY, dtype), run(REFERENCE, dtype)
        pairs = zip(got, expected, strict=True) if isinstance(got, tuple) else [(got, expected)]
        for one, other in pairs:
            # Sums of normal numbers: their rounding is that of numbers of size 1.
            assert_same(one, other, ULPS.get(primitive, 0), 1.0 if primitive in ULPS else 0.0)
    except Exception as error:
        error.add_note(f"in the case {name!r} of {primitive}")
        raise


def test_descriptions():
    assert (NUMPY.name, NUMPY.library) == ("numpy", "numpy")
    assert repr(NUMPY) == "<numpy adapter on cpu>"
    assert np.__version__ in NUMPY.version()
    memory = NUMPY.memory()
    assert memory is None or 0 < memory[0] <= memory[1]
    with NUMPY.context():
        assert np.float64(1e308) * 10 == math.inf  # a warning, and so an error, outside


def test_primitives_return_nothing_and_write_what_they_are_given():
    x, out = normal((4, 3)), np.empty((4, 3))
    assert NUMPY.copy(x, out) is None
    assert NUMPY.matmul(x, np.eye(3), out) is None
    assert NUMPY.elementwise(rules.add)((out,), x, 1.0) is None
    assert NUMPY.take_rows(x, np.arange(4), out) is None
    assert NUMPY.elementwise(rules.add) is NUMPY.elementwise(rules.add)


@each_dtype
def test_total_squares_does_not_lose_small_terms(dtype):
    # One large and many small: summed in float32 the small ones would vanish.
    x = np.full(4 * BLOCK, 1e-4, dtype)
    x[0] = 1.0
    expected = math.fsum(float(v) ** 2 for v in x)
    total = np.empty(())
    NUMPY.total_squares(x, total)
    assert float(total) == pytest.approx(expected, rel=1e-14)


@each_dtype
def test_take_rows_casts_no_more_than_a_block_at_a_time(dtype, monkeypatch):
    # With a tiny block every batch has many partial ones.
    monkeypatch.setattr(xpmlp_numpy, "BLOCK", 10)
    values = np.arange(60, dtype="uint8").reshape(20, 3)
    for rows in range(1, 20):
        indices = np.arange(rows)[::-1]
        out = np.full((rows, 3), np.nan, dtype)
        NUMPY.take_rows(values, indices, out)
        assert (out == values[indices]).all()


@pytest.mark.parametrize("block", [1, 2, 3, 10, 11])
def test_any_block_gives_the_same(block, monkeypatch):
    monkeypatch.setattr(xpmlp_numpy, "BLOCK", block)
    for shape in [(1,), (10,), (11,), (23,), (5, 4), (4, 5), (1, 23), (23, 1), (2, 3, 4)]:
        x, y = normal(shape, seed=1), normal(shape, seed=2)
        for other in (y, y[..., -1:], y[..., :1, :] if y.ndim > 1 else y, strided(y), 0.3):
            outs = np.full(shape, np.nan), np.full(shape, np.nan)
            NUMPY.elementwise(affine_pair)(outs, x, other)
            assert_same(outs[0], x + 2.0 * other)
            assert_same(outs[1], x - other)
        total = np.empty(())
        NUMPY.total_squares(x, total)
        assert float(total) == pytest.approx(float(np.sum(x * x)), rel=1e-13)


# --- The error function of the reference --------------------------------------------------------


@each_dtype
def test_erf_of_the_reference_is_accurate(dtype):
    x = np.concatenate([np.linspace(-7, 7, 5001), 10.0 ** np.arange(-30, 1)]).astype(dtype)
    exact = special.erf(x.astype("float64")).astype(dtype)
    assert_same(REFERENCE.functions.erf(x), exact, ulps=ERF_ULPS)


@each_dtype
def test_erf_of_the_reference_ends_at_one(dtype):
    # A GELU multiplies 1 + erf by z: what is missing or too much at -1 grows with |z|.
    x = np.array([6.0, 6.5, 10.0, 1e4, math.inf], dtype)
    erf = REFERENCE.functions.erf
    assert np.asarray(erf(x)).tolist() == [1.0] * 5
    assert np.asarray(erf(-x)).tolist() == [-1.0] * 5
    inside = np.asarray(erf(np.linspace(-6, 6, 4001).astype(dtype)))
    assert np.abs(inside).max() <= 1.0


@each_dtype
def test_erf_of_the_reference_keeps_zero_and_nan(dtype):
    x = np.array([0.0, -0.0, np.finfo(dtype).smallest_subnormal, math.nan], dtype)
    result = np.asarray(REFERENCE.functions.erf(x))
    assert_same(result[:2], x[:2])
    assert 0 <= result[2] <= 2 * x[2]
    assert np.isnan(result[3])


# --- Every rule ---------------------------------------------------------------------------------

each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def apply(backend: Backend, rule: Callable[..., Any], operands: list[Any], shape: Any, dtype: str):
    outs = tuple(np.full(shape, np.nan, dtype) for _ in range(n_results(rule)))
    backend.elementwise(rule)(outs, *operands)
    return outs


def ulps_of(rule: Callable[..., Any], operands: list[Any]) -> float:
    """By how many units in the last place of 1 results of ordinary size may differ."""
    if "erf" in rule.__code__.co_names:
        return 6 * 6 * ERF_ULPS  # its error times z and the error term, which are below 6 here
    # NumPy may take another loop, with another last digit, for a block than for the whole.
    small = max(np.size(x) for x in operands) <= BLOCK
    return 0.0 if small or is_arithmetic(rule) else 16.0


def assert_results(rule: Callable[..., Any], operands: list[Any], got: Any, expected: Any) -> None:
    ulps = ulps_of(rule, operands)
    for one, other in zip(got, expected, strict=True):
        assert_same(one, other, ulps, 1.0 if ulps else 0.0)


def compare(rule: Callable[..., Any], operands: list[Any], shape: Any, dtype: str) -> None:
    with np.errstate(all="ignore"):
        got = apply(NUMPY, rule, operands, shape, dtype)
        expected = apply(REFERENCE, rule, operands, shape, dtype)
    assert_results(rule, operands, got, expected)


def test_the_parameters_of_the_rules_are_known():
    assert len(RULES) > 50
    named = {parameter for rule in RULES.values() for parameter in parameters(rule)}
    assert named == NUMBERS | ARRAYS


@each_dtype
@each_rule
def test_rule_as_the_library_calls_it(rule, dtype):
    for shape in [(1, 1), (5, 7), (BLOCK // 50 + 11, 50)]:
        compare(rule, as_called(rule, shape, dtype), shape, dtype)


@each_dtype
@each_rule
def test_rule_of_arrays(rule, dtype, monkeypatch):
    never_compile(monkeypatch)  # about half a second for each rule
    for shape in [(3, 4), (2, BLOCK + 3), (BLOCK + 3, 1)]:
        compare(rule, all_arrays(rule, shape, dtype), shape, dtype)


@each_dtype
@each_rule
def test_rule_keeps_the_dtype_and_its_operands(rule, dtype):
    operands = as_called(rule, (5, 7), dtype)
    before = [np.array(x) for x in operands]
    result = rule(NUMPY.functions, *operands)
    for x in result if isinstance(result, tuple) else (result,):
        assert np.asarray(x).dtype == dtype
    for x, old in zip(operands, before, strict=True):
        assert_same(x, old)


@each_dtype
@each_rule
def test_rule_of_edge_values(rule, dtype):
    count = 0
    for operands in edges(rule, dtype):
        compare(rule, operands, operands[0].shape, dtype)
        count += 1
    assert count


@each_dtype
@each_rule
def test_rule_may_write_into_an_operand(rule, dtype):
    shape = (BLOCK // 50 + 11, 50)
    operands = all_arrays(rule, shape, dtype)
    apart = apply(NUMPY, rule, operands, shape, dtype)
    for position in range(len(operands) - len(apart) + 1):
        aliased = [np.ascontiguousarray(x).copy() for x in operands]
        outs = tuple(aliased[position : position + len(apart)])
        NUMPY.elementwise(rule)(outs, *aliased)
        assert_results(rule, operands, outs, apart)
