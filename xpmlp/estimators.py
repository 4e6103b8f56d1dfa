"""MLPClassifier and MLPRegressor: scikit-learn's estimators, on any device.

Drawing, stopping and the objective are scikit-learn's (:mod:`xpmlp.parity`); layers, passes,
updates and the loop are the library's own, which also offers what scikit-learn's do not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin, _fit_context
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target, unique_labels

from xpmlp import parity
from xpmlp.backends import host
from xpmlp.data import like
from xpmlp.docstrings import documented
from xpmlp.errors import check_number
from xpmlp.layers import Dense
from xpmlp.losses import LOSSES, Focal, LogLoss, Loss, Poisson, SquaredError
from xpmlp.mlp import MLP
from xpmlp.names import resolve
from xpmlp.parameters import BELOW_ONE
from xpmlp.validation import check_labels


@documented
@dataclass(eq=False, repr=False)
class MLPClassifier(ClassifierMixin, MLP):
    """Multilayer perceptron that classifies: scikit-learn's, on any device, with more options.

    Parameters
    ----------
    {parameters}
    loss : str or Loss, default "log_loss"
        "log_loss", "focal", which looks harder at rows that are still wrong, "squared_error" of
        the probabilities, or one of these with arguments from :mod:`xpmlp.losses`.
    class_weight : dict, "balanced" or None, default None
        Factor of the samples of each class, 1 where it is not named. "balanced" is
        ``n_samples / (n_classes * count)``.
    label_smoothing : float, default 0.0
        In [0, 1), of "log_loss" and "focal": targets become ``(1 - s) y + s / n_classes``.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        The labels, sorted; always of NumPy.
    {attributes}

    {notes}

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from xpmlp import MLPClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MLPClassifier(hidden_layer_sizes=(16, 16), solver="lbfgs", random_state=0)
    >>> model.fit(X, y).score(X, y) > 0.95
    True
    """

    hidden_layer_sizes: Sequence[int] | int = (100,)
    activation: Any = "relu"
    _: KW_ONLY
    loss: str | Loss = "log_loss"
    class_weight: Mapping[Any, float] | str | None = None
    label_smoothing: float = 0.0

    _parameter_constraints = {
        **MLP._parameter_constraints,
        "loss": [StrOptions({"log_loss", "focal", "squared_error"}), LogLoss, SquaredError],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "label_smoothing": [BELOW_ONE],
    }
    _target_dtype = None
    _scored_losses = ("log_loss", "focal", "squared_error")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    @documented
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        resume: str | os.PathLike[str] | None = None,
    ) -> MLPClassifier:
        """{fit}"""
        return self._fitted(X, y, sample_weight, X_val, y_val, resume=resume)

    @available_if(lambda self: self._can_go_on())
    @_fit_context(prefer_skip_nested_validation=True)
    @documented
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None
    ) -> MLPClassifier:
        """{partial_fit}
        classes : array-like of shape (n_classes,), optional
            All labels there will be. Needed in the first call, and may be left out after it.

        Returns
        -------
        self
        """
        return self._fitted(X, y, sample_weight, incremental=True, classes=classes)

    def predict(self, X: Any) -> Any:
        """The class of each row.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples,), or (n_samples, n_outputs) of 0 and 1 for several labels
            In X's library and on its device where that has such labels, otherwise NumPy's.
        """
        output = self._output(X, "predict")
        labels = self._decode(self.network_.backend.to_host(output))
        plain = isinstance(labels, np.ndarray) and labels.dtype.kind in "biuf"
        return like(X, host(), labels) if plain else labels

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_classes)
            In the order of ``classes_``, in X's library and on its device. Of several labels,
            the probability that each applies.
        """
        probabilities = self._probabilities(X, "predict_proba")
        return like(X, self.network_.backend, probabilities)

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of :meth:`predict_proba`.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_classes)
        """
        probabilities = self._probabilities(X, "predict_log_proba")
        backend = self.network_.backend
        return like(X, backend, backend.xp.log(probabilities))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The accuracy; with several labels, the share of rows where all are right.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        float
        """
        return self._scored(X, y, sample_weight)

    def _probabilities(self, X: Any, method: str) -> Any:
        output = self._output(X, method)
        if self.n_outputs_ > 1:
            return output
        return self.network_.backend.xp.concat((1.0 - output, output), axis=1)

    def _learn_outputs(self, y: Any, incremental: bool, classes: Any) -> None:
        check_labels("y", y)
        if incremental:
            self._learn_classes(y, classes)
        if "classes_" not in self.__dict__:
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        elif self.warm_start and set(unique_labels(y)) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {self.classes_}, `y` has {unique_labels(y)}"
            )
        else:
            self._check_known("y", y)
        kinds = {"multiclass": len(self.classes_), "multilabel-indicator": y.shape[-1]}
        self.n_outputs_ = kinds.get(self._label_binarizer.y_type_, 1)

    def _learn_classes(self, y: Any, classes: Any) -> None:
        """The classes of ``partial_fit``, which its first call must be given."""
        if "classes_" not in self.__dict__:
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            several = type_of_target(y).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(y if several else classes)
            self.classes_ = unique_labels(classes)
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(
                f"classes={classes!r} is not the same as on last call to partial_fit, was: "
                f"{self.classes_!r}"
            )

    def _check_known(self, name: str, y: Any) -> None:
        check_labels(name, y)
        several = self._label_binarizer.y_type_.startswith("multilabel")
        if several != (y.ndim == 2):
            raise ValueError(
                f"{name} must have {'a column for each label' if several else 'one label a row'}, "
                f"got shape {y.shape}"
            )
        if y.ndim == 1:
            unknown = sorted(set(unique_labels(y).tolist()) - set(self.classes_.tolist()))
            if unknown:
                raise ValueError(
                    f"{name} has classes not in `self.classes_`: {unknown}, known are "
                    f"{self.classes_}"
                )

    def _labels(self) -> dict[str, Any]:
        several = self._label_binarizer.y_type_.startswith("multilabel")
        return {"classes": self.classes_, "several": several}

    def _restore_labels(self, labels: dict[str, Any]) -> None:
        if labels.keys() != {"classes", "several"}:
            raise ValueError("it has no classes")
        classes, several = labels["classes"], labels["several"]
        if not isinstance(classes, np.ndarray) or not isinstance(several, bool):
            raise ValueError("its classes must be an array")
        n, softmax = len(classes), self.out_activation_ == "softmax"
        if (
            n == 0
            or self.n_outputs_ != (n if several or n > 2 else 1)
            or softmax != (n > 2 and not several)
        ):
            raise ValueError("its classes do not fit its network")
        if not np.array_equal(classes, unique_labels(np.eye(n, dtype=int) if several else classes)):
            raise ValueError("its classes are not in order")
        self._label_binarizer = LabelBinarizer().fit(np.eye(n, dtype=int) if several else classes)
        self.classes_ = classes

    def _encode(self, y: Any) -> Any:
        """Class numbers, or the matrix of 0 and 1 of several labels."""
        numbers = self.n_outputs_ == 1 or self._loss().labels_allowed(self.n_outputs_)
        if y.ndim == 1 and numbers:
            return np.searchsorted(self.classes_, y).astype(np.int32)
        return self._label_binarizer.transform(y)

    def _decode(self, output: Any) -> Any:
        return self._label_binarizer.inverse_transform(
            output[:, 0] if self.n_outputs_ == 1 else output
        )

    def _score(self, y: Any, predicted: Any, weight: Any) -> float:
        return float(accuracy_score(y, predicted, sample_weight=weight))

    def _strata(self, y: Any) -> Any:
        # Where there are two classes only, and as a column, as in scikit-learn.
        return self._encode(y).astype(bool)[:, None] if self.n_outputs_ == 1 else None

    def _output_layer(self) -> Dense:
        softmax = self._label_binarizer.y_type_ == "multiclass"
        return Dense(self.n_outputs_, "softmax" if softmax else "sigmoid", bool(self.bias))

    def _loss(self) -> Loss:
        if self.label_smoothing and (isinstance(self.loss, Loss) or self.loss == "squared_error"):
            raise ValueError(f"label_smoothing cannot be used with loss={self.loss!r}")
        if isinstance(self.loss, Loss):
            return self.loss
        if self.loss == "focal":
            return Focal(label_smoothing=self.label_smoothing)
        if self.loss == "squared_error":
            return SquaredError()
        return LogLoss(self.label_smoothing) if self.label_smoothing else parity.ClippedLogLoss()

    def _total_weight(self, y: Any, sample_weight: Any, incremental: bool) -> Any:
        if self.class_weight is None:
            return sample_weight
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' cannot be used in partial_fit, which does not see all "
                "classes; pass a dict"
            )
        if y.ndim != 1:
            raise ValueError("class_weight needs one label a row, got several")
        if isinstance(self.class_weight, dict):
            for label, value in self.class_weight.items():
                check_number(f"class_weight[{label!r}]", value, minimum=0)
        by_class = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        if not by_class.any():
            raise ValueError(f"class_weight must not be all zero, got {self.class_weight!r}")
        weight = by_class[np.searchsorted(self.classes_, y)]
        return weight if sample_weight is None else weight * sample_weight


