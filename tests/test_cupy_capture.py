"""Steps captured as CUDA graphs are the steps run one primitive at a time, to the bit.

Streams, graphs and cublasLt are acted out, and kernels run on the CPU: no GPU is needed. What this
cannot show: races within a graph, and what CUDA itself refuses to capture.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from cuda_shim import no_compiler

from xpmlp import Dense, Dropout, Network, NonFiniteLossError, fit, rules
from xpmlp.activations import ReLU
from xpmlp.callbacks import Callback
from xpmlp.optimizers import Adam
from xpmlp.rng import Stream
from xpmlp.tape import CannotCapture, StepTape
from xpmlp.testing import check_capture
from xpmlp.verify import cases, sample

pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'xpmlp[kernels]'")

import xpmlp_cupy
from cuda_shim.adapter import EmulatedBackend
from cuda_shim.emulator import DeviceArray
from cuda_shim.nvrtc import cubin, no_nvrtc
from xpmlp_cupy import CupyBackend, capture, fused
from xpmlp_cupy.gather import Gather
from xpmlp_cupy.kernels import OPTIONS
from xpmlp_cupy.lowering import Single, rounded_once
from xpmlp_cupy.staging import Staging

EAGER, CAPTURED = 10**9, 0
PRECISIONS = ("ieee", "tf32", "bfloat16")
KINDS = ("uint8", "float32", "sparse")
CASES = {case.name: case for case in cases()}
ROUNDED = next(iter(CASES))


@contextlib.contextmanager
def steps_from(number):
    """Runs of so many steps are captured."""
    before = xpmlp_cupy.STEPS_TO_CAPTURE
    xpmlp_cupy.STEPS_TO_CAPTURE = number
    try:
        yield
    finally:
        xpmlp_cupy.STEPS_TO_CAPTURE = before


@contextlib.contextmanager
def counted_by_64_bits():
    """Elements of arrays of any size."""
    before = fused._LONG
    fused._LONG = 0
    try:
        yield
    finally:
        fused._LONG = before


@contextlib.contextmanager
def noted():
    """What is captured meanwhile."""
    made, original = [], capture.Captured

    class Noted(original):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    capture.Captured = Noted
    try:
        yield made
    finally:
        capture.Captured = original


def train(backend, name, dtype, precision="ieee", epochs=3):
    """Losses and parameters of a run with a smaller last batch, weights and all."""
    case = CASES[name]
    X, y, weight = (None if x is None else x.astype(dtype) for x in sample(case))
    y = y.astype("int64") if case.labels else y
    network = Network(X.shape[1], case.layers, backend=backend, dtype=dtype, seed=3,
                      precision=precision)  # fmt: skip
    # One of the cases takes a rate for a probability.
    warnings.filterwarnings("ignore", "log_loss takes the outputs as probabilities")
    history = fit(
        network, X, y, loss=case.loss, optimizer=case.optimizer, epochs=epochs, batch_size=16,
        sample_weight=weight, validation=(X, y), verbose=0, **case.options,
    )  # fmt: skip
    ends = history["loss"] + history["val_loss"]
    return np.array(ends), backend.to_host(network.parameters)


def digits(backend, epochs=2, batch_size=128, n=600, callbacks=(), X=None, layers=None,
           precision="ieee", **options):  # fmt: skip
    """A classifier of the shape of the benchmark's smallest."""
    draw = np.random.default_rng(0)
    X = draw.standard_normal((n, 20)).astype("float32") if X is None else X
    y = draw.integers(0, 10, X.shape[0])
    layers = layers or [Dense(24, "relu"), Dense(12, "relu"), Dense(10, "softmax")]
    network = Network(X.shape[1], layers, backend=backend, dtype="float32", seed=1,
                      precision=precision)  # fmt: skip
    options = {"loss": "log_loss", "optimizer": "adam"} | options
    history = fit(network, X, y, epochs=epochs, batch_size=batch_size, verbose=0,
                  callbacks=[*callbacks], **options)  # fmt: skip
    return network, history


MASKED = [Dense(24, "gelu"), Dropout(0.4), Dense(12, "tanh"), Dense(10, "softmax")]
RELU_MASKED = [Dense(24, "relu"), *MASKED[1:]]
LINEAR = [Dense(24, "identity"), Dense(12, "tanh"), Dense(10, "softmax")]
# The third bias stands 4 bytes beside a multiple of 16.
BIASED = [Dense(24, "relu"), Dense(9, "relu"), Dense(12, "relu"), Dense(10, "softmax")]


