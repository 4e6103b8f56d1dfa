"""Rules traced to C++ compute what NumPy computes; compiled by g++, without CuPy or a GPU."""

from __future__ import annotations

import ctypes
import inspect
from functools import partial

import numpy as np
import pytest
from cuda_shim import no_compiler, shared_library
from primitive_cases import KINDS_OF_RULES, NUMPY, edge_values, normal
from rule_operands import RULES, SIGNED, all_arrays, assert_conforms, edges, n_results, parameters
from xpmlp_cupy import tracing
from xpmlp_cupy.tracing import alike, body

import xpmlp.tracing as core
from xpmlp import rules
from xpmlp.typing import RuleFunctions

TYPES = {"float32": "float", "float64": "double"}

each_dtype = pytest.mark.parametrize("dtype", TYPES)


# --- Functions and operators, on all pairs of edge values ---------------------------------------

BINARY = {"maximum", "minimum"}
FUNCTIONS = {
    name: (
        (lambda xp, x, y, name=name: getattr(xp, name)(x, y))
        if name in BINARY
        else (lambda xp, x, y, name=name: getattr(xp, name)(x))
    )
    for name in vars(RuleFunctions)
    if not name.startswith("_") and name != "where"
}
OPERATIONS = {
    "where": lambda xp, x, y: xp.where(x > y, x, 0.25),
    "where with NaN as condition": lambda xp, x, y: xp.where(x, y, -1.0),
    "comparisons": lambda xp, x, y: tuple(
        xp.where(condition, 1.0, 0.0)
        for condition in (x < y, x <= y, x > y, x >= y, x == y, x != y, x < 0.5, y > 0.5)
    ),
    "conditions together": lambda xp, x, y: (
        xp.where((x > 0.0) & (y > 0.0), x, y),
        xp.where((x > 0.0) | ~(y > 0.0), x, y),
    ),
    "arithmetic": lambda xp, x, y: (x + y, x - y, x * y, x / y, -x, +x, abs(y)),
    "numbers on the left": lambda xp, x, y: (0.1 + x, 0.1 - x, 0.1 * y, 0.1 / y, 3 * x, 1 - y),
    "numbers on the right": lambda xp, x, y: (x + 0.1, x - 0.1, y * 0.1, y / 0.1, x / 3),
    "tiny and large numbers": lambda xp, x, y: (x * 1e-30, x + 3e38, y * -1.17e-38),
    "numbers alone": lambda xp, x, y: (xp.maximum(x, xp.exp(0.0)), 0.5, x),
    "an operand as result": lambda xp, x, y: y,
    "results that were swapped": lambda xp, x, y: (y, x),
}
EVERYTHING = {
    **FUNCTIONS,
    **OPERATIONS,
    **{f"a rule that {name}": rule for name, rule in KINDS_OF_RULES.items()},
    **RULES,
}


def counts(rule):
    """Operands and results."""
    if rule in RULES.values():
        return len(parameters(rule)), n_results(rule)
    result = rule(NUMPY.functions, np.ones(1), np.ones(1))
    return 2, len(result) if isinstance(result, tuple) else 1


@pytest.fixture(scope="module", params=TYPES)
def compiled(request, tmp_path_factory):
    """All rules as functions of one library: ``run(name, *operands) -> results``."""
    reason = no_compiler()
    if reason:
        pytest.skip(reason)
    dtype, functions = request.param, []
    for number, rule in enumerate(EVERYTHING.values()):
        n_operands, n_outs = counts(rule)
        operands = [f"in[{place}][i]" for place in range(n_operands)]
        outs = [f"out[{place}][i]" for place in range(n_outs)]
        functions.append(
            f'extern "C" void rule_{number}(ptrdiff_t n, const T* const* in, T* const* out) {{\n'
            f"for (ptrdiff_t i = 0; i < n; ++i) {{\n"
            f"{body(rule, operands, outs, TYPES[dtype])}\n}}}}"
        )
    head = f"#include <cstddef>\n#include <math.h>\ntypedef {TYPES[dtype]} T;\n"
    library = shared_library(head + "\n".join(functions), tmp_path_factory.mktemp(dtype))

    def run(name, *operands):
        rule = EVERYTHING[name]
        inputs = [np.ascontiguousarray(x, dtype) for x in operands]
        outs = [np.full(inputs[0].shape, 7.0, dtype) for _ in range(counts(rule)[1])]
        pointers = [(ctypes.c_void_p * len(x))(*[a.ctypes.data for a in x]) for x in (inputs, outs)]
        function = getattr(library, f"rule_{list(EVERYTHING).index(name)}")
        function(ctypes.c_ssize_t(inputs[0].size), *pointers)
        return outs

    run.dtype = dtype
    return run


