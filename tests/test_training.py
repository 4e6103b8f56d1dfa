"""The training loop: batches, validation, history, callbacks, early ends, errors."""

import os
import signal
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from optional import optional

from xpmlp import (
    Callback,
    Dense,
    Dropout,
    EarlyStopping,
    Network,
    NonFiniteLossError,
    TrainingInterruptedWarning,
    fit,
    get_backend,
)
from xpmlp.data import Batches, shuffled
from xpmlp.losses import SquaredError
from xpmlp.optimizers import SGD, Adam
from xpmlp.schedules import Cosine
from xpmlp.step import Dataset, TrainingStep
from xpmlp.training import Run

sparse = optional("scipy.sparse")

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((50, 3))
Y = np.stack([X.sum(axis=1), X[:, 0] * X[:, 1]], axis=1)


def make(backend, *layers, **options):
    return Network(3, [*(layers or [Dense(8, "tanh")]), Dense(2)], backend=backend, **options)


def train(network, **options):
    options = {"loss": "squared_error", "epochs": 3, "batch_size": 8, "verbose": 0, **options}
    X_given, y_given = options.pop("X", X), options.pop("y", Y)
    return fit(network, X_given, y_given, **options)


def parameters(network):
    return network.backend.to_host(network.parameters).copy()


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def on_start(self, run):
        self.calls.append("start")

    def on_batch(self, run):
        self.calls.append((run.epoch, run.batch, run.batch_rows, run.batch_loss))

    def on_epoch(self, run):
        self.calls.append("epoch")

    def on_end(self, run):
        self.calls.append("end")


@pytest.mark.parametrize(
    ("batch_size", "rows"),
    [(1, [1] * 50), (8, [8] * 6 + [2]), (25, [25, 25]), (50, [50]), (99, [50]), (None, [50])],
)
def test_an_epoch_keeps_its_last_partial_batch(backend, batch_size, rows):
    recorder = Recorder()
    train(make(backend), epochs=1, batch_size=batch_size, callbacks=[recorder])
    steps = [call for call in recorder.calls if isinstance(call, tuple)]
    assert [step[2] for step in steps] == rows
    assert [step[1] for step in steps] == list(range(len(rows)))


def test_hooks_come_in_order_and_the_loss_is_the_mean_of_the_batches(backend):
    recorder = Recorder()
    history = train(make(backend), epochs=2, batch_size=20, callbacks=[recorder])
    kinds = [call if isinstance(call, str) else "batch" for call in recorder.calls]
    assert kinds == ["start", *["batch"] * 3, "epoch", *["batch"] * 3, "epoch", "end"]
    steps = [call for call in recorder.calls if isinstance(call, tuple)]
    first = sum(rows * loss for epoch, _, rows, loss in steps if epoch == 0) / 50
    assert history["loss"][0] == pytest.approx(first, rel=1e-12)


def test_one_full_batch_step_is_gradient_descent(backend):
    network = make(backend)
    before = parameters(network)
    _, gradient = network.loss_and_grad(X, Y, "squared_error", alpha=0.1)
    train(network, epochs=1, batch_size=None, optimizer=SGD(learning_rate=0.5), alpha=0.1)
    expected = before - 0.5 * backend.to_host(gradient.flat)
    np.testing.assert_allclose(parameters(network), expected, rtol=1e-12, atol=1e-14)


def test_loss_falls_and_the_same_seed_gives_the_same_run_to_the_bit(backend):
    layers, tuned = (Dense(8, "relu"), Dropout(0.2)), Adam(learning_rate=0.01)
    runs = []
    for _ in range(2):
        network = make(backend, *layers, seed=3)
        runs.append((train(network, epochs=10, optimizer=tuned).to_dict(), parameters(network)))
    assert runs[0][0]["loss"][-1] < runs[0][0]["loss"][0] / 2
    assert runs[0][0] == runs[1][0]
    np.testing.assert_array_equal(runs[0][1], runs[1][1])


def test_backends_agree():
    from conftest import BACKENDS

    ends = {}
    for name, backend in BACKENDS.items():
        network = make(backend, Dense(8, "relu"), Dropout(0.2), seed=3)
        train(network, epochs=5, alpha=1e-3)
        ends[name] = parameters(network)
    for end in ends.values():
        np.testing.assert_allclose(end, ends["numpy"], rtol=1e-9, atol=1e-11)


