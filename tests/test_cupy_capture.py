"""Steps captured as CUDA graphs are the steps run one primitive at a time, to the bit.

Streams, graphs and cublasLt are acted out, and kernels run on the CPU: no GPU is needed. What this
cannot show: races within a graph, and what CUDA itself refuses to capture.
"""

from __future__ import annotations

import contextlib
import logging

import numpy as np
import pytest
from cuda_shim import no_compiler

from xpmlp import Dense, Dropout, Network, NonFiniteLossError, fit
from xpmlp.testing import check_capture
from xpmlp.verify import cases, sample

pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'xpmlp[kernels]'")

import xpmlp_cupy
from cuda_shim.adapter import EmulatedBackend
from xpmlp_cupy import capture

EAGER, CAPTURED = 10**9, 0
CASES = {case.name: case for case in cases()}


@contextlib.contextmanager
def steps_from(number):
    """Runs of so many steps are captured."""
    before = xpmlp_cupy.STEPS_TO_CAPTURE
    xpmlp_cupy.STEPS_TO_CAPTURE = number
    try:
        yield
    finally:
        xpmlp_cupy.STEPS_TO_CAPTURE = before


def train(backend, name, dtype, precision="ieee", epochs=3):
    """Losses and parameters of a run with a smaller last batch, weights and all."""
    case = CASES[name]
    X, y, weight = (None if x is None else x.astype(dtype) for x in sample(case))
    network = Network(X.shape[1], case.layers, backend=backend, dtype=dtype, seed=3,
                      precision=precision)  # fmt: skip
    history = fit(
        network, X, y, loss=case.loss, optimizer=case.optimizer, epochs=epochs, batch_size=16,
        sample_weight=weight, validation=(X, y), verbose=0, **case.options,
    )  # fmt: skip
    ends = history["loss"] + history["val_loss"]
    return np.array(ends), backend.to_host(network.parameters)


def digits(backend, epochs=2, batch_size=128, n=600, callbacks=(), X=None, layers=None, **options):
    """A classifier of the shape of the benchmark's smallest."""
    draw = np.random.default_rng(0)
    X = draw.standard_normal((n, 20)).astype("float32") if X is None else X
    y = draw.integers(0, 10, len(X))
    layers = layers or [Dense(24, "relu"), Dense(12, "relu"), Dense(10, "softmax")]
    network = Network(X.shape[1], layers, backend=backend, dtype="float32", seed=1)
    options = {"loss": "log_loss", "optimizer": "adam"} | options
    history = fit(network, X, y, epochs=epochs, batch_size=batch_size, verbose=0,
                  callbacks=[*callbacks], **options)  # fmt: skip
    return network, history


MASKED = [Dense(24, "gelu"), Dropout(0.4), Dense(12, "tanh"), Dense(10, "softmax")]


def long_run(backend):
    """A run of many steps, on the way of both graphs, with masks, penalties and limits."""
    return digits(backend, epochs=3, batch_size=8, n=300, layers=MASKED, alpha=1e-3, l1=1e-4,
                  clip_norm=1.0, clip_value=0.5)  # fmt: skip


def everything(backend):
    """All that these tests run, so that its kernels can be compiled together."""
    for threshold in (EAGER, CAPTURED):
        with steps_from(threshold):
            for name in CASES:
                for dtype in ("float32", "float64"):
                    with contextlib.suppress(NonFiniteLossError):
                        train(backend, name, dtype)
            for run in (digits, long_run):
                with contextlib.suppress(NonFiniteLossError):
                    run(backend)
            with contextlib.suppress(AssertionError):
                for dtype in ("float32", "float64"):
                    check_capture(backend, dtype)


@pytest.fixture(scope="module")
def recorded():
    backend = EmulatedBackend()
    with backend.cupy.recording(), np.errstate(all="ignore"):
        everything(backend)
    return backend


@pytest.fixture(scope="module")
def compiled(recorded, tmp_path_factory):
    reason = no_compiler()
    if reason:
        pytest.skip(reason)
    recorded.cupy.build(tmp_path_factory.mktemp("kernels"))
    return recorded


@pytest.fixture
def backend(compiled, caplog):
    """The adapter on the CPU; what it says about captures is an error unless a test expects it."""
    cuda = compiled.cupy.cuda
    cuda.calls.clear()
    cuda.graphs.clear()
    cuda.broken = False
    caplog.set_level(logging.INFO, "xpmlp")
    return compiled


# --- The same result ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_every_part_of_the_library_trains_the_same_when_captured(backend, name, dtype, caplog):
    ends = []
    for threshold in (EAGER, CAPTURED):
        with steps_from(threshold):
            ends.append(train(backend, name, dtype))
    assert not caplog.records
    # Three full batches and the rest, in three epochs.
    assert [graph.launches for graph in backend.cupy.cuda.graphs] == [9, 3]
    for eager, captured in zip(*ends, strict=True):
        np.testing.assert_array_equal(captured, eager)


def test_many_steps_of_one_graph_are_the_steps(backend, caplog):
    ends = []
    for threshold in (EAGER, CAPTURED):
        with steps_from(threshold):
            network, history = long_run(backend)
            ends.append((network.parameters.copy(), history["loss"]))
    assert not caplog.records
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    one, many, rest = backend.cupy.cuda.graphs
    # 37 batches of eight and one of four, cut where momenta are flushed, every 64 steps.
    assert many.launches * capture.STEPS_OF_A_GRAPH + one.launches == 3 * 37
    assert many.launches == 5
    assert rest.launches == 3
    assert len(many.nodes) == capture.STEPS_OF_A_GRAPH * len(one.nodes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_adapter_says_so_itself(backend, dtype):
    check_capture(backend, dtype)
    assert backend.cupy.cuda.graphs


# --- How much there is to launch ------------------------------------------------------------------


def work_of(backend, layers, batch_size=128, precision="ieee", **options):
    """The captured steps on full batches, and the sources of their kernels."""
    made = []

    class Noted(capture.Captured):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    original, capture.Captured = capture.Captured, Noted
    try:
        with backend.cupy.recording(), steps_from(CAPTURED):
            digits(backend, layers=layers, batch_size=batch_size, n=2 * batch_size, **options)
    finally:
        capture.Captured = original
    return made[0]


def names(captured):
    _, work = captured._kept
    return [
        one.name
        if hasattr(one, "name")
        else "+".join(
            [
                *(["total"] if one.total else []),
                *(applied.rule.__name__ for applied in one.rules),
                *(["sum_columns"] if one.columns else []),
            ]
        )
        for one in work
    ]


def test_a_step_is_few_nodes(backend):
    layers = [Dense(256, "relu"), Dense(128, "relu"), Dense(10, "softmax")]
    captured = work_of(backend, layers)
    print(names(captured))
    assert captured.n_nodes == 21
