"""scikit-learn's conventions: what makes a run of the estimators the run of its MLP.

The formulas are those of scikit-learn 1.9, ``sklearn/neural_network``; where they differ from the
rest of this library, the docstrings here say how.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from xpmlp import rules
from xpmlp.activations import ACTIVATIONS, Activation, Sigmoid
from xpmlp.backends import exp_of_rows
from xpmlp.callbacks import Callback
from xpmlp.checkpoint import Saved
from xpmlp.errors import ModelFileError, say, warn_user
from xpmlp.history import History
from xpmlp.losses import LogLoss, Loss
from xpmlp.training import Run
from xpmlp.typing import Array, Backend


def activations() -> set[Activation]:
    """Those of scikit-learn's MLP."""
    return {ACTIVATIONS[name]() for name in ACTIVATION_NAMES.values()}


ACTIVATION_NAMES = {"identity": "identity", "logistic": "sigmoid", "tanh": "tanh", "relu": "relu"}
"""scikit-learn's activations, by the names they have here."""

# Attributes of an estimator that change from epoch to epoch.
_GROWING = {
    "n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "validation_scores_",
    "best_validation_score_", "_best", "_no_improvement_count",
}  # fmt: skip

NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and "
    "need to be preprocessed."
)


def initial_parameters(
    random_state: Any, widths: list[int], activation: Activation, bias: bool
) -> Any:
    r"""Weights and biases, uniform within :math:`\pm \sqrt{f / (n_{in} + n_{out})}`.

    The factor f is 6, and 2 for the logistic activation (Glorot & Bengio 2010). They are drawn
    layer by layer, the weights before the biases.

    Parameters
    ----------
    random_state : numpy.random.RandomState
    widths : list of int
        Features, units of each layer.
    activation : Activation
        Of the hidden layers.
    bias : bool

    Returns
    -------
    NumPy array of shape (n_parameters,)
        As :attr:`xpmlp.Network.parameters`.
    """
    weights, biases = [], []
    for n_in, n_out in pairwise(widths):
        bound = np.sqrt((2.0 if isinstance(activation, Sigmoid) else 6.0) / (n_in + n_out))
        weights.append(random_state.uniform(-bound, bound, (n_in, n_out)).ravel())
        if bias:
            biases.append(random_state.uniform(-bound, bound, n_out))
    return np.concatenate(weights + biases)


def random_state_in_words(random_state: Any) -> str:
    """The state of a generator of random numbers, for :func:`rewound`."""
    kind, keys, *rest = random_state.get_state()
    return json.dumps([kind, keys.tolist(), *rest])


def rewound(saved: Saved) -> np.random.RandomState:
    """The generator as it was at the begin of the run of a checkpoint.

    Raises
    ------
    ModelFileError
        If the checkpoint is of no estimator, or holds what is no state of a generator.
    """
    random_state = np.random.RandomState()
    try:
        kind, keys, place, has_gauss, gauss = json.loads(
            saved.description["settings"]["random state"]
        )
        # NumPy reads beyond its memory where a state says so.
        if not (
            kind == "MT19937"
            and len(keys) == 624
            and all(type(key) is int and 0 <= key < 2**32 for key in keys)
            and any(keys)
            and type(place) is int
            and 0 <= place <= 624
            and has_gauss in (0, 1)
            and math.isfinite(gauss)
        ):
            raise ValueError("no state of MT19937")
        random_state.set_state((kind, keys, place, int(has_gauss), float(gauss)))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelFileError(f"{saved.path} is not a checkpoint of an estimator") from error
    return random_state


@dataclass(frozen=True)
class ClippedLogLoss(LogLoss):
    """scikit-learn's log loss, of probabilities clipped to [eps, 1 - eps].

    A probability near 1 is rounded before its logarithm is taken, and its derivative is that of
    the loss without clipping. Each row has one true class, or each label is 0 or 1.
    """

    def evaluate(
        self,
        backend: Backend,
        activation: str,
        prediction: Array,
        y: Array,
        elements: Array,
        d: Array,
        columns: tuple[Array, Array, Array],
    ) -> None:
        outs, eps = (elements, d), float(backend.xp.finfo(d.dtype).eps)
        if not self.is_multiclass(activation):
            backend.elementwise(rules.clipped_binary_log_loss)(outs, prediction, y, eps)
            return
        maximum, total, _ = columns
        exp_of_rows(backend, prediction, d, maximum, total)
        backend.elementwise(rules.clipped_categorical_log_loss)(outs, d, y, total, eps)