def test_validation_loss_is_that_of_the_data_without_penalty_and_dropout(backend):
    network = make(backend, Dense(8, "relu"), Dropout(0.4))
    weight = DRAW.uniform(0.5, 2.0, 50)
    history = train(network, validation=(X, Y, weight), alpha=0.3)
    loss = 0.5 * ((network.predict(X) - Y) ** 2).sum(axis=1)
    assert history["val_loss"][-1] == pytest.approx(np.average(loss, weights=weight), rel=1e-12)


def test_validation_in_several_blocks(backend, monkeypatch):
    monkeypatch.setattr("xpmlp.step._EVALUATE_ROWS", 7)
    network = make(backend)
    history = train(network, validation=(X, Y))
    loss = 0.5 * ((network.predict(X) - Y) ** 2).sum(axis=1)
    assert history["val_loss"][-1] == pytest.approx(loss.mean(), rel=1e-12)


def test_metrics_by_name_and_by_function(backend):
    pytest.importorskip("sklearn")
    from sklearn.metrics import max_error, r2_score

    def worst(y_true, y_pred):
        return max_error(y_true.ravel(), y_pred.ravel())

    network = make(backend)
    history = train(network, metrics=["r2", "root_mean_squared_error", worst])
    predicted = network.predict(X)
    assert history["r2"][-1] == pytest.approx(r2_score(Y, predicted))
    assert history["worst"][-1] == pytest.approx(np.abs(predicted - Y).max())
    assert list(train(network, metrics=["r2"], validation=(X, Y)).to_dict()) == [
        "loss",
        "val_loss",
        "val_r2",
    ]


@pytest.mark.parametrize("kind", ["labels", "one-hot", "binary", "multilabel"])
def test_accuracy_of_each_kind_of_target(backend, kind):
    pytest.importorskip("sklearn")
    from sklearn.metrics import accuracy_score

    labels = np.digitize(X[:, 0], [-0.5, 0.5])
    y, units, activation = {
        "labels": (labels, 3, "softmax"),
        "one-hot": (np.eye(3)[labels], 3, "softmax"),
        "binary": ((X[:, 0] > 0).astype(float), 1, "sigmoid"),
        "multilabel": ((X[:, :2] > 0).astype(int), 2, "sigmoid"),
    }[kind]
    network = Network(3, [Dense(units, activation)], backend=backend)
    history = train(network, y=y, loss="log_loss", metrics=["accuracy"])
    output = network.predict(X)
    expected = {
        "labels": lambda: accuracy_score(labels, output.argmax(axis=1)),
        "one-hot": lambda: accuracy_score(labels, output.argmax(axis=1)),
        "binary": lambda: accuracy_score(y > 0.5, output[:, 0] > 0.5),
        "multilabel": lambda: accuracy_score(y, (output > 0.5).astype(int)),
    }[kind]()
    assert history["accuracy"][-1] == expected
    assert 0.0 < expected < 1.0


def test_a_function_of_predictions_is_given_matching_shapes(backend):
    shapes = []

    def seen(y_true, y_pred):
        shapes.append((y_true.shape, y_pred.shape))
        return 0.0

    train(make(backend), epochs=1, metrics=[seen])
    train(Network(3, [Dense(1)], backend=backend), y=Y[:, 0], epochs=1, metrics=[seen])
    train(Network(3, [Dense(1)], backend=backend), y=Y[:, :1], epochs=1, metrics=[seen])
    labels = Network(3, [Dense(3, "softmax")], backend=backend)
    train(labels, y=np.arange(50) % 3, loss="log_loss", epochs=1, metrics=[seen])
    assert shapes == [((50, 2), (50, 2)), ((50,), (50,)), ((50,), (50,)), ((50,), (50, 3))]


def test_metrics_that_do_not_suit_are_refused_before_training(backend):
    network = Network(3, [Dense(3, "softmax")], backend=backend)
    before = parameters(network)
    with pytest.raises(ValueError, match="r2 needs one target for each of the 3 outputs"):
        train(network, y=np.arange(50) % 3, loss="log_loss", metrics=["r2"])
    np.testing.assert_array_equal(parameters(network), before)
    with pytest.raises(TypeError, match="the metric <lambda> must return a number, got 'a'"):
        train(make(backend), metrics=[lambda y_true, y_pred: "a"])


