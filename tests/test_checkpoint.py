"""Checkpoints: a run that was cut off anywhere goes on to the same bits."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xpmlp import (
    Callback,
    Checkpoint,
    Dense,
    Dropout,
    EarlyStopping,
    GradientNorms,
    MLPClassifier,
    ModelFileError,
    Network,
    NonFiniteLossError,
    TrainingInterruptedWarning,
    fit,
)
from xpmlp.files import read_tensors, write_tensors
from xpmlp.optimizers import OPTIMIZERS, SGD, Adam
from xpmlp.schedules import Cosine

ROOT = Path(__file__).parent.parent
draw = np.random.default_rng(0)
X = draw.standard_normal((203, 6))
Y = (X[:, 0] * X[:, 1] > 0).astype(int)


class Cut(Callback):
    """End a run without warning after so many batches."""

    class Off(BaseException):
        pass

    def __init__(self, after):
        self.after = after

    def on_progress(self, run, n_rows):
        if run.epoch * run.n_batches + run.done >= self.after:
            raise Cut.Off


def make(backend="numpy", seed=3):
    layers = [Dense(8, "tanh"), Dropout(0.2), Dense(1, "sigmoid")]
    return Network(6, layers, backend=backend, seed=seed)


def run(folder=None, *, cut=None, resume=None, network=None, every=0.3, epochs=5, **options):
    """A run with all that there is to remember; the network and its history."""
    network = make() if network is None else network
    callbacks = [EarlyStopping(patience=3), GradientNorms()]
    callbacks += [Checkpoint(folder, every=every)] if folder else []
    callbacks += [Cut(cut)] if cut else []
    given = {
        "optimizer": "adam", "batch_size": 16, "metrics": ["accuracy"],
        "validation": (X[150:], Y[150:]), **options,
    }  # fmt: skip
    x, y = given.pop("x", X[:150]), given.pop("y", Y[:150])
    history = fit(
        network, x, y, loss="log_loss", epochs=epochs, callbacks=callbacks, verbose=0,
        resume=resume, **given,
    )  # fmt: skip
    return network, history, callbacks


@pytest.fixture(autouse=True, params=[False, True], ids=["single steps", "captured"])
def captured(request, monkeypatch):
    """Both ways to run a step, where Numba is installed."""
    if request.param:
        pytest.importorskip("numba")
        monkeypatch.setattr("xpmlp_numpy.SECONDS_TO_CAPTURE", 0.0)


@pytest.mark.parametrize("cut", [4, 10, 11, 37])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, Adam(Cosine(0.01))], ids=str)
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path, optimizer, cut):
    whole, expected, norms = run(optimizer=optimizer)
    with pytest.raises(Cut.Off):
        run(tmp_path, optimizer=optimizer, cut=cut)
    network, history, callbacks = run(tmp_path, optimizer=optimizer, resume=tmp_path)
    np.testing.assert_array_equal(network.parameters, whole.parameters)
    assert history.to_dict() == expected.to_dict()
    assert history.stopped == expected.stopped
    assert callbacks[1].norms == norms[1].norms


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1},
        {"solver": "sgd", "learning_rate": "invscaling"},
        {"early_stopping": True, "n_iter_no_change": 2},
        {"solver": "nadam", "dropout": 0.3, "random_state": None},
        {"early_stopping": True, "random_state": np.random.RandomState(5)},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("cut", [5, 11, 30])
def test_an_estimator_ends_with_the_same_bits(tmp_path, options, cut):
    options = {"random_state": 0, "max_iter": 7, "batch_size": 20, **options}

    def make_estimator(*callbacks):
        np.random.seed(5)
        if isinstance(options["random_state"], np.random.RandomState):
            options["random_state"].seed(5)
        return MLPClassifier((7,), **options, callbacks=[*callbacks])

    whole = make_estimator().fit(X, Y)
    with pytest.raises(Cut.Off):
        make_estimator(Checkpoint(tmp_path, every=0.3), Cut(cut)).fit(X, Y)
    model = make_estimator(Checkpoint(tmp_path, every=0.3)).fit(X, Y, resume=tmp_path)
    np.testing.assert_array_equal(model.network_.parameters, whole.network_.parameters)
    for name in ("loss_curve_", "n_iter_", "t_", "validation_scores_", "best_loss_", "loss_"):
        assert getattr(model, name) == getattr(whole, name), name
    assert model.history_.to_dict() == whole.history_.to_dict()


def test_a_run_goes_on_on_another_device(tmp_path, backend):
    with pytest.raises(Cut.Off):
        run(tmp_path, cut=25)
    whole, history, _ = run()
    network, resumed, _ = run(tmp_path, resume=tmp_path, network=make(backend))
    parameters = backend.to_host(network.parameters)
    np.testing.assert_allclose(parameters, whole.parameters, rtol=1e-9)
    assert resumed["loss"][:2] == history["loss"][:2]


def test_a_checkpoint_of_this_format_goes_on():
    """One that ``run(..., cut=25)`` wrote, in the third epoch."""
    network, history, _ = run(resume=ROOT / "tests/files/format-2/checkpoint.safetensors")
    whole, expected, _ = run()
    np.testing.assert_allclose(network.parameters, whole.parameters, rtol=1e-6)
    assert history["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_a_finished_run_is_finished(tmp_path):
    whole, history, _ = run(tmp_path)
    network, again, _ = run(tmp_path, resume=tmp_path)
    np.testing.assert_array_equal(network.parameters, whole.parameters)
    assert again.to_dict() == history.to_dict()


@pytest.mark.parametrize("first", [2, 4])
def test_a_finished_run_goes_on_for_more_epochs(tmp_path, first):
    whole, history, _ = run()
    run(tmp_path, epochs=first)
    network, longer, _ = run(tmp_path, resume=tmp_path, epochs=5)
    np.testing.assert_array_equal(network.parameters, whole.parameters)
    assert longer.to_dict() == history.to_dict()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_finished_estimator_goes_on_for_more_epochs(tmp_path):
    def fitted(n, *callbacks, learning_rate="constant", **options):
        model = MLPClassifier(
            (7,), max_iter=n, random_state=0, callbacks=[*callbacks], learning_rate=learning_rate
        )
        return model.fit(X, Y, **options)

    whole = fitted(6)
    fitted(3, Checkpoint(tmp_path / "a"))
    longer = fitted(6, resume=tmp_path / "a")
    np.testing.assert_array_equal(longer.network_.parameters, whole.network_.parameters)
    assert longer.loss_curve_ == whole.loss_curve_
    fitted(3, Checkpoint(tmp_path / "b"), learning_rate="cosine")
    with pytest.raises(ValueError, match=r"with optimizer=.*n_steps=6.*, now it is .*n_steps=12"):
        fitted(6, resume=tmp_path / "b", learning_rate="cosine")


def test_what_is_kept_at_the_end_of_an_epoch_is_taken_up(tmp_path):
    # The gradient, of which GradientNorms is told after the checkpoint.
    _, _, expected = run(every=0.5)
    with pytest.raises(Cut.Off):
        run(tmp_path, every=0.5, cut=10)
    assert sorted(tmp_path.iterdir())[-1].name == "epoch00001-batch0000010.safetensors"
    _, _, callbacks = run(tmp_path, every=0.5, resume=tmp_path)
    assert callbacks[1].norms == expected[1].norms


def test_the_best_parameters_before_the_cut_are_restored(tmp_path):
    options = {"optimizer": Adam(0.5), "metrics": []}
    whole, _, callbacks = run(**options)
    assert callbacks[0].best_epoch <= 3
    with pytest.raises(Cut.Off):
        run(tmp_path, cut=38, **options)
    network, _, callbacks = run(tmp_path, resume=tmp_path, **options)
    assert callbacks[0].best_epoch <= 3
    np.testing.assert_array_equal(network.parameters, whole.parameters)


def test_the_newest_is_the_furthest(tmp_path):
    with pytest.raises(Cut.Off):
        run(tmp_path, cut=25)
    before, newest = sorted(tmp_path.iterdir())
    newest.rename(tmp_path / "epoch100000-batch0000003.safetensors")
    before.rename(tmp_path / "epoch99999-batch10000000.safetensors")
    network, _, _ = run(resume=tmp_path)
    np.testing.assert_array_equal(network.parameters, run()[0].parameters)


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    names = {"epochs100-batch32.safetensors", "epoch1-batch2.safetensors", "notes.txt"}
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".epoch00002-batch0000005.safetensors.deadbeef").write_text("of a killed process")
    run(tmp_path, epochs=2)
    assert names < {*os.listdir(tmp_path)}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    pytest.importorskip("fcntl")

    class Second(Callback):
        def on_epoch(self, run_):
            with pytest.raises(ValueError, match="is where another run writes checkpoints"):
                run(tmp_path)

    fit(make(), X, Y, loss="log_loss", epochs=1, verbose=0, callbacks=[
        Second(), Checkpoint(tmp_path, every=99),
    ])  # fmt: skip
    run(tmp_path, epochs=1)


def test_files_are_named_by_place_and_the_newest_kept(tmp_path):
    run(tmp_path / "new" / "folder", every=1, epochs=3)
    names = sorted(os.listdir(tmp_path / "new" / "folder"))
    assert names == [f"epoch0000{epoch}-batch0000010.safetensors" for epoch in (2, 3)]


def test_an_older_one_is_used_only_if_it_is_named(tmp_path):
    with pytest.raises(Cut.Off):
        run(tmp_path, cut=25)
    before, newest = sorted(tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(ModelFileError, match=re.escape(f"the one before it is {str(before)!r}")):
        run(tmp_path, resume=tmp_path)
    network, _, _ = run(tmp_path, resume=before)
    np.testing.assert_array_equal(network.parameters, run()[0].parameters)


def test_a_folder_with_another_run_is_refused(tmp_path):
    run(tmp_path, epochs=1)
    network = make()
    before = np.array(network.parameters)
    with pytest.raises(ValueError, match=r"holds checkpoints, the newest is epoch00001-.*resume="):
        run(tmp_path, network=network)
    np.testing.assert_array_equal(network.parameters, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": SGD(0.1)}, "with optimizer=Adam.*, now it is SGD"),
        ({"optimizer": Adam(Cosine(0.01)), "epochs": 6}, "with optimizer=.*, now it is Adam"),
        ({"alpha": 0.1, "l1": 0.2}, r"alpha=0.0, now it is 0.1; and with l1=0.0, now it is 0.2"),
        ({"epochs": 2}, "epochs must be at least 3, where resume=.* stands, got 2"),
        ({"batch_size": 15}, "with batch_size=16, now it is 15"),
        ({"alpha": 0.1}, r"with alpha=0.0, now it is 0.1"),
        ({"network": make(seed=4)}, "with seed=3, now it is 4"),
        ({"metrics": []}, "with metrics="),
        ({"sample_weight": np.ones(150)}, "with data="),
        ({"x": X[:150] + 1e-9 * (np.arange(150) == 77)[:, None]}, "with data="),
        ({"y": Y[:150] ^ (np.arange(150) == 99)}, "with data="),
        ({"validation": (X[151:], Y[151:])}, "with validation data="),
    ],
)
def test_another_run_does_not_go_on(tmp_path, options, message):
    with pytest.raises(Cut.Off):
        run(tmp_path, cut=25)
    with pytest.raises(ValueError, match=message):
        run(resume=tmp_path, **options)


def test_other_callbacks_do_not_go_on(tmp_path):
    with pytest.raises(Cut.Off):
        run(tmp_path, cut=25)
    network = make()
    before = np.array(network.parameters)
    with pytest.raises(ValueError, match="callbacks EarlyStopping, GradientNorms that remember"):
        fit(network, X[:150], Y[:150], loss="log_loss", epochs=5, batch_size=16, verbose=0,
            validation=(X[150:], Y[150:]), metrics=["accuracy"], resume=tmp_path)  # fmt: skip
    np.testing.assert_array_equal(network.parameters, before)


def test_a_callback_that_watches_each_batch_is_part_of_a_run(tmp_path):
    class Watch(Callback):
        def on_batch(self, run_):
            pass

    with pytest.raises(Cut.Off):
        run(tmp_path, cut=25)
    network = make()
    with pytest.raises(ValueError, match="that watch each batch=False, now it is True"):
        fit(network, X[:150], Y[:150], loss="log_loss", epochs=5, batch_size=16, verbose=0,
            validation=(X[150:], Y[150:]), metrics=["accuracy"], resume=tmp_path,
            callbacks=[EarlyStopping(patience=3), GradientNorms(), Watch()])  # fmt: skip


def test_a_callback_that_remembers_nothing_yet_goes_on(tmp_path):
    class Late(Callback):
        def state(self):
            return {}

    def trained(*callbacks, **options):
        callbacks = [Late(), Checkpoint(tmp_path, every=0.3), *callbacks]
        fit(make(), X, Y, loss="log_loss", epochs=2, verbose=0, callbacks=callbacks, **options)

    with pytest.raises(Cut.Off):
        trained(Cut(9))
    trained(resume=tmp_path)


@pytest.mark.parametrize("fault", ["a later callback", "what one remembers"])
def test_a_refusal_after_the_start_changes_nothing(tmp_path, fault):
    with pytest.raises(Cut.Off):
        run(tmp_path / "a", cut=25)
    run(tmp_path / "b", epochs=1)
    newest = sorted((tmp_path / "a").iterdir())[-1]
    if fault == "what one remembers":
        tensors, description = read_tensors(newest)
        description["checkpoint"]["callbacks"][1][1]["norms"] = 3
        write_tensors(newest, tensors, description)
    network = make()
    before = np.array(network.parameters)
    folder = {"a later callback": "b", "what one remembers": "a"}[fault]
    with pytest.raises((ValueError, ModelFileError)):
        run(tmp_path / folder, network=network, resume=newest)
    np.testing.assert_array_equal(network.parameters, before)


def test_a_signal_between_two_epochs_ends_before_the_next(tmp_path):
    class Between(Callback):
        def on_epoch(self, run_):
            if run_.epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(TrainingInterruptedWarning, match="in epoch 3 of 9"):
        history = fit(make(), X, Y, loss="log_loss", epochs=9, verbose=0,
                      callbacks=[Between(), Checkpoint(tmp_path)])  # fmt: skip
    assert history.n_epochs == 2
    assert sorted(tmp_path.iterdir())[-1].name == "epoch00003-batch0000000.safetensors"


def test_an_optimizer_that_overflows_ends_training_and_reaches_no_file(tmp_path):
    network = Network(6, [Dense(1)], device="cpu", dtype="float32", seed=0)
    with pytest.raises(NonFiniteLossError, match=r"an update in epoch 1 made v non-finite"):
        fit(network, X * 1e10, Y * 1e12, loss="squared_error", epochs=3, batch_size=16, verbose=0,
            callbacks=[Checkpoint(tmp_path, every=0.1)])  # fmt: skip
    assert not [*tmp_path.iterdir()]


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in the folder"):
        run(resume=tmp_path)
    with pytest.raises(FileNotFoundError):
        run(resume=tmp_path / "none")
    from xpmlp import save

    save(make(), tmp_path / "model")
    with pytest.raises(ModelFileError, match="model is not a checkpoint"):
        run(resume=tmp_path / "model")
    with pytest.raises(ValueError, match="resume cannot be used with solver='lbfgs'"):
        MLPClassifier(solver="lbfgs").fit(X, Y, resume=tmp_path)


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(description, tensors):
        for key in keys:
            description = description[key]
        description[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("epoch", "3"),
        put("epoch", -1),
        put("epoch", 1.0),
        put("done", 11),
        put("done", 2),
        put("step", "many"),
        put("losses", None),
        put("mu_product", {}),
        put("history", 3),
        put("settings", 3),
        put("callbacks", [["EarlyStopping", 3]]),
        put("callbacks", 0, 1, {"best": 3.0}),
        put("callbacks", 0, 1, "best", "x"),
        put("callbacks", 0, 1, "best", True),
        put("callbacks", 0, 1, "best_epoch", None),
        put("callbacks", 0, 1, "more", 1),
        put("callbacks", 0, 1, "parameters", {"array": [1.0], "dtype": "float64"}),
        put("callbacks", 1, 1, "norms", 3),
        put("callbacks", 1, 1, "norms", [["x"]]),
        put("step", 3),
        put("losses", ["nan"] * 5),
        put("mu_product", 1e9),
        put("history", {"mapping": []}),
        put("history", {"mapping": [["x", [1.0, 2.0]]]}),
        lambda d, tensors: tensors.pop("parameters"),
        lambda d, tensors: tensors.pop("optimizer.m"),
        lambda d, tensors: tensors.update({"optimizer.m": np.zeros(3)}),
        lambda d, tensors: tensors.update({"callback9.x": np.zeros(3)}),
        lambda d, tensors: tensors.update({"x": np.zeros(3)}),
        lambda d, tensors: tensors.update({"callback0.parameters": np.zeros(3)}),
        lambda d, tensors: tensors.update({"callback0.parameters": np.zeros(1)}),
        lambda d, tensors: tensors.update({"callback0.parameters": np.full(65, np.nan)}),
        lambda d, tensors: tensors.update({"callback0.parameters": np.zeros(65, "float32")}),
        lambda d, tensors: tensors.update({"parameters": np.full(65, np.inf)}),
    ],
)
def test_changed_checkpoints_are_refused(tmp_path, change):
    with pytest.raises(Cut.Off):
        run(tmp_path, cut=25)
    newest = sorted(tmp_path.iterdir())[-1]
    tensors, description = read_tensors(newest)
    change(description["checkpoint"], tensors)
    write_tensors(newest, tensors, description)
    with pytest.raises(ModelFileError, match=re.escape(newest.name)):
        run(tmp_path, resume=newest)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_best", "x"),
        ("_best", {"tuple": ["val_score"]}),
        ("n_iter_", "x"),
        ("loss_curve_", ["x"]),
        ("rate", [0.1]),
        ("improved", 1),
        ("history", 3),
        ("best_parameters", np.full(57, np.nan)),
        ("best_parameters", np.zeros((1, 57))),
    ],
)
def test_changed_checkpoints_of_estimators_are_refused(tmp_path, name, value):
    def fitted(**options):
        model = MLPClassifier(
            (7,), max_iter=2, random_state=0, solver="sgd", early_stopping=True, **options
        )
        return lambda **resume: model.fit(X, Y, **resume)

    fitted(callbacks=[Checkpoint(tmp_path, keep=1)])()
    (file,) = tmp_path.iterdir()
    tensors, description = read_tensors(file)
    if isinstance(value, np.ndarray):
        tensors[f"callback0.{name}"] = value
    else:
        remembered = description["checkpoint"]["callbacks"][0][1]
        assert name in remembered
        remembered[name] = value
    write_tensors(file, tensors, description)
    with pytest.raises(ModelFileError, match=re.escape(file.name)):
        fitted()(resume=file)


class Own(Callback):
    """A callback of a user's: `kept` is as it is after `on_start`, and later the other."""

    def __init__(self, kept, later):
        self.kept, self.later = kept, later

    def on_progress(self, run, n_rows):
        self.kept = self.later

    def state(self):
        return {"kept": self.kept}

    def restore(self, state):
        self.kept = state["kept"]


