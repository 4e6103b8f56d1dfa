"""Steps captured by NumPy's adapter are the steps run one primitive at a time."""

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
import re
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import xpmlp_numpy
from rule_operands import RULES, all_arrays, as_called, edges, n_results

from xpmlp import Dense, Dropout, MLPClassifier, Network, NonFiniteLossError, fit
from xpmlp.activations import ReLU, Tanh
from xpmlp.callbacks import Callback
from xpmlp.losses import SquaredError
from xpmlp.optimizers import SGD, Adam
from xpmlp.testing import TOLERANCES, assert_close, check_capture
from xpmlp.verify import Case, cases, sample

pytest.importorskip("numba")

import numba
from llvmlite import binding, ir
from xpmlp_numpy import blas_threads, capture, kernels, native


def captured(monkeypatch, n_threads=1):
    """From now on every run is captured, for so many threads; returns what was captured."""
    made = []

    class Noted(capture.Captured):
        def __call__(self, n, epoch, batch):
            done = super().__call__(n, epoch, batch)
            made.append(done)
            return done

    monkeypatch.setattr(xpmlp_numpy, "SECONDS_TO_CAPTURE", 0.0)
    monkeypatch.setattr(capture, "threads_for", lambda work: n_threads)
    monkeypatch.setattr(capture, "Captured", Noted)
    return made


def eagerly(monkeypatch):
    monkeypatch.setattr(xpmlp_numpy, "SECONDS_TO_CAPTURE", 1e9)


def train(case: Case, dtype: str, epochs: int = 3):
    X, y, weight = sample(case)
    X, y = X.astype(dtype), y if case.labels else y.astype(dtype)
    weight = None if weight is None else weight.astype(dtype)
    network = Network(X.shape[1], case.layers, device="cpu", dtype=dtype, seed=3)
    history = fit(
        network, X, y, loss=case.loss, optimizer=case.optimizer, epochs=epochs,
        batch_size=case.batch_size, sample_weight=weight, validation=(X, y), verbose=0,
        **case.options,
    )  # fmt: skip
    return np.array(history["loss"] + history["val_loss"]), network.parameters.copy()