@dataclass(frozen=True)
class AveragedSquaredError(Loss):
    """Half the squared error, averaged over the outputs; its derivative is that of the sum.

    Parameters
    ----------
    n_outputs : int
    """

    n_outputs: int = 1
    name = "squared_error"
    rule = rules.averaged_squared_error

    def params(self, eps: float) -> tuple[float, ...]:
        return (0.5 / self.n_outputs,)


class Rate:
    """A learning rate that changes at the ends of epochs: constant, invscaling or adaptive.

    Parameters
    ----------
    kind : {"constant", "invscaling", "adaptive"}
    initial : float
    power_t : float
        ``invscaling`` takes ``initial / (t + 1) ** power_t`` after t samples.
    """

    def __init__(self, kind: str, initial: float, power_t: float) -> None:
        self.kind, self.initial, self.power_t = kind, initial, power_t
        self.value = float(initial)

    def __call__(self, step: int) -> float:
        return self.value

    def end_epoch(self, t: int) -> None:
        """Adapt to the end of an epoch, t samples having been seen in all."""
        if self.kind == "invscaling":
            self.value = float(self.initial) / (t + 1) ** self.power_t

    def lower(self) -> str | None:
        """A fifth from now on, or, in words, why training ends now."""
        if self.kind != "adaptive":
            return "Stopping."
        if self.value <= 1e-6:
            return "Learning rate too small. Stopping."
        self.value /= 5.0
        return None


