"""MLPClassifier and MLPRegressor beyond scikit-learn's: options, arrays, tools, bad input."""

import copy
import os
import pickle
import signal
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import array_api_strict
import joblib
import numpy as np
import pytest
from conftest import BACKENDS
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score, balanced_accuracy_score, make_scorer
from sklearn.utils._param_validation import InvalidParameterError
from xpmlp_numpy import NumpyBackend

from xpmlp import (
    Callback,
    Dense,
    DeviceFallbackWarning,
    Dropout,
    EarlyStopping,
    MLPClassifier,
    MLPRegressor,
    TrainingInterruptedWarning,
)
from xpmlp.activations import ELU
from xpmlp.backends import available_backends
from xpmlp.data import Batches
from xpmlp.losses import AbsoluteError, Focal, Huber, LogLoss, Poisson, Quantile, SquaredError
from xpmlp.optimizers import OPTIMIZERS, SGD, Adam, AdamW
from xpmlp.schedules import Cosine, Exponential, OneCycle, Step, WarmUp

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((90, 4))
LABELS = np.digitize(X[:, 0] + 0.3 * DRAW.standard_normal(90), [-0.8, 0.6])
BINARY = (X[:, 1] > 0.2).astype(int)
NAMES = np.array(["blue", "green", "red"])[LABELS]
SEVERAL = np.stack([X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
NUMBERS = X @ [1.0, -2.0, 0.5, 0.0] + np.sin(X[:, 0])
WEIGHT = np.linspace(0.1, 2.0, 90)
SMALL = {
    "hidden_layer_sizes": (6, 4),
    "batch_size": 16,
    "learning_rate_init": 0.02,
    "max_iter": 6,
    "random_state": 5,
}
ESTIMATORS = pytest.mark.parametrize("cls", [MLPClassifier, MLPRegressor])
# What scikit-learn's solvers make of these is in test_parity.py.
STEPWISE = ("sgd", "adam")


def make(cls, **options):
    place = {} if {"device", "backend"} & options.keys() else {"backend": "numpy"}
    if "layers" in options:
        place["hidden_layer_sizes"] = (100,)
    if callable(options.get("learning_rate")) or not isinstance(options.get("solver", ""), str):
        place["learning_rate_init"] = 0.001
    return cls(**{**SMALL, **place, **options})


def target(cls):
    return LABELS if cls is MLPClassifier else NUMBERS


def trained(cls, X=X, y=None, *arguments, **options):
    return make(cls, **options).fit(X, target(cls) if y is None else y, *arguments)


def weights(model):
    """All weights and biases, as a NumPy vector of their own."""
    return model.network_.backend.to_host(model.network_.parameters).copy()


def state(model):
    """What training changes, for a comparison to the bit."""
    if not hasattr(model, "network_"):
        return {key: value for key, value in vars(model).items() if key not in model.get_params()}
    return {
        "weights": weights(model).tolist(),
        "history": model.history_.to_dict(),
        "optimizer": repr(getattr(model, "_optimizer_state", None)),
        **{
            key: copy.copy(value)
            for key, value in vars(model).items()
            if isinstance(value, int | float | str | list | None) and key != "callbacks"
        },
    }


def differs(one, other):
    return not np.array_equal(weights(one), weights(other))


# --- Options beyond scikit-learn's ---------------------------------------------------------------

# Each changes the run of both estimators.
OPTIONS = {
    "dropout of the hidden layers": {"dropout": 0.4},
    "dropout of the input alone": {"dropout": [0.4, 0, 0]},
    "dropout by layer": {"dropout": (0.1, 0.2, 0.3)},
    "no bias": {"bias": False},
    "another activation": {"activation": "gelu"},
    "an activation object": {"activation": ELU(alpha=0.5)},
    "activations by layer": {"activation": ["tanh", "relu"]},
    "layers": {"layers": [Dense(6, "tanh"), Dropout(0.1), Dense(4, "relu", bias=False)]},
    "l1": {"l1": 0.01},
    "weight decay": {"weight_decay": 0.1},
    "clipping": {"clip_norm": 0.05},
    "single precision": {"dtype": "float32"},
    **{f"solver {name}": {"solver": name} for name in OPTIMIZERS if name != "adam"},
    "an optimizer": {"solver": Adam(0.02)},
    "another optimizer": {"solver": AdamW(0.02, weight_decay=0.3)},
    **{
        f"rate {name}": {"learning_rate": name}
        for name in ("cosine", "one_cycle", "step", "exponential", "warmup")
    },
    "a schedule": {"learning_rate": Cosine(0.02)},
    "a callable": {"learning_rate": lambda step: 0.02 / (step + 1)},
}


@pytest.mark.parametrize("name", OPTIONS)
@ESTIMATORS
def test_every_option_changes_the_run_and_repeats_it(cls, name):
    options = OPTIONS[name]
    # The default step is 1000 updates.
    length = {"max_iter": 12, "batch_size": 1} if name == "rate step" else {}
    options, plain = {**options, **length}, trained(cls, **length)
    model, again = trained(cls, **options), trained(cls, **options)
    np.testing.assert_array_equal(weights(model), weights(again))
    assert weights(model).shape != weights(plain).shape or differs(model, plain)
    assert np.isfinite(model.predict(X)).all()
    assert model.loss_curve_[-1] < model.loss_curve_[0]


@pytest.mark.parametrize("place", [name for name in BACKENDS if name != "numpy"])
@pytest.mark.parametrize("name", OPTIONS)
@ESTIMATORS
def test_every_option_makes_the_same_run_elsewhere(cls, name, place):
    options, place = {"max_iter": 2, **OPTIONS[name]}, BACKENDS[place]
    here, there = trained(cls, **options), trained(cls, **options, backend=place)
    limit = 1e-4 if "dtype" in options else 1e-9
    np.testing.assert_allclose(weights(there), weights(here), rtol=limit, atol=limit)
    assert there.network_.backend is place


def test_weight_decay_and_l1_shrink_the_weights():
    def size(**options):
        model = trained(MLPRegressor, max_iter=40, **options)
        return sum(float(np.abs(c).sum()) for c in model.coefs_)

    plain = size()
    assert size(l1=0.05) < 0.8 * plain
    assert size(weight_decay=2.0) < 0.8 * plain
    assert size(solver="adamw", weight_decay=0.0) != size(solver="adamw")


def test_adamw_decays_by_its_own_default():
    default = trained(MLPRegressor, solver="adamw")
    assert not differs(default, trained(MLPRegressor, solver="adamw", weight_decay=0.01))
    none = trained(MLPRegressor, solver="sgd")
    assert not differs(none, trained(MLPRegressor, solver="sgd", weight_decay=0.0))


def test_clipping_bounds_each_update():
    model = trained(
        MLPRegressor, solver="sgd", momentum=0.0, learning_rate_init=1.0, clip_norm=1e-3
    )
    start = trained(MLPRegressor, solver="sgd", learning_rate_init=1e-300, max_iter=1)
    n_steps = 6 * 6
    assert 0 < np.linalg.norm(weights(model) - weights(start)) <= n_steps * 1e-3 * (1 + 1e-9)


def test_a_clip_norm_that_is_never_reached_changes_nothing():
    np.testing.assert_allclose(
        weights(trained(MLPRegressor, clip_norm=1e9)), weights(trained(MLPRegressor)), rtol=1e-12
    )


def test_without_bias_there_are_none():
    model = trained(MLPClassifier, bias=False)
    assert model.intercepts_ == [None, None, None]
    assert model.network_.n_parameters == 4 * 6 + 6 * 4 + 4 * 3
    np.testing.assert_allclose(model.predict_proba(np.zeros((1, 4))), 1 / 3)


def test_dropout_is_for_training_alone():
    model = trained(MLPRegressor, dropout=[0.2, 0.5, 0.5])
    kinds = [type(layer).__name__ for layer in model.network_.layers]
    assert kinds == ["Dropout", "Dense", "Dropout", "Dense", "Dropout", "Dense"]
    assert [layer.rate for layer in model.network_.layers[::2]] == [0.2, 0.5, 0.5]
    np.testing.assert_array_equal(model.predict(X), model.predict(X))
    uniform = trained(MLPRegressor, dropout=0.5)
    assert [layer.rate for layer in uniform.network_.layers if isinstance(layer, Dropout)] == [
        0.5,
        0.5,
    ]
    assert not differs(uniform, trained(MLPRegressor, dropout=[0.0, 0.5, 0.5]))


def test_dropout_draws_another_mask_in_each_partial_fit():
    def steps(rate):
        model = make(MLPRegressor, dropout=rate, learning_rate_init=1e-12, batch_size=90)
        return [model.partial_fit(X, NUMBERS).loss_ for _ in range(4)]

    assert len({round(loss, 6) for loss in steps(0.5)}) == 4
    assert len({round(loss, 6) for loss in steps(0.0)}) == 1


def test_layers_replace_what_describes_hidden_layers():
    layers = [Dropout(0.1), Dense(5, "gelu", bias=False), Dense(3, ELU(alpha=0.5))]
    model = trained(MLPClassifier, layers=layers)
    assert list(model.network_.layers[:-1]) == layers
    assert [c.shape for c in model.coefs_] == [(4, 5), (5, 3), (3, 3)]
    assert (model.n_layers_, model.out_activation_) == (4, "softmax")
    linear = trained(MLPRegressor, layers=[])
    assert [c.shape for c in linear.coefs_] == [(4, 1)]


def test_activations_by_layer_are_those_of_the_network():
    model = trained(MLPRegressor, activation=["logistic", ELU(alpha=0.5)])
    assert [layer.activation.name for layer in model.network_.dense] == [
        "sigmoid",
        "elu",
        "identity",
    ]
    same = trained(MLPRegressor, activation=("tanh", "tanh"))
    assert [layer.activation.name for layer in same.network_.dense[:2]] == ["tanh", "tanh"]


@pytest.mark.parametrize(
    "schedule",
    [Cosine(0.02), OneCycle(0.02), Step(0.02, 10), Exponential(0.02, 0.9), WarmUp(0.02, 10)],
)
def test_a_schedule_gives_the_rate_of_each_update(schedule):
    n_steps = 6 * 6
    given = trained(MLPRegressor, solver="sgd", momentum=0.0, learning_rate=schedule)
    spread = schedule.over(n_steps)
    asked = []

    def rate(step):
        asked.append(step)
        return spread(step)

    assert not differs(given, trained(MLPRegressor, solver="sgd", momentum=0.0, learning_rate=rate))
    assert asked == list(range(n_steps))
    inside = trained(MLPRegressor, solver=SGD(schedule))
    assert not differs(given, inside)


def test_a_named_schedule_is_built_on_learning_rate_init():
    named = trained(MLPRegressor, learning_rate="cosine", learning_rate_init=0.03)
    assert not differs(named, trained(MLPRegressor, learning_rate=Cosine(0.03)))


@pytest.mark.parametrize("name", [*OPTIMIZERS])
def test_every_solver_learns(name):
    rate = 1.0 if name == "adadelta" else 0.02
    model = trained(MLPRegressor, solver=name, learning_rate_init=rate, max_iter=60)
    assert model.loss_curve_[-1] < 0.7 * model.loss_curve_[0]
    assert model._optimizer.name == name


LOSSES = [
    *[(MLPClassifier, loss) for loss in ("log_loss", "focal", "squared_error")],
    *[(MLPClassifier, loss) for loss in (LogLoss(0.1), Focal(gamma=1.0), SquaredError())],
    *[(MLPRegressor, loss) for loss in ("squared_error", "absolute_error", "huber", "quantile")],
    *[(MLPRegressor, loss) for loss in (SquaredError(), AbsoluteError(), Huber(0.3))],
    (MLPRegressor, Quantile(0.8)),
]


@pytest.mark.parametrize(("cls", "loss"), LOSSES, ids=str)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_every_loss_trains(solver, cls, loss):
    kinds = [NUMBERS, np.stack([NUMBERS, -NUMBERS], 1)]
    for y in [LABELS, BINARY, SEVERAL, NAMES] if cls is MLPClassifier else kinds:
        model = trained(cls, X, y, loss=loss, solver=solver, max_iter=30)
        assert model.history_["loss"][-1] < model.history_["loss"][0]
        assert model.score(X, y) > 0.4


@pytest.mark.parametrize("loss", ["poisson", Poisson()], ids=str)
def test_poisson_predicts_positive_rates(loss):
    counts = np.floor(np.exp(NUMBERS / 2))
    model = trained(MLPRegressor, X, counts, loss=loss, max_iter=60)
    assert model.out_activation_ == "exp"
    assert (model.predict(X) > 0).all()
    assert model.score(X, counts) > 0.3


def test_losses_with_arguments_differ_from_their_defaults():
    assert differs(trained(MLPRegressor, loss="huber"), trained(MLPRegressor, loss=Huber(0.1)))
    assert not differs(trained(MLPRegressor, loss="huber"), trained(MLPRegressor, loss=Huber()))
    focal = trained(MLPClassifier, loss="focal")
    assert not differs(focal, trained(MLPClassifier, loss=Focal()))
    assert differs(focal, trained(MLPClassifier))
    quantiles = [trained(MLPRegressor, loss=Quantile(q), max_iter=150) for q in (0.1, 0.9)]
    shares = [(model.predict(X) > NUMBERS).mean() for model in quantiles]
    assert shares[0] < 0.3 < 0.7 < shares[1]


@pytest.mark.parametrize("loss", ["log_loss", "focal"])
@pytest.mark.parametrize("y", [LABELS, BINARY, SEVERAL], ids=["3 classes", "2 classes", "2 labels"])
def test_label_smoothing_keeps_probabilities_from_the_ends(y, loss):
    options = {"loss": loss, "max_iter": 150, "learning_rate_init": 0.05}
    plain = trained(MLPClassifier, X, y, **options).predict_proba(X)
    smooth = trained(MLPClassifier, X, y, label_smoothing=0.3, **options).predict_proba(X)
    assert smooth.max() < plain.max()
    np.testing.assert_array_equal(
        weights(trained(MLPClassifier, X, y, loss=loss, label_smoothing=0.2)),
        weights(
            trained(
                MLPClassifier,
                X,
                y,
                loss={"log_loss": LogLoss, "focal": Focal}[loss](label_smoothing=0.2),
            )
        ),
    )


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("y", [LABELS, NAMES, BINARY, BINARY.astype(bool)], ids=str)
def test_balanced_classes_are_the_equivalent_weights(y, early_stopping):
    kinds, numbers, counts = np.unique(y, return_inverse=True, return_counts=True)
    weight = (len(y) / (len(kinds) * counts))[numbers]
    balanced = trained(MLPClassifier, X, y, class_weight="balanced", early_stopping=early_stopping)
    weighted = trained(MLPClassifier, X, y, weight, early_stopping=early_stopping)
    assert balanced.history_.to_dict() == weighted.history_.to_dict()
    np.testing.assert_array_equal(weights(balanced), weights(weighted))
    assert differs(balanced, trained(MLPClassifier, X, y, early_stopping=early_stopping))


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_class_weights_multiply_the_samples(solver):
    factors = {"red": 3.0, "green": 0.5}  # blue has 1
    by_class = trained(MLPClassifier, X, NAMES, WEIGHT, class_weight=factors, solver=solver)
    weight = WEIGHT * [factors.get(name, 1.0) for name in NAMES]
    by_sample = trained(MLPClassifier, X, NAMES, weight, solver=solver)
    np.testing.assert_array_equal(weights(by_class), weights(by_sample))
    parts = [make(MLPClassifier, class_weight=factors), make(MLPClassifier)]
    parts[0].partial_fit(X, NAMES, classes=["blue", "green", "red"])
    parts[1].partial_fit(X, NAMES, weight / WEIGHT, classes=["blue", "green", "red"])
    np.testing.assert_allclose(weights(parts[0]), weights(parts[1]), rtol=1e-12)


def test_balanced_weights_raise_the_recall_of_rare_classes():
    rare = np.where(X[:, 0] + X[:, 1] > 1.8, "rare", "usual")
    plain = trained(MLPClassifier, X, rare, max_iter=13)
    balanced = trained(MLPClassifier, X, rare, max_iter=13, class_weight="balanced")
    recalls = [(model.predict(X)[rare == "rare"] == "rare").mean() for model in (plain, balanced)]
    assert recalls[1] > recalls[0]


# --- Validation, monitor, callbacks --------------------------------------------------------------


@ESTIMATORS
def test_the_history_has_the_documented_keys(cls):
    y = target(cls)
    assert list(trained(cls).history_) == ["loss"]
    assert list(trained(cls, solver="lbfgs").history_) == ["loss"]
    stopped = trained(cls, early_stopping=True)
    assert list(stopped.history_) == ["loss", "val_loss", "val_score"]
    assert stopped.history_["val_score"] == stopped.validation_scores_
    assert stopped.history_["loss"] == stopped.loss_curve_
    given = make(cls).fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert set(given.history_) == {"loss", "val_loss", "val_score", "score"}
    assert given.history_["val_score"][-1] == given.score(X[60:], y[60:])
    assert given.history_["score"][-1] == given.score(X[:60], y[:60])
    assert {len(values) for values in given.history_.values()} == {6}
    assert given.history_.n_epochs == given.n_iter_ == 6
    assert given.validation_scores_ is None


@ESTIMATORS
def test_validation_loss_is_without_penalty_and_dropout(cls):
    y = target(cls)
    model = make(cls, alpha=5.0, l1=0.1, dropout=0.5).fit(X, y, X_val=X, y_val=y)
    if cls is MLPRegressor:
        expected = 0.5 * ((model.predict(X) - y) ** 2).mean()
    else:
        expected = -np.log(model.predict_proba(X)[np.arange(90), y]).mean()
    assert model.history_["val_loss"][-1] == pytest.approx(expected, rel=1e-12)
    assert model.history_["loss"][-1] > expected


@ESTIMATORS
def test_given_validation_data_is_what_stops(cls):
    y = target(cls)
    model = make(cls, early_stopping=True, n_iter_no_change=2, tol=0.5, max_iter=50)
    model.fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    assert model.n_iter_ < 50
    assert model.t_ == 60 * model.n_iter_
    assert model.best_validation_score_ == model.score(X[60:], y[60:])
    assert model.best_validation_score_ == max(model.history_["val_score"])
    assert len(model.validation_scores_) == model.n_iter_


@ESTIMATORS
def test_validation_data_alone_changes_no_weight(cls):
    y = target(cls)
    plain = trained(cls)
    watched = make(cls).fit(X, y, X_val=X[:7], y_val=y[:7])
    np.testing.assert_array_equal(weights(watched), weights(plain))
    assert watched.loss_curve_ == plain.loss_curve_


def loudness(estimator, X, y):
    """A callable scorer."""
    return float(accuracy_score(y, estimator.predict(X)))


MONITORS = [
    (MLPClassifier, "loss", "loss", min),
    (MLPClassifier, "val_loss", "val_loss", min),
    (MLPClassifier, "val_score", "val_score", max),
    (MLPClassifier, "balanced_accuracy", "val_balanced_accuracy", max),
    (MLPClassifier, "neg_log_loss", "val_neg_log_loss", max),
    (MLPClassifier, "roc_auc_ovr", "val_roc_auc_ovr", max),
    (MLPClassifier, loudness, "val_loudness", max),
    (MLPClassifier, make_scorer(balanced_accuracy_score), "val_monitor", max),
    (MLPRegressor, "val_loss", "val_loss", min),
    (MLPRegressor, "neg_mean_absolute_error", "val_neg_mean_absolute_error", max),
    (MLPRegressor, lambda e, X, y: -float(abs(e.predict(X) - y).max()), "val_monitor", max),
]


@pytest.mark.parametrize(("cls", "monitor", "key", "best"), MONITORS, ids=str)
def test_the_monitored_value_chooses_the_weights(cls, monitor, key, best):
    class Weights(Callback):
        def __init__(self):
            self.seen = []

        def on_epoch(self, run):
            self.seen.append(run.network.backend.to_host(run.network.parameters).copy())

    y, seen = target(cls), Weights()
    model = make(
        cls,
        monitor=monitor,
        early_stopping=True,
        callbacks=[seen],
        max_iter=20,
        learning_rate_init=0.2,
    )
    model.fit(X[:60], y[:60], X_val=X[60:], y_val=y[60:])
    values = model.history_[key]
    epoch = values.index(best(values))
    np.testing.assert_array_equal(weights(model), seen.seen[epoch])


@pytest.mark.parametrize("name", ["balanced_accuracy", "neg_log_loss", loudness], ids=str)
def test_scorers_get_what_they_need(name, backend):
    """String labels, a table's column names, sparse matrices, arrays of another library."""
    here = make(MLPClassifier, monitor=name).fit(X, NAMES, X_val=X, y_val=NAMES)
    key = [*here.history_][-1] if name is not loudness else "val_loudness"
    for x in (sparse.csr_matrix(X), X.tolist(), backend.from_host(X)):
        there = make(MLPClassifier, monitor=name, device="auto")
        there.fit(x, NAMES, X_val=x, y_val=NAMES)
        np.testing.assert_allclose(there.history_[key], here.history_[key], rtol=1e-9)


@pytest.mark.parametrize("name", ["loss", "score", "val_loss"])
def test_a_callable_may_have_any_name(name):
    calls = []

    def monitor(estimator, X, y):
        calls.append(len(y))
        return float(len(calls) == 1)

    monitor.__name__ = name
    model = make(MLPRegressor, monitor=monitor, early_stopping=True, n_iter_no_change=2, tol=0.0)
    model.fit(X, NUMBERS)
    assert len(calls) == model.n_iter_
    first = trained(MLPRegressor, early_stopping=True, max_iter=1)
    np.testing.assert_array_equal(weights(model), weights(first))


def test_monitor_without_early_stopping_ends_training_and_keeps_the_last_weights():
    model = make(MLPRegressor, monitor="val_loss", n_iter_no_change=2, tol=100.0, max_iter=20)
    model.fit(X, NUMBERS, X_val=X, y_val=NUMBERS)
    assert model.n_iter_ == 4  # the first is an improvement on nothing
    np.testing.assert_array_equal(weights(model), weights(trained(MLPRegressor, max_iter=4)))


class Stopper(Callback):
    def __init__(self, after):
        self.after, self.calls = after, []

    def on_start(self, run):
        self.calls.append("start")

    def on_epoch(self, run):
        self.calls.append((run.epoch, round(run.history["loss"][-1], 12)))
        if run.epoch + 1 == self.after:
            run.stop("long enough")

    def on_end(self, run):
        self.calls.append("end")


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
@ESTIMATORS
def test_a_callback_stops_training_without_a_warning(cls):
    stopper = Stopper(3)
    model = trained(cls, callbacks=[stopper])
    assert (model.n_iter_, len(model.loss_curve_)) == (3, 3)
    assert stopper.calls == [
        "start",
        *((epoch, round(loss, 12)) for epoch, loss in enumerate(model.loss_curve_)),
        "end",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        np.testing.assert_array_equal(weights(model), weights(trained(cls, max_iter=3)))


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
def test_a_callback_that_stops_in_the_last_epoch_warns_of_nothing():
    assert trained(MLPRegressor, callbacks=[Stopper(6)]).n_iter_ == 6


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"callbacks": [Stopper(2)]}, "long enough"),
        ({"tol": 100.0, "n_iter_no_change": 1}, "Training loss did not improve"),
        (
            {"early_stopping": True, "tol": 100.0, "n_iter_no_change": 1},
            "Validation score did not improve",
        ),
    ],
    ids=["callback", "loss", "score"],
)
def test_the_history_says_why_training_ended(options, reason):
    assert trained(MLPRegressor).history_.stopped is None
    assert reason in str(trained(MLPRegressor, max_iter=20, **options).history_.stopped)