@documented
@dataclass(eq=False, repr=False)
class MLPRegressor(RegressorMixin, MLP):
    """Multilayer perceptron that predicts numbers: scikit-learn's, on any device, with more.

    Parameters
    ----------
    loss : str or Loss, default "squared_error"
        "squared_error" (half of it), "absolute_error", "huber", "quantile", "poisson" (half its
        deviance, of the exponential of the output, for y of at least 0), or one with arguments
        from :mod:`xpmlp.losses`.
    {parameters}

    Attributes
    ----------
    {attributes}

    {notes}
    ``partial_fit`` is there with ``solver="lbfgs"`` too, and runs it to its end.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from xpmlp import MLPRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = MLPRegressor("huber", solver="lbfgs", max_iter=1000, random_state=0)
    >>> model.fit(X, y / y.std()).predict(X[:2]).shape
    (2,)
    """

    loss: str | Loss = "squared_error"
    hidden_layer_sizes: Sequence[int] | int = (100,)
    activation: Any = "relu"

    _parameter_constraints = {
        **MLP._parameter_constraints,
        "loss": [StrOptions({*LOSSES} - {"log_loss", "focal"}), Loss],
    }
    _target_dtype = "numeric"
    _scored_losses = ("squared_error", "poisson")

    @_fit_context(prefer_skip_nested_validation=True)
    @documented
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        *,
        resume: str | os.PathLike[str] | None = None,
    ) -> MLPRegressor:
        """{fit}"""
        return self._fitted(X, y, sample_weight, X_val, y_val, resume=resume)

    # With L-BFGS it is there too, and runs until it ends, as scikit-learn's does.
    @_fit_context(prefer_skip_nested_validation=True)
    @documented
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """{partial_fit}

        Returns
        -------
        self
        """
        return self._fitted(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """The prediction for each row.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples,) or (n_samples, n_outputs)
            In X's library and on its device.
        """
        output = self._output(X, "predict")
        return like(X, self.network_.backend, self._decode(output))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The coefficient of determination R^2, at best 1; averaged over several outputs.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        float
        """
        return self._scored(X, y, sample_weight)

    def _learn_outputs(self, y: Any, incremental: bool, classes: Any) -> None:
        self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]

    def _check_known(self, name: str, y: Any) -> None:
        pass  # any number will do

    def _labels(self) -> dict[str, Any]:
        return {}

    def _restore_labels(self, labels: dict[str, Any]) -> None:
        if labels:
            raise ValueError("a regressor has no classes")

    def _encode(self, y: Any) -> Any:
        return y

    def _decode(self, output: Any) -> Any:
        return output[:, 0] if self.n_outputs_ == 1 else output

    def _score(self, y: Any, predicted: Any, weight: Any) -> float:
        return float(r2_score(y, predicted, sample_weight=weight))

    def _strata(self, y: Any) -> Any:
        return None

    def _output_layer(self) -> Dense:
        poisson = self.loss == "poisson" or isinstance(self.loss, Poisson)
        return Dense(self.n_outputs_, "exp" if poisson else "identity", bool(self.bias))

    def _loss(self) -> Loss:
        if self.loss == "squared_error":
            return parity.AveragedSquaredError(self.n_outputs_)
        loss: Loss = resolve("loss", self.loss, LOSSES, Loss)
        if isinstance(loss, LogLoss):
            raise ValueError(f"loss={loss!r} is for classes, use MLPClassifier")
        return loss

    def _total_weight(self, y: Any, sample_weight: Any, incremental: bool) -> Any:
        return sample_weight