# --- The same result ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:log_loss takes the outputs as probabilities")
@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_every_part_of_the_library_trains_the_same_when_captured(case, n_threads, monkeypatch):
    for dtype in ("float32", "float64") if n_threads == 1 else ("float32",):
        eagerly(monkeypatch)
        expected = train(case, dtype)
        steps = captured(monkeypatch, n_threads)
        got = train(case, dtype)
        # The full batches and the rest, in three epochs.
        assert steps == [case.n_samples // case.batch_size, 1] * 3
        for one, other, name in zip(got, expected, ("losses", "parameters"), strict=True):
            assert_close(one, other, 100 * TOLERANCES[dtype], name)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("width", [1, 3, 17, 33, 64, 100])
def test_any_width_and_number_of_rows_can_be_shared_out(width, n_threads, monkeypatch):
    draw = np.random.default_rng(0)
    for n_rows in (1, 2, 7, 40):
        X, y = draw.standard_normal((3 * n_rows, 5)), draw.standard_normal((3 * n_rows, 2))
        ends = []
        for on in (False, True):
            captured(monkeypatch, n_threads) if on else eagerly(monkeypatch)
            network = Network(5, [Dense(width, "tanh"), Dense(width), Dense(2)], device="cpu")
            fit(network, X, y, loss="squared_error", epochs=2, batch_size=n_rows, verbose=0,
                alpha=0.1, l1=0.01, clip_norm=0.5, clip_value=0.4)  # fmt: skip
            ends.append(network.parameters.copy())
        assert_close(ends[1], ends[0], 1e-12, f"parameters after batches of {n_rows}")


def test_a_captured_run_is_the_same_to_the_bit_every_time(monkeypatch):
    draw = np.random.default_rng(0)
    X, y = draw.standard_normal((300, 50)).astype("float32"), draw.integers(0, 3, 300)
    ends = []
    steps = captured(monkeypatch, 2)
    for _ in range(5):
        layers = [Dense(100, "relu"), Dropout(0.4), Dense(70, "gelu"), Dense(3, "softmax")]
        network = Network(50, layers, device="cpu", dtype="float32")
        fit(network, X, y, loss="log_loss", epochs=4, batch_size=64, alpha=1e-3, verbose=0)
        ends.append(network.parameters.tobytes())
    assert len({*ends}) == 1
    assert sum(steps) == 5 * 4 * 5


@pytest.mark.parametrize("kind", ["uint8", "float64", "bool", "fortran", "reversed", "gaps"])
def test_rows_are_gathered_from_any_array(kind, monkeypatch):
    draw = np.random.default_rng(0)
    X = draw.integers(0, 2 if kind == "bool" else 9, (40, 6))
    X = {
        "fortran": lambda: np.asfortranarray(X, "float32"),
        "reversed": lambda: X.astype("float32")[::-1],
        "gaps": lambda: np.repeat(X.astype("float32"), 2, axis=1)[:, ::2],
    }.get(kind, lambda: X.astype(kind))()
    ends = []
    for on in (False, True):
        steps = captured(monkeypatch) if on else eagerly(monkeypatch)
        network = Network(6, [Dense(4, "relu"), Dense(1)], device="cpu", dtype="float32")
        fit(network, X, np.arange(40.0), loss="squared_error", epochs=1, batch_size=8, verbose=0)
        ends.append(network.parameters.copy())
    assert steps == [5]
    assert_close(ends[1], ends[0], 1e-5, kind)


DENORMAL = np.float32(1e-40)


def is_flushed():
    """Whether this thread takes denormal numbers for zero."""
    return bool(np.multiply(DENORMAL, np.float32(1.0)) == 0)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_denormal_numbers_are_zero_in_captured_steps_alone(n_threads, monkeypatch):
    assert not is_flushed()
    X = np.full((40, 3), 1e-20, "float32")
    y = np.full((40, 2), 1e-20, "float32")
    ends = []
    for on in (False, True):
        captured(monkeypatch, n_threads) if on else eagerly(monkeypatch)
        network = Network(3, [Dense(2, bias=False)], device="cpu", dtype="float32")
        network.parameters[...] = 0.0
        # A gradient of 1e-40 or so would move the weights by 1e-5.
        fit(network, X, y, loss="squared_error", optimizer=SGD(1e35), epochs=1, batch_size=8,
            verbose=0)  # fmt: skip
        ends.append(network.parameters.copy())
    eager, flushed = ends
    assert (abs(eager) > 1e-6).all()
    assert (flushed == 0).all()
    assert not is_flushed()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_denormal_operands_and_results_are_zero(dtype):
    tiny = np.finfo(dtype).tiny
    x, factor = np.array([[tiny / 4, tiny]], dtype), np.array([[1 / tiny, 0.25]], dtype)
    assert (x * factor != 0).all()
    (out,) = run_rule(RULES["multiply"], [x, factor], (1, 2), dtype)
    assert (out == 0).all()


def test_products_flush_denormal_numbers_on_every_thread():
    # So large that BLAS, if it may, takes several threads, which do not flush them.
    a, b, out = (
        np.full((64, 784), 1e-21, "f4"),
        np.full((784, 64), 1e-21, "f4"),
        np.ones((64, 64), "f4"),
    )
    assert (a @ b != 0).all()
    tape = capture.Tape()
    tape.matmul(a, b, out)
    capture.Captured([tape], 1)(1, 0, 0)
    assert (out == 0).all()


PROCESSORS = {
    "x86_64-unknown-linux-gnu": ("stmxcsr", "32832", "ldmxcsr"),
    "aarch64-unknown-linux-gnu": ("mrs", "0x1000000", "msr"),
}


@pytest.mark.parametrize("triple", PROCESSORS)
def test_machine_code_for_it_is_made_for_other_processors_too(triple, monkeypatch):
    monkeypatch.setattr(native, "_X86", "x86" in triple)
    monkeypatch.setattr(native, "_ARM", "aarch64" in triple)
    module = ir.Module()
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.IntType(64), []), "flush")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(native._flush(builder))
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    machine = binding.Target.from_triple(triple).create_target_machine()
    code = machine.emit_assembly(binding.parse_assembly(str(module))).lower()
    assert re.search("(?s)" + ".*".join(map(r"\b{}\b".format, PROCESSORS[triple])), code), code


def test_the_adapter_says_so_itself():
    for dtype in ("float32", "float64"):
        check_capture(xpmlp_numpy.NumpyBackend(), dtype)