@pytest.mark.parametrize("monitor", ["val_loss", "val_score"])
def test_the_early_stopping_callback_works_in_an_estimator(monitor):
    callback = EarlyStopping(monitor, patience=2, min_delta=100.0)
    model = make(MLPRegressor, callbacks=[callback], max_iter=20)
    model.fit(X, NUMBERS, X_val=X, y_val=NUMBERS)
    assert model.n_iter_ == 3
    assert callback.best_epoch == 1
    np.testing.assert_array_equal(weights(model), weights(trained(MLPRegressor, max_iter=1)))


@ESTIMATORS
def test_an_interrupt_leaves_a_usable_model(cls):
    class Interrupt(Callback):
        def on_epoch(self, run):
            if run.epoch == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(TrainingInterruptedWarning) as seen:
        model = trained(cls, callbacks=[Interrupt()])
    assert issubclass(seen[0].category, UserWarning)  # as scikit-learn's
    assert seen[0].filename == __file__
    assert model.n_iter_ == 3
    assert np.isfinite(model.predict(X)).all()
    assert "interrupted" in model.history_.stopped


@ESTIMATORS
def test_an_error_in_a_callback_leaves_the_estimator_alone(cls):
    class Broken(Callback):
        def on_epoch(self, run):
            if run.epoch == 2:
                raise RuntimeError("broken")

    model = trained(cls)
    before, predicted = state(model), model.predict(X)
    for warm_start in (False, True):
        model.set_params(callbacks=[Broken()], warm_start=warm_start)
        with pytest.raises(RuntimeError, match="broken"):
            model.fit(X, target(cls))
        model.set_params(callbacks=None, warm_start=False)
        assert state(model) == before
        np.testing.assert_array_equal(model.predict(X), predicted)


