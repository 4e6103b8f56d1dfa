"""Rules compiled by Numba give what NumPy gives, to the bit."""

import inspect

import numpy as np
import pytest
import xpmlp_numpy

from xpmlp import Dense, Dropout, Network, fit, rules

pytest.importorskip("numba")

from xpmlp_numpy.kernels import _compilable as compilable


def n_operands(rule):
    return len(inspect.signature(rule).parameters) - 1


RULES = [
    rule
    for _, rule in inspect.getmembers(rules, inspect.isfunction)
    if rule.__module__ == rules.__name__ and compilable(rule, n_operands(rule))
]
EDGES = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38]


def test_only_rules_without_transcendental_functions_are_compiled():
    assert {rules.adam, rules.relu, rules.huber, rules.dropout} <= set(RULES)
    assert not {rules.sigmoid, rules.gelu, rules.poisson, rules.softplus_backward} & set(RULES)


def n_results(rule):
    count = n_operands(rule)
    result = rule(xpmlp_numpy.NumpyBackend().functions, *[np.ones(1)] * count)
    return len(result) if isinstance(result, tuple) else 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_compiled_equals_blocked_to_the_bit(rule, dtype, monkeypatch):
    n = 3000
    draw = np.random.default_rng(0)
    count = n_operands(rule)
    n_arrays = min(count, 1 + n_results(rule))  # the rest are numbers, as in use
    arrays = [
        draw.choice([*EDGES, *draw.standard_normal(20)], n).astype(dtype) for _ in range(n_arrays)
    ]
    numbers = [float(x) for x in draw.uniform(0.1, 0.9, count - n_arrays)]
    backend = xpmlp_numpy.NumpyBackend()
    with backend.context():
        results = []
        monkeypatch.setattr(xpmlp_numpy, "BLOCK", 1000)
        for threshold in (10**9, 1):
            monkeypatch.setattr(xpmlp_numpy, "THRESHOLD", threshold)
            outs = tuple(np.full(n, 7.0, dtype) for _ in range(n_results(rule)))
            backend.elementwise(rule)(outs, *arrays, *numbers)
            results.append(outs)
    for blocked, compiled in zip(*results, strict=True):
        np.testing.assert_array_equal(compiled, blocked)
        real = ~np.isnan(blocked)
        np.testing.assert_array_equal(np.signbit(compiled[real]), np.signbit(blocked[real]))


def test_a_whole_run_is_the_same_with_and_without(monkeypatch):
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((64, 20)), draw.integers(0, 3, 64)
    ends = []
    monkeypatch.setattr(xpmlp_numpy, "BLOCK", 100)
    for threshold in (10**9, 1):
        monkeypatch.setattr(xpmlp_numpy, "THRESHOLD", threshold)
        layers = [Dense(30, "relu"), Dropout(0.2), Dense(20, "gelu"), Dense(3, "softmax")]
        network = Network(20, layers, device="cpu", dtype="float32")
        fit(network, X, y, loss="log_loss", epochs=3, batch_size=16, alpha=0.01, verbose=0)
        ends.append(network.parameters.copy())
    np.testing.assert_array_equal(*ends)


def test_training_small_networks_does_not_compile():
    assert xpmlp_numpy.THRESHOLD > xpmlp_numpy.BLOCK