def test_a_schedule_without_length_spans_the_call(backend):
    rates = []

    class Spy(SGD):
        def rates(self, steps):
            rates.extend(super().rates(steps))
            return rates[-len(steps) :]

    train(make(backend), epochs=4, batch_size=20, optimizer=Spy(learning_rate=Cosine(0.5)))
    assert len(rates) == 12
    assert rates == sorted(rates, reverse=True)
    assert rates == pytest.approx([Cosine(0.5, n_steps=12)(step) for step in range(12)])


def test_early_stopping_restores_the_best_parameters(backend):
    class Spoil(Callback):
        """Make the network worse from the fourth epoch on."""

        def __init__(self):
            self.kept = []

        def on_epoch(self, run):
            self.kept.append(parameters(run.network))
            if run.epoch >= 3:
                run.network.parameters[...] = run.network.parameters * 3.0

    network, spoil = make(backend), Spoil()
    stopping = EarlyStopping("val_loss", patience=2)
    history = train(network, epochs=30, validation=(X, Y), callbacks=[stopping, spoil])
    assert history.n_epochs < 30
    assert "val_loss has not improved for 2 epochs" in history.stopped
    assert stopping.best_epoch == history.n_epochs - 2
    assert stopping.best == min(history["val_loss"])
    np.testing.assert_array_equal(parameters(network), spoil.kept[stopping.best_epoch - 1])


def test_early_stopping_can_maximise_and_can_leave_the_last_parameters(backend):
    pytest.importorskip("sklearn")
    network = make(backend)
    stopping = EarlyStopping("val_r2", patience=1, min_delta=10.0, restore_best=False)
    history = train(network, epochs=9, validation=(X, Y), metrics=["r2"], callbacks=[stopping])
    assert history.n_epochs == 2
    assert stopping.best == history["val_r2"][0]


def test_a_callback_can_stop_in_the_middle_of_an_epoch(backend):
    class Stop(Callback):
        def on_batch(self, run):
            if (run.epoch, run.batch) == (1, 2):
                run.stop("enough")

    history = train(make(backend), callbacks=[Stop()])
    assert history.stopped == "enough"
    assert history.n_epochs == 2


def test_interrupt_ends_after_the_step_with_a_usable_network(backend):
    class Interrupt(Callback):
        def on_batch(self, run):
            if (run.epoch, run.batch) == (1, 2):
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    network = make(backend)
    with pytest.warns(TrainingInterruptedWarning, match="interrupted in epoch 2 of 3"):
        history = train(network, callbacks=[Interrupt()])
    assert history.stopped == "interrupted"
    assert history.n_epochs == 2
    assert np.isfinite(network.predict(X)).all()
    assert signal.getsignal(signal.SIGINT) is before


def test_training_works_outside_the_main_thread(backend):
    histories = []
    thread = threading.Thread(target=lambda: histories.append(train(make(backend))))
    thread.start()
    thread.join()
    assert histories[0].n_epochs == 3


def test_a_non_finite_loss_names_epoch_batch_and_layer(backend):
    network = make(backend, Dense(4, "relu"), Dense(4, "relu"))
    with pytest.raises(NonFiniteLossError) as caught:
        train(network, epochs=50, optimizer=SGD(learning_rate=1e3))
    text = str(caught.value)
    assert "epoch " in text
    assert " of 7" in text
    assert "layers[" in text
    assert "clip_norm" in text


def test_the_first_non_finite_layer_is_found(backend):
    network = make(backend, Dense(4, "exp"), Dense(4, "relu"))
    network.biases[0][...] = network.biases[0] + 1e3
    before = parameters(network)
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, batch 1 .* output of layers\[0\]"):
        train(network)
    np.testing.assert_array_equal(parameters(network), before)


def test_parameters_that_the_last_update_breaks_are_noticed(backend):
    network = make(backend, dtype="float32")
    with pytest.raises(
        NonFiniteLossError, match=r"made parameters non-finite: .* parameters of layers\[0\]"
    ):
        train(network, y=Y * 1e10, epochs=1, batch_size=None, optimizer=SGD(1e35))


