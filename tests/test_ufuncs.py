"""Rules as calls of ufuncs that write into scratch give what the rules themselves give, to the bit.

Loops of NumPy's functions may differ in the last digit between the end of an array and its middle,
so both sides compute the same blocks where a rule has such functions.
"""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import xpmlp_numpy
from primitive_cases import NUMPY, assert_same, normal, strided
from rule_operands import RULES, all_arrays, as_called, edges, is_arithmetic, n_results, parameters
from xpmlp_numpy.straightline import source
from xpmlp_numpy.ufuncs import Program, kinds_of

from xpmlp import rules

BLOCK = 96  # elements of eight bytes
# By one truth value for all elements, which is left to the rule.
CHOSEN_BY_A_SCALAR = {rules.gate, rules.weight_share}
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def applied(rule, operands, shape, dtype):
    """The results of the rule as it is."""
    with NUMPY.context():
        results = rule(NUMPY.functions, *operands)
    results = results if isinstance(results, tuple) else (results,)
    return [np.array(np.broadcast_to(x, shape), dtype) for x in results]


def run(rule, outs, operands, block=10**6):
    """The same by a program, which there has to be."""
    kinds = kinds_of(outs, operands)
    assert kinds is not None
    program = Program(rule, NUMPY.functions, str(outs[0].dtype), kinds, len(outs))
    assert program.suits(outs, operands)
    with NUMPY.context():
        program(outs, operands, 8 * block)


def compare(rule, operands, shape, dtype, block=10**6):
    outs = [np.full(shape, np.nan, dtype) for _ in range(n_results(rule))]
    run(rule, outs, operands, block)
    for one, other in zip(outs, applied(rule, operands, shape, dtype), strict=True):
        assert_same(one, other)


@each_dtype
@each_rule
def test_as_the_library_calls_it(rule, dtype):
    for shape in [(2, 3), (5, 7), (40, 33)]:
        operands = as_called(rule, shape, dtype)
        if rule in CHOSEN_BY_A_SCALAR:
            with pytest.raises(TypeError, match=r"no mask|of Python's numbers"):
                compare(rule, operands, shape, dtype)
        else:
            compare(rule, operands, shape, dtype)


@each_dtype
@each_rule
def test_edge_values(rule, dtype):
    for operands in edges(rule, dtype):
        operands = [np.ascontiguousarray(x) for x in operands]
        compare(rule, operands, operands[0].shape, dtype)