def test_a_resumed_run_goes_on_where_a_long_one_would_be(monkeypatch):
    # The optimizer's steps are counted, whether captured or not.
    captured(monkeypatch)
    X, y = np.random.default_rng(0).standard_normal((100, 4)), np.arange(100) % 2
    options = {"hidden_layer_sizes": (8,), "batch_size": 10, "random_state": 0, "shuffle": False}
    model = MLPClassifier(**options)
    for _ in range(3):
        model.partial_fit(X, y, classes=[0, 1])
    assert model._optimizer_state.step == 30
    eagerly(monkeypatch)
    other = MLPClassifier(**options)
    for _ in range(3):
        other.partial_fit(X, y, classes=[0, 1])
    np.testing.assert_allclose(model.coefs_[0], other.coefs_[0], rtol=1e-10)


# --- Kernels --------------------------------------------------------------------------------------


def run_rule(rule, operands, shape, dtype, alias=False):
    """The results of a rule as one captured call."""
    outs = [np.full(shape, 7.0, dtype) for _ in range(n_results(rule))]
    if alias:
        outs = [np.array(x) for x in operands[: len(outs)]]
        operands = [*outs, *operands[len(outs) :]]
    tape = capture.Tape()
    tape.elementwise(rule)(tuple(outs), *operands)
    assert capture.Captured([tape], 1)(1, 0, 0) == 1
    return outs


@numba.njit
def flush():
    return native.flush_denormals()


@numba.njit
def restore(before):
    native.restore(before)


def assert_bits(rule, operands, shape, dtype, flushed=False, **options):
    """The results are NumPy's; with `flushed` those that it has when it flushes them."""
    functions = xpmlp_numpy.NumpyBackend().functions
    with np.errstate(all="ignore"):
        before = flush() if flushed else 0
        try:
            expected = rule(functions, *operands)
        finally:
            if flushed:
                restore(before)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for out, value in zip(
            run_rule(rule, operands, shape, dtype, **options), expected, strict=True
        ):
            value = np.broadcast_to(np.asarray(value, dtype), shape)
            if flushed:  # what is only chosen from may keep them
                tiny = np.finfo(dtype).tiny
                out, value = (np.where(abs(x) < tiny, np.copysign(0, x), x) for x in (out, value))
            np.testing.assert_array_equal(out, value)
            real = ~np.isnan(value)
            np.testing.assert_array_equal(np.signbit(out[real]), np.signbit(value[real]))


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.__name__)
def test_every_rule_is_numpys_to_the_bit(rule):
    dtype = "float32"
    for shape in ((1, 1), (5, 7), (3, 600)):
        assert_bits(rule, as_called(rule, shape, dtype), shape, dtype)
    for operands in edges(rule, dtype):
        operands = [np.ascontiguousarray(x) for x in operands]
        assert_bits(rule, operands, operands[0].shape, dtype, flushed=True)


@pytest.mark.parametrize("name", ["adam", "sigmoid", "gelu", "binary_focal", "tanh_backward"])
def test_rules_in_float64_and_in_place(name):
    rule = RULES[name]
    for dtype in ("float32", "float64"):
        operands = [np.ascontiguousarray(x) for x in all_arrays(rule, (4, 300), dtype)]
        assert_bits(rule, operands, (4, 300), dtype)
        assert_bits(rule, operands, (4, 300), dtype, alias=True)


def test_uniforms_are_numpys_to_the_bit():
    from xpmlp.rng import stream

    for shape in ((1, 1), (3, 5), (40, 33)):
        for threads in (1, 2, 3):
            address = stream(123456789, "dropout", epoch=0, batch=0, layer=2)
            out, expected = np.zeros(shape, "float32"), np.zeros(shape, "float32")
            tape = capture.Tape()
            tape.fill_uniform(out, address)
            capture.Captured([tape], threads)(1, 5, 9)
            there = stream(123456789, "dropout", epoch=5, batch=9, layer=2)
            xpmlp_numpy.NumpyBackend().fill_uniform(expected, there)
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_sums_keep_their_digits(dtype, n_threads):
    x = np.full(70_001, 0.1, dtype)
    x[0] = 1e4
    values = x.astype("float64").tolist()
    sums = {"total": math.fsum(values), "total_squares": math.fsum(v * v for v in values)}
    for name, expected in sums.items():
        out = np.zeros(())
        tape = capture.Tape()
        getattr(tape, name)(x, out)
        capture.Captured([tape], n_threads)(1, 0, 0)
        assert float(out) == pytest.approx(expected, rel=1e-12)