class LateBackend(type(get_backend("cpu"))):
    """An adapter whose results are only read at the end of an epoch."""

    immediate = False


def test_without_reading_every_loss_nothing_is_learnt_from_a_broken_one():
    network = make(LateBackend(), Dense(4, "tanh"), Dense(4, "exp"))
    network.weights[1][...] *= 2000
    with pytest.raises(NonFiniteLossError, match=r"epoch 1, batch 1 of 7.*output of layers\[1\]"):
        train(network)
    assert np.isfinite(network.parameters).all()


def test_without_reading_every_loss_a_run_is_the_same():
    ends = []
    for backend in (get_backend("cpu"), LateBackend()):
        network = make(backend, Dense(8, "relu"), Dropout(0.2))
        ends.append((train(network, validation=(X, Y)).to_dict(), parameters(network)))
    assert ends[0][0] == ends[1][0]
    np.testing.assert_array_equal(ends[0][1], ends[1][1])


def test_the_next_order_is_drawn_while_a_device_is_busy(monkeypatch):
    events = []
    for name, owner in (("order", Batches), ("losses", Run)):
        method = {"order": "_draw", "losses": "_losses_of_epoch"}[name]
        original = getattr(owner, method)

        def noted(self, *arguments, name=name, original=original):
            events.append((name, *arguments))
            return original(self, *arguments)

        monkeypatch.setattr(owner, method, noted)
    losses = ("losses",)
    train(make(LateBackend()), epochs=3)
    assert events == [("order", 0), ("order", 1), losses, ("order", 2), losses, losses]
    events.clear()
    train(make(get_backend("cpu")), epochs=2)  # where a call has computed when it returns
    assert events == [("order", 0), losses, ("order", 1), losses]


def test_every_callback_that_was_started_is_ended(backend):
    class Broken(Callback):
        def on_end(self, run):
            raise RuntimeError("broken")

    recorder = Recorder()
    with pytest.raises(RuntimeError, match="broken"):
        train(make(backend), epochs=1, callbacks=[recorder, Broken()])
    assert recorder.calls[-1] == "end"


def test_ends_come_in_order_so_that_later_ones_see_the_restored_network(backend):
    class Keep(Callback):
        def on_end(self, run):
            self.kept = parameters(run.network)

    network, keep = make(backend), Keep()
    stopping = EarlyStopping("loss", patience=1, min_delta=1e9)
    train(network, epochs=4, callbacks=[stopping, keep])
    np.testing.assert_array_equal(keep.kept, parameters(network))


def test_an_ignored_interrupt_stays_ignored(backend):
    class Interrupt(Callback):
        def on_batch(self, run):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(make(backend), callbacks=[Interrupt()]).stopped is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_clipping_limits_the_gradient(backend):
    network = make(backend)
    before = parameters(network)
    gradient = backend.to_host(network.loss_and_grad(X, Y, "squared_error")[1].flat)
    norm = np.linalg.norm(gradient)
    options = {"epochs": 1, "batch_size": None, "optimizer": SGD(learning_rate=1.0)}
    train(network, clip_norm=norm / 2, **options)
    np.testing.assert_allclose(before - parameters(network), gradient / 2, rtol=1e-9, atol=1e-15)
    network = make(backend)
    train(network, clip_norm=norm * 2, clip_value=0.01, **options)
    expected = np.clip(gradient, -0.01, 0.01)
    np.testing.assert_allclose(before - parameters(network), expected, rtol=1e-9, atol=1e-15)


def test_weight_decay_leaves_biases_alone(backend):
    network = make(backend)
    network.parameters[...] = network.parameters * 0.0 + 1.0
    optimizer = SGD(learning_rate=0.0001, weight_decay=1000.0)
    train(network, epochs=1, batch_size=None, X=X * 0.0, y=Y * 0.0 + 1.0, optimizer=optimizer)
    end = parameters(network)
    assert (abs(end[: network.n_weights] - 0.9) < 0.01).all()
    assert (abs(end[network.n_weights :] - 1.0) < 0.01).all()


def test_sample_weight_equals_repeated_rows(backend):
    repeats = DRAW.integers(0, 3, 50)
    ends = []
    for options in (
        {"sample_weight": repeats},
        {"X": np.repeat(X, repeats, axis=0), "y": np.repeat(Y, repeats, axis=0)},
    ):
        network = make(backend)
        train(network, batch_size=None, **options)
        ends.append(parameters(network))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9, atol=1e-12)