@pytest.mark.parametrize(
    ("kept", "later", "forged"),
    [
        (None, 3, np.zeros(3)),
        (None, "text", np.zeros(3)),
        (3, 2.5, "3"),
        (True, False, 0),
        ("a", "b", 3),
        ([], [1, "a", None], {"tuple": [1]}),
        ((1, "a"), (2, "b"), {"tuple": [1, 2]}),
        ({}, {"a": 1}, []),
        (np.zeros(2), np.ones(2), np.ones(3)),
    ],
    ids=str,
)
def test_what_a_callback_wrote_it_is_given_back_and_nothing_else(tmp_path, kept, later, forged):
    def trained(resume=None):
        callbacks = [Own(kept, later if resume is None else None), Checkpoint(tmp_path, keep=1)]
        network = make()
        fit(network, X, Y, loss="log_loss", epochs=1 if resume is None else 2, batch_size=203,
            callbacks=callbacks, verbose=0, resume=resume)  # fmt: skip

    trained()
    (file,) = tmp_path.iterdir()
    given = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Own, "restore", lambda self, state: given.append(state["kept"]))
        patch.setattr(Own, "on_progress", Callback.on_progress)
        content = file.read_bytes()
        trained(file)
        np.testing.assert_equal(given, [later])
        tensors, description = read_tensors_of(content, tmp_path / "x")
        plain = description["checkpoint"]["callbacks"][0][1]
        tensors.pop("callback0.kept", None)
        plain.pop("kept", None)
        if isinstance(forged, np.ndarray):
            tensors["callback0.kept"] = forged
        else:
            plain["kept"] = forged
        write_tensors(file, tensors, description)
        with pytest.raises(ModelFileError, match="kept of Own is of another kind than"):
            trained(file)