# --- Options that cannot apply -------------------------------------------------------------------

REFUSED = [
    # (estimator, options, arguments of fit, error, what it names)
    *[
        (cls, {"solver": "lbfgs", **options}, {}, ValueError, next(iter(options)))
        for cls in (MLPClassifier, MLPRegressor)
        for options in (
            {"dropout": 0.1},
            {"dropout": [0.1, 0, 0]},
            {"l1": 0.1},
            {"clip_norm": 1.0},
            {"weight_decay": 0.1},
            {"monitor": "loss"},
            {"callbacks": [Callback()]},
            {"learning_rate": "cosine"},
            {"learning_rate": Cosine(0.1)},
        )
    ],
    (
        MLPRegressor,
        {"solver": "lbfgs", "layers": [Dense(3), Dropout(0.1)]},
        {},
        ValueError,
        "dropout",
    ),
    (MLPRegressor, {"solver": "lbfgs"}, {"X_val": X, "y_val": NUMBERS}, ValueError, "X_val"),
    *[
        (MLPRegressor, {"solver": SGD(0.1), **options}, {}, ValueError, next(iter(options)))
        for options in (
            {"learning_rate": "cosine"},
            {"learning_rate_init": 0.1},
            {"weight_decay": 0.1},
            {"momentum": 0.5},
            {"nesterovs_momentum": False},
            {"beta_1": 0.5},
            {"beta_2": 0.5},
            {"epsilon": 1e-3},
            {"power_t": 0.1},
        )
    ],
    *[
        (MLPRegressor, {"solver": "rmsprop", **options}, {}, ValueError, next(iter(options)))
        for options in ({"momentum": 0.5}, {"beta_1": 0.5}, {"epsilon": 1e-3})
    ],
    (
        MLPRegressor,
        {"learning_rate": Cosine(0.1), "learning_rate_init": 0.1},
        {},
        ValueError,
        "learning_rate_init",
    ),
    (MLPRegressor, {"monitor": "val_loss"}, {}, ValueError, "monitor"),
    (MLPRegressor, {"monitor": "val_score"}, {}, ValueError, "monitor"),
    (MLPRegressor, {"monitor": "r2"}, {}, ValueError, "monitor"),
    (MLPRegressor, {"monitor": "banana", "early_stopping": True}, {}, ValueError, "banana"),
    (MLPRegressor, {"monitor": 5}, {}, InvalidParameterError, "monitor"),
    (MLPRegressor, {}, {"X_val": X}, ValueError, "y_val"),
    (MLPRegressor, {}, {"y_val": NUMBERS}, ValueError, "X_val"),
    (MLPRegressor, {"callbacks": [print]}, {}, TypeError, "callbacks"),
    (MLPRegressor, {"callbacks": Callback()}, {}, InvalidParameterError, "callbacks"),
    (MLPRegressor, {"dropout": 1.0}, {}, InvalidParameterError, "dropout"),
    (MLPRegressor, {"dropout": -0.1}, {}, InvalidParameterError, "dropout"),
    (MLPRegressor, {"dropout": "a"}, {}, InvalidParameterError, "dropout"),
    (MLPRegressor, {"dropout": [0.1, 0.1]}, {}, ValueError, "dropout"),
    (MLPRegressor, {"dropout": [0.1, 0.1, 1.0]}, {}, ValueError, "dropout"),
    (MLPRegressor, {"dropout": [0.1, 0.1, "a"]}, {}, TypeError, "dropout"),
    (MLPRegressor, {"dropout": [0.1, 0.1, None]}, {}, TypeError, "dropout"),
    (MLPRegressor, {"dropout": 0.5, "hidden_layer_sizes": ()}, {}, ValueError, "dropout"),
    (MLPRegressor, {"activation": ["relu"]}, {}, ValueError, "activation"),
    (MLPRegressor, {"activation": ["relu", "banana"]}, {}, ValueError, "activation"),
    (MLPRegressor, {"activation": ["relu", 3]}, {}, TypeError, "activation"),
    (MLPRegressor, {"hidden_layer_sizes": (3, 2.5)}, {}, ValueError, "hidden_layer_sizes"),
    *[
        (MLPRegressor, {"layers": [Dense(3)], **options}, {}, ValueError, next(iter(options)))
        for options in (
            {"hidden_layer_sizes": (3,)},
            {"hidden_layer_sizes": [5, 5]},
            {"hidden_layer_sizes": np.array([5, 5])},
            {"activation": "tanh"},
            {"dropout": 0.1},
            {"bias": False},
        )
    ],
    (MLPRegressor, {"layers": [Dense(3), "relu"]}, {}, TypeError, "layers"),
    (MLPRegressor, {"layers": Dense(3)}, {}, InvalidParameterError, "layers"),
    (MLPRegressor, {"bias": 2}, {}, InvalidParameterError, "bias"),
    (MLPRegressor, {"l1": -1}, {}, InvalidParameterError, "l1"),
    (MLPRegressor, {"weight_decay": -1}, {}, InvalidParameterError, "weight_decay"),
    (MLPRegressor, {"clip_norm": 0}, {}, InvalidParameterError, "clip_norm"),
    (MLPRegressor, {"dtype": "float16"}, {}, ValueError, "dtype"),
    (MLPRegressor, {"dtype": 3}, {}, ValueError, "dtype"),
    (MLPRegressor, {"dtype": ""}, {}, ValueError, "dtype"),
    (MLPRegressor, {"precision": "banana"}, {}, ValueError, "precision"),
    (MLPRegressor, {"device": "banana"}, {}, ValueError, "device"),
    (MLPRegressor, {"device": None}, {}, InvalidParameterError, "device"),
    (MLPRegressor, {"backend": "banana"}, {}, ValueError, "backend"),
    (MLPRegressor, {"backend": 3}, {}, TypeError, "backend"),
    (MLPRegressor, {"fallback": "yes"}, {}, InvalidParameterError, "fallback"),
    (MLPRegressor, {"loss": "focal"}, {}, InvalidParameterError, "loss"),
    (MLPRegressor, {"loss": LogLoss()}, {}, ValueError, "loss"),
    (MLPRegressor, {"loss": Focal()}, {}, ValueError, "loss"),
    (MLPClassifier, {"loss": "huber"}, {}, InvalidParameterError, "loss"),
    (MLPClassifier, {"loss": Quantile(0.5)}, {}, InvalidParameterError, "loss"),
    (MLPClassifier, {"label_smoothing": 1.0}, {}, InvalidParameterError, "label_smoothing"),
    (
        MLPClassifier,
        {"label_smoothing": 0.1, "loss": "squared_error"},
        {},
        ValueError,
        "label_smoothing",
    ),
    (MLPClassifier, {"label_smoothing": 0.1, "loss": Focal()}, {}, ValueError, "label_smoothing"),
    (MLPClassifier, {"class_weight": "even"}, {}, InvalidParameterError, "class_weight"),
    (MLPClassifier, {"class_weight": [1, 2, 3]}, {}, InvalidParameterError, "class_weight"),
    (MLPClassifier, {"class_weight": {7: 2.0}}, {}, ValueError, "class"),
    (MLPClassifier, {"class_weight": {0: -1.0}}, {}, ValueError, "class_weight"),
    (MLPClassifier, {"class_weight": {0: np.nan}}, {}, ValueError, "class_weight"),
    (MLPClassifier, {"class_weight": {0: "a"}}, {}, (TypeError, ValueError), "class_weight"),
    (MLPClassifier, {"class_weight": {0: 0, 1: 0, 2: 0}}, {}, ValueError, "class_weight"),
    (
        MLPClassifier,
        {"class_weight": "balanced"},
        {"y": SEVERAL},
        ValueError,
        "class_weight",
    ),
]


