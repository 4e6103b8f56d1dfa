"""The contenders: xpmlp, its peers, and the matrix products that none can do without.

Each trains by Adam on the log loss, from the same parameters on the same data. One call of
:meth:`~Contender.fit` starts with a fresh optimizer; with xpmlp and scikit-learn it is one call of
the library's ``fit``, with its checks of the data and its buffers.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from bench.problem import SEED, Problem
from xpmlp import fit
from xpmlp.optimizers import Adam

LEARNING_RATE = 1e-3
EPSILON = 1e-8


@dataclass
class Contender(ABC):
    """What the benchmark times.

    Parameters
    ----------
    problem : Problem
    X : array of shape (n_samples, n_features)
    y : array of shape (n_samples,)
    weights, biases : lists of arrays of shape (n_in, n_out) and (n_out,)
        To start from.
    shuffle : bool, default True
        False keeps the order of the data.
    epsilon : float, default 1e-8
        Of Adam. It is added to the root of the corrected second moment, as in the paper;
        scikit-learn adds it to the root of the uncorrected one.
    """

    name: ClassVar[str]
    library: ClassVar[str]  # by the name of its import
    hidden: ClassVar[tuple[str, ...]] = ()  # packages that its process shall not find

    problem: Problem
    X: Any
    y: Any
    weights: list[Any]
    biases: list[Any]
    shuffle: bool = True
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        self.prepare()

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here, or None."""
        return None if find_spec(cls.library) else f"{cls.library} is not installed"

    @abstractmethod
    def prepare(self) -> None:
        """Make what is there before a user calls fit: the model, and the data in its arrays."""

    @abstractmethod
    def fit(self) -> list[float]:
        """Train; the mean of the batches' losses during each epoch, if there is a loss."""


class Xpmlp(Contender):
    """This library."""

    name = "xpmlp"
    library = "xpmlp"

    def prepare(self) -> None:
        self.network = self.problem.network()
        own: list[Any] = [*self.network.weights, *self.network.biases]
        _fill(own, [*self.weights, *self.biases])
        self.optimizer = Adam(learning_rate=LEARNING_RATE, epsilon=self.epsilon)

    def fit(self) -> list[float]:
        history = fit(
            self.network,
            self.X,
            self.y,
            loss="log_loss",
            optimizer=self.optimizer,
            epochs=self.problem.epochs,
            batch_size=self.problem.batch,
            shuffle=self.shuffle,
            verbose=0,
        )
        return history["loss"]

    def predict(self) -> Any:
        """Probabilities, of shape ``(n_samples, n_classes)``."""
        return self.network.predict(self.X)


class WithoutNumba(Xpmlp):
    """This library where Numba is not installed."""

    name = "xpmlp without Numba"
    library = "numba"
    hidden = ("numba",)

    @classmethod
    def missing(cls) -> str | None:
        return f"{reason}: it is xpmlp itself" if (reason := super().missing()) else None


class ScikitLearn(Contender):
    """MLPClassifier. Each fit of a warm start has a fresh Adam, as above."""

    name = "scikit-learn"
    library = "sklearn"

    def prepare(self) -> None:
        from sklearn.neural_network import MLPClassifier

        n_classes = self.problem.widths[-1]
        self.target = self.y
        if n_classes == 2:
            self.target = np.eye(2, dtype=int)[self.y]
        self.model = MLPClassifier(
            hidden_layer_sizes=self.problem.widths[1:-1],
            solver="adam",
            alpha=0.0,
            batch_size=self.problem.batch,
            learning_rate_init=LEARNING_RATE,
            epsilon=self.epsilon,
            max_iter=self.problem.epochs,
            n_iter_no_change=np.inf,
            shuffle=self.shuffle,
            random_state=SEED,
            warm_start=True,
        )
        # The coefficients exist after a fit only: make them on one row of each class.
        one_of_each = np.unique(self.y, return_index=True)[1]
        self._fit(self.X[one_of_each], self.target[one_of_each])
        if n_classes == 2:
            # Of two classes it would make one output; two labels have two, but no softmax.
            self.model.out_activation_ = "softmax"
        _fill([*self.model.coefs_, *self.model.intercepts_], [*self.weights, *self.biases])

    def fit(self) -> list[float]:
        self._fit(self.X, self.target)
        return [float(loss) for loss in self.model.loss_curve_[-self.problem.epochs :]]

    def predict(self) -> Any:
        """Probabilities, of shape ``(n_samples, n_classes)``."""
        return self.model.predict_proba(self.X)

    def _fit(self, X: Any, y: Any) -> None:
        with warnings.catch_warnings():
            # Few iterations do not converge, and one row of each class is less than a batch.
            warnings.simplefilter("ignore")
            self.model.fit(X, y)


class Products(Contender):
    """The matrix products of the steps alone: no bias, activation, loss, update or gather.

    What leaves the last layer serves as its error.
    """

    name = "GEMMs alone"
    library = "numpy"
    matmul: Any = staticmethod(np.matmul)

    def prepare(self) -> None:
        self.batch = min(self.problem.batch, len(self.X))
        self.outputs = [np.empty((self.batch, w.shape[1]), w.dtype) for w in self.weights]
        self.errors = [*(np.empty_like(output) for output in self.outputs[:-1]), self.outputs[-1]]
        self.gradients = [np.empty_like(w) for w in self.weights]

    def fit(self) -> list[float]:
        for _ in range(self.problem.epochs):
            for start in range(0, len(self.X), self.batch):
                self._step(self.X[start : start + self.batch])
        return []

    def _step(self, x: Any) -> None:
        values = [x, *(output[: len(x)] for output in self.outputs)]
        errors = [error[: len(x)] for error in self.errors]
        for layer, weight in enumerate(self.weights):
            self.matmul(values[layer], weight, out=values[layer + 1])
        for layer in reversed(range(len(self.weights))):
            self.matmul(values[layer].T, errors[layer], out=self.gradients[layer])
            if layer > 0:
                self.matmul(errors[layer], self.weights[layer].T, out=errors[layer - 1])


def make_fit(
    contender: type[Contender], problem: Problem, shuffle: bool = True, epsilon: float = EPSILON
) -> Callable[[], list[float]]:
    """The `fit` of a contender that starts from the problem's parameters, on its data."""
    return contender(problem, *problem.data(), *problem.parameters(), shuffle, epsilon).fit


def _fill(arrays: list[Any], values: list[Any]) -> None:
    for array, value in zip(arrays, values, strict=True):
        array[...] = value