def read_tensors_of(content, path):
    path.write_bytes(content)
    return read_tensors(path)


def test_an_array_of_a_callback_that_is_not_finite_reaches_no_checkpoint(tmp_path):
    callbacks = [Own(np.zeros(2), np.array([1.0, np.nan])), Checkpoint(tmp_path)]
    with pytest.raises(ValueError, match=r"callback0.kept of a checkpoint must be finite"):
        fit(make(), X, Y, loss="log_loss", epochs=1, callbacks=callbacks, verbose=0)
    assert os.listdir(tmp_path) == []


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("entry", "value"),
    [
        (0, "PCG64"),
        (1, [0] * 624),
        (1, [1] * 623),
        (1, [1.5] * 624),
        (1, [2**32] * 624),
        (2, 10**6),
        (2, 625),
        (2, -5),
        (2, 1.0),
        (3, 2),
        (4, float("nan")),
        (4, 10**400),
        (4, None),
    ],
)
def test_a_random_state_that_is_none_is_refused(tmp_path, entry, value):
    def fitted(*callbacks, **options):
        return MLPClassifier((3,), max_iter=2, random_state=0, callbacks=[*callbacks]).fit(
            X, Y, **options
        )

    fitted(Checkpoint(tmp_path, keep=1))
    (file,) = tmp_path.iterdir()
    tensors, description = read_tensors(file)
    settings = description["checkpoint"]["settings"]
    words = json.loads(settings["random state"])
    words[entry] = value
    for text in (json.dumps(words), "[" * 10**5, "3"):
        settings["random state"] = text
        write_tensors(file, tensors, description)
        with pytest.raises(ModelFileError, match="not a checkpoint of an estimator"):
            fitted(resume=file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_one_and_leaves_a_usable_model(tmp_path, number):
    done = train(tmp_path, number)
    reason = "interrupted" if number == signal.SIGINT else "terminated"
    assert f"TrainingInterruptedWarning: training was {reason} in epoch" in done.stderr
    stopped, epochs, usable = done.stdout.split()
    assert (stopped, usable) == (reason, "True")
    newest = sorted(tmp_path.glob("*.safetensors"))[-1]
    assert read_tensors(newest)[1]["checkpoint"]["epoch"] == int(epochs) - 1


def test_a_second_ctrl_c_exits(tmp_path):
    done = train(tmp_path, signal.SIGINT, signal.SIGINT)
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode == -signal.SIGINT


def train(folder, *signals):
    """A process that trains, with checkpoints, and sends itself signals in the midst of it."""
    code = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "backends")!r}]
import numpy as np
from xpmlp import Callback, Checkpoint, Dense, Network, fit

class Signals(Callback):
    def on_progress(self, run, n_rows):
        if run.epoch == 2 and run.done == 5:
            for number in {[int(number) for number in signals]}:
                os.kill(os.getpid(), number)

network = Network(6, [Dense(8), Dense(1)], device="cpu")
X = np.random.default_rng(0).standard_normal((200, 6))
history = fit(network, X, X[:, 0], loss="squared_error", batch_size=10, epochs=100, verbose=0,
              callbacks=[Signals(), Checkpoint({str(folder)!r})])
print(history.stopped, history.n_epochs, bool(np.isfinite(network.predict(X)).all()))
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