def unchanged(model, action, error, match):
    """`action` raises, and `model` is what it was, fitted or not."""
    before = state(model)
    predicted = model.predict(X) if hasattr(model, "network_") else None
    options = model.get_params()
    with pytest.raises(error, match=match) as caught:
        action(model)
    assert state(model) == before
    if predicted is None:
        with pytest.raises(NotFittedError):
            model.predict(X)
    else:
        np.testing.assert_array_equal(model.predict(X), predicted)
    assert all(model.get_params()[key] is value for key, value in options.items())
    return caught.value


def case_name(value):
    return str(value)[:60] if isinstance(value, dict | str) else getattr(value, "__name__", "")


@pytest.mark.parametrize(("cls", "options", "given", "error", "named"), REFUSED, ids=case_name)
def test_an_option_that_cannot_apply_is_refused(cls, options, given, error, named):
    def action(model):
        model.fit(**{"X": X, "y": target(cls), **given})

    unchanged(make(cls, **options), action, error, named)
    fitted = trained(cls)
    own = make(cls, **options).get_params()

    def again(model):
        model.set_params(**own)
        model.fit(**{"X": X, "y": target(cls), **given})

    before = fitted.get_params()
    history, predicted = fitted.history_.to_dict(), fitted.predict(X)
    with pytest.raises(error, match=named):
        again(fitted)
    fitted.set_params(**before)
    assert fitted.history_.to_dict() == history
    np.testing.assert_array_equal(fitted.predict(X), predicted)


def test_balanced_weights_are_refused_in_partial_fit():
    unchanged(
        make(MLPClassifier, class_weight="balanced"),
        lambda model: model.partial_fit(X, LABELS, classes=[0, 1, 2]),
        ValueError,
        "class_weight",
    )