def test_a_batch_whose_weights_are_all_zero_changes_nothing(backend):
    weight = np.zeros(50)
    weight[0] = 1.0
    network = make(backend)
    train(network, sample_weight=weight, batch_size=1, epochs=1, optimizer=SGD(learning_rate=0.1))
    alone = make(backend)
    train(alone, X=X[:1], y=Y[:1], epochs=1, optimizer=SGD(learning_rate=0.1))
    np.testing.assert_allclose(parameters(network), parameters(alone), rtol=1e-12, atol=1e-15)


def test_uint8_data_equals_its_floats(backend):
    pixels = DRAW.integers(0, 255, (50, 3)).astype("uint8")
    ends = []
    for given in (pixels, pixels.astype(float)):
        network = make(backend)
        train(network, X=given, optimizer=Adam(learning_rate=1e-4))
        ends.append(parameters(network))
    np.testing.assert_array_equal(ends[0], ends[1])


# --- Sparse data --------------------------------------------------------------------------------

SPARSE = [
    sparse.csr_array,
    sparse.csr_matrix,
    sparse.csc_array,
    sparse.csc_matrix,
    sparse.coo_array,
]
each_form = pytest.mark.parametrize("form", SPARSE, ids=lambda form: form.__name__)
ROWS = np.where(np.random.default_rng(1).uniform(size=X.shape) < 0.6, 0.0, X)


def trained(backend, rows, held_out, dtype="float64", **options):
    network = make(backend, Dense(8, "relu"), Dropout(0.2), dtype=dtype, seed=3)
    history = train(network, X=rows, validation=held_out, metrics=["r2"], **options)
    return history.to_dict(), parameters(network).tobytes()


@each_form
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch_size", [8, None])
def test_sparse_data_trains_as_its_dense_form_to_the_bit(backend, form, dtype, batch_size):
    options = {"batch_size": batch_size, "dtype": dtype, "alpha": 0.01}
    weight = np.arange(50.0)
    dense = trained(backend, ROWS, (ROWS, Y, weight), sample_weight=weight, **options)
    assert dense == trained(
        backend, form(ROWS), (form(ROWS), Y, weight), sample_weight=weight, **options
    )
    assert dense == trained(backend, ROWS, (form(ROWS), Y, weight), sample_weight=weight, **options)


@each_form
def test_sparse_data_is_validated_in_several_blocks(backend, form, monkeypatch):
    monkeypatch.setattr("xpmlp.step._EVALUATE_ROWS", 7)
    network = make(backend)
    history = train(network, X=form(ROWS), validation=(form(ROWS), Y), shuffle=False)
    loss = 0.5 * ((network.predict(ROWS) - Y) ** 2).sum(axis=1)
    assert history["val_loss"][-1] == pytest.approx(loss.mean(), rel=1e-12)


def test_sparse_pixels_equal_their_floats(backend):
    pytest.importorskip("scipy")
    pixels = DRAW.integers(0, 3, (50, 3)).astype("uint8")
    ends = [
        trained(backend, form(given), None)
        for form in (np.asarray, sparse.csr_array, sparse.csc_matrix)
        for given in (pixels, pixels.astype(float))
    ]
    assert all(end == ends[0] for end in ends)


@each_form
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (np.where(X > 1, np.nan, X), ValueError, "X contains NaN"),
        (np.where(X > 1, np.inf, X), ValueError, "X contains infinity"),
        (X[:, :2], ValueError, "X must have 3 columns"),
        (np.where(X > 1, 1j, X), TypeError, "X must hold real numbers"),
    ],
)
def test_bad_sparse_data_changes_nothing(backend, form, bad, error, message):
    network = make(backend)
    before = parameters(network)
    for options in ({"X": form(bad)}, {"validation": (form(bad), Y)}):
        prefix = "^validation " if "validation" in options else "^"
        with pytest.raises(error, match=prefix + message):
            train(network, **options)
    np.testing.assert_array_equal(parameters(network), before)