@each_dtype
@each_rule
def test_in_blocks(rule, dtype):
    block = BLOCK * 8 // np.dtype(dtype).itemsize
    for size in (block - 1, block, block + 1, 2 * block, 3 * block - 5):
        for shape in [(size,), (size, 1), (1, size), (size, 3)]:
            operands = all_arrays(rule, shape, dtype) if len(shape) > 1 else None
            if operands is None or not is_arithmetic(rule):
                operands = [
                    normal(shape, dtype, seed) ** 2 for seed, _ in enumerate(parameters(rule))
                ]
            outs = [np.full(shape, np.nan, dtype) for _ in range(n_results(rule))]
            run(rule, outs, operands, BLOCK)
            rows = max(1, block * shape[0] // outs[0].size)
            for start in range(0, shape[0], rows):
                part = slice(start, start + rows)
                some = [x[part] for x in operands]
                expected = applied(rule, some, some[0].shape, dtype)
                for one, other in zip(outs, expected, strict=True):
                    assert_same(one[part], other)


@each_dtype
@each_rule
def test_outs_that_are_operands(rule, dtype):
    shape = (23, 17)
    called = all_arrays if rule in CHOSEN_BY_A_SCALAR else as_called
    operands = [x if np.ndim(x) else float(x) for x in called(rule, shape, dtype)]
    wide = [place for place, x in enumerate(operands) if np.shape(x) == shape]
    expected = applied(rule, operands, shape, dtype)
    for first in wide:
        for second in {*wide} - {first} if len(expected) > 1 else [None]:
            mine = [x.copy() if np.ndim(x) else x for x in operands]
            outs = [np.full(shape, np.nan, dtype) for _ in expected]
            outs[0] = mine[first]
            if second is not None:
                outs[-1] = mine[second]
            run(rule, outs, mine, BLOCK if is_arithmetic(rule) else 10**6)
            for one, other in zip(outs, expected, strict=True):
                assert_same(one, other)


@each_dtype
def test_one_array_in_several_places(dtype):
    for rule in (rules.multiply, rules.momentum, rules.adam, rules.squared_error):
        shape, names = (300,), parameters(rule)
        x = normal(shape, dtype) ** 2
        n_arrays = min(len(names), 1 + n_results(rule))
        operands = [x] * n_arrays + [0.3] * (len(names) - n_arrays)
        expected = applied(rule, operands, shape, dtype)
        outs = [x, *(np.empty(shape, dtype) for _ in expected[1:])]
        run(rule, outs, operands, BLOCK)
        for one, other in zip(outs, expected, strict=True):
            assert_same(one, other)


def exchange(xp, x, y):
    return y + 1.0, x + 1.0


def doubtful(xp, x, y):
    # The first result is there while y is still to be read.
    first = 2.0 * x
    return first, first * y + y * x


@each_dtype
def test_results_wait_for_operands_in_their_place(dtype):
    for rule in (exchange, doubtful):
        x, y = normal((300,), dtype, 1), normal((300,), dtype, 2)
        expected = rule(None, x.copy(), y.copy())
        for outs in ([x.copy(), y.copy()], [y.copy(), x.copy()]):
            given = outs if outs[0][0] == x[0] else outs[::-1]
            mine = [outs[0], outs[1]]
            run(rule, mine, given, BLOCK)
            for one, other in zip(mine, expected, strict=True):
                assert_same(one, other)


def test_shared_memory_under_another_name_is_seen(monkeypatch):
    monkeypatch.setattr(xpmlp_numpy, "SMALL", 0)
    x, y = normal((300,), seed=1), normal((300,), seed=2)
    expected = doubtful(None, x.copy(), y.copy())
    first, second = y[:], np.empty(300)  # the first output is y, but not the same object
    NUMPY.elementwise(doubtful)((first, second), x, y)
    assert_same(first, expected[0])
    assert_same(second, expected[1])


def logical(xp, x, y):
    both, either = (x > 0.0) & (y > 0.0), (x > 0.0) | (y > 0.0)
    return xp.where(both, x, xp.where(~either, y, -0.0)), xp.where(x != y, 0.0, x)


@each_dtype
def test_truth_values_pick_bits(dtype):
    values = np.array([0.0, -0.0, 1.5, -2.5, np.inf, -np.inf, np.nan, 1e-42], dtype)
    x, y = (a.copy() for a in np.meshgrid(values, values))
    compare(logical, [x, y], x.shape, dtype)
    for rule in (rules.relu_backward, rules.flush):
        compare(rule, [x, y][: len(parameters(rule))], x.shape, dtype)


def power(xp, x):
    return x**2.0


def branch(xp, x):
    return x + 1.0 if x[0] > 0 else x - 1.0


def integers(xp, x):
    return xp.where(x > 0.0, x, 0.0) * (x > 1.0)  # a truth value as a number


def constant(xp, x):
    return 1.0


def same(xp, x):
    return x


@pytest.mark.parametrize("rule", [power, branch, integers, constant, same])
def test_other_rules_are_applied_as_they_are(rule, monkeypatch):
    monkeypatch.setattr(xpmlp_numpy, "SMALL", 0)
    x, out = normal((50,)), np.empty(50)
    with pytest.raises(Exception):  # noqa: B017, PT011  # each has an error of its own
        source(rule, NUMPY.functions, "float64", ("wide",), 1)
    NUMPY.elementwise(rule)((out,), x)
    assert_same(out, np.broadcast_to(rule(NUMPY.functions, x), out.shape))


def test_operands_of_another_dtype_or_shape_are_not_for_it():
    out = np.empty((2, 3, 4))
    assert kinds_of([out], [out, 1.0, 2, out[:, :, :1], out[0, 0], np.ones(1), out.copy()]) == (
        0, "number", "number", "column", "row", "scalar", "wide",
    )  # fmt: skip
    for other in (np.ones(4, "float32"), np.float32(1), out[0], out[:1], True, np.ones(4, int)):
        assert kinds_of([out], [out, other]) is None
    assert kinds_of([out, np.empty((2, 3, 4), "float32")], [out]) is None
    assert kinds_of([np.empty(3, "float32")], [np.float64(1.0)]) is None  # it would widen


@each_dtype
def test_strided_arrays(dtype):
    x, y = strided(normal((40, 30), dtype, 1)), normal((30, 40), dtype, 2).T
    for rule in (rules.add, rules.dropout, rules.leaky_relu_backward):
        operands = [x, y, 0.3, 0.7][: len(parameters(rule))]
        compare(rule, operands, x.shape, dtype, BLOCK)


def test_threads_do_not_share_scratch():
    start = Barrier(8)
    kernel = NUMPY.elementwise(rules.adam)
    numbers = (1e-3, 0.9, 0.1, 0.999, 0.001, 1.5, 1e-8)

    def work(seed):
        arrays = [normal((30_000,), "float32", 4 * seed + i) ** 2 for i in range(4)]
        p, g, m, v = (x.copy() for x in arrays)
        start.wait()
        for _ in range(20):
            kernel((p, m, v), p, g, m, v, *numbers)
        for _ in range(20):
            arrays[0], arrays[2], arrays[3] = rules.adam(np, *arrays, *numbers)
        return zip((p, m, v), (arrays[0], arrays[2], arrays[3]), strict=True)

    with ThreadPoolExecutor(8) as pool:
        for pairs in pool.map(work, range(8)):
            for one, other in pairs:
                assert_same(one, other)


@each_dtype
def test_no_temporaries(dtype, monkeypatch):
    monkeypatch.setattr(xpmlp_numpy, "THRESHOLD", 10**9)  # nothing is compiled
    shape = (1000, 200)
    for rule in (rules.adam, rules.relu_backward, rules.add, rules.gelu_backward):
        operands = [normal(shape, dtype, seed) ** 2 for seed, _ in enumerate(parameters(rule))]
        outs = tuple(operands[: n_results(rule)])
        with NUMPY.context():
            NUMPY.elementwise(rule)(outs, *operands)  # makes the program and the scratch
            tracemalloc.start()
            NUMPY.elementwise(rule)(outs, *operands)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        # Views, and what NumPy needs to turn comparisons into whole numbers piece by piece.
        assert peak < 150_000