def test_a_schedule_without_length_is_refused_in_partial_fit():
    unchanged(
        make(MLPRegressor, learning_rate="cosine"),
        lambda model: model.partial_fit(X, NUMBERS),
        ValueError,
        "n_steps|learning_rate",
    )
    lengthy = make(MLPRegressor, learning_rate=Cosine(0.02, n_steps=100))
    for _ in range(3):
        lengthy.partial_fit(X, NUMBERS)
    assert lengthy.loss_curve_[2] < lengthy.loss_curve_[0]


# --- Arrays of other libraries -------------------------------------------------------------------


@pytest.fixture(params=["pandas", "polars", "torch", "array_api_strict", "cupy"])
def library(request):
    """Functions that put NumPy arrays into a library, and back."""
    name = request.param
    module = pytest.importorskip(name)
    if name == "array_api_strict":
        device = module.Device("device1")

        def put(x):
            return module.asarray(x, device=device)

        def back(x):
            assert x.device == device
            return np.asarray(x.to_device(module.Device("CPU_DEVICE")))

        return put, back, module.asarray(0).__class__
    if name == "torch":

        def put(x):
            return module.from_numpy(np.ascontiguousarray(x))

        return put, lambda x: x.numpy(), module.Tensor
    if name == "cupy":
        if available_backends()["cupy"] != "usable":
            pytest.skip(available_backends()["cupy"])
        return module.asarray, module.asnumpy, module.ndarray

    def table(x):
        if x.ndim == 1:
            return module.Series(x)
        return module.DataFrame(x, **{"columns" if name == "pandas" else "schema": [*"abcd"]})

    return table, np.asarray, np.ndarray  # tables are scored in NumPy, as in scikit-learn


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@ESTIMATORS
def test_predictions_come_back_where_the_data_lives(cls, dtype, library):
    put, back, kind = library
    x, y = X.astype(dtype), target(cls)
    there = make(cls, device="auto").fit(put(x), put(y), put(np.ones(90)))
    here = make(cls).fit(x, y, np.ones(90))
    methods = ["predict"] + ["predict_proba", "predict_log_proba"] * (cls is MLPClassifier)
    limit = 1e-9 if dtype == "float64" else 1e-4
    for method in methods:
        found, expected = getattr(there, method)(put(x)), getattr(here, method)(x)
        assert isinstance(found, kind)
        assert back(found).dtype == expected.dtype
        np.testing.assert_allclose(back(found), expected, rtol=limit, atol=limit)
    assert isinstance(there.coefs_[0], kind)
    assert there.score(put(x), put(y)) == pytest.approx(here.score(x, y), rel=1e-4)
    assert isinstance(there.score(put(x), put(y), put(WEIGHT)), float)


@ESTIMATORS
def test_a_fitted_model_takes_arrays_of_every_library(cls, library):
    put, back, kind = library
    if hasattr(put(X), "columns"):
        pytest.skip("a table has column names, which the NumPy array had not")
    model = trained(cls)
    found = model.predict(put(X))
    assert isinstance(found, kind)
    np.testing.assert_allclose(back(found), model.predict(X), rtol=1e-12)
    with pytest.raises(ValueError, match="3 features"):
        model.predict(put(X[:, :3]))
    with pytest.raises(ValueError, match="X contains NaN"):
        model.predict(put(X * np.nan))


def test_string_labels_stay_strings(library):
    put, _, _ = library
    model = make(MLPClassifier, device="auto").fit(put(X), NAMES)
    predicted = model.predict(put(X))
    assert isinstance(predicted, np.ndarray)
    assert predicted.dtype == NAMES.dtype
    assert model.classes_.tolist() == ["blue", "green", "red"]
    np.testing.assert_array_equal(predicted, trained(MLPClassifier, X, NAMES).predict(X))
    assert model.score(put(X), NAMES) == (predicted == NAMES).mean()


@ESTIMATORS
def test_an_explicit_device_overrides_where_the_data_lives(cls, library):
    put, back, kind = library
    model = make(cls, device="cpu").fit(put(X), put(target(cls)))
    assert model.network_.backend.name == "numpy"
    np.testing.assert_array_equal(weights(model), weights(trained(cls)))
    found = model.predict(put(X))
    assert isinstance(found, kind)
    np.testing.assert_array_equal(back(found), trained(cls).predict(X))


@pytest.mark.parametrize(
    "options",
    [{"early_stopping": True}, {"solver": "lbfgs"}, {"warm_start": True, "dropout": 0.2}],
    ids=str,
)
@ESTIMATORS
def test_other_ways_to_train_work_in_every_library(cls, options, library):
    put, _, _ = library
    runs = []
    for x, y in ((X, target(cls)), (put(X), put(target(cls)))):
        model = make(cls, device="auto" if x is not X else "cpu", **options)
        if options.get("solver") == "lbfgs":
            model.fit(x, y)
        elif "early_stopping" in options:
            model.fit(x, y).fit(x, y, X_val=x, y_val=y)
        else:
            model.fit(x, y).fit(x, y).partial_fit(x, y)
        runs.append(model)
    np.testing.assert_allclose(weights(runs[1]), weights(runs[0]), rtol=1e-6, atol=1e-8)


def test_targets_and_weights_may_live_elsewhere(backend):
    model = make(MLPRegressor).fit(X, backend.from_host(NUMBERS), backend.from_host(WEIGHT))
    assert not differs(model, trained(MLPRegressor, X, NUMBERS, WEIGHT))
    other = make(MLPRegressor, device="auto").fit(backend.from_host(X), NUMBERS.tolist())
    np.testing.assert_allclose(weights(other), weights(trained(MLPRegressor)), rtol=1e-9)


def test_lists_are_answered_in_numpy():
    model = make(MLPClassifier).fit(X.tolist(), NAMES.tolist())
    assert isinstance(model.predict(X.tolist()), np.ndarray)
    assert isinstance(model.coefs_[0], np.ndarray)
    assert not differs(model, trained(MLPClassifier, X, NAMES))


def test_feature_names_are_kept_and_compared():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=[*"abcd"])
    model = make(MLPClassifier, early_stopping=True, monitor="balanced_accuracy")
    model.fit(table, pandas.Series(NAMES), X_val=table, y_val=pandas.Series(NAMES))
    assert model.feature_names_in_.tolist() == [*"abcd"]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(table[[*"bacd"]])
    with pytest.raises(ValueError, match="feature names"):
        make(MLPClassifier).fit(table, NAMES, X_val=table[[*"bacd"]], y_val=NAMES)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)
    model.fit(X, NAMES)
    assert not hasattr(model, "feature_names_in_")


def test_pandas_extension_types_are_numbers_too():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {
            "a": pandas.array(np.arange(90), dtype="Int64"),
            "b": pandas.array(X[:, 1], dtype="Float64"),
            "c": X[:, 2],
        }
    )
    model = make(MLPRegressor).fit(table, NUMBERS)
    assert np.isfinite(model.predict(table)).all()
    table.loc[3, "a"] = pandas.NA
    with pytest.raises(ValueError, match="NaN"):
        model.predict(table)


@ESTIMATORS
def test_a_fitted_model_moves(cls, backend):
    model, stays = (
        make(cls, backend=backend).fit(X, target(cls)).partial_fit(X, target(cls)) for _ in "ab"
    )
    assert model.to("cpu") is model
    assert model.network_.device == "cpu"
    np.testing.assert_array_equal(weights(model), weights(stays))
    np.testing.assert_allclose(model.predict(X), stays.predict(X), rtol=1e-12)
    for one in (model, stays):
        one.partial_fit(X, target(cls))
    np.testing.assert_allclose(weights(model), weights(stays), rtol=1e-9)
    assert model.network_.device == "cpu"
    assert model.get_params()["backend"] is backend


@ESTIMATORS
def test_a_moved_model_answers_arrays_of_the_library_it_was_trained_on(cls, library):
    put, _, kind = library
    model = make(cls, device="auto").fit(put(X), target(cls))
    before = model.predict(put(X[:5]))
    found = model.to("cpu").predict(put(X[:5]))
    assert isinstance(found, kind)
    assert type(found) is type(before)
    model.partial_fit(put(X), target(cls))
    assert model.network_.device == "cpu"


def test_a_model_moves_only_where_there_is_a_device_and_something_fitted():
    with pytest.raises(NotFittedError):
        make(MLPRegressor).to("cpu")
    unchanged(trained(MLPRegressor), lambda model: model.to("banana"), ValueError, "device")


# --- The rest of scikit-learn --------------------------------------------------------------------


def test_it_works_in_a_pipeline_that_passes_tables():
    pytest.importorskip("pandas")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().set_output(transform="pandas")
    pipeline = make_pipeline(scaler, make(MLPClassifier)).fit(X, NAMES)
    assert pipeline[-1].feature_names_in_.tolist() == ["x0", "x1", "x2", "x3"]
    assert pipeline.score(X, NAMES) > 0.5
    assert pipeline.predict(X).dtype == NAMES.dtype