def test_numpys_own_loops_and_products_are_found():
    table, bits = native.blas()
    assert set(table) == {"float32", "float64"}
    assert bits in (32, 64)
    for ufunc in (np.exp, np.tanh):
        assert native.ufunc_loop(ufunc, "float32")[0]
    with pytest.raises(ValueError, match="not in list"):
        native.ufunc_loop(np.exp, "int64")


# --- When it is done, and when not ----------------------------------------------------------------


def short_run(layers=None, callbacks=(), backend=None, X=None, **options):
    X = np.random.default_rng(0).standard_normal((40, 3)) if X is None else X
    network = Network(3, layers or [Dense(4, "tanh"), Dense(1)], device="cpu", backend=backend)
    options = {"loss": "squared_error", "epochs": 2, "batch_size": 4, "verbose": 0} | options
    history = fit(network, X, np.arange(40.0), callbacks=[*callbacks], **options)
    return network, history


def test_only_long_runs_are_captured():
    from xpmlp_numpy import Recorder

    def capture(step, n_steps, work):
        recorder = Recorder(xpmlp_numpy.NumpyBackend())
        return recorder.capture(step, 2, n_steps, work)

    assert capture(None, 100, 1e6) is None
    assert capture(lambda i: None, 10**6, 1e6) is not None
    assert capture(lambda i: None, 100, 1e10) is not None


def test_what_the_user_wrote_in_python_is_run_in_python(monkeypatch):
    @dataclass(frozen=True)
    class Own(Tanh):
        def forward(self, backend, z, a, column):
            a[...] = np.tanh(z)

    @dataclass(frozen=True)
    class OwnLoss(SquaredError):
        def evaluate(self, backend, activation, prediction, y, elements, d, columns):
            elements[...] = (prediction - y) ** 2
            d[...] = 2 * (prediction - y)

    class OwnOptimizer(SGD):
        def apply(self, backend, theta, grad, state, numbers):
            theta -= 0.1 * grad

    steps = captured(monkeypatch)
    short_run([Dense(3, Own()), Dense(1)])
    short_run(loss=OwnLoss())
    short_run(optimizer=OwnOptimizer())
    assert steps == []


def test_a_rule_of_ones_own_is_captured_if_it_is_a_rule(monkeypatch, caplog):
    @dataclass(frozen=True)
    class Cubic(ReLU):
        name = "cubic"
        reads = "z"
        forward_rule = staticmethod(lambda xp, z: z * z * z)
        backward_rule = staticmethod(lambda xp, z, d: d * (3.0 * z * z))

    @dataclass(frozen=True)
    class Powered(Cubic):
        forward_rule = staticmethod(lambda xp, z: z**3)

    ends = []
    for activation, on in ((Cubic(), True), (Cubic(), False), (Powered(), True)):
        steps = captured(monkeypatch) if on else eagerly(monkeypatch)
        with caplog.at_level(logging.INFO, "xpmlp"):
            ends.append(short_run([Dense(3, activation), Dense(1)])[0].parameters.copy())
        if activation == Cubic() and on:
            assert steps
    assert steps == []
    assert "unsupported operand" in caplog.text
    for other in ends[1:]:
        np.testing.assert_allclose(other, ends[0], rtol=1e-12)


def test_a_rule_of_very_many_operands_is_not_captured(monkeypatch, caplog):
    def total(xp, z, *more):
        for number in more:
            z = z + number
        return z

    tape, out = capture.Tape(), np.zeros(3)
    tape.elementwise(total)((out,), out, *range(80))
    with pytest.raises(capture.CannotCapture, match="too many operands"):
        capture.Captured([tape], 1)


def test_numbers_that_a_class_of_ones_own_computes_are_not_frozen(monkeypatch, caplog):
    @dataclass(frozen=True)
    class Annealed(SquaredError):
        def params(self, eps):
            return ()

    steps = captured(monkeypatch)
    with caplog.at_level(logging.INFO, "xpmlp"):
        short_run(loss=Annealed())
    assert steps == []
    assert "params" in caplog.text