def test_sparse_data_never_becomes_dense_as_a_whole():
    n, width = 20_000, 400
    draw = np.random.default_rng(0)
    places = draw.integers(n, size=5 * n), draw.integers(width, size=5 * n)
    rows = sparse.coo_array((np.ones(5 * n), places), shape=(n, width)).tocsr()
    y = rows.sum(axis=1)
    network = Network(width, [Dense(2, "tanh"), Dense(1)], device="cpu")
    options = {"loss": "squared_error", "epochs": 1, "batch_size": 128, "verbose": 0}
    tracemalloc.start()
    try:
        fit(network, rows, y, validation=(rows, y), **options)
        network.predict(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * width * 8 / 3


# --- The order of the samples -------------------------------------------------------------------


def visits(batches, epoch):
    to_host = batches.backend.to_host
    return [to_host(rows).tolist() for rows in batches.epoch(epoch)]


def test_an_order_is_asked_once_for_each_epoch_in_turn(backend):
    asked = []

    def order(epoch):
        asked.append(epoch)
        return np.roll(np.arange(10), epoch)

    batches = Batches(backend, 10, 4, order)
    assert len(batches) == 3
    for epoch in range(4):
        expected = np.roll(np.arange(10), epoch).tolist()
        assert visits(batches, epoch) == [expected[:4], expected[4:8], expected[8:]]
        assert all(backend.owns(rows) for rows in batches.epoch(epoch))
    assert asked == [0, 1, 2, 3]
    batches.draw_ahead(4)  # its order may depend on how often it is asked
    assert asked == [0, 1, 2, 3]


def test_a_pure_order_may_be_drawn_ahead(backend):
    batches = Batches(backend, 10, 4, shuffled(3, 10), pure=True)
    expected = Batches(backend, 10, 4, shuffled(3, 10))
    for epoch in (0, 1, 2, 7):
        assert visits(batches, epoch) == visits(expected, epoch)
        batches.draw_ahead(epoch + 1)
        assert visits(batches, epoch) == visits(expected, epoch)


def test_without_an_order_there_is_that_of_the_data(backend):
    batches = Batches(backend, 7, 3)
    for epoch in range(3):
        assert visits(batches, epoch) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_shuffled_order_depends_on_seed_and_epoch_alone():
    order = shuffled(3, 20)
    assert sorted(order(5).tolist()) == list(range(20))
    assert order(5).tolist() == shuffled(3, 20)(5).tolist()
    assert order(5).tolist() != order(6).tolist()
    assert order(5).tolist() != shuffled(4, 20)(5).tolist()


def test_fit_draws_one_permutation_an_epoch_and_none_for_a_single_batch(backend, monkeypatch):
    drawn = []

    def spied(seed, n_samples):
        def order(epoch):
            drawn.append((seed, n_samples, epoch))
            return shuffled(seed, n_samples)(epoch)

        return order

    spied_on = {}
    for spy in (False, True):
        if spy:
            monkeypatch.setattr("xpmlp.training.shuffled", spied)
        network = make(backend, seed=6)
        train(network)
        spied_on[spy] = parameters(network).tobytes()
    assert spied_on[False] == spied_on[True]
    assert drawn == [(6, 50, 0), (6, 50, 1), (6, 50, 2)]
    train(make(backend), batch_size=None)
    train(make(backend), shuffle=False)
    assert len(drawn) == 3


def test_the_rows_of_an_order_are_the_batches(backend):
    # A row may come twice, and another not at all.
    order = np.array([4, 4, 9, 0, 1, 7, 7, 7])
    ends = []
    for rows, y, epoch_order in ((X, Y, lambda epoch: order), (X[order], Y[order], None)):
        network = make(backend)
        with backend.context():
            data = Dataset(network, rows, y, None, SquaredError())
            step = TrainingStep(network, SGD(0.1), 3, data, 0.0)
            for batch, indices in enumerate(Batches(backend, 8, 3, epoch_order).epoch(0)):
                step.forward(indices, 0, batch)
                step.backward()
        ends.append(parameters(network).tobytes())
    assert ends[0] == ends[1]


# --- A penalty divided by the batch -------------------------------------------------------------


def one_step(backend, rows, weight=None, dtype="float64", **options):
    """The objective of the rows in a batch of at most 8, and the parameters moved by it."""
    network = make(backend, dtype=dtype, seed=2)
    before = parameters(network)
    with backend.context():
        data = Dataset(network, X, Y, weight, SquaredError())
        step = TrainingStep(network, SGD(1.0), 8, data, **options)
        value = backend.read(step.forward(backend.from_host(np.array(rows)), 0, 0))
        step.backward()
    return value, before - parameters(network), before


WEIGHT = np.random.default_rng(4).uniform(0.1, 3.0, 50)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("rows", [[0, 5, 2, 9, 40, 11, 3, 7], [48, 49], [13]])
def test_alpha_over_n_is_alpha_over_the_rows_or_their_weight(backend, rows, weight, dtype):
    alpha, network = 0.7, make(backend, seed=2)
    divisor = len(rows) if weight is None else weight[rows].sum()
    plain, gradient, theta = one_step(backend, rows, weight, dtype, alpha=0.0)
    value, penalised, _ = one_step(backend, rows, weight, dtype, alpha=alpha, alpha_over_n=True)
    w = theta[: network.n_weights].astype("float64")
    rtol, atol = (1e-12, 1e-14) if dtype == "float64" else (1e-5, 1e-6)
    np.testing.assert_allclose(
        value, plain + alpha / 2 / divisor * (w**2).sum(), rtol=rtol, atol=atol
    )
    expected = gradient.astype("float64")
    expected[: network.n_weights] += alpha / divisor * w
    np.testing.assert_allclose(penalised, expected, rtol=rtol, atol=atol)


def test_alpha_over_n_is_not_over_n_by_default(backend):
    value, gradient, theta = one_step(backend, [1, 2, 3, 4], alpha=0.7)
    network = make(backend)
    network.parameters = theta
    expected, dense = network.loss_and_grad(X[1:5], Y[1:5], "squared_error", alpha=0.7)
    assert value == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(gradient, backend.to_host(dense.flat), rtol=1e-10, atol=1e-14)


def test_alpha_over_n_goes_with_l1_and_equal_weights(backend):
    rows, options = [1, 2, 3, 4], {"alpha": 0.7, "l1": 0.2, "alpha_over_n": True}
    value, gradient, _ = one_step(backend, rows, **options)
    weighted, same, _ = one_step(backend, rows, np.ones(50), **options)
    assert weighted == pytest.approx(value, rel=1e-13)
    np.testing.assert_allclose(same, gradient, rtol=1e-12, atol=1e-15)
    plain, _, theta = one_step(backend, rows, alpha=0.0)
    w = theta[: make(backend).n_weights]
    penalty = 0.7 / 8 * (w**2).sum() + 0.2 * abs(w).sum()
    assert value == pytest.approx(plain + penalty, rel=1e-12)


def test_alpha_over_n_of_a_batch_without_weight_is_finite(backend):
    weight = np.zeros(50)
    weight[0] = 1.0
    value, gradient, _ = one_step(backend, [1, 2], weight, alpha=0.7, alpha_over_n=True)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be a whole number >= 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number >= 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number >= 1, got 2.5"),
        ({"batch_size": True}, TypeError, "batch_size must be a whole number"),
        ({"alpha": -0.1}, ValueError, "alpha must be a number >= 0, got -0.1"),
        ({"clip_norm": 0}, ValueError, "clip_norm must be a number > 0, got 0"),
        ({"clip_value": -1}, ValueError, "clip_value must be a number > 0"),
        ({"optimizer": "adm"}, ValueError, "Did you mean 'adam'"),
        ({"optimizer": 3}, TypeError, "optimizer must be a name or an instance of Optimizer"),
        ({"loss": "mse"}, ValueError, "loss='mse' is not known"),
        ({"metrics": ["acuracy"]}, ValueError, "Did you mean 'accuracy'"),
        ({"metrics": [3]}, TypeError, "a metric must be a name or a callable"),
        ({"callbacks": [print]}, TypeError, "callbacks must hold instances of Callback"),
        (
            {"callbacks": [EarlyStopping("val_loss")]},
            ValueError,
            "monitor='val_loss' needs validation data",
        ),
        ({"validation": X}, TypeError, "validation must be a tuple"),
        ({"validation": (X[:, :2], Y)}, ValueError, "validation X must have 3 columns"),
        ({"validation": (X, Y[:3])}, ValueError, "validation y must have as many rows"),
        ({"X": X[:0], "y": Y[:0]}, ValueError, "X must have at least one row"),
        ({"y": Y[:10]}, ValueError, "y must have as many rows as X, 50"),
        ({"verbose": 2}, ValueError, "verbose must be a whole number >= 0 and <= 1, got 2"),
        ({"shuffle": 1}, TypeError, "shuffle must be True or False, got 1"),
        ({"metrics": "r2"}, TypeError, "metrics must be a list or tuple, got 'r2'"),
        ({"metrics": ["r2", "r2"]}, ValueError, "names of their own, got 'r2' twice"),
        ({"metrics": ["accuracy"]}, ValueError, "accuracy needs class labels"),
        ({"callbacks": EarlyStopping()}, TypeError, "callbacks must be a list"),
        ({"callbacks": [EarlyStopping("r2")]}, ValueError, "monitor='r2' is not known"),
    ],
)
def test_bad_arguments_change_nothing(backend, options, error, message):
    network = make(backend)
    before = parameters(network)
    with pytest.raises(error, match=message):
        train(network, **options)
    np.testing.assert_array_equal(parameters(network), before)