def test_it_works_in_a_parallel_grid_search():
    from sklearn.model_selection import GridSearchCV

    grid = {"alpha": [1e-4, 1.0], "solver": ["sgd", Adam(0.02)], "learning_rate_init": [0.001]}
    search = GridSearchCV(make(MLPClassifier), grid, n_jobs=2, cv=2, error_score="raise")
    search.fit(X, NAMES)
    assert search.best_estimator_.score(X, NAMES) == search.score(X, NAMES)


@ESTIMATORS
def test_it_works_in_cross_validation(cls):
    from sklearn.model_selection import cross_val_predict, cross_val_score, learning_curve

    scores = cross_val_score(make(cls), X, target(cls), cv=3, params={"sample_weight": WEIGHT})
    assert scores.shape == (3,)
    assert cross_val_predict(make(cls), X, target(cls), cv=3).shape == (90,)
    sizes, *_ = learning_curve(
        make(cls), X, target(cls), cv=2, train_sizes=[0.5, 1.0], shuffle=True, random_state=0
    )
    assert len(sizes) == 2


@ESTIMATORS
def test_clones_are_unfitted_and_train_alike(cls):
    options = {
        "solver": Adam(0.02),
        "activation": ["tanh", ELU(0.5)],
        "callbacks": [Callback()],
        "monitor": "loss",
    }
    model = trained(cls, **options)
    copied = clone(model)
    assert not hasattr(copied, "network_")
    assert copied.get_params().keys() == model.get_params().keys()
    np.testing.assert_array_equal(weights(copied.fit(X, target(cls))), weights(model))


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def dumped(model):
    stream = BytesIO()
    joblib.dump(model, stream)
    stream.seek(0)
    return joblib.load(stream)


@pytest.mark.parametrize("copied", [pickled, dumped, copy.deepcopy])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.3, "n_iter_no_change": 1},
        {"solver": "sgd", "learning_rate": "invscaling"},
        {"solver": "nadam", "dropout": 0.3},
        {"dtype": "float32"},
        {"solver": AdamW(0.01)},
    ],
    ids=str,
)
@ESTIMATORS
def test_a_copy_goes_on_as_the_original(cls, options, copied):
    y = target(cls)
    model = trained(cls, **options).partial_fit(X, y)
    other = copied(model)
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    assert other.history_.to_dict() == model.history_.to_dict()
    for _ in range(3):
        model.partial_fit(X, y)
        other.partial_fit(X, y)
    np.testing.assert_array_equal(weights(other), weights(model))
    assert other.loss_curve_ == model.loss_curve_
    for one in (model, other):
        one.set_params(warm_start=True).fit(X, y)
    np.testing.assert_array_equal(weights(other), weights(model))


@ESTIMATORS
def test_a_pickle_of_an_unfitted_estimator_can_be_fitted(cls):
    np.testing.assert_array_equal(
        weights(pickled(make(cls)).fit(X, target(cls))), weights(trained(cls))
    )


@ESTIMATORS
def test_a_pickle_opens_on_the_cpu_where_its_adapter_is_missing(cls):
    x = BACKENDS["array-api-strict"].from_host(X)
    model = make(cls, device="auto").fit(x, target(cls)).partial_fit(x, target(cls))
    written = pickle.dumps(model)
    with pytest.warns(DeviceFallbackWarning, match="is not installed; taking the CPU"):
        opened = pickle.loads(written)
    assert opened.network_.device == "cpu"
    np.testing.assert_allclose(
        opened.predict(X), trained(cls).partial_fit(X, target(cls)).predict(X)
    )
    # Everything works there, on the host's arrays and on those it was trained on.
    assert isinstance(opened.predict(x), type(x))
    assert all(isinstance(c, np.ndarray) for c in opened.coefs_)
    opened.partial_fit(X, target(cls))
    model.partial_fit(x, target(cls))
    np.testing.assert_allclose(weights(opened), weights(model), rtol=1e-9)


@pytest.mark.parametrize("copied", [clone, pickled, copy.deepcopy])
def test_an_adapter_as_a_parameter_can_be_copied(copied):
    model = trained(MLPRegressor, backend=BACKENDS["numpy"])
    other = copied(model)
    assert other.backend.name == "numpy"
    np.testing.assert_array_equal(other.fit(X, NUMBERS).predict(X), model.predict(X))


@ESTIMATORS
def test_it_can_be_inspected(cls):
    from sklearn.inspection import partial_dependence, permutation_importance

    model = trained(cls, max_iter=40)
    importance = permutation_importance(model, X, target(cls), n_repeats=2, random_state=0)
    assert importance.importances_mean.argmax() in (0, 1)
    assert partial_dependence(model, X, [0], grid_resolution=5)["average"].shape[-1] == 5


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_it_can_be_calibrated(method):
    from sklearn.calibration import CalibratedClassifierCV

    model = CalibratedClassifierCV(make(MLPClassifier), method=method, cv=2).fit(X, NAMES, WEIGHT)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0)
    assert model.score(X, NAMES) > 0.5


@ESTIMATORS
def test_it_is_shown_in_notebooks_and_in_print(cls):
    model = make(cls, dropout=0.25, layers=None)
    assert "dropout" in model._repr_html_()
    assert repr(cls(alpha=0.5)) == f"{cls.__name__}(alpha=0.5)"
    assert "dropout=0.25" in repr(model)
    assert cls.__name__ in trained(cls)._repr_html_()


def test_ensembles_take_it():
    from sklearn.ensemble import BaggingRegressor, VotingClassifier
    from sklearn.multioutput import MultiOutputRegressor

    voting = VotingClassifier(
        [("a", make(MLPClassifier)), ("b", make(MLPClassifier))], voting="soft"
    )
    assert voting.fit(X, NAMES).predict(X).dtype == NAMES.dtype
    bagging = BaggingRegressor(make(MLPRegressor), n_estimators=2, random_state=0).fit(X, NUMBERS)
    assert bagging.predict(X).shape == (90,)
    several = MultiOutputRegressor(make(MLPRegressor)).fit(X, np.stack([NUMBERS, -NUMBERS], 1))
    assert several.predict(X).shape == (90, 2)


def test_validation_data_can_be_routed():
    import sklearn
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with sklearn.config_context(enable_metadata_routing=True):
        model = make(MLPClassifier).set_fit_request(X_val=True, y_val=True)
        pipeline = make_pipeline(StandardScaler(), model)
        pipeline.fit(X, LABELS, X_val=X, y_val=LABELS)
    assert "val_score" in pipeline[-1].history_


# --- Bad input -----------------------------------------------------------------------------------


def masked(x):
    return np.ma.masked_array(x, mask=np.arange(np.asarray(x).size).reshape(np.shape(x)) == 5)


def at(values, index, value):
    """A copy with one other element."""
    changed = np.array(values, dtype=object if value is None else None)
    changed[index] = value
    return changed


