"""What one training step of 784-256-128-10 asks of the adapter, and the memory it takes.

Times vary, counts do not: a change that makes a step do more shows here, and has to say so.
"""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from xpmlp_numpy import NumpyBackend

from xpmlp import Dense, Network, fit
from xpmlp.backends import ReferenceBackend

BATCH = 32
# Calls of a step one primitive at a time; those with "rule" are kernels of `elementwise`.
A_STEP = {
    "take_rows": 2,
    "matmul": 8,  # three forward, three for the weights, two for the error terms
    "rule add": 3,
    "rule relu": 2,
    "rule one_hot": 1,
    "softmax_log_loss": 1,
    "max_rows": 1,
    "sum_rows": 2,
    "rule exp_shifted": 1,
    "rule categorical_log_loss_from_softmax": 1,
    "rule multiply": 2,
    "total": 1,
    "read": 1,
    "rule relu_backward": 2,
    "sum_columns": 3,
    "rule adam": 1,
}
# Beyond data and parameters: gradient and two moments of 235,146 parameters, 2.8 MB; a batch with
# its activations and error terms, 0.2 MB; temporaries of a rule on 16,384 elements, 0.4 MB; and
# what is not collected yet.
PEAK_BYTES = 3.8e6


@pytest.fixture
def train(monkeypatch):
    """The peak memory of a run of some steps on a backend, none of it compiled."""
    monkeypatch.setattr("xpmlp_numpy.THRESHOLD", 10**9)
    monkeypatch.setattr("xpmlp_numpy.SECONDS_TO_CAPTURE", float("inf"))

    def train(backend, steps):
        layers = [Dense(256, "relu"), Dense(128, "relu"), Dense(10, "softmax")]
        network = Network(784, layers, backend=backend, dtype="float32", seed=0)
        X = np.random.default_rng(0).random((BATCH * steps, 784), "float32")
        y = np.arange(len(X)) % 10
        tracemalloc.start()
        fit(network, X, y, loss="log_loss", epochs=1, batch_size=BATCH, verbose=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    return train


def counted(backend):
    """The counts of calls of a backend's methods, which go on as they are."""
    calls = Counter()

    def counting(name, function):
        def run(*arguments, **options):
            calls[name] += 1
            return function(*arguments, **options)

        return run

    for name in vars(ReferenceBackend):
        if not name.startswith("_") and callable(getattr(backend, name)):
            setattr(backend, name, counting(name, getattr(backend, name)))
    kernel_of = NumpyBackend.elementwise
    backend.elementwise = lambda rule: counting(f"rule {rule.__name__}", kernel_of(backend, rule))
    return calls


def test_calls_of_a_step(train):
    runs = []
    for steps in (3, 13):
        backend = NumpyBackend()
        runs.append(counted(backend))
        train(backend, steps)
    few, many = runs
    assert {
        name: (many[name] - few[name]) / 10 for name in many if many[name] > few[name]
    } == A_STEP


def test_memory_does_not_grow_with_steps(train):
    few, many = (train(NumpyBackend(), steps) for steps in (50, 250))
    assert many < PEAK_BYTES
    assert many - few < 200 * (BATCH * 8 * 2 + 256)  # the order of the rows, and a loss
