"""A whole training, with dropout, L2, Adam and early stopping, ends the same on every backend."""

from functools import cache

import numpy as np
import pytest
from conftest import BACKENDS

from xpmlp import Dense, Dropout, EarlyStopping, Network, fit
from xpmlp.optimizers import Adam

OTHERS = [name for name in BACKENDS if name != "numpy"]
# Rows of the test set that must get the same label.
AGREEMENT = {"float64": 1.0, "float32": 0.999}


@cache
def data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((569, 30))
    hidden = np.tanh(X @ rng.standard_normal((30, 4)) / 3.0)
    y = hidden.sum(axis=1) + 0.3 * rng.standard_normal(569) > 0
    return X, y.astype(int)


@cache
def network_run(name, dtype):
    X, y = data()
    layers = [Dense(16, "relu"), Dropout(0.3), Dense(8, "tanh"), Dropout(0.1), Dense(1, "sigmoid")]
    network = Network(30, layers, backend=BACKENDS[name], dtype=dtype, seed=4)
    history = fit(
        network,
        X[:300],
        y[:300],
        loss="log_loss",
        optimizer=Adam(0.01),
        epochs=50,
        batch_size=32,
        validation=(X[300:400], y[300:400]),
        alpha=1e-3,
        callbacks=[EarlyStopping(patience=8)],
        verbose=0,
    )
    return history, network.predict(X[400:])[:, 0] > 0.5


@pytest.mark.parametrize("dtype", AGREEMENT)
@pytest.mark.parametrize("name", OTHERS)
def test_a_network_ends_at_the_same_epoch_with_the_same_labels(name, dtype):
    (history, labels), (numpys, expected) = network_run(name, dtype), network_run("numpy", dtype)
    assert history.n_epochs == numpys.n_epochs
    assert 10 < numpys.n_epochs < 50  # early stopping had its say
    assert (labels == expected).mean() >= AGREEMENT[dtype]
    tolerance = {"float64": 1e-12, "float32": 1e-4}[dtype]
    np.testing.assert_allclose(history["val_loss"], numpys["val_loss"], rtol=tolerance)


@cache
def estimator_run(name, dtype):
    from xpmlp import MLPClassifier  # takes scikit-learn

    X, y = data()
    model = MLPClassifier(
        (16, 8),
        dropout=[0.1, 0.3, 0.1],
        alpha=0.1,
        learning_rate_init=0.01,
        max_iter=50,
        early_stopping=True,
        random_state=3,
        backend=BACKENDS[name],
        dtype=dtype,
    )
    return model.fit(X[:400], y[:400]), model.predict(X[400:])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", AGREEMENT)
@pytest.mark.parametrize("name", OTHERS)
def test_an_estimator_ends_at_the_same_epoch_with_the_same_labels(name, dtype):
    (model, labels), (numpys, expected) = estimator_run(name, dtype), estimator_run("numpy", dtype)
    assert model.n_iter_ == numpys.n_iter_
    assert model.validation_scores_ == numpys.validation_scores_
    assert (labels == expected).mean() >= AGREEMENT[dtype]
