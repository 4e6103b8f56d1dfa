"""What both estimators do: train a network as scikit-learn does, and use it."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable as Function
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import array_api_compat
import numpy as np
from sklearn import get_config
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, shuffle
from sklearn.utils.validation import check_is_fitted

from xpmlp import parity
from xpmlp.backends import backend_of, dtype_name, get_backend, host
from xpmlp.checkpoint import Saved, read_checkpoint
from xpmlp.data import Batches, as_matrix, is_foreign
from xpmlp.errors import NonFiniteLossError, say, warn_user
from xpmlp.history import History
from xpmlp.layers import Dense, Dropout, Layer
from xpmlp.lbfgs import FullBatch, solve
from xpmlp.losses import Loss
from xpmlp.metrics import Metric
from xpmlp.network import Network
from xpmlp.parameters import Parameters
from xpmlp.step import Dataset, TrainingStep
from xpmlp.training import Run
from xpmlp.validation import (
    LiveList,
    checked_weight,
    checked_X,
    checked_y,
    hosted,
    naming,
    origin,
    refuse_masked,
    take,
)

# Parameters that a run may be taken up with other values of.
_NOT_OF_A_RUN = ("verbose", "callbacks", "device", "backend", "fallback", "max_iter")
_PLACE = ("device", "backend", "dtype", "precision")
# What fit sets anew.
_FITTED = {
    "network_", "history_", "classes_", "n_outputs_", "n_iter_", "t_", "loss_", "loss_curve_",
    "best_loss_", "validation_scores_", "best_validation_score_", "_best",
    "_no_improvement_count", "_optimizer", "_optimizer_state", "_label_binarizer", "_origin",
    "_place", "_random_state",
}  # fmt: skip


@dataclass(eq=False, repr=False)
class MLP(Parameters, ABC):
    """Fitting and using, in terms of what a classifier and a regressor say of their targets."""

    # --- What the network holds ----------------------------------------------------------------

    @property
    def coefs_(self) -> list[Any]:
        """Weights of the network: ``coefs_[l]`` has shape ``(n_in, n_out)``."""
        return self._live(self._trained("coefs_").weights)

    @coefs_.setter
    def coefs_(self, values: Sequence[Any]) -> None:
        self.coefs_[:] = values

    @property
    def intercepts_(self) -> list[Any]:
        """Biases of the network; each None without bias."""
        return self._live(self._trained("intercepts_").biases)

    @intercepts_.setter
    def intercepts_(self, values: Sequence[Any]) -> None:
        self.intercepts_[:] = values

    @property
    def n_layers_(self) -> int:
        """Layers with units, input and output included."""
        return len(self._trained("n_layers_").dense) + 1

    @property
    def out_activation_(self) -> str:
        """Name of the output activation."""
        name = self._trained("out_activation_").output_activation.name
        return "logistic" if name == "sigmoid" else name

    def _trained(self, attribute: str) -> Network:
        if "network_" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no {attribute} before it is fitted")
        network: Network = self.network_
        return network

    def _live(self, views: Sequence[Any]) -> LiveList:
        """Arrays of the network, in the library of what it was trained on."""
        return LiveList(self.network_.backend, views, on_host=self._origin is None)

    def __sklearn_is_fitted__(self) -> bool:
        return "network_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags

    # --- Using a fitted model --------------------------------------------------------------------

    def to(self, device: str) -> Any:
        """Move the fitted model to another device.

        Parameters
        ----------
        device : str
            As the parameter `device`, which stays as it is.

        Returns
        -------
        self
        """
        check_is_fitted(self)
        backend = get_backend(device, fallback=self.fallback)
        state = self.__dict__.get("_optimizer_state")
        moved = self.network_.on(backend), state and state.on(backend)
        self.__dict__["network_"], self.__dict__["_optimizer_state"] = moved
        return self

    def _scored(self, X: Any, y: Any, sample_weight: Any) -> float:
        refuse_masked("y", y)
        refuse_masked("sample_weight", sample_weight)
        predicted = hosted(self.predict(X))
        return self._score(hosted(y), predicted, hosted(sample_weight))

    def _output(self, X: Any, method: str) -> Any:
        """The network's output for X, on its device."""
        check_is_fitted(self)
        X = checked_X(self, X, reset=False)
        dispatched = get_config().get("array_api_dispatch") and self.device == "auto"
        if dispatched and origin(X) != self._origin:
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace "
                "and the same device as those passed to fit(), got "
                f"{type(X).__module__}.{type(X).__name__}"
            )
        return self._network_output(X)

    def _network_output(self, X: Any) -> Any:
        network = self.network_
        x = as_matrix(network.backend, X, "X", network.dtype, network.n_features)
        return network.output(x)

    def _restore(
        self, network: Network, fitted: dict[str, Any], history: History, labels: dict[str, Any]
    ) -> None:
        """Become the fitted model of a file."""
        if fitted.get("n_features_in_") != network.n_features:
            raise ValueError("its features are not its network's")
        if fitted.get("n_outputs_") != network.n_outputs:
            raise ValueError("its outputs are not its network's")
        self.__dict__.update(fitted, network_=network, history_=history, _origin=None)
        self._place = {name: getattr(self, name) for name in _PLACE}
        self._restore_labels(labels)

    # --- What the two estimators say of their targets --------------------------------------------

    _target_dtype: ClassVar[str | None]
    """That targets are converted to, as of scikit-learn's ``check_array``."""

    @abstractmethod
    def _learn_outputs(self, y: Any, incremental: bool, classes: Any) -> None:
        """Set ``n_outputs_``, and classes, or check them where training goes on."""

    @abstractmethod
    def _check_known(self, name: str, y: Any) -> None:
        """Refuse targets that the outputs do not stand for."""

    @abstractmethod
    def _labels(self) -> dict[str, Any]:
        """What a file keeps of them."""

    @abstractmethod
    def _restore_labels(self, labels: dict[str, Any]) -> None:
        """The inverse, where the network is there already."""

    @abstractmethod
    def _encode(self, y: Any) -> Any:
        """Targets as the loss takes them."""

    @abstractmethod
    def _decode(self, output: Any) -> Any:
        """Predictions from the output, of shape (n_samples, n_outputs)."""

    @abstractmethod
    def _score(self, y: Any, predicted: Any, weight: Any) -> float:
        """What ``score`` returns."""

    @abstractmethod
    def _strata(self, y: Any) -> Any:
        """What a split keeps the shares of, or None."""

    @abstractmethod
    def _output_layer(self) -> Dense:
        """The last layer."""

    @abstractmethod
    def _loss(self) -> Loss:
        """The loss as an object."""

    @abstractmethod
    def _total_weight(self, y: Any, sample_weight: Any, incremental: bool) -> Any:
        """Weights of the samples, times those of their classes."""

    @abstractmethod
    def predict(self, X: Any) -> Any:
        """Predictions for each row of X."""

    # --- Training ------------------------------------------------------------------------------

    def _fitted(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        X_val: Any = None,
        y_val: Any = None,
        incremental: bool = False,
        classes: Any = None,
        resume: Any = None,
    ) -> Any:
        """Train a copy, and become it if that succeeds: no failure leaves half a model."""
        self._check_options(incremental, X_val, y_val)
        if resume is not None and self.solver == "lbfgs":
            raise ValueError("resume cannot be used with solver='lbfgs'")
        saved = None if resume is None else read_checkpoint(resume)
        first = "network_" not in self.__dict__ or not (self.warm_start or incremental)
        trial = object.__new__(type(self))
        trial.__dict__.update(self.__dict__)
        if first:
            for name in _FITTED & trial.__dict__.keys():
                delattr(trial, name)
        else:
            trial.network_ = copy.copy(self.network_)
            trial.history_ = self.history_.copy()
            for name in ("loss_curve_", "validation_scores_"):
                if isinstance(self.__dict__.get(name), list):
                    setattr(trial, name, list(getattr(self, name)))
            if incremental and (state := self.__dict__.get("_optimizer_state")):
                trial._optimizer = copy.deepcopy(self._optimizer)
                trial._optimizer_state = state.on(state.backend)
        trial._train(X, y, sample_weight, X_val, y_val, first, incremental, classes, saved)
        self.__dict__.clear()
        self.__dict__.update(trial.__dict__)
        return self

    def _train(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        X_val: Any,
        y_val: Any,
        first: bool,
        incremental: bool,
        classes: Any,
        saved: Saved | None,
    ) -> None:
        X = checked_X(self, X, reset=first)
        y = checked_y(self, X, y, "y")
        if sample_weight is not None:
            sample_weight = checked_weight(X, sample_weight)
        self._learn_outputs(y, incremental, classes)
        self._random_state = check_random_state(self.random_state)
        if saved is not None:
            self._random_state = parity.rewound(saved)
        drawn_from = parity.random_state_in_words(self._random_state)
        layers = [*self._hidden_layers(), self._output_layer()]
        if first:
            self._start(X, layers)
        self._check_unchanged(layers)
        network, loss = self.network_, self._loss()
        weight = self._total_weight(y, sample_weight, incremental)
        data = Dataset(network, X, self._encode(y), weight, loss)
        if self.solver == "lbfgs":
            self._fit_lbfgs(data)
            return
        rows, held_out = np.arange(X.shape[0]), None
        if X_val is not None:
            refuse_masked("X_val", X_val)
            with naming("X_val"):
                X_val = checked_X(self, X_val, reset=False)
            y_val = checked_y(self, X_val, y_val, "y_val")
            self._check_known("y_val", y_val)
            held_out = X_val, y_val, None, ("X_val", "y_val", "")
        elif self.early_stopping:
            rows, left = self._split(y)
            part = None if weight is None else weight[left]
            held_out = take(X, left), y[left], part, ("X", "y", "sample_weight")
        train_score = (lambda: self._evaluate(X, y, None)) if X_val is not None else None
        self._fit_stochastic(data, rows, held_out, incremental, train_score, drawn_from, saved)

    def _start(self, X: Any, layers: list[Layer]) -> None:
        """A new network, and the attributes as they are before the first epoch."""
        self._origin = origin(X)
        self._place = {name: getattr(self, name) for name in _PLACE}
        dense = [layer for layer in layers if isinstance(layer, Dense)]
        dtype = "float32" if dtype_name(X) == "float32" else "float64"
        activations = {layer.activation for layer in dense[:-1]} or {*self._activations(1)}
        parameters = None
        if self.layers is None and activations <= parity.activations() and len(activations) == 1:
            widths = [X.shape[1], *(layer.units for layer in dense)]
            drawn = parity.initial_parameters(
                self._random_state, widths, activations.pop(), bool(self.bias)
            )
            parameters = drawn.astype(dtype)
        if self.dtype is not None:
            dtype = self.dtype
        elif self.solver == "lbfgs":
            dtype = "float64"  # as scikit-learn computes, from weights of X's dtype
        seed = 0
        if parameters is None or any(isinstance(layer, Dropout) for layer in layers):
            seed = int(self._random_state.randint(2**31 - 1))
        place = {"device": self.device, "backend": self.backend, "fallback": self.fallback}
        if is_foreign(X) and self.device == "auto" and self.backend is None:
            writable = array_api_compat.is_writeable_array(X)
            place = {"backend": backend_of(X) if writable else host()}
        self.network_ = Network(
            X.shape[1],
            layers,
            dtype=dtype,
            precision=self.precision,
            seed=seed,
            parameters=parameters,
            **place,
        )
        if self.verbose and self.network_.device != "cpu":
            say(f"Training on {self.network_.device}")
        self.history_ = History()
        self.n_iter_ = self.t_ = 0

    def _check_unchanged(self, layers: list[Layer]) -> None:
        """Refuse to go on with another network than that which training began with."""
        for name, value in self._place.items():
            if getattr(self, name) is not value and getattr(self, name) != value:
                raise ValueError(f"{name} must stay {value!r} where training goes on; see to()")
        if tuple(layers) != self.network_.layers:
            raise ValueError(
                "training goes on only with the layers it began with, "
                f"{_in_words(self.network_.layers)}, got {_in_words(layers)}"
            )

    def _split(self, y: Any) -> tuple[Any, Any]:
        """Rows to train and rows to validate on, as scikit-learn draws them."""
        rows, left = train_test_split(
            np.arange(y.shape[0]),
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._strata(y),
        )
        if len(left) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        return rows, left

    def _fit_stochastic(
        self,
        data: Dataset,
        rows: Any,
        held_out: tuple[Any, ...] | None,
        incremental: bool,
        train_score: Function[[], float] | None,
        drawn_from: str,
        saved: Saved | None,
    ) -> None:
        network, n = self.network_, len(rows)
        batch_size = 200 if self.batch_size == "auto" else int(self.batch_size)
        if self.batch_size != "auto" and batch_size > n:
            warn_user(
                f"batch_size={batch_size} is larger than the {n} samples and is clipped to them"
            )
        order, n_drawn = np.arange(n), 0

        def draw(epoch: int) -> Any:
            nonlocal order, n_drawn
            while self.shuffle and n_drawn <= epoch:  # a run that goes on draws those before, too
                order, n_drawn = shuffle(order, random_state=self._random_state), n_drawn + 1
            return rows[order]

        # A generator of the user's goes on where the run ends, one made of a seed is nobody else's.
        own = isinstance(self.random_state, Integral)
        batches = Batches(network.backend, n, min(batch_size, n), draw, pure=own)
        epochs = 1 if incremental else int(self.max_iter)
        if not incremental or "_optimizer" not in self.__dict__:
            self._optimizer = self._new_optimizer()
            self._optimizer_state = None
            if not incremental:
                self._optimizer = self._optimizer.over(epochs * len(batches))
        validation, scores = None, []
        if held_out is not None:
            X_val, y_val, weight, names = held_out
            targets = self._encode(y_val)
            validation = Dataset(network, X_val, targets, weight, data.chosen_loss, names)
            scores = self._metrics(X_val, y_val, weight)
        ends = parity.Epochs(self, self._monitored(), incremental, train_score)
        self.loss_curve_: list[float] = self.__dict__.get("loss_curve_", [])
        start = len(self.loss_curve_)
        with network.backend.context():
            step = TrainingStep(
                network,
                self._optimizer,
                batches.n_rows,
                data,
                float(self.alpha),
                float(self.l1),
                self.clip_norm,
                alpha_over_n=True,
                state=self._optimizer_state,
                n_steps=epochs * len(batches),
            )
            self._optimizer_state = step.state
            # scikit-learn computes no loss of the validation data, so none can end a run.
            settings = {
                **{name: value for name, value in self.get_params(deep=False).items()
                   if name not in _NOT_OF_A_RUN},
                "class": type(self).__name__, "random state": drawn_from,
                "optimizer": self._optimizer,  # a schedule may span max_iter
            }  # fmt: skip
            run = Run(
                network, step, data, validation, scores, epochs, batches, settings, start,
                finite_validation=False,
            )  # fmt: skip
            self.n_iter_ = 0
            try:
                run.train([ends, *(self.callbacks or ())], saved)
            except NonFiniteLossError as error:
                ends.diverged(run, error)

    def _fit_lbfgs(self, data: Dataset) -> None:
        self.n_iter_ = 0

        def report(value: float) -> None:
            self.n_iter_ += 1
            self.history_.append({"loss": value})
            if self.verbose:
                say(f"Iteration {self.n_iter_}, loss = {value:.8f}")

        objective = FullBatch(self.network_, data, self.alpha)
        found = solve(
            objective, max_iter=self.max_iter, max_fun=self.max_fun, tol=self.tol, callback=report
        )
        if not (np.isfinite(found.x).all() and math.isfinite(found.fun)):
            raise ValueError(f"{parity.NOT_FINITE} The loss became {found.fun}.")
        self.n_iter_, self.loss_ = min(int(found.nit), self.max_iter), float(found.fun)
        if found.status != 0:
            warn_user(
                f"lbfgs failed to converge after {self.n_iter_} iteration(s), max_iter="
                f"{self.max_iter}, max_fun={self.max_fun}: {found.message}",
                ConvergenceWarning,
            )

    def _metrics(self, X: Any, y: Any, weight: Any) -> list[Metric]:
        """The score of the validation data, and what else is monitored."""

        def score(y_true: Any, output: Any) -> float:
            return self._score_of_output(y, output, weight)

        metrics = [Metric("score", score, True, False)]
        monitored = self._monitored()
        if monitored not in ("loss", "val_loss", "val_score"):
            scorer, X = get_scorer(self.monitor), hosted(X)

            def monitor(y_true: Any, output: Any) -> float:
                # A view that answers in NumPy arrays, as y is one, and compares no feature names,
                # which the validated X has not.
                view = object.__new__(type(self))
                view.__dict__.update(self.__dict__ | {"_origin": None})
                view.__dict__.pop("feature_names_in_", None)
                with naming(f"monitor={self.monitor!r}"):
                    return float(scorer(view, X, y))

            metrics.append(Metric(monitored.removeprefix("val_"), monitor, True, False))
        return metrics

    def _evaluate(self, X: Any, y: Any, weight: Any) -> float:
        output = self.network_.backend.to_host(self._network_output(X))
        return self._score_of_output(y, output, weight)

    def _score_of_output(self, y: Any, output: Any, weight: Any) -> float:
        if not np.isfinite(output).all():
            return math.nan
        output = output if output.ndim == 2 else output[:, None]
        return self._score(y, self._decode(output), weight)

    def _can_go_on(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError("partial_fit needs a stochastic solver, got solver='lbfgs'")
        return True


def _in_words(layers: Sequence[Layer]) -> str:
    return ", ".join(str(layer) for layer in layers)