def test_without_a_numba_that_works_nothing_is_captured(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "numba", None)
    xpmlp_numpy.numba_works.cache_clear()
    steps = captured(monkeypatch)
    with caplog.at_level(logging.INFO, "xpmlp"):
        short_run()
    assert steps == []
    assert "Numba cannot be imported" in caplog.text
    xpmlp_numpy.numba_works.cache_clear()


def test_an_interrupt_before_the_steps_begin_leaves_no_thread_behind(monkeypatch):
    captured(monkeypatch, 2)
    run = capture._compiled_run()
    calls = []

    def interrupted(code, n, context, n_threads):
        calls.append(code)
        if threading.current_thread() is threading.main_thread() and len(calls) < 3:
            raise KeyboardInterrupt
        return run(code, n, context, n_threads)

    monkeypatch.setattr(capture, "_compiled_run", lambda: interrupted)
    with pytest.raises(KeyboardInterrupt):
        short_run(epochs=3)
    short_run(epochs=3)


def test_a_run_that_a_callback_has_kept_can_be_copied(monkeypatch):
    class Kept(Callback):
        def on_epoch(self, run):
            self.run = run

    captured(monkeypatch, 2)
    kept = Kept()
    short_run(callbacks=[kept])
    for again in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept.run._step))):
        assert again is not None


def test_an_adapter_derived_from_numpys_is_not_captured(monkeypatch):
    class Derived(xpmlp_numpy.NumpyBackend):
        pass

    steps = captured(monkeypatch)
    short_run(backend=Derived())
    assert steps == []
    short_run()
    assert steps


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_sparse_rows_are_captured_block_by_block(dtype, monkeypatch):
    from scipy import sparse

    X = sparse.csr_array(2 * np.random.default_rng(0).integers(0, 2, (40, 3)).astype(dtype))
    ends = []
    for most in (0, 100, 1 << 24):
        monkeypatch.setattr("xpmlp.step._MOVED_BYTES", most)
        steps = captured(monkeypatch) if most else eagerly(monkeypatch)
        network, _ = short_run(X=X, batch_size=4, epochs=2)
        ends.append(network.parameters.copy())
    assert steps == [10, 10]
    for end in ends:
        assert_close(end, ends[0], 1e-12, "parameters")
    assert (ends[1] == ends[2]).all()


def test_sparse_rows_of_a_wider_float_are_not_captured(monkeypatch):
    from scipy import sparse

    steps = captured(monkeypatch)
    short_run(X=sparse.csr_array(np.eye(40, 3)).astype(np.longdouble))
    assert steps == []


def test_a_callback_of_batches_sees_each(monkeypatch):
    class Batches(Callback):
        def __init__(self):
            self.seen, self.rows = [], 0

        def on_batch(self, run):
            self.seen.append((run.epoch, run.batch, run.batch_rows, run.batch_loss > 0))

        def on_progress(self, run, n_rows):
            self.rows += n_rows

    class Progress(Callback):
        rows = 0

        def on_progress(self, run, n_rows):
            self.rows += n_rows

    steps = captured(monkeypatch)
    singly, together = Batches(), Progress()
    short_run(callbacks=[singly], batch_size=16)
    assert steps == []
    assert singly.seen == [(e, b, n, True) for e in (0, 1) for b, n in enumerate((16, 16, 8))]
    short_run(callbacks=[together], batch_size=16)
    assert steps == [2, 1] * 2
    assert singly.rows == together.rows == 80


def test_the_first_objective_that_is_not_finite_ends_the_steps(monkeypatch):
    X = np.random.default_rng(0).standard_normal((40, 3))
    X[17] = 1e200  # in batch 5
    found = []
    for on in (False, True):
        steps = captured(monkeypatch) if on else eagerly(monkeypatch)
        network = Network(3, [Dense(4, "tanh"), Dense(1)], device="cpu")
        network.weights[1][...] *= 1e250
        with pytest.raises(NonFiniteLossError, match="epoch 1, batch 1 of 10"):
            fit(network, X, np.arange(40.0), loss="squared_error", epochs=2, batch_size=4,
                shuffle=False, verbose=0)  # fmt: skip
        found.append(network.parameters.tobytes())
        with pytest.raises(NonFiniteLossError, match="epoch 1, batch 5 of 10") as caught:
            short_run([Dense(4, "relu"), Dense(1)], X=X, shuffle=False, optimizer=Adam(1e-3))
        found.append(str(caught.value))
    assert found[:2] == found[2:]
    assert steps == [0, 4, 0]
    assert not is_flushed()