def of_all_sizes(n, dtype, seed=0):
    """Numbers from 1e-8 to 1e3, of either sign."""
    draw = np.random.default_rng(seed)
    return (draw.choice([-1.0, 1.0], n) * 10.0 ** draw.uniform(-8, 3, n)).astype(dtype)


def compare(compiled, name, operands):
    assert_conforms(EVERYTHING[name], operands, compiled(name, *operands))


@pytest.mark.parametrize("name", [name for name in EVERYTHING if name not in RULES])
def test_functions_and_operators_are_numpys(compiled, name):
    dtype = compiled.dtype
    values = np.concatenate([edge_values(dtype), normal(40, dtype), of_all_sizes(40, dtype)])
    compare(compiled, name, (np.repeat(values, values.size), np.tile(values, values.size)))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_numpys(compiled, name):
    compare(compiled, name, all_arrays(RULES[name], (64, 32), compiled.dtype))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_numpys_for_operands_of_all_sizes(compiled, name):
    rule = RULES[name]
    operands = all_arrays(rule, (64, 32), compiled.dtype)
    sizes = [of_all_sizes(64 * 32, compiled.dtype, seed) for seed in range(len(operands))]
    for place, parameter in enumerate(parameters(rule)):
        if parameter in SIGNED:
            operands[place] = sizes[place].reshape(64, 32)
    compare(compiled, name, operands)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_numpys_on_edge_values(compiled, name):
    for operands in edges(RULES[name], compiled.dtype):
        compare(compiled, name, operands)


# --- What is written --------------------------------------------------------------------------


def test_operands_are_read_before_anything_is_written():
    lines = body(lambda xp, x, y: (x - y, x + y), ["a", "b"], ["a", "b"], "float").splitlines()
    assert lines == [
        "const float v0 = a;",
        "const float v1 = b;",
        "const float v2 = v0 - v1;",
        "const float v3 = v0 + v1;",
        "a = v2;",
        "b = v3;",
    ]


@pytest.mark.parametrize("ctype", TYPES.values())
@pytest.mark.parametrize("name", RULES)
def test_nothing_is_computed_in_another_type(name, ctype):
    rule = RULES[name]
    operands = [f"x{place}" for place in range(len(parameters(rule)))]
    text = body(rule, operands, [f"y{place}" for place in range(n_results(rule))], ctype)
    other = "double" if ctype == "float" else "float"
    assert ctype in text
    assert other not in text


def refuses(rule, n_operands=2, n_outs=1):
    with pytest.raises(Exception) as caught:  # noqa: PT011
        body(rule, ["a", "b"][:n_operands], ["c", "d"][:n_outs], "float")
    return str(caught.value)


def test_what_is_no_rule_is_refused():
    assert "xp.where" in refuses(lambda xp, x, y: x if x > y else y)
    assert "xp.where" in refuses(lambda xp, x, y: max(x, y))
    assert "xp.where" in refuses(lambda xp, x, y: xp.where(0.0 < x < y, x, y))
    assert "cos" in refuses(lambda xp, x, y: xp.cos(x))
    assert "unsupported operand" in refuses(lambda xp, x, y: x**2)
    assert "dtype" in refuses(lambda xp, x, y: x.dtype)
    assert "inf" in refuses(lambda xp, x, y: xp.where(x > y, x, float("inf")))
    assert "array" in refuses(lambda xp, x, y: x * np.ones(3))
    assert "longer" in refuses(lambda xp, x, y: (x, y), n_outs=1)
    assert "argument" in refuses(lambda xp, x: x)
    refuses(lambda xp, x, y: np.exp(x))
    refuses(lambda xp, x, y: float(x))
    refuses(lambda xp, x, y: hash(x))


def test_the_tracer_has_the_functions_of_rules_and_no_others():
    functions = {name for name in vars(RuleFunctions) if not name.startswith("_")}
    assert functions == core.FUNCTIONS.keys()


def test_defaults_and_partial_functions_are_traced():
    def scaled(xp, x, slope=0.5):
        return slope * x

    assert "float(0.5) * v0" in body(scaled, ["a"], ["b"], "float")
    assert "float(0.125) * v0" in body(partial(scaled, slope=0.125), ["a"], ["b"], "float")


def test_rules_that_do_the_same_are_alike():
    def added(xp, x, y):
        return x + y

    assert alike(rules.add, added, 2)
    assert not alike(rules.add, rules.multiply, 2)
    assert not alike(rules.add, lambda xp, x, y: y + x, 2)
    assert not alike(rules.relu, lambda xp, x: xp.maximum(x, 1.0), 1)


def test_tracing_needs_no_cupy():
    source = inspect.getsource(tracing)
    assert "import cupy" not in source
    assert "import numpy" not in source