def large_batches(backend):
    """Steps of which several blocks bring the row numbers."""
    return digits(backend, batch_size=400, n=1300)


def long_run(backend):
    """A run of many steps, on the way of both graphs, with masks, penalties and limits."""
    return digits(backend, epochs=3, batch_size=8, n=300, layers=MASKED, alpha=1e-3, l1=1e-4,
                  clip_norm=1.0, clip_value=0.5)  # fmt: skip


def focal(backend):
    """A run with sums of rows."""
    return digits(backend, loss="focal")


def pixels(kind):
    """Samples of a dtype, or sparse ones."""
    X = np.random.default_rng(0).integers(0, 3, (300, 20))
    if kind != "sparse":
        return X.astype(kind)
    from scipy import sparse

    return sparse.csr_array(X.astype("float32"))


def with_memory(backend, free, kind, **options):
    """A run on a device that has so much memory left."""
    before, backend.free = backend.free, free
    try:
        return digits(backend, X=pixels(kind), **options)
    finally:
        backend.free = before


def everything(backend):
    """All that these tests run, so that its kernels can be compiled together."""
    for threshold in (EAGER, CAPTURED):
        with steps_from(threshold):
            for name in CASES:
                for dtype in ("float32", "float64"):
                    with contextlib.suppress(NonFiniteLossError):
                        train(backend, name, dtype)
            for precision in ("tf32", "bfloat16"):
                with contextlib.suppress(NonFiniteLossError):
                    train(backend, ROUNDED, "float32", precision)
            runs = [partial(digits, precision=name, layers=BIASED) for name in PRECISIONS]
            runs += [partial(digits, layers=layers) for layers in (LINEAR, RELU_MASKED)]
            runs += [digits, long_run, large_batches, focal, partial(digits, X=pixels("uint8"))]
            runs += [partial(with_memory, free=1000, kind=kind) for kind in KINDS]
            for run in runs:
                with contextlib.suppress(NonFiniteLossError):
                    run(backend)
            with contextlib.suppress(NonFiniteLossError), counted_by_64_bits():
                long_run(backend)
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