def test_steps_after_a_failure_count_from_where_it_was(monkeypatch):
    from xpmlp.data import Batches
    from xpmlp.step import Dataset, TrainingStep

    captured(monkeypatch)
    X, y = np.ones((12, 2)), np.ones(12)
    X[8:] = 1e200
    network = Network(2, [Dense(1)], device="cpu")
    step = TrainingStep(network, Adam(), 4, Dataset(network, X, y, None, SquaredError()), 0.0)
    losses = np.zeros(3)
    order = Batches(network.backend, 12, 4).order(0)
    assert step.replay(order, 4, 0, 0, losses) == 2
    assert step.state.step == 2
    assert np.isfinite(losses[:2]).all()


@pytest.mark.parametrize("n_threads", [1, 2])
def test_two_fits_in_two_threads_do_not_mix(n_threads, monkeypatch):
    captured(monkeypatch, n_threads)
    threads = capture._blas.max_threads()
    expected = [short_run(epochs=30, shuffle=bool(i))[0].parameters.tobytes() for i in (0, 1)]
    found = [None, None]

    def work(i):
        for _ in range(10):
            found[i] = short_run(epochs=30, shuffle=bool(i))[0].parameters.tobytes()

    workers = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == expected
    assert blas_threads.max_threads() == threads  # BLAS has its own back


def test_blas_has_its_threads_back_when_the_last_has_left():
    before = blas_threads.max_threads()
    with capture._blas:
        with capture._blas:
            assert blas_threads.max_threads() == 1
        assert blas_threads.max_threads() == 1
        assert capture._blas.max_threads() == before
    assert blas_threads.max_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_copy_of_the_process_does_not_wait_for_a_fit_of_the_original():
    before = blas_threads.max_threads()
    with capture._turn, capture._blas:
        child = os.fork()
        if not child:  # no exception may leave it
            free = capture._turn.acquire(blocking=False) and blas_threads.max_threads() == before
            os._exit(0 if free and capture._blas.max_threads() == before else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert blas_threads.max_threads() == before


# --- The folder of compiled code ------------------------------------------------------------------

IN_A_PROCESS = """
import sys, warnings
import numpy as np, xpmlp_numpy
from xpmlp import Dense, Network, fit
xpmlp_numpy.SECONDS_TO_CAPTURE = 0.0
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    network = Network(3, [Dense(2, "relu"), Dense(1)], device="cpu")
    for _ in range(2):
        fit(network, np.ones((40, 3)), np.ones(40), loss="squared_error", epochs=1, verbose=0)
print(len(caught), *(str(w.message)[:40] for w in caught))
"""


def in_a_process(folder):
    environment = os.environ | {
        "XPMLP_CACHE_DIR": str(folder),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS], env=environment, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip


def test_what_is_compiled_is_kept(tmp_path):
    assert in_a_process(tmp_path / "new").split() == ["0"]
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*.nbc")}
    assert len(first) > 5
    assert in_a_process(tmp_path / "new").split() == ["0"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "new").rglob("*.nbc")} == first


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    assert in_a_process(tmp_path / "file" / "below").startswith("1 compiled code cannot be kept in")


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_damaged_code_is_compiled_anew(suffix, tmp_path):
    in_a_process(tmp_path)
    damaged = [*tmp_path.rglob(f"*{suffix}")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:20] if suffix == ".nbc" else b"")
    assert in_a_process(tmp_path).split() == ["0"]
    assert all(path.stat().st_size > 20 for path in damaged)


def test_a_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XPMLP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 12345, raising=False)
    kernels.cache_folder.cache_clear()
    monkeypatch.setattr(kernels, "_WARNED", set())
    with pytest.warns(UserWarning, match="belongs to somebody else"):
        assert kernels.cache_folder() is None
    kernels.cache_folder.cache_clear()


def test_a_source_of_another_version_has_another_file(monkeypatch):
    source = kernels.finite_source("float64")
    first = kernels._file(source)
    kernels._file.cache_clear()
    monkeypatch.setattr(kernels.numba, "__version__", "0.0")
    assert kernels._file(source) != first
    kernels._file.cache_clear()
