"""Norms of gradients as they are recorded, and the pictures of an estimator."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier as TheirMLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xpmlp
from xpmlp import (
    Dense,
    GradientFlowDisplay,
    GradientNorms,
    History,
    LossCurveDisplay,
    MLPClassifier,
    MLPRegressor,
    Network,
    fit,
)

pytestmark = pytest.mark.filterwarnings(
    f"ignore::{ConvergenceWarning.__module__}.ConvergenceWarning"
)
X, Y = make_moons(60, noise=0.2, random_state=0)


@pytest.fixture
def ax():
    return pytest.importorskip("matplotlib.figure").Figure(layout="constrained").subplots()


def save(shown, path):
    shown.figure_.savefig(path)  # what is broken in a layout warns here, and warnings are errors
    assert path.stat().st_size > 5000


def model(**options):
    options = {"max_iter": 3, "random_state": 0, "device": "cpu", **options}
    return MLPClassifier((8, 4), **options)


# --- GradientNorms -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_are_those_of_the_last_gradient(backend, dtype):
    network = Network(
        2, [Dense(5, "tanh"), Dense(1, "sigmoid")], backend=backend, dtype=dtype, seed=1
    )
    options = {"loss": "log_loss", "alpha": 0.1}
    expected = [
        np.linalg.norm(backend.to_host(weight))
        for weight in network.loss_and_grad(X.astype(dtype), Y, **options)[1].weights
    ]
    norms = GradientNorms()
    training = {"batch_size": None, "epochs": 2, "callbacks": [norms], "verbose": 0}
    fit(network, X.astype(dtype), Y, **options, **training)
    np.testing.assert_allclose(norms.norms[0], expected, rtol=1e-5 if dtype == "float32" else 1e-12)
    assert norms.epochs == [1, 2]
    assert np.shape(norms.norms) == (2, 2)
    assert all(type(norm) is float for norm in norms.norms[1])


def test_norms_are_taken_after_clipping():
    network, norms = Network(2, [Dense(5, "relu"), Dense(1)], device="cpu"), GradientNorms()
    training = {"loss": "squared_error", "callbacks": [norms], "clip_norm": 1e-3, "verbose": 0}
    fit(network, X, Y, epochs=1, **training)
    assert 0 < max(norms.norms[0]) <= 1e-3


def test_a_fit_starts_anew():
    norms = GradientNorms()
    estimator = model(callbacks=[norms]).fit(X, Y)
    first = norms.norms.copy()
    estimator.fit(X, Y)
    assert norms.norms == first
    assert norms.epochs == [1, 2, 3]


def test_partial_fit_and_warm_start_go_on():
    norms = GradientNorms()
    estimator = model(callbacks=[norms])
    for epoch in range(3):
        estimator.partial_fit(X, Y, classes=[0, 1])
        assert norms.epochs == list(range(1, epoch + 2))
    recorded = norms.norms.copy()
    estimator.set_params(warm_start=True).fit(X, Y)
    assert norms.epochs == list(range(1, 7))
    assert norms.norms[:3] == recorded


def test_an_epoch_that_failed_is_not_kept():
    class Fails(xpmlp.Callback):
        def on_end(self, run):
            raise RuntimeError("out of paper")

    norms = GradientNorms()
    estimator = model(callbacks=[norms]).partial_fit(X, Y, classes=[0, 1])
    with pytest.raises(RuntimeError, match="out of paper"):
        estimator.set_params(callbacks=[norms, Fails()]).partial_fit(X, Y)
    estimator.set_params(callbacks=[norms]).partial_fit(X, Y)
    assert norms.epochs == [1, 2]


def test_a_callback_given_late_knows_its_epochs(ax):
    norms = GradientNorms()
    estimator = model().fit(X, Y).set_params(warm_start=True, callbacks=[norms]).fit(X, Y)
    assert norms.epochs == [4, 5, 6]
    shown = GradientFlowDisplay.from_estimator(estimator, ax=ax)
    assert list(shown.lines_[0].get_xdata()) == [4, 5, 6]


def test_clones_record_for_themselves():
    original = model(callbacks=[GradientNorms()])
    copied = clone(original).fit(X, Y)
    assert original.callbacks[0].norms == []
    assert len(copied.callbacks[0].norms) == 3


# --- LossCurveDisplay ----------------------------------------------------------------------------


def test_it_draws_every_key_of_the_history(ax, tmp_path):
    estimator = model().fit(X, Y, X_val=X[:20], y_val=Y[:20])
    shown = LossCurveDisplay.from_estimator(estimator, ax=ax)
    assert shown.ax_ is ax
    assert shown.figure_ is ax.figure
    drawn = {line.get_label(): list(line.get_ydata()) for line in shown.lines_}
    assert drawn == estimator.history_.to_dict()
    assert list(drawn) == ["loss", "val_loss", "score", "val_score"]
    assert all(line.axes is ax for line in shown.lines_[:2])
    assert all(line.axes is shown.score_ax_ for line in shown.lines_[2:])
    assert len({line.get_color() for line in shown.lines_}) == 4
    save(shown, tmp_path / "loss.png")


def test_without_validation_there_is_no_right_axis(ax):
    shown = LossCurveDisplay.from_estimator(model().fit(X, Y), ax=ax)
    assert shown.score_ax_ is None
    assert len(ax.figure.axes) == 1


def test_two_histories_share_the_axes(ax, tmp_path):
    first, second = (
        LossCurveDisplay.from_estimator(
            model(activation=name, early_stopping=True, validation_fraction=0.2).fit(X, Y),
            ax=ax,
            name=name,
        )
        for name in ("relu", "tanh")
    )
    assert first.score_ax_ is second.score_ax_
    assert len({line.get_color() for line in first.lines_ + second.lines_}) == 6
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    keys = ["loss", "val_loss", "val_score"]
    assert labels == [f"{name}: {key}" for name in ("relu", "tanh") for key in keys]
    save(second, tmp_path / "loss.png")


def test_panels_of_a_shared_axis_have_scores_of_their_own():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    estimator = model(early_stopping=True, validation_fraction=0.2).fit(X, Y)
    panels = figure.subplots(1, 2, sharex=True)
    rights = [LossCurveDisplay.from_estimator(estimator, ax=ax).score_ax_ for ax in panels]
    assert rights[0] is not rights[1]


def test_a_display_of_a_history_from_fit(ax):
    network = Network(2, [Dense(1, "sigmoid")], device="cpu")
    history = fit(network, X, Y, loss="log_loss", epochs=2, verbose=0)
    display = LossCurveDisplay(history, name="one")
    assert display.plot(ax, name="two", line_kw={"linewidth": 5}) is display
    assert display.lines_[0].get_label() == "two: loss"
    assert display.lines_[0].get_linewidth() == 5


def test_one_epoch_is_a_visible_point(ax):
    shown = LossCurveDisplay.from_estimator(model(max_iter=1).fit(X, Y), ax=ax)
    assert shown.lines_[0].get_marker() == "o"


def test_values_that_come_and_go_stand_at_their_epochs(ax):
    estimator = model(warm_start=True, max_iter=2).fit(X, Y)
    estimator.set_params(early_stopping=True, validation_fraction=0.2).fit(X, Y)
    estimator.set_params(early_stopping=False).fit(X, Y)
    history = estimator.history_
    assert len(history["loss"]) == 6
    np.testing.assert_array_equal(np.isnan(history["val_loss"]), [True, True, False, False])
    assert list(history.newest()) == ["loss"]
    shown = LossCurveDisplay.from_estimator(estimator, ax=ax)
    assert list(shown.lines_[1].get_xdata()) == [1, 2, 3, 4]


def test_a_history_takes_one_epoch_in_two_parts():
    history = History()
    for epoch in range(2):
        history.append({"loss": float(epoch)})
        history.append({"score": -float(epoch)})
    assert history.to_dict() == {"loss": [0.0, 1.0], "score": [0.0, -1.0]}


# --- GradientFlowDisplay -------------------------------------------------------------------------


def test_it_draws_a_line_for_each_layer(ax, tmp_path):
    estimator = model(callbacks=[xpmlp.EarlyStopping("loss"), GradientNorms()]).fit(X, Y)
    shown = GradientFlowDisplay.from_estimator(estimator, ax=ax, line_kw={"linewidth": 3})
    drawn = np.transpose([line.get_ydata() for line in shown.lines_])
    np.testing.assert_array_equal(drawn, estimator.callbacks[1].norms)
    assert [line.get_label() for line in shown.lines_] == ["layer 1", "layer 2", "layer 3"]
    assert ax.get_yscale() == "log"
    assert list(shown.colorbar_.get_ticks()) == [1, 2, 3]
    assert shown.lines_[0].get_linewidth() == 3
    save(shown, tmp_path / "flow.png")


@pytest.mark.parametrize(
    "norms",
    [
        [[0.0, 1e-3], [0.0, 2e-3]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[0.0, 1e-3], [1e-4, 0.0], [0.0, 0.0]],
        [[1.0, float("inf")], [float("nan"), 1.0]],
        [[1e-3]],
        np.ones((3, 40)),
    ],
)
def test_zeros_and_other_oddities_do_not_break_the_axis(norms, ax, tmp_path):
    shown = GradientFlowDisplay(norms).plot(ax, cmap="plasma")
    save(shown, tmp_path / "flow.png")
    assert len(shown.lines_) == len(norms[0])
    bottom, top = ax.get_ylim()
    assert 0 < bottom < top < np.inf
    triangles = [line for line in ax.lines if line.get_marker() == "v"]
    assert sum(len(line.get_xdata()) for line in triangles) == np.sum(np.equal(norms, 0))


def test_the_colour_bar_can_be_left_out(ax):
    assert GradientFlowDisplay([[1.0, 2.0]]).plot(ax, colorbar=False).colorbar_ is None
    assert len(ax.figure.axes) == 1


@pytest.mark.parametrize(
    ("norms", "epochs", "message"),
    [
        ([], None, "a row for each epoch"),
        ([[1.0, 2.0], [1.0]], None, r"got rows of \[2, 1\]"),
        ([[1.0]], [1, 2], "epochs must have 1 elements, got 2"),
    ],
)
def test_it_refuses_what_is_no_table(norms, epochs, message):
    with pytest.raises(ValueError, match=message):
        GradientFlowDisplay(norms, epochs=epochs)


@pytest.mark.parametrize("callbacks", [None, [], [xpmlp.EarlyStopping("loss")]])
def test_without_norms_it_says_how_to_record_them(callbacks):
    estimator = model(callbacks=callbacks).fit(X, Y)
    with pytest.raises(ValueError, match=r"callbacks=\[xpmlp.GradientNorms\(\)\]"):
        GradientFlowDisplay.from_estimator(estimator)


# --- Both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("display", [LossCurveDisplay, GradientFlowDisplay])
def test_an_estimator_must_be_fitted(display):
    for estimator in (model(), make_pipeline(StandardScaler(), model())):
        with pytest.raises(NotFittedError):
            display.from_estimator(estimator)


@pytest.mark.parametrize("display", [LossCurveDisplay, GradientFlowDisplay])
def test_an_estimator_must_be_ours(display):
    with pytest.raises(TypeError, match="MLPClassifier or MLPRegressor, or contain one, got"):
        display.from_estimator(TheirMLPClassifier(max_iter=1).fit(X, Y))


@pytest.mark.parametrize("display", [LossCurveDisplay, GradientFlowDisplay])
def test_it_finds_the_estimator_inside_others(display, ax):
    inner = model(callbacks=[GradientNorms()])
    piped = make_pipeline(StandardScaler(), inner)
    searched = GridSearchCV(piped, {"mlpclassifier__alpha": [0.0, 1.0]}, cv=2)
    regressor = MLPRegressor(hidden_layer_sizes=4, max_iter=2, callbacks=[GradientNorms()])
    scaled = TransformedTargetRegressor(regressor, transformer=StandardScaler())
    for estimator in (piped, searched, scaled):
        assert display.from_estimator(estimator.fit(X, Y), ax=ax).lines_


@pytest.mark.parametrize(
    "display", [LossCurveDisplay(History()), GradientFlowDisplay([[1.0, 2.0]])]
)
def test_without_axes_there_is_a_new_figure(display):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    assert display.plot() is display
    assert pyplot.fignum_exists(display.figure_.number)
    pyplot.close(display.figure_)


@pytest.mark.parametrize("display", [LossCurveDisplay(History()), GradientFlowDisplay([[1.0]])])
def test_without_matplotlib_it_says_how_to_get_it(display, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    name = type(display).__name__
    with pytest.raises(ImportError, match=rf"{name}.plot needs matplotlib: pip install"):
        display.plot()


def test_matplotlib_is_loaded_by_plotting_only():
    code = "import sys, xpmlp; xpmlp.LossCurveDisplay; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