# --- The same result ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_every_part_of_the_library_trains_the_same_when_captured(backend, name, dtype, caplog):
    ends = []
    for threshold in (EAGER, CAPTURED):
        with steps_from(threshold):
            ends.append(train(backend, name, dtype))
    assert not caplog.records
    # Full batches, one by one or many at once, and the rest, in three epochs.
    many, one = divmod(CASES[name].n_samples // 16, capture.STEPS_OF_A_GRAPH)
    launches = [one, *([many] if many else []), 1]
    assert [graph.launches for graph in backend.cupy.cuda.graphs] == [3 * n for n in launches]
    for eager, captured in zip(*ends, strict=True):
        np.testing.assert_array_equal(captured, eager)


def test_many_steps_of_one_graph_are_the_steps(backend, caplog):
    ends = []
    for threshold in (EAGER, CAPTURED):
        with steps_from(threshold), noted() as made:
            network, history = long_run(backend)
            ends.append((network.parameters.copy(), history["loss"]))
    assert not caplog.records
    np.testing.assert_array_equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    one, many, rest = backend.cupy.cuda.graphs
    # 37 batches of eight and one of four in three epochs.
    assert many.launches * capture.STEPS_OF_A_GRAPH + one.launches == 3 * 37
    assert many.launches == 6
    assert rest.launches == 3
    full, last = made
    assert len(one.nodes) == full.n_nodes
    assert len(many.nodes) == capture.STEPS_OF_A_GRAPH * full.n_nodes
    assert len(rest.nodes) == last.n_nodes == full.n_nodes


def test_several_blocks_bring_what_a_step_reads(backend, caplog):
    with steps_from(EAGER):
        expected = large_batches(backend)[0].parameters
    with steps_from(CAPTURED), noted() as made:
        got = large_batches(backend)[0].parameters
    assert [one._staging._n_blocks for one in made] == [4, 1]  # 400 and 100 numbers of two words
    assert not caplog.records
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_rounded_products_are_captured_too(backend, precision, caplog):
    ends = []
    for threshold in (EAGER, CAPTURED):
        with steps_from(threshold):
            ends.append(train(backend, ROUNDED, "float32", precision))
    assert not caplog.records
    launches = [graph.launches for graph in backend.cupy.cuda.graphs]
    assert [n for n in launches if n != 2] == [9, 3]  # twice where products were timed
    for eager, captured in zip(*ends, strict=True):
        np.testing.assert_array_equal(captured, eager)


def test_very_large_arrays_are_counted_by_64_bits(backend, caplog):
    with steps_from(EAGER):
        expected = long_run(backend)[0].parameters
    with steps_from(CAPTURED), counted_by_64_bits():
        got = long_run(backend)[0].parameters
    assert not caplog.records
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_adapter_says_so_itself(backend, dtype):
    check_capture(backend, dtype)
    assert backend.cupy.cuda.graphs


# --- How much there is to launch ------------------------------------------------------------------


def captured_by(backend, n=256, batch_size=128, **options):
    """The captured steps of a run that computes nothing, those on full batches first.

    Products add no biases there.
    """
    backend.lt.epilogues.clear()
    with backend.cupy.recording(), steps_from(CAPTURED), noted() as made:
        digits(backend, n=n, batch_size=batch_size, **options)
    return made


def names(captured):
    """What each node of a step does."""
    found = []
    for one in captured.work:
        if isinstance(one, Single):
            found.append(one.name)
            continue
        if isinstance(one, Gather):
            found.append("gather+bfloat16" if one.rounded else "gather")
            continue
        ends = ["total"] if one.total else [], ["sum_columns"] if one.columns else []
        made = [applied.rule.__name__ for applied in one.rules]
        found.append("+".join([*ends[0], *made, *ends[1]]))
    return found


def test_a_step_is_few_nodes():
    layers = [Dense(256, "relu"), Dense(128, "relu"), Dense(10, "softmax")]
    (captured,) = captured_by(EmulatedBackend(), layers=layers)
    forward = [
        "gather", "matmul", "add+relu", "matmul", "add+relu", "matmul",
        "add+one_hot", "softmax_log_loss", "total+multiply+same+where_finite+same",
    ]  # fmt: skip
    backward = [
        "multiply+sum_columns", "matmul", "matmul", "relu_backward+sum_columns", "matmul",
        "matmul", "relu_backward+sum_columns", "matmul", "gate+adam",
    ]  # fmt: skip
    assert names(captured) == [*forward, *backward]
    assert captured.n_nodes == 19  # and one that goes on to the next step
    assert len(captured._one.nodes) == 8  # products; kernels are only recorded here


def test_a_matrix_is_rounded_once_for_all_its_products():
    layers = [Dense(256, "relu"), Dense(128, "relu"), Dense(10, "softmax")]
    (captured,) = captured_by(EmulatedBackend(), layers=layers, precision="bfloat16")
    # Of each layer what goes in, its weights and the derivative behind it, for eight products;
    # what a kernel writes it rounds itself.
    rounding = [name for name in names(captured) if "bfloat16" in name]
    assert rounding == [
        "gather+bfloat16",
        *["to_bfloat16", "add+relu+to_bfloat16"] * 2, "to_bfloat16",
        "multiply+to_bfloat16+sum_columns", *["relu_backward+to_bfloat16+sum_columns"] * 2,
    ]  # fmt: skip
    assert captured.n_nodes == 19 + 3


def test_a_matrix_that_is_written_is_rounded_again(recorded):
    x, w, out = (recorded.zeros((4, 4), "float32") for _ in range(3))
    part, other = w[:2, :], recorded.zeros((2, 4), "float32")
    calls = [
        ("matmul", (x, w, out)), ("matmul", (x.T, w, out)), ("copy", (other, part)),
        ("matmul", (x, w, out)), ("matmul", (w, out, x)), ("matmul", (x, w, out)),
    ]  # fmt: skip
    found = rounded_once(calls, recorded.zeros)
    named = {x.data.ptr: "x", w.data.ptr: "w", out.data.ptr: "out"}
    rounded = [named[given[0].data.ptr] for name, given in found if name == "round"]
    assert rounded == ["x", "w", "w", "out", "x"]
    assert [name for name, _ in found if name != "round"] == [name for name, _ in calls]


def test_penalties_and_limits_are_few_nodes_more():
    (captured,) = captured_by(EmulatedBackend(), alpha=0.1, l1=0.1, clip_norm=1.0, clip_value=1.0,
                              optimizer=Adam(weight_decay=0.1))  # fmt: skip
    assert names(captured)[-3:] == [
        "add_l2_gradient+add_l1_gradient+gate+clip",
        "total+clip_norm_factor+same",
        "multiply+multiply+adam",  # by the factor of the limit, and by the decay
    ]
    assert captured.n_nodes == 24


def test_an_update_with_penalty_and_decay_is_one_kernel():
    options = {"alpha": 0.1, "optimizer": Adam(weight_decay=0.1)}
    (captured,) = captured_by(EmulatedBackend(), **options)
    assert names(captured)[-1] == "add_l2_gradient+gate+multiply+adam"


# --- Products that do more ------------------------------------------------------------------------

DEFAULT, BIAS, RELU_BIAS = 1, 4, 6


def biased(backend, layers=BIASED, precision="ieee", **options):
    """What the products of the last captured step did, in order, and the parameters."""
    with steps_from(CAPTURED), noted() as made:
        parameters = digits(backend, n=512, layers=layers, precision=precision, **options)[0]
    (captured,) = made
    n = sum(isinstance(one, Single) and one.name == "matmul" for one in captured.work)
    done = [one.epilogue for one in backend.lt.products[-n:]]
    return done, backend.to_host(parameters.parameters), captured


@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_add_the_bias_behind_them(backend, precision, caplog):
    with steps_from(EAGER):
        expected = digits(backend, n=512, layers=BIASED, precision=precision)[0].parameters
    backend.lt.products.clear()
    done, got, captured = biased(backend, precision=precision)
    assert done == [RELU_BIAS, RELU_BIAS, DEFAULT, DEFAULT, *[DEFAULT] * 7]
    # Four weights are rounded apart, and what the two products with a bias have written.
    assert captured.n_nodes == len(captured.work) + 1 == 22 + 6 * (precision == "bfloat16")
    assert not caplog.records
    np.testing.assert_array_equal(got, expected)


def test_a_step_is_fewer_nodes_where_products_add_biases(backend):
    layers = [Dense(256, "relu"), Dense(128, "relu"), Dense(10, "softmax")]
    *_, captured = biased(backend, layers=layers)
    assert (captured.n_nodes, captured.n_biases) == (17, 2)


def test_a_bias_alone_is_added_too(backend):
    done, *_ = biased(backend, layers=LINEAR)
    assert done[:3] == [BIAS, DEFAULT, DEFAULT]


@pytest.mark.parametrize("fault", ["refuses", "fails", "drops NaN", "rounds"])
def test_an_algorithm_whose_bits_differ_adds_no_bias(backend, fault, monkeypatch, caplog):
    with steps_from(EAGER):
        expected = digits(backend, n=512, layers=BIASED)[0].parameters
    if fault == "refuses":
        monkeypatch.setattr(backend.lt, "epilogues", {BIAS})
    else:
        monkeypatch.setattr(backend.lt, "fault", fault)
    backend._products._with_biases.clear()
    done, got, _ = biased(backend)
    assert set(done) == {DEFAULT}
    assert not caplog.records
    np.testing.assert_array_equal(got, expected)


# --- What does not wait ---------------------------------------------------------------------------


class Waits(Callback):
    """How often the host has waited for the device by the end of each piece of an epoch."""

    def __init__(self, cuda):
        self.cuda, self.inside, self.between = cuda, [], [0]

    def count(self):
        return sum(self.cuda.calls.values()) + DeviceArray.asked

    def on_progress(self, run, n_rows):
        self.inside.append(self.count() - self.between[-1])

    def on_epoch(self, run):
        self.between.append(self.count())


@pytest.mark.parametrize("threshold", [EAGER, CAPTURED])
def test_the_host_waits_for_nothing_inside_an_epoch(backend, threshold):
    waits = Waits(backend.cupy.cuda)
    waits.between = [waits.count()]
    with steps_from(threshold):
        digits(backend, epochs=4, batch_size=8, n=300, layers=RELU_MASKED,
               callbacks=[waits])  # fmt: skip
    assert len(waits.inside) >= 4 * 2
    # But when a graph is made, for full and for smaller batches: whether a bias is added alike.
    looks = 2 * (threshold == CAPTURED)
    assert [*waits.inside[:2], *set(waits.inside[2:])] == [looks / 2, looks, 0]
    # The losses of the epoch are moved, and the sum of the parameters is looked at.
    first, *others = np.diff(waits.between)
    assert {first - looks, *others} <= {2, 3}


# --- When it is done, and when not ----------------------------------------------------------------


def test_only_runs_of_many_steps_are_captured():
    backend = EmulatedBackend()
    with backend.cupy.recording(), steps_from(100):
        digits(backend, epochs=19)  # of 5 batches
        assert not backend.cupy.cuda.graphs
        digits(backend, epochs=20)
        assert backend.cupy.cuda.graphs


def assert_eager(backend, caplog, reason, **options):
    """One line says why, nothing was captured, and the run is that of single steps."""
    with steps_from(EAGER):
        expected = digits(backend, **options)[0].parameters
    assert not caplog.records
    with steps_from(CAPTURED):
        got = digits(backend, **options)[0].parameters
    np.testing.assert_array_equal(got, expected)
    lines = [record for record in caplog.records if reason in record.getMessage()]
    assert lines
    assert len(caplog.records) == len(lines) <= 2  # for full and for smaller batches
    assert all(record.levelname == "INFO" for record in lines)
    assert not any(graph.launches for graph in backend.cupy.cuda.graphs)
    assert backend.cupy.cuda.taking is None
    assert not backend.cupy.cuda.entered


def test_a_capture_that_cuda_breaks_off_changes_nothing(backend, caplog):
    backend.cupy.cuda.broken = True
    assert_eager(backend, caplog, "cudaErrorStreamCaptureInvalidated")


def test_an_error_inside_a_capture_ends_it(backend, caplog, monkeypatch):
    original = backend.cupy.cuda.run
    streams = []

    def run(work):
        if backend.cupy.cuda.taking is not None and len(backend.cupy.cuda.taking) == 5:
            streams.append(backend.cupy.cuda.get_current_stream())
            raise RuntimeError("not permitted when stream is capturing")
        original(work)

    monkeypatch.setattr(backend.cupy.cuda, "run", run)
    assert_eager(backend, caplog, "not permitted when stream is capturing")
    assert streams
    assert all(stream.taken is None for stream in streams)


def test_products_that_cublaslt_does_not_compute_are_not_captured(backend, caplog, monkeypatch):
    monkeypatch.setattr(backend._products, "_library", None)
    assert_eager(backend, caplog, "that cublasLt does not compute")


def test_what_allocates_is_not_captured(backend, caplog, monkeypatch):
    monkeypatch.setattr(backend._reductions, "sum_rows", lambda x, out: False)
    assert_eager(backend, caplog, "a step that allocates", loss="focal")


def test_a_rule_that_cannot_be_compiled_is_not_captured(backend, caplog):
    @dataclass(frozen=True)
    class Powered(ReLU):
        name = "powered"
        reads = "z"
        forward_rule = staticmethod(lambda xp, z: z**2)
        backward_rule = staticmethod(lambda xp, z, d: 2.0 * z * d)

    layers = [Dense(24, Powered()), Dense(12, "relu"), Dense(10, "softmax")]
    with backend.cupy.recording(), steps_from(CAPTURED):
        digits(backend, layers=layers)
    assert "unsupported operand" in caplog.text
    assert not backend.cupy.cuda.graphs


def test_losses_that_are_not_finite_end_a_captured_run(backend):
    X = np.full((300, 20), 1e30, "float32")
    ends = []
    for threshold in (EAGER, CAPTURED):
        with steps_from(threshold), pytest.raises(NonFiniteLossError) as caught:
            digits(backend, X=X, optimizer=Adam(learning_rate=1e30))
        ends.append(str(caught.value))
    assert ends[0] == ends[1]
    assert backend.cupy.cuda.graphs


def test_an_adapter_derived_from_this_one_is_not_captured():
    class Derived(CupyBackend):
        def __init__(self):
            pass

    derived = Derived()
    assert derived.recordable() is derived
    own = object.__new__(CupyBackend)
    assert isinstance(own.recordable(), xpmlp_cupy.Recorder)


# --- What moves from step to step -----------------------------------------------------------------


def test_what_moves_is_given_a_place_and_neighbours_are_one(recorded):
    backend = recorded
    numbers, rows = backend.zeros((4, 3), "float32"), backend.zeros((20,), "int64")
    values, x = backend.zeros((4,), "float64"), backend.zeros((9, 5), "float32")
    out, total = backend.zeros((5, 5), "float32"), backend.zeros((), "float64")

    def step(i, backend):
        backend.take_rows(x, rows[5 * i : 5 * i + 5], out)
        backend.elementwise(rules.add)((out,), out, numbers[i, 2, ...])
        backend.elementwise(rules.multiply)((out,), out, numbers[i, 1, ...])
        backend.copy(total, values[i, ...])

    tapes = [StepTape(backend) for _ in range(2)]
    for i, tape in enumerate(tapes):
        step(i, tape)
    staging = Staging(backend, tapes, 4)
    pieces = [(piece.advance, piece.enters, piece.memory.size) for piece in staging.pieces]
    assert sorted(pieces) == [(8, False, 8), (12, True, 8), (40, True, 40)]
    (_, (_, indices, _)), (_, add), (_, multiply), (_, (_, value)) = staging.calls
    assert indices.shape == (5,)
    assert indices.dtype == "int64"
    assert add[-1].data.ptr - multiply[-1].data.ptr == 4
    assert value.shape == ()
    assert add[2] is add[3] is out


@pytest.mark.parametrize("step", [
    lambda tape, i, x: tape.elementwise(rules.add)((x,), x, float(i)),
    lambda tape, i, x: tape.elementwise((rules.add, rules.multiply)[i])((x,), x, x),
    lambda tape, i, x: tape.fill_uniform(x, Stream(0, i)),
    lambda tape, i, x: tape.fill_uniform(x, Stream(0, 5)),
    lambda tape, i, x: tape.total(x[: 2 + i], x[0, 0, ...]),
    lambda tape, i, x: i and tape.copy(x, x),
    lambda tape, i, x: tape.copy(x[:, i], x[:, 2]),
    lambda tape, i, x: tape.elementwise(rules.add)((x[i],), x[i], 1.0),
])  # fmt: skip
def test_steps_that_differ_in_another_way_are_refused(recorded, step):
    x = recorded.zeros((4, 3), "float32")
    tapes = [StepTape(recorded) for _ in range(2)]
    for i, tape in enumerate(tapes):
        step(tape, i, x)
    with pytest.raises(CannotCapture):
        Staging(recorded, tapes, 2)


# --- For GPUs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_kernel_of_a_captured_step_compiles(recorded, arch):
    reason = no_nvrtc()
    if reason:
        pytest.skip(reason)
    sources = recorded.cupy.sources
    made = {name for _, name in sources}
    assert made >= {"xpmlp_advance", "xpmlp_gather", "xpmlp_fill_uniform_of_step", "xpmlp_add_relu",
                    "xpmlp_relu_backward_sum_columns", "xpmlp_gate_adam"}  # fmt: skip
    binary = cubin(sources, arch, OPTIONS)
    assert binary.startswith(b"\x7fELF")
    for name in made:
        assert name.encode() in binary


# --- Data in host memory --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_data_that_stays_on_the_host_gives_the_same_run(backend, kind, caplog):
    ends = []
    for threshold, free in [(CAPTURED, 1 << 20), (EAGER, 1 << 20), (EAGER, 1000), (CAPTURED, 1000)]:
        caplog.clear()
        backend.cupy.cuda.graphs.clear()
        with steps_from(threshold):
            network, _ = with_memory(backend, free, kind, batch_size=32, epochs=3)
        ends.append(network.parameters)
        assert ("X stays in host memory" in caplog.text) == (free == 1000 and kind != "sparse")
        assert "one primitive at a time" not in caplog.text
        assert bool(backend.cupy.cuda.graphs) == (threshold == CAPTURED)
    for end in ends:
        np.testing.assert_array_equal(end, ends[0])
    lanes = backend._load_rows._lanes
    assert {lane.host.dtype.name for lane in lanes.values()} >= {pixels(kind).dtype.name}
    assert len(lanes) <= 4


@pytest.mark.parametrize("threshold", [EAGER, CAPTURED])
def test_the_host_waits_for_pinned_memory_alone(backend, threshold):
    with steps_from(threshold):
        with_memory(backend, 1000, "uint8", layers=MASKED)
    # Two epochs end with two looks each. Their six batches, and in captured runs the two that are
    # tried, wait for the last but one before them to have left its buffer.
    calls = backend.cupy.cuda.calls
    assert calls["read"] + calls["to_host"] <= 6
    assert calls["synchronize"] in (4, 6)


def test_many_steps_are_moved_at_once(backend, monkeypatch):
    moved = []
    original = backend.load_rows
    monkeypatch.setattr(backend, "load_rows", lambda x, rows, out: (
        moved.append(out.shape[0]), original(x, rows, out)))  # fmt: skip
    for most, expected in ((1 << 23, [296, 4]), (64 * 20, [64] * 4 + [40, 4])):
        monkeypatch.setattr("xpmlp.step._MOVED_BYTES", most)
        moved.clear()
        with steps_from(CAPTURED):
            with_memory(backend, 1000, "uint8", batch_size=8, epochs=3)
        assert moved[-len(expected) :] == expected