DAYS = np.array("2020-01-01", "datetime64[D]") + np.arange(90)
BAD = {
    # name: (arguments of fit in place of X and y, error, what it names)
    "masked X": ({"X": masked(X)}, ValueError, "X has 1 masked"),
    "masked y": ({"y": "masked"}, ValueError, "y has 1 masked"),
    "masked weights": ({"sample_weight": masked(WEIGHT)}, ValueError, "sample_weight has 1 masked"),
    "masked X_val": ({"X_val": masked(X), "y_val": "y"}, ValueError, "X_val has 1 masked"),
    "masked y_val": ({"X_val": X, "y_val": "masked"}, ValueError, "y_val has 1 masked"),
    "datetimes in X": ({"X": np.stack([DAYS] * 4, 1)}, (TypeError, ValueError), "X"),
    "datetimes in y": ({"y": DAYS}, (TypeError, ValueError), "y"),
    "durations in y": ({"y": DAYS - DAYS[0]}, (TypeError, ValueError), "y"),
    "datetimes as weights": ({"sample_weight": DAYS}, (TypeError, ValueError), "sample_weight"),
    "a None in X": ({"X": at(X, (3, 1), None)}, (TypeError, ValueError), "X|NaN"),
    "text in X": ({"X": at(X.astype(object), (3, 1), "a")}, (TypeError, ValueError), "X|'a'"),
    "negative weights": ({"sample_weight": at(WEIGHT, 3, -1.0)}, ValueError, "sample_weight"),
    "no weight": ({"sample_weight": np.zeros(90)}, ValueError, "sample_weight"),
    "no weight at all": ({"sample_weight": 0.0}, ValueError, "sample_weight"),
    "NaN weight": ({"sample_weight": at(WEIGHT, 3, np.nan)}, ValueError, "sample_weight"),
    "infinite weight": ({"sample_weight": at(WEIGHT, 3, np.inf)}, ValueError, "sample_weight"),
    "huge weights": ({"sample_weight": np.full(90, 1e308)}, ValueError, "sample_weight"),
    "text as weights": ({"sample_weight": ["a"] * 90}, (TypeError, ValueError), "sample_weight"),
    "short weights": ({"sample_weight": WEIGHT[1:]}, ValueError, "sample_weight"),
    "a column of weights": ({"sample_weight": WEIGHT[:, None]}, ValueError, "sample_weight"),
    "complex weights": ({"sample_weight": WEIGHT * 1j}, (TypeError, ValueError), "sample_weight"),
    "NaN in X": ({"X": at(X, (3, 1), np.nan)}, ValueError, "Input X contains NaN"),
    "a complex X": ({"X": X * 1j}, ValueError, "[Cc]omplex"),
    "NaN in X_val": ({"X_val": at(X, (3, 1), np.nan), "y_val": "y"}, ValueError, "X_val"),
    "a wrong width of X_val": ({"X_val": X[:, 1:], "y_val": "y"}, ValueError, "X_val|3 features"),
    "a flat X_val": ({"X_val": X[:, 1], "y_val": "y"}, ValueError, "2D array|X_val"),
    "no row in X_val": ({"X_val": X[:0], "y_val": []}, ValueError, "X_val|0 sample"),
    "a short y_val": ({"X_val": X, "y_val": "short"}, ValueError, "y_val"),
    "text in X_val": ({"X_val": np.full((90, 4), "a"), "y_val": "y"}, ValueError, "."),
    "short y": ({"y": "short"}, ValueError, "y has 89"),
    "no y": ({"y": None}, ValueError, "y"),
    "a single y": ({"y": 3}, (TypeError, ValueError), "."),
    "y in three dimensions": ({"y": np.zeros((90, 2, 2))}, ValueError, "."),
}
BAD_LABELS = {
    "None among labels": ({"y": at(NAMES, 3, None)}, (TypeError, ValueError), "y|label"),
    "None among numbers": ({"y": at(LABELS, 3, None)}, (TypeError, ValueError), "y|label|NaN"),
    "text among numbers": (
        {"y": at(LABELS.astype(object), 3, "a")},
        (TypeError, ValueError),
        "y must hold labels of one kind",
    ),
    "tuples": (
        {"y": np.fromiter(((i,) for i in LABELS), dtype=object)},
        (TypeError, ValueError),
        ".",
    ),
    "NaN among labels": ({"y": at(LABELS * 1.0, 3, np.nan)}, ValueError, "y"),
    "continuous labels": ({"y": NUMBERS}, ValueError, "continuous|Unknown label type"),
    "unknown labels to validate": (
        {"X_val": X, "y_val": LABELS + 1},
        ValueError,
        "y_val",
    ),
    "other labels to validate": ({"X_val": X, "y_val": NAMES}, (TypeError, ValueError), "y_val"),
    "None to validate": (
        {"X_val": X, "y_val": at(LABELS, 3, None)},
        (TypeError, ValueError),
        "y_val",
    ),
    "text among numbers to validate": (
        {"X_val": X, "y_val": at(LABELS.astype(object), 3, "a")},
        (TypeError, ValueError),
        "y_val",
    ),
    "several labels to validate": ({"X_val": X, "y_val": SEVERAL}, ValueError, "y_val"),
}
BAD_NUMBERS = {
    "NaN in y": ({"y": at(NUMBERS, 3, np.nan)}, ValueError, "y contains NaN"),
    "infinity in y": ({"y": at(NUMBERS, 3, np.inf)}, ValueError, "y contains infinity"),
    "None in y": ({"y": at(NUMBERS, 3, None)}, (TypeError, ValueError), "y"),
    "text in y": ({"y": NAMES}, (TypeError, ValueError), "y|string|convert"),
    "complex y": ({"y": NUMBERS * 1j}, (TypeError, ValueError), "y|[Cc]omplex"),
    "NaN in y_val": ({"X_val": X, "y_val": at(NUMBERS, 3, np.nan)}, ValueError, "y_val"),
    "two columns to validate": (
        {"X_val": X, "y_val": np.stack([NUMBERS] * 2, 1)},
        ValueError,
        "y_val|validation y",
    ),
}
ALL_BAD = [
    *[(cls, name, *BAD[name]) for cls in (MLPClassifier, MLPRegressor) for name in BAD],
    *[(MLPClassifier, name, *BAD_LABELS[name]) for name in BAD_LABELS],
    *[(MLPRegressor, name, *BAD_NUMBERS[name]) for name in BAD_NUMBERS],
]


@pytest.mark.parametrize(
    ("cls", "name", "given", "error", "named"),
    ALL_BAD,
    ids=[f"{cls.__name__}-{name}" for cls, name, *_ in ALL_BAD],
)
def test_bad_input_is_refused_by_name_and_changes_nothing(cls, name, given, error, named):
    y = target(cls)
    words = {"y": y, "masked": masked(y), "short": y[1:]}
    arguments = {
        key: words[value] if isinstance(value, str) else value
        for key, value in {"X": X, "y": y, **given}.items()
    }

    def action(model):
        model.fit(**arguments)

    unchanged(make(cls), action, error, named)
    unchanged(trained(cls), action, error, named)
    unchanged(trained(cls, warm_start=True), action, error, named)
    if "X_val" in arguments or name == "datetimes in X":
        return
    first = {} if cls is MLPRegressor else {"classes": [0, 1, 2]}
    unchanged(make(cls), lambda model: model.partial_fit(**arguments, **first), error, ".")
    partial = make(cls).partial_fit(X, y, **first)
    unchanged(partial, lambda model: model.partial_fit(**arguments), error, ".")


def test_masked_arrays_without_masked_values_are_plain_arrays():
    x, y = np.ma.masked_array(X), np.ma.masked_array(LABELS, mask=np.zeros(90, bool))
    model = make(MLPClassifier).fit(x, y, np.ma.masked_array(WEIGHT), X_val=x, y_val=y)
    assert not differs(model, trained(MLPClassifier, X, LABELS, WEIGHT))
    np.testing.assert_array_equal(model.predict(x), model.predict(X))
    with pytest.raises(ValueError, match="X has 1 masked"):
        model.predict(masked(X))


@ESTIMATORS
def test_wrong_inputs_at_predict_change_nothing(cls):
    model = trained(cls)
    for x in (X[:, :3], X[0], X[:0], X * np.nan, np.full((2, 4), "a"), None):
        unchanged(model, lambda model, x=x: model.predict(x), (ValueError, TypeError), ".")
    small = trained(cls, dtype="float32")
    unchanged(small, lambda model: model.predict(X * 1e39), ValueError, "X contains .*float32")


@ESTIMATORS
def test_nothing_works_before_fit(cls):
    model = make(cls)
    methods = ["predict"] + ["predict_proba", "predict_log_proba"] * (cls is MLPClassifier)
    for method in methods:
        with pytest.raises(NotFittedError):
            getattr(model, method)(X)
    for attribute in ("coefs_", "intercepts_", "n_layers_", "out_activation_"):
        assert not hasattr(model, attribute)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs", "rmsprop"])
@ESTIMATORS
def test_one_sample_and_one_class_are_enough(cls, solver):
    single = trained(cls, X[:1], target(cls)[:1], solver=solver, batch_size=1)
    assert single.predict(X).shape == (90,)
    constant = make(MLPClassifier, solver=solver).fit(X, ["only"] * 90)
    assert set(constant.predict(X)) == {"only"}
    assert constant.predict_proba(X).shape == (90, 2)


@pytest.mark.parametrize("weighted", [slice(0, 30), slice(60, 90)])
@ESTIMATORS
def test_rows_without_weight_leave_everything_finite(cls, weighted):
    weight = np.zeros(90)
    weight[weighted] = 1.0
    model = trained(cls, X, target(cls), weight, shuffle=False, batch_size=15)
    assert np.isfinite(weights(model)).all()
    assert np.isfinite(model.loss_curve_).all()


@ESTIMATORS
def test_held_out_rows_without_weight_are_refused(cls):
    unchanged(
        make(cls, early_stopping=True),
        lambda model: model.fit(X, target(cls), np.eye(90)[0] + np.eye(90)[1]),
        ValueError,
        "sample_weight must be >= 0 and not all zero",
    )


@pytest.mark.parametrize("loss", ["squared_error", "huber", "poisson"])
def test_targets_beyond_the_dtype_are_refused(loss):
    y = np.abs(NUMBERS)
    y[3] = 1e39
    for options in ({"dtype": "float32"}, {"dtype": "float32", "solver": "lbfgs"}):
        unchanged(
            make(MLPRegressor, loss=loss, **options),
            lambda model: model.fit(X, y),
            ValueError,
            "y contains a value too large for float32",
        )
    unchanged(
        make(MLPRegressor, loss=loss),
        lambda model: model.fit(X.astype("float32"), y),
        ValueError,
        "y contains a value too large for float32",
    )
    unchanged(
        make(MLPRegressor, dtype="float32"),
        lambda model: model.fit(X * 1e39, NUMBERS),
        ValueError,
        "X contains a value too large for float32",
    )