class Epochs(Callback):
    """What scikit-learn's MLP does at the end of an epoch: record, print, compare, stop.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Its ``loss_curve_`` and the other attributes that grow with each epoch are kept here.
    monitored : str
        The key of the history that must improve by ``tol``.
    incremental : bool
        Whether this is ``partial_fit``, which runs one epoch and does not converge.
    train_score : callable, optional
        Returns the score on the training data after an epoch.
    """

    def __init__(
        self,
        estimator: Any,
        monitored: str,
        incremental: bool,
        train_score: Callable[[], float] | None = None,
    ) -> None:
        self.estimator, self.monitored, self.incremental = estimator, monitored, incremental
        self.train_score = train_score
        self.restores = bool(estimator.early_stopping)

    def on_start(self, run: Run) -> None:
        estimator, network = self.estimator, run.network
        self.improved = False
        self.sign = -1.0 if run.better[self.monitored] == "max" else 1.0
        best_monitored, _ = getattr(estimator, "_best", ("", 0.0))
        if best_monitored != self.monitored:
            estimator._best = (self.monitored, math.inf)
            estimator._no_improvement_count = 0
        if self.restores:
            estimator.validation_scores_ = getattr(estimator, "validation_scores_", None) or []
            estimator.best_validation_score_ = max([*estimator.validation_scores_, -math.inf])
            estimator.best_loss_ = None
            self.best_parameters = network.backend.empty(network.parameters.shape, network.dtype)
            network.backend.copy(network.parameters, self.best_parameters)
        else:
            estimator.validation_scores_ = estimator.best_validation_score_ = None
            estimator.best_loss_ = min([*estimator.loss_curve_, math.inf])

    def state(self) -> dict[str, Any]:
        estimator, rate = self.estimator, self.estimator._optimizer.learning_rate
        kept = {name: getattr(estimator, name, None) for name in sorted(_GROWING)}
        kept = {name: value for name, value in kept.items() if value is not None}
        kept |= {"loss_": getattr(estimator, "loss_", math.nan)}  # also before the first epoch
        kept |= {"history": estimator.history_.to_dict(), "improved": self.improved}
        if isinstance(rate, Rate):
            kept["rate"] = rate.value
        if self.restores:
            kept["best_parameters"] = self.best_parameters
        return kept

    def restore(self, state: dict[str, Any]) -> None:
        estimator, rate = self.estimator, self.estimator._optimizer.learning_rate
        for name in _GROWING & state.keys():
            value = state[name]
            setattr(estimator, name, [*map(float, value)] if isinstance(value, list) else value)
        estimator.history_ = History.of(state["history"])
        self.improved = state["improved"]
        if isinstance(rate, Rate):
            rate.value = state["rate"]
        if self.restores:
            backend = estimator.network_.backend
            backend.copy(backend.from_host(state["best_parameters"]), self.best_parameters)

    def on_epoch(self, run: Run) -> None:
        estimator = self.estimator
        if self.train_score:
            run.history.append({"score": self.train_score()})
        self._record(run.history.newest(), run.n_samples)
        count, stays = estimator._no_improvement_count, estimator.n_iter_no_change
        value, best = self.sign * run.history[self.monitored][-1], estimator._best[1]
        estimator._no_improvement_count = count + 1 if value > best - estimator.tol else 0
        if value < best:
            estimator._best = (self.monitored, value)
            if self.restores:
                self.improved = True
                run.network.backend.copy(run.network.parameters, self.best_parameters)
        rate = estimator._optimizer.learning_rate
        if isinstance(rate, Rate):
            rate.end_epoch(estimator.t_)
        if estimator._no_improvement_count > stays:
            what = {"loss": "Training loss", "val_score": "Validation score"}
            message = (
                f"{what.get(self.monitored, self.monitored)} did not improve more than "
                f"tol={estimator.tol:f} for {stays} consecutive epochs."
            )
            end = rate.lower() if isinstance(rate, Rate) else "Stopping."
            self._say(f"{message} {end or f'Setting learning rate to {rate.value:f}'}")
            if end:
                run.stop(f"{message} {end}")
                return
            estimator._no_improvement_count = 0
        if not self.incremental and run.epoch + 1 == run.epochs and not run.history.stopped:
            warn_user(
                f"Stochastic Optimizer: Maximum iterations ({run.epochs}) reached and the "
                "optimization hasn't converged yet.",
                ConvergenceWarning,
            )

    def on_end(self, run: Run) -> None:
        self.estimator.history_.stopped = run.history.stopped
        # scikit-learn's best weights of an earlier `fit` are trained on in place: a later one
        # without a better score ends with its last weights.
        if self.improved:
            run.network.backend.copy(self.best_parameters, run.network.parameters)

    def diverged(self, run: Run, error: Exception) -> None:
        """End with the best parameters before an epoch that became non-finite, if there are any.

        Raises
        ------
        ValueError
            If there are none.
        """
        if not self.restores or self.estimator._best[1] == math.inf:
            raise ValueError(f"{NOT_FINITE} {error}.") from error
        run.network.backend.copy(self.best_parameters, run.network.parameters)
        newest = getattr(self.estimator, "loss_", math.nan)
        self._record(dict.fromkeys(run.better, math.nan), run.n_samples)
        self.estimator.loss_ = newest
        warn_user(f"{error}. The best weights before that are kept", ConvergenceWarning)

    def _record(self, values: dict[str, float], n_samples: int) -> None:
        estimator = self.estimator
        estimator.n_iter_ += 1
        estimator.t_ += n_samples
        estimator.loss_ = values["loss"]
        estimator.loss_curve_.append(values["loss"])
        estimator.history_.append(values)
        self._say(f"Iteration {estimator.n_iter_}, loss = {estimator.loss_:.8f}")
        if self.restores:
            score = values["val_score"]
            estimator.validation_scores_.append(score)
            self._say(f"Validation score: {score:f}")
            if self.monitored not in ("loss", "val_score"):
                self._say(f"{self.monitored}: {values[self.monitored]:f}")
            estimator.best_validation_score_ = max(estimator.best_validation_score_, score)
        else:
            estimator.best_loss_ = min(estimator.best_loss_, estimator.loss_)

    def _say(self, text: str) -> None:
        if self.estimator.verbose:
            say(text)
