"""A tour of the library: what a user does, on every backend."""

import numpy as np
import pytest

from xpmlp import Dense, Dropout, EarlyStopping, Network, available_backends, fit, get_backend
from xpmlp.optimizers import Adam


def test_the_tour(backend):
    pytest.importorskip("safetensors")
    # A network is a number of features and a list of layers.
    network = Network(
        2,
        [Dense(8, "tanh"), Dropout(0.0), Dense(1, "sigmoid")],
        backend=backend,
        dtype="float32",
        seed=1,
    )
    assert "total" in network.summary()

    # Its parameters are one vector; weights and biases are views of it.
    network.biases[0][...] = 0.5
    start = network.n_weights
    assert float(backend.to_host(network.parameters)[start]) == 0.5

    # One call gives the objective and its gradient.
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype="float32")
    y = np.array([0, 1, 1, 0])
    value, gradient = network.loss_and_grad(X, y, "log_loss", alpha=1e-4)
    assert value > 0
    assert gradient.weights[0].shape == (2, 8)
    assert gradient.inputs.shape == X.shape

    # Training changes it in place and returns the history.
    history = fit(
        network,
        X,
        y,
        loss="log_loss",
        optimizer=Adam(learning_rate=0.1),
        epochs=150,
        batch_size=None,
        validation=(X, y),
        metrics=["accuracy"],
        callbacks=[EarlyStopping("val_loss", patience=20)],
        verbose=0,
    )
    assert history["val_accuracy"][-1] == 1.0
    assert len(history.to_dict()["loss"]) == history.n_epochs

    # Predictions come back in the caller's library.
    predicted = network.predict(X)
    assert isinstance(predicted, np.ndarray)
    assert ((predicted[:, 0] > 0.5) == y).all()


def test_devices():
    assert available_backends()["numpy"] == "usable"
    assert get_backend("cpu").device == "cpu"
    with pytest.raises(ValueError, match="device='gpu' is not known"):
        get_backend("gpu")