def test_a_history_plots_itself():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    network = Network(3, [Dense(2)], device="cpu")
    history = train(network, validation=(X, Y), metrics=["r2"])
    ax = history.plot(Figure().subplots())
    assert [line.get_label() for line in ax.lines] == ["loss", "val_loss"]
    assert list(ax.lines[0].get_ydata()) == history["loss"]
    assert "3 epochs" in repr(history)


def test_the_progress_bar_shows_only_on_a_terminal(capfd, monkeypatch):
    network = Network(3, [Dense(2)], device="cpu")
    train(network, verbose=1)
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    train(network, verbose=1, validation=(X, Y))
    shown = capfd.readouterr().err
    for part in ("training on cpu", "val_loss=", "epoch=3/3", "samples/s"):
        assert part in shown


def allocated_by_a_step(n_rows, width, order="C"):
    """Peak bytes that NumPy and Python allocate in a step, after a first one."""
    peaks = []

    class Peak(Callback):
        def on_batch(self, run):
            if run.batch:
                peaks.append(tracemalloc.get_traced_memory()[1] - self.base)
            tracemalloc.reset_peak()
            self.base = tracemalloc.get_traced_memory()[0]

    layers = [Dense(width, "relu"), Dropout(0.1), Dense(width, "gelu"), Dense(10, "softmax")]
    network = Network(20, layers, device="cpu", dtype="float32")
    rows = np.zeros((3 * n_rows, 20), dtype="uint8" if order == "C" else "float32", order=order)
    labels = np.zeros(3 * n_rows, dtype=int)
    options = {"alpha": 1e-4, "l1": 1e-5, "clip_norm": 1.0, "clip_value": 1.0}
    tracemalloc.start()
    try:
        fit(
            network,
            rows,
            labels,
            loss="log_loss",
            epochs=1,
            batch_size=n_rows,
            sample_weight=np.ones(3 * n_rows),
            callbacks=[Peak()],
            verbose=0,
            **options,
        )
    finally:
        tracemalloc.stop()
    return max(peaks)


def test_a_step_allocates_nothing_in_proportion_to_batch_or_parameters(monkeypatch):
    """Rules work in blocks: what a step allocates is bounded by a block's temporaries."""
    monkeypatch.setattr("xpmlp_numpy.BLOCK", 1024)
    bound = 250_000  # NumPy's own casting buffers among it
    assert 4 * bound < 4 * 4096 * 64  # one activation of the larger batch
    assert 4 * bound < 4 * 512 * 512  # one weight matrix of the wider network
    assert allocated_by_a_step(128, 64) < bound
    assert allocated_by_a_step(4096, 64) < bound
    assert allocated_by_a_step(128, 512) < bound
    assert 4 * bound < 4 * 3 * 8192 * 20  # the data
    assert allocated_by_a_step(8192, 8, order="F") < bound


def test_training_gives_no_floating_point_warnings(backend):
    network = make(backend, Dense(4, "exp"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(network, X=X * 0.1)
        with pytest.raises(NonFiniteLossError):
            train(network, X=X * 1e5)