@pytest.mark.parametrize("loss", ["poisson", Poisson()], ids=str)
def test_negative_counts_are_refused(loss):
    unchanged(
        make(MLPRegressor, loss=loss), lambda model: model.fit(X, NUMBERS), ValueError, "y for"
    )


# --- Training that becomes non-finite ------------------------------------------------------------

BLOWN = {"solver": "sgd", "learning_rate_init": 1e200, "activation": "identity"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "options",
    [
        BLOWN,
        {**BLOWN, "dtype": "float32", "learning_rate_init": 1e30},
        {**BLOWN, "early_stopping": True},
        {**BLOWN, "momentum": 0.0, "clip_norm": None},
        {"solver": "lbfgs", "y": 1e200},
        {"y": 1e200},
    ],
    ids=str,
)
def test_a_run_that_is_never_finite_raises_and_changes_nothing(options, backend):
    options = dict(options)
    y = NUMBERS * options.pop("y", 1.0)

    def action(model):
        model.fit(X, y)

    unchanged(make(MLPRegressor, **options, backend=backend), action, ValueError, "non-finite")
    fitted = trained(MLPRegressor, backend=backend)
    before, kept = fitted.get_params(), weights(fitted)
    fitted.set_params(**options)
    with pytest.raises(ValueError, match="non-finite"):
        action(fitted)
    fitted.set_params(**before)
    np.testing.assert_array_equal(weights(fitted), kept)


def rising(step):
    """A rate that is sound for three epochs of six steps, and absurd after that."""
    return 0.02 if step < 18 else 1e200


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("monitor", [None, "val_loss", "loss"])
@ESTIMATORS
def test_early_stopping_goes_back_to_the_best_finite_weights(cls, monitor):
    options = {"early_stopping": True, "monitor": monitor, "activation": "identity"}
    options |= {"solver": "sgd", "momentum": 0.0}
    with pytest.warns(ConvergenceWarning, match="best weights before that are kept"):
        model = trained(cls, learning_rate=rising, **options)
    sound = trained(cls, learning_rate=lambda step: 0.02, **{**options, "max_iter": 3})
    np.testing.assert_array_equal(weights(model), weights(sound))
    assert np.isfinite(model.predict(X)).all()
    assert model.best_validation_score_ == sound.best_validation_score_
    # The epoch that failed is in the records, as NaN, as in scikit-learn's own test of it.
    for name in ("loss_curve_", "validation_scores_"):
        values = getattr(model, name)
        assert values[:-1] == getattr(sound, name), name
        assert np.isnan(values[-1])
    assert model.n_iter_ == model.history_.n_epochs == 4
    # And training goes on from there.
    model.set_params(learning_rate=lambda step: 0.02, warm_start=True, max_iter=2)
    model.fit(X, target(cls))
    assert np.isfinite(model.loss_)
    assert np.isfinite(model.best_validation_score_)
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@ESTIMATORS
def test_without_early_stopping_a_late_blow_up_raises(cls):
    options = {"solver": "sgd", "momentum": 0.0, "activation": "identity"}
    unchanged(
        make(cls, learning_rate=rising, **options),
        lambda model: model.fit(X, target(cls)),
        ValueError,
        "non-finite",
    )
    model = trained(cls, **options)
    before = weights(model), model.history_.to_dict(), model.t_
    model.set_params(learning_rate_init=1e200, warm_start=True)
    with pytest.raises(ValueError, match="non-finite"):
        model.fit(X, target(cls))
    np.testing.assert_array_equal(weights(model), before[0])
    assert (model.history_.to_dict(), model.t_) == before[1:]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_failing_partial_fit_keeps_the_optimizer_too():
    model, other = (trained(MLPRegressor).partial_fit(X, NUMBERS) for _ in range(2))
    unchanged(model, lambda model: model.partial_fit(X, NUMBERS * 1e200), ValueError, "non-finite")
    for one in (model, other):
        one.partial_fit(X, NUMBERS)
    np.testing.assert_array_equal(weights(model), weights(other))
    assert model.loss_curve_ == other.loss_curve_
    assert model.history_.to_dict() == other.history_.to_dict()


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_layer_sizes": (6, 5)},
        {"activation": "tanh"},
        {"bias": False},
        {"dropout": 0.2},
        {"layers": [Dense(6, "relu"), Dense(5, "relu")], "hidden_layer_sizes": (100,)},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_training_goes_on_only_with_the_same_layers(method, options):
    model = trained(MLPRegressor, warm_start=True)
    before = weights(model)
    model.set_params(**options)
    with pytest.raises(ValueError, match="layers"):
        getattr(model, method)(X, NUMBERS)
    np.testing.assert_array_equal(weights(model), before)


def test_lbfgs_before_another_solver_goes_on():
    model = trained(MLPRegressor, solver="lbfgs")
    model.set_params(solver="adam", warm_start=True)
    loss = model.loss_
    model.fit(X, NUMBERS)
    assert model.loss_curve_[-1] < 2 * loss


# --- Threads and memory --------------------------------------------------------------------------


@ESTIMATORS
def test_eight_threads_predict_at_once(cls):
    model = trained(cls)
    parts = [X[i : i + 40] for i in range(48)]
    expected = [model.predict(part) for part in parts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, one in zip(pool.map(model.predict, parts), expected, strict=True):
                np.testing.assert_array_equal(found, one)


@ESTIMATORS
def test_eight_threads_train_estimators_of_their_own(cls):
    expected = weights(trained(cls))
    with ThreadPoolExecutor(8) as pool:
        for model in pool.map(lambda _: make(cls).fit(X, target(cls)), range(16)):
            np.testing.assert_array_equal(weights(model), expected)


@pytest.mark.parametrize(
    ("method", "dtype", "options"),
    [
        ("fit", "uint8", {}),
        ("fit", "uint8", {"early_stopping": True}),
        ("fit", "uint8", {"solver": "lbfgs", "max_iter": 1}),
        ("fit", "float64", {"dtype": "float32"}),
        ("fit", "float64", {}),
        ("fit", "float32", {"dtype": "float64"}),
        ("partial_fit", "uint8", {}),
        ("partial_fit", "float64", {"dtype": "float32"}),
        ("predict", "uint8", {}),
        ("predict", "float64", {"dtype": "float32"}),
        ("predict", "float32", {"dtype": "float64"}),
    ],
    ids=str,
)
def test_no_second_copy_of_the_data_is_made(method, dtype, options, monkeypatch):
    monkeypatch.setattr("xpmlp.lbfgs._BLOCK_ELEMENTS", 1 << 17)
    monkeypatch.setattr("xpmlp.network._PREDICT_ELEMENTS", 1 << 17)
    n = 10000
    x = (np.arange(n * 400) % 251).astype(dtype).reshape(n, 400)
    y = x[:, 0] / 251.0
    model = make(
        MLPRegressor, **{"batch_size": 200, "max_iter": 1, "hidden_layer_sizes": (4,), **options}
    )
    model.fit(x[:400], y[:400])
    tracemalloc.start()
    try:
        if method == "predict":
            model.predict(x)
        else:
            getattr(model, method)(x, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Targets, orders and batches take their part; held-out rows are a copy.
    held_out = 0.1 * x.nbytes if "early_stopping" in options else 0
    evaluated = 1024 * 400 * 8 if "early_stopping" in options else 0
    assert peak < 0.6 * n * 400 + held_out + evaluated


@ESTIMATORS
def test_what_is_trained_on_a_device_stays_there(cls):
    strict = BACKENDS["array-api-strict"]
    x = strict.from_host(X)
    model = make(cls, device="auto").fit(x, strict.from_host(target(cls)))
    assert model.network_.backend.owns(x)
    assert {c.device for c in model.coefs_} == {array_api_strict.Device("device1")}


@pytest.mark.parametrize("seed", [3, np.int64(3), None], ids=["int", "int64", "a generator"])
def test_only_an_order_of_its_own_is_drawn_ahead_of_a_busy_device(seed, monkeypatch):
    drawn = []
    draw_ahead = Batches.draw_ahead

    def noted(self, epoch):
        draw_ahead(self, epoch)
        drawn.append(self._ahead is not None)

    monkeypatch.setattr(Batches, "draw_ahead", noted)
    X, y = np.random.default_rng(0).standard_normal((50, 3)), np.arange(50) % 2
    ends, states = [], []
    for immediate in (True, False):
        monkeypatch.setattr(NumpyBackend, "immediate", immediate)
        generator = np.random.RandomState(3)
        model = MLPClassifier((4,), batch_size=10, max_iter=9, tol=1e9, n_iter_no_change=2,
                              random_state=generator if seed is None else seed)  # fmt: skip
        ends.append(model.fit(X, y).coefs_)
        states.append(generator.bytes(8))
    assert model.n_iter_ < 9
    assert drawn == [seed is not None] * model.n_iter_
    assert states[0] == states[1]
    for one, other in zip(*ends, strict=True):
        np.testing.assert_array_equal(one, other)
