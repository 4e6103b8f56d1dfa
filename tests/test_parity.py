"""Beside the installed scikit-learn: the same data, seed and options give the same run."""

import warnings

import numpy as np
import pytest
import sklearn
from conftest import BACKENDS
from scipy import sparse
from sklearn import neural_network
from sklearn.utils._param_validation import InvalidParameterError

import xpmlp
from bench import parity

# The drawing, stopping and objective are those of scikit-learn 1.9.
pytestmark = [
    pytest.mark.skipif(
        tuple(map(int, sklearn.__version__.split(".")[:2])) < (1, 9),
        reason="needs scikit-learn 1.9",
    ),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((60, 4))
LABELS = np.digitize(X[:, 0] + 0.3 * DRAW.standard_normal(60), [-0.5, 0.5])
BINARY = (X[:, 1] > 0).astype(int)
NUMBERS = X @ [1.0, -2.0, 0.5, 0.0] + np.sin(X[:, 0])
WEIGHT = np.linspace(0.1, 2.0, 60)
TARGETS = {"MLPClassifier": LABELS, "MLPRegressor": NUMBERS}
ESTIMATORS = pytest.mark.parametrize("name", TARGETS)
SMALL = {
    "hidden_layer_sizes": (6, 4),
    "batch_size": 16,
    "learning_rate_init": 0.02,
    "max_iter": 8,
    "random_state": 5,
}
BOTH = ("xpmlp", "scikit-learn")


def both(name, **options):
    """Our estimator on NumPy, and scikit-learn's."""
    options = {**SMALL, **options}
    return getattr(xpmlp, name)(**options, backend="numpy"), getattr(neural_network, name)(
        **options
    )


def outcome(function):
    """What a call raises, or None, and the kinds of its warnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            function()
        except Exception as error:
            return type(error), str(error), [entry.category for entry in seen]
    return None, "", [entry.category for entry in seen]


def train(pair, method, *arguments, **keywords):
    """Call a method of both: neither raises, and they warn alike."""
    ends = [outcome(lambda e=e: getattr(e, method)(*arguments, **keywords)) for e in pair]
    assert ends[0][:2] == (None, ""), ends[0]
    assert ends[0][2] == ends[1][2], dict(zip(BOTH, ends, strict=True))
    return pair


def assert_same(ours, theirs, X=X, limit=1e-9):
    """The state after training, and what both predict, agree."""
    pairs = [*zip(ours.coefs_, theirs.coefs_, strict=True)]
    pairs += zip(ours.intercepts_, theirs.intercepts_, strict=True)
    for attribute in ("loss_", "best_loss_", "best_validation_score_", "loss_curve_"):
        pairs += numbers(attribute, ours, theirs)
    pairs += numbers("validation_scores_", ours, theirs)
    for attribute in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_"):
        assert getattr(ours, attribute) == getattr(theirs, attribute), attribute
    assert ours.n_features_in_ == theirs.n_features_in_
    if hasattr(theirs, "classes_"):
        assert ours.classes_.dtype == theirs.classes_.dtype
        np.testing.assert_array_equal(ours.classes_, theirs.classes_)
        pairs.append((ours.predict_proba(X), theirs.predict_proba(X)))
        predicted = ours.predict(X), theirs.predict(X)
        assert predicted[0].dtype == predicted[1].dtype
        assert sparse.issparse(predicted[0]) == sparse.issparse(predicted[1])
        np.testing.assert_array_equal(*map(dense, predicted))
    else:
        pairs.append((ours.predict(X), theirs.predict(X)))
    for a, b in pairs:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        assert parity.relative(a, b) <= limit


def dense(array):
    return array.toarray() if sparse.issparse(array) else array


def numbers(attribute, ours, theirs):
    """The two values, where scikit-learn has any; None and missing agree, too."""
    a, b = (getattr(e, attribute, "missing") for e in (ours, theirs))
    if b is None or isinstance(b, str):
        assert a == b, attribute
        return []
    return [(np.asarray(a, dtype=float), np.asarray(b, dtype=float))]


def identify(case):
    flags = "-stopping" * case.early_stopping + "-weighted" * case.weighted
    return f"{case.task}-{case.solver}-{case.activation}{flags}"


@pytest.mark.parametrize("case", [*parity.cases()], ids=identify)
def test_a_run_on_the_cpu_is_scikit_learns(case):
    assert parity.difference(case, BACKENDS["numpy"]) <= parity.LIMITS[case.solver]


# Every fifth: 5 has no factor in common with the table's sizes but 3 * 2 * 4, so that every value
# of every column comes.
@pytest.mark.parametrize("case", [*parity.cases()][::5], ids=identify)
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "numpy"])
def test_a_run_elsewhere_is_scikit_learns(name, case):
    assert parity.difference(case, BACKENDS[name]) <= parity.ELSEWHERE


def test_the_subset_elsewhere_has_every_value_of_every_column():
    everything, subset = [*parity.cases()], [*parity.cases()][::5]
    for column in ("task", "solver", "activation", "early_stopping", "weighted"):
        values = {getattr(case, column) for case in everything}
        assert {getattr(case, column) for case in subset} == values
    assert {(case.task, case.solver) for case in subset} == {
        (case.task, case.solver) for case in everything
    }


ALTERNATIVES = [
    {"shuffle": False},
    {"shuffle": False, "solver": "sgd", "batch_size": 60},
    {"solver": "sgd", "momentum": 0},
    {"solver": "sgd", "momentum": 1.0, "learning_rate_init": 1e-4},
    {"solver": "sgd", "nesterovs_momentum": False},
    {"solver": "sgd", "nesterovs_momentum": False, "momentum": 0.0},
    {"solver": "sgd", "learning_rate": "constant"},
    {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.2},
    {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1},
    {
        "solver": "sgd",
        "learning_rate": "adaptive",
        "tol": 10.0,
        "n_iter_no_change": 1,
        "max_iter": 60,
    },
    {"learning_rate": "adaptive", "tol": 1.0, "n_iter_no_change": 1},
    {"learning_rate": "invscaling", "beta_1": 0.0, "beta_2": 0.5, "epsilon": 1e-3},
    {"alpha": 0},
    {"alpha": 3.0, "solver": "sgd"},
    {"hidden_layer_sizes": ()},
    {"hidden_layer_sizes": 3},
    {"hidden_layer_sizes": np.array([3, 2, 2])},
    {"batch_size": 1, "max_iter": 2},
    {"batch_size": 59, "max_iter": 3},
    {"batch_size": 61, "max_iter": 3},
    {"batch_size": "auto", "max_iter": 3},
    {"tol": 0.5, "n_iter_no_change": 2},
    {"tol": 0.5, "n_iter_no_change": np.inf},
    {"tol": 0.0, "max_iter": 30},
    {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 40},
    {"early_stopping": True, "validation_fraction": 0.5, "tol": 0.1},
    {"early_stopping": True, "validation_fraction": 0.5, "batch_size": 40},
    {"solver": "lbfgs", "max_iter": 6},
    {"solver": "lbfgs", "max_fun": 4},
    {"solver": "lbfgs", "tol": 0.1, "max_iter": 100},
    {"solver": "lbfgs", "early_stopping": True, "learning_rate": "adaptive"},
    {"activation": "logistic"},
    {"activation": "identity", "solver": "sgd"},
]


def in_words(options):
    return "-".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize("options", ALTERNATIVES, ids=in_words)
@ESTIMATORS
def test_every_option_does_what_it_does_in_scikit_learn(name, options):
    limit = 1e-7 if options.get("solver") == "lbfgs" else 1e-9
    assert_same(*train(both(name, **options), "fit", X, TARGETS[name]), limit=limit)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@ESTIMATORS
def test_partial_fit_goes_on_as_in_scikit_learn(name, solver):
    pair = both(name, solver=solver, learning_rate="invscaling", verbose=False)
    y, first = TARGETS[name], {"classes": [0, 1, 2]} if name == "MLPClassifier" else {}
    for part in (slice(0, 20), slice(20, 60), slice(3, 4), slice(0, 60)):
        train(pair, "partial_fit", X[part], y[part], **first)
        assert_same(*pair)
        first = {}
    train(pair, "partial_fit", X, y, sample_weight=WEIGHT)
    assert_same(*pair)
    assert pair[0].t_ == 20 + 40 + 1 + 60 + 60


@ESTIMATORS
def test_partial_fit_after_fit_and_fit_after_partial_fit(name):
    pair, y = both(name, solver="sgd", learning_rate="adaptive", tol=0.5), TARGETS[name]
    for method in ("fit", "partial_fit", "partial_fit", "fit", "partial_fit"):
        assert_same(*train(pair, method, X, y))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_partial_fit_of_a_regressor_with_lbfgs_runs_to_its_end(early_stopping):
    pair = both("MLPRegressor", solver="lbfgs", early_stopping=early_stopping)
    for _ in range(2):
        assert_same(*train(pair, "partial_fit", X, NUMBERS), limit=1e-6)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@ESTIMATORS
def test_warm_starts_go_on_as_in_scikit_learn(name, solver, early_stopping):
    pair = both(
        name, solver=solver, warm_start=True, early_stopping=early_stopping, n_iter_no_change=2
    )
    limit = 1e-6 if solver == "lbfgs" else 1e-9
    for max_iter in (8, 3, 4, 5):
        for estimator in pair:
            estimator.set_params(max_iter=max_iter)
        train(pair, "fit", X, TARGETS[name])
        assert_same(*pair, limit=limit)
    rows = slice(30, 60)
    train(pair, "fit", X[rows], TARGETS[name][rows])
    assert_same(*pair, limit=limit)


def test_a_random_state_object_is_used_up_as_in_scikit_learn():
    ends = []
    for estimator in both("MLPClassifier", early_stopping=True):
        source = np.random.RandomState(3)
        estimator.set_params(random_state=source).fit(X, LABELS)
        ends.append((source.randint(1 << 30), estimator.loss_curve_))
    assert ends[0][0] == ends[1][0]
    np.testing.assert_allclose(ends[0][1], ends[1][1], rtol=1e-9)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@ESTIMATORS
def test_float32_runs_agree_to_its_precision(name, solver):
    pair = both(name, solver=solver)
    x = X.astype("float32")
    y = TARGETS[name] if name == "MLPClassifier" else TARGETS[name].astype("float32")
    train(pair, "fit", x, y)
    assert {c.dtype for c in pair[0].coefs_} == {np.dtype("float32")}
    assert_same(*pair, X=x, limit=1e-4)


@ESTIMATORS
def test_float32_with_lbfgs_predicts_alike(name):
    pair = train(both(name, solver="lbfgs", max_iter=4), "fit", X.astype("float32"), TARGETS[name])
    np.testing.assert_allclose(
        pair[0].predict(X.astype("float32")), pair[1].predict(X.astype("float32")), rtol=1e-3
    )


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"solver": "lbfgs"}], ids=str)
@ESTIMATORS
def test_sparse_inputs_run_alike(name, options, make):
    x = make(np.where(np.abs(X) > 0.7, X, 0.0))
    limit = 1e-6 if "solver" in options else 1e-9
    assert_same(*train(both(name, **options), "fit", x, TARGETS[name]), X=x, limit=limit)


TARGETS_OF_ALL_KINDS = {
    "one class": ("MLPClassifier", np.ones(60, int)),
    "two strings": ("MLPClassifier", np.where(BINARY, "yes", "no")),
    "two objects": ("MLPClassifier", np.where(BINARY, "yes", "no").astype(object)),
    "three strings": ("MLPClassifier", np.array(["a", "bb", "ccc"])[LABELS]),
    "booleans": ("MLPClassifier", BINARY.astype(bool)),
    "whole floats": ("MLPClassifier", LABELS * 2.0 - 1.0),
    "negative": ("MLPClassifier", LABELS * 10 - 7),
    "unsigned": ("MLPClassifier", LABELS.astype("uint8")),
    "a list": ("MLPClassifier", LABELS.tolist()),
    "labels": ("MLPClassifier", np.stack([BINARY, LABELS > 0, LABELS > 1], 1).astype(int)),
    "one column of two labels": ("MLPClassifier", np.stack([BINARY, BINARY], 1)),
    "sparse labels": ("MLPClassifier", sparse.csr_matrix(np.stack([BINARY, 1 - BINARY], 1))),
    "whole numbers": ("MLPRegressor", LABELS),
    "true or false": ("MLPRegressor", BINARY.astype(bool)),
    "one constant": ("MLPRegressor", np.full(60, 2.5)),
    "three columns": ("MLPRegressor", np.stack([NUMBERS, -NUMBERS, BINARY], 1)),
    "single precision": ("MLPRegressor", NUMBERS.astype("float32")),
    "a nested list": ("MLPRegressor", np.stack([NUMBERS, NUMBERS], 1).tolist()),
}


@pytest.mark.parametrize("kind", TARGETS_OF_ALL_KINDS)
@pytest.mark.parametrize("options", [{}, {"early_stopping": True}], ids=["", "stopping"])
def test_targets_of_every_kind_run_alike(options, kind):
    name, y = TARGETS_OF_ALL_KINDS[kind]
    assert_same(*train(both(name, **options), "fit", X, y))


@pytest.mark.parametrize("kind", ["one class", "two strings", "labels"])
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_other_solvers_know_these_targets_too(solver, kind):
    name, y = TARGETS_OF_ALL_KINDS[kind]
    limit = 1e-6 if solver == "lbfgs" else 1e-9
    assert_same(*train(both(name, solver=solver), "fit", X, y), limit=limit)


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@ESTIMATORS
def test_one_sample_is_enough(name, solver):
    pair = train(both(name, solver=solver), "fit", X[:1], TARGETS[name][:1])
    assert_same(*pair, X=X[:1], limit=1e-6)


DATA = {
    "integers": np.arange(240).reshape(60, 4) % 7,
    "bytes": (np.arange(240).reshape(60, 4) % 7).astype("uint8"),
    "booleans": X > 0,
    "half precision": X.astype("float16"),
    "a list": X.tolist(),
    "objects": X.astype(object),
    "Fortran order": np.asfortranarray(X),
    "a slice": np.repeat(X, 2, axis=1)[:, ::2],
    "backwards": X[::-1],
}


@pytest.mark.parametrize("kind", DATA)
def test_inputs_of_every_kind_run_alike(kind):
    x = DATA[kind]
    assert_same(*train(both("MLPClassifier"), "fit", x, LABELS), X=x)


WEIGHTS = {
    "whole numbers": np.arange(60) % 4,
    "a list": WEIGHT.tolist(),
    "one number": 2.5,
    "single precision": WEIGHT.astype("float32"),
    "all but one are zero": np.eye(60)[3],
    "booleans": np.arange(60) % 3 > 0,
}


@pytest.mark.parametrize("kind", WEIGHTS)
@ESTIMATORS
def test_weights_of_every_kind_run_alike(name, kind):
    # In one batch, since a batch without weight is NaN in scikit-learn.
    pair = both(name, batch_size=60)
    limit = 1e-7 if kind == "single precision" else 1e-9  # where scikit-learn sums them
    assert_same(*train(pair, "fit", X, TARGETS[name], sample_weight=WEIGHTS[kind]), limit=limit)


@pytest.mark.parametrize(
    "options",
    [
        {"max_iter": 3},
        {"max_iter": 40, "tol": 0.5, "n_iter_no_change": 3},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 9.0, "n_iter_no_change": 1},
        {
            "solver": "sgd",
            "learning_rate": "adaptive",
            "tol": 9.0,
            "n_iter_no_change": 1,
            "max_iter": 30,
        },
        {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 50},
        {"early_stopping": True, "solver": "sgd", "learning_rate": "adaptive", "tol": 1.0},
        {"verbose": 2, "max_iter": 2},
        {"verbose": False, "max_iter": 2},
        {"verbose": 0, "max_iter": 2},
    ],
    ids=in_words,
)
@ESTIMATORS
def test_what_is_printed_is_scikit_learns_text(name, options, capsys):
    texts = []
    for estimator in both(name, **{"verbose": True, **options}):
        estimator.fit(X, TARGETS[name])
        texts.append(capsys.readouterr())
    assert texts[0] == texts[1]
    assert bool(texts[0].out) == bool(options.get("verbose", True))


def test_partial_fit_prints_scikit_learns_text(capsys):
    texts = []
    for estimator in both("MLPRegressor", verbose=True):
        for _ in range(3):
            estimator.partial_fit(X, NUMBERS)
        texts.append(capsys.readouterr())
    assert texts[0] == texts[1]
    assert texts[0].out.count("Iteration 1, loss") == 3


# For each parameter of scikit-learn: what it refuses.
WRONG = {
    "hidden_layer_sizes": [-1, 0, None, 1.5, "3"],
    "activation": ["banana", None, 5, "ReLU"],
    "solver": ["banana", None, 5, "LBFGS"],
    "alpha": [-1, "1", None, np.nan, [0.1]],
    "batch_size": [0, -1, 1.5, "all", None],
    "learning_rate": ["banana", None, 0.1],
    "learning_rate_init": [0, -1.0, None, "1", np.nan],
    "power_t": [-1, None, "1"],
    "max_iter": [0, -1, 1.5, None, np.inf],
    "shuffle": ["yes", None, 1.5],
    "random_state": ["seed", -1, 1.5, np.random.default_rng(0)],
    "tol": [-1, None, "1"],
    "verbose": [-1, None, "yes"],
    "warm_start": ["yes", None, 2.5],
    "momentum": [-0.1, 1.1, None, "1"],
    "nesterovs_momentum": ["yes", None],
    "early_stopping": ["yes", None],
    "validation_fraction": [-0.1, 1.0, None, "1"],
    "beta_1": [-0.1, 1.0, None],
    "beta_2": [-0.1, 1.0, None],
    "epsilon": [0, -1.0, None],
    "n_iter_no_change": [0, -1, 1.5, None],
    "max_fun": [0, -1, 1.5, None],
}


def test_the_table_of_wrong_values_has_every_parameter_of_scikit_learn():
    parameters = neural_network.MLPClassifier().get_params()
    assert WRONG.keys() == parameters.keys()
    assert neural_network.MLPRegressor().get_params().keys() == {*WRONG, "loss"}


@pytest.mark.parametrize(
    ("parameter", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=lambda value: str(value)[:30],
)
@ESTIMATORS
def test_wrong_values_are_refused_with_the_same_error(name, parameter, value):
    ours, theirs = (
        outcome(lambda e=e: e.fit(X, TARGETS[name])) for e in both(name, **{parameter: value})
    )
    assert ours[0] is theirs[0] is InvalidParameterError
    assert f"The {parameter!r} parameter of {name} must be" in ours[1]
    assert f"Got {value!r} instead" in ours[1]


@pytest.mark.parametrize("value", ["log_loss", "banana", None, 3])
def test_wrong_losses_are_refused_with_the_same_error(value):
    ours, theirs = (
        outcome(lambda e=e: e.fit(X, NUMBERS)) for e in both("MLPRegressor", loss=value)
    )
    assert ours[0] is theirs[0] is InvalidParameterError
    assert "The 'loss' parameter of MLPRegressor must be" in ours[1]


@pytest.mark.parametrize("sizes", [[3, 0], (-1,), [4, -2]])
@ESTIMATORS
def test_wrong_sizes_in_a_list_are_refused_with_the_same_text(name, sizes):
    ours, theirs = (
        outcome(lambda e=e: e.fit(X, TARGETS[name])) for e in both(name, hidden_layer_sizes=sizes)
    )
    assert ours == theirs


MISTAKES = {
    "NaN in X": lambda e, y: e.fit(np.where(X > 1, np.nan, X), y),
    "infinity in X": lambda e, y: e.fit(np.where(X > 1, np.inf, X), y),
    "one dimension": lambda e, y: e.fit(X[:, 0], y),
    "three dimensions": lambda e, y: e.fit(X[None], y),
    "no rows": lambda e, y: e.fit(X[:0], y[:0]),
    "no columns": lambda e, y: e.fit(X[:, :0], y),
    "complex": lambda e, y: e.fit(X * 1j, y),
    "text": lambda e, y: e.fit(np.full((60, 4), "a"), y),
    "no y": lambda e, y: e.fit(X, None),
    "short y": lambda e, y: e.fit(X, y[:-1]),
    "NaN in y": lambda e, y: e.fit(X, np.where(X[:, 0] > 1, np.nan, y)),
    "a three-dimensional y": lambda e, y: e.fit(X, y[:, None, None]),
    "short weights": lambda e, y: e.fit(X, y, np.ones(59)),
    "weights in two columns": lambda e, y: e.fit(X, y, np.ones((60, 2))),
    "NaN in the weights": lambda e, y: e.fit(X, y, np.full(60, np.nan)),
    "not fitted": lambda e, y: e.predict(X),
    "a score before fit": lambda e, y: e.score(X, y),
    "wrong width": lambda e, y: e.fit(X, y).predict(X[:, :3]),
    "another width in partial_fit": lambda e, y: e.fit(X, y).partial_fit(X[:, :3], y),
    "NaN at predict": lambda e, y: e.fit(X, y).predict(X * np.nan),
    "partial_fit with early stopping": lambda e, y: e.set_params(early_stopping=True).partial_fit(
        X, y, **({"classes": [0, 1, 2]} if hasattr(e, "predict_proba") else {})
    ),
    "too few rows to validate": lambda e, y: e.set_params(early_stopping=True).fit(X[:5], y[:5]),
    "no validation data": lambda e, y: e.set_params(early_stopping=True, validation_fraction=0).fit(
        X, y
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@ESTIMATORS
def test_mistakes_raise_the_same_kind_of_error(name, mistake):
    y = TARGETS[name]
    ours, theirs = (outcome(lambda e=e: MISTAKES[mistake](e, y)) for e in both(name))
    assert theirs[0] is not None
    assert ours[0] is theirs[0], (ours, theirs)


CLASSIFIER_MISTAKES = {
    "no classes": lambda e: e.partial_fit(X, LABELS),
    "other classes": lambda e: e.partial_fit(X, LABELS, classes=[0, 1, 2]).partial_fit(
        X, LABELS, classes=[0, 1]
    ),
    "unknown labels": lambda e: e.partial_fit(X, LABELS + 1, classes=[0, 1, 2]),
    "an unknown label later": lambda e: e.fit(X, LABELS).partial_fit(X, LABELS + 1),
    "fewer classes in a warm start": lambda e: (
        e.set_params(warm_start=True).fit(X, LABELS).fit(X, BINARY)
    ),
    "partial_fit with lbfgs": lambda e: e.set_params(solver="lbfgs").partial_fit(X, LABELS),
    "continuous labels": lambda e: e.fit(X, NUMBERS),
    "several classes in several columns": lambda e: e.fit(X, np.stack([LABELS, LABELS], 1)),
    "one row of a class to split": lambda e: e.set_params(early_stopping=True).fit(
        X, np.eye(60)[0].astype(int)
    ),
}


@pytest.mark.parametrize("mistake", CLASSIFIER_MISTAKES)
def test_mistakes_with_labels_raise_the_same_kind_of_error(mistake):
    ours, theirs = (
        outcome(lambda e=e: CLASSIFIER_MISTAKES[mistake](e)) for e in both("MLPClassifier")
    )
    assert theirs[0] is not None
    assert ours[0] is theirs[0], (ours, theirs)


def test_a_column_of_targets_warns_as_in_scikit_learn():
    pair = train(both("MLPClassifier"), "fit", X, LABELS[:, None])
    assert_same(*pair)
    assert_same(*train(both("MLPRegressor"), "fit", X, NUMBERS[:, None]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@ESTIMATORS
def test_runs_that_blow_up_raise_in_both(name):
    options = {"solver": "sgd", "learning_rate_init": 1e200, "activation": "identity"}
    ends = [outcome(lambda e=e: e.fit(X, TARGETS[name])) for e in both(name, **options)]
    assert ends[1][0] is ends[0][0] is ValueError
    assert "Solver produced non-finite parameter weights" in ends[0][1]


@pytest.mark.parametrize("weight", [None, WEIGHT])
@ESTIMATORS
def test_scores_and_probabilities_are_scikit_learns(name, weight):
    ours, theirs = train(both(name), "fit", X, TARGETS[name])
    score = theirs.score(X, TARGETS[name], weight)
    assert ours.score(X, TARGETS[name], weight) == pytest.approx(score, rel=1e-12)
    assert isinstance(ours.score(X, TARGETS[name]), float)
    if name == "MLPClassifier":
        logs = theirs.predict_log_proba(X)
        np.testing.assert_allclose(ours.predict_log_proba(X), logs, rtol=1e-9)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@ESTIMATORS
def test_constructors_and_attributes_have_the_same_names(name, solver):
    ours, theirs = both(name, solver=solver)
    own, other = ours.get_params(), theirs.get_params()
    defaults = [getattr(module, name)().get_params() for module in (xpmlp, neural_network)]
    assert own.keys() > other.keys()
    assert all(defaults[0][key] == value for key, value in defaults[1].items())
    train((ours, theirs), "fit", X, TARGETS[name])
    public = {key for key in vars(theirs) if key.endswith("_") and not key.startswith("_")}
    for key in public:
        assert hasattr(ours, key), key
    for key in dir(theirs):
        assert key.startswith("_") or hasattr(ours, key) == hasattr(theirs, key), key
