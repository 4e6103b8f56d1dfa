"""The contenders: xpmlp, its peer, and the matrix products that neither can do without.

Each trains 784-256-128-10 (ReLU, softmax, log loss) by Adam from the same weights on the same
data. One call of :meth:`epoch` is one call of the library's ``fit``, with what that includes:
checks of the data, buffers, and a fresh optimizer.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from xpmlp import Dense, Network, fit
from xpmlp.optimizers import Adam

N_FEATURES = 784
HIDDEN = (256, 128)
N_CLASSES = 10
LEARNING_RATE = 1e-3
EPSILON = 1e-8
SEED = 0


@dataclass
class Contender(ABC):
    """What the benchmark times.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
    y : array of shape (n_samples,)
    batch : int
        Rows of a batch; the last of an epoch may be smaller.
    weights : list of array of shape (n_in, n_out)
        To start from; biases start at zero.
    shuffle : bool, default True
        False keeps the order of the data.
    epsilon : float, default 1e-8
        Of Adam. xpmlp adds it to the root of the corrected second moment, as the paper does,
        scikit-learn to the root of the uncorrected one.
    """

    name: ClassVar[str]

    X: Any
    y: Any
    batch: int
    weights: list[Any]
    shuffle: bool = True
    epsilon: float = EPSILON

    @abstractmethod
    def __post_init__(self) -> None:
        """Make what an epoch needs."""

    @abstractmethod
    def epoch(self) -> float | None:
        """One epoch; the mean of the batches' losses during it, or None without a loss."""


def build(dtype: str) -> Network:
    """The network, with its initial weights."""
    hidden = [Dense(units, "relu") for units in HIDDEN]
    layers = [*hidden, Dense(N_CLASSES, "softmax")]
    return Network(N_FEATURES, layers, device="cpu", dtype=dtype, seed=SEED)


def initial_weights(dtype: str) -> list[Any]:
    """Copies of those weights, for every contender to start from."""
    return [np.array(weight) for weight in build(dtype).weights]


class Xpmlp(Contender):
    """This library."""

    name = "xpmlp"

    def __post_init__(self) -> None:
        self.network = build(self.X.dtype.name)
        for own, given in zip(self.network.weights, self.weights, strict=True):
            own[...] = given
        self.optimizer = Adam(learning_rate=LEARNING_RATE, epsilon=self.epsilon)

    def epoch(self) -> float:
        history = fit(
            self.network,
            self.X,
            self.y,
            loss="log_loss",
            optimizer=self.optimizer,
            epochs=1,
            batch_size=self.batch,
            shuffle=self.shuffle,
            verbose=0,
        )
        return history["loss"][0]


class ScikitLearn(Contender):
    """MLPClassifier. A warm start with ``max_iter=1`` is one epoch with a fresh Adam, as above."""

    name = "scikit-learn"

    def __post_init__(self) -> None:
        from sklearn.neural_network import MLPClassifier

        self.model = MLPClassifier(
            hidden_layer_sizes=HIDDEN,
            solver="adam",
            alpha=0.0,
            batch_size=self.batch,
            learning_rate_init=LEARNING_RATE,
            epsilon=self.epsilon,
            max_iter=1,
            shuffle=self.shuffle,
            random_state=SEED,
            warm_start=True,
        )
        # The coefficients exist after a fit only: make them on one row of each class.
        one_of_each = np.unique(self.y, return_index=True)[1]
        self._fit(self.X[one_of_each], self.y[one_of_each])
        for own, given in zip(self.model.coefs_, self.weights, strict=True):
            own[...] = given
        for own in self.model.intercepts_:
            own[...] = 0

    def epoch(self) -> float:
        self._fit(self.X, self.y)
        return float(self.model.loss_)

    def _fit(self, X: Any, y: Any) -> None:
        with warnings.catch_warnings():
            # One iteration has not converged, and one row of each class is less than a batch.
            warnings.simplefilter("ignore")
            self.model.fit(X, y)


class Products(Contender):
    """The matrix products of an epoch alone: no bias, activation, loss, update or gather."""

    name = "GEMMs alone"

    def __post_init__(self) -> None:
        self.batch = min(self.batch, len(self.X))
        self.outputs = [np.empty((self.batch, w.shape[1]), self.X.dtype) for w in self.weights]
        self.errors = [np.empty_like(output) for output in self.outputs]
        self.errors[-1][...] = np.random.default_rng(SEED).standard_normal(self.errors[-1].shape)
        self.gradients = [np.empty_like(w) for w in self.weights]

    def epoch(self) -> None:
        for start in range(0, len(self.X), self.batch):
            x = self.X[start : start + self.batch]
            values = [x, *(output[: len(x)] for output in self.outputs)]
            errors = [error[: len(x)] for error in self.errors]
            for layer, weight in enumerate(self.weights):
                np.matmul(values[layer], weight, out=values[layer + 1])
            for layer in reversed(range(len(self.weights))):
                np.matmul(values[layer].T, errors[layer], out=self.gradients[layer])
                if layer > 0:
                    np.matmul(errors[layer], self.weights[layer].T, out=errors[layer - 1])


CONTENDERS: dict[str, type[Contender]] = {
    contender.name: contender for contender in (Xpmlp, ScikitLearn, Products)
}


def missing() -> dict[str, str]:
    """Contenders that cannot run here, and why."""
    if find_spec("sklearn") is None:
        return {ScikitLearn.name: "scikit-learn is not installed"}
    return {}
