"""Losses. Their formulas, value and derivative of one element, are in :mod:`xpmlp.rules`.

Every loss sums over outputs and averages over samples. Each can be combined with any output
activation; where a loss and an activation belong together (log_loss with sigmoid or softmax,
poisson with exp) they are computed as one from the logits, which neither overflows nor loses
digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from xpmlp import rules
from xpmlp.backends import exp_of_rows
from xpmlp.errors import check_number
from xpmlp.typing import Array, Backend, Rule


@dataclass(frozen=True)
class Loss:
    """A loss that is a sum over the elements of prediction and target.

    Derive from this class, as a frozen dataclass, to add one: give it a `name` and a `rule`.
    """

    name: ClassVar[str]
    rule: ClassVar[Rule]
    """``rule(xp, prediction, y, *params) -> (loss, d loss / d prediction)``."""
    logit_rules: ClassVar[Mapping[str, Rule]] = {}
    """Output activation name to ``rule(xp, logits, y) -> (loss, d loss / d logits)``."""
    target_range: ClassVar[tuple[float, float]] = (float("-inf"), float("inf"))

    def params(self, eps: float) -> tuple[float, ...]:
        """Numbers passed to the rule; `eps` is the spacing of the dtype at 1."""
        return ()

    def takes_logits(self, activation: str) -> bool:
        """Whether this loss and the output activation `activation` are computed as one."""
        return activation in self.logit_rules

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
        """Write the loss of each element and its derivative (BP1, before averaging).

        Parameters
        ----------
        activation : str
            Name of the output activation.
        prediction : array of shape (n, k)
            The output or, if :meth:`takes_logits`, the pre-activation of the output layer.
        y : array of shape (n, k)
        elements, d : array of shape (n, k)
            Receive the losses, and their derivatives with respect to `prediction`.
        columns : three arrays of shape (n, 1)
            Scratch.
        """
        if activation in self.logit_rules:
            backend.elementwise(self.logit_rules[activation])((elements, d), prediction, y)
            return
        params = self.params(float(backend.xp.finfo(d.dtype).eps))
        backend.elementwise(type(self).rule)((elements, d), prediction, y, *params)

    def labels_allowed(self, n_outputs: int) -> bool:
        """Whether the target may be one class label a row instead of one value an output."""
        return False

    def encode(
        self, backend: Backend, activation: str, labels: Array, classes: Array, y: Array
    ) -> None:
        """Write the targets of class labels, shape ``(n, 1)``, into `y`, shape ``(n, k)``.

        `classes` holds the numbers 0 to k - 1.
        """
        raise TypeError(f"the loss {self.name} takes no class labels")

    def smooth(self, backend: Backend, activation: str, y: Array) -> None:
        """Prepare a batch's targets `y`, shape ``(n, k)``, in place."""


@dataclass(frozen=True)
class SquaredError(Loss):
    """``1/2 sum_k (prediction_k - y_k)**2``."""

    name = "squared_error"
    rule = rules.squared_error


@dataclass(frozen=True)
class AbsoluteError(Loss):
    """``sum_k |prediction_k - y_k|``; derivative ``sign(prediction - y)``, 0 at 0."""

    name = "absolute_error"
    rule = rules.absolute_error


@dataclass(frozen=True)
class Huber(Loss):
    """Half the squared error up to `delta`, linear beyond (Huber 1964).

    Parameters
    ----------
    delta : float, default 1.0
        In the units of the target.
    """

    delta: float = 1.0
    name = "huber"
    rule = rules.huber

    def __post_init__(self) -> None:
        check_number("delta", self.delta, minimum=0, open_minimum=True)

    def params(self, eps: float) -> tuple[float, ...]:
        return (float(self.delta),)


@dataclass(frozen=True)
class Quantile(Loss):
    """The pinball loss, minimised by a quantile of the target (Koenker & Bassett 1978).

    Parameters
    ----------
    quantile : float, default 0.5
        In (0, 1).
    """

    quantile: float = 0.5
    name = "quantile"
    rule = rules.quantile

    def __post_init__(self) -> None:
        check_number(
            "quantile", self.quantile, minimum=0, maximum=1, open_minimum=True, open_maximum=True
        )

    def params(self, eps: float) -> tuple[float, ...]:
        return (0.5 - float(self.quantile),)


@dataclass(frozen=True)
class Poisson(Loss):
    """Half the Poisson deviance, ``sum_k prediction_k - y_k + y_k log(y_k / prediction_k)``.

    The prediction is a rate; use the output activation ``"exp"`` or ``"softplus"`` to keep it
    positive. Rates below the spacing of the dtype at 1 are taken as that. Targets are >= 0.
    """

    name = "poisson"
    rule = rules.poisson
    logit_rules = {"exp": rules.poisson_from_log}
    target_range = (0.0, float("inf"))

    def params(self, eps: float) -> tuple[float, ...]:
        return (eps,)


@dataclass(frozen=True)
class LogLoss(Loss):
    """Cross-entropy, also called negative log-likelihood.

    Multiclass: ``-sum_k y_k log(prediction_k)`` where a row has one true class. Otherwise, binary
    (one output) or multilabel: ``-sum_k y_k log(prediction_k) + (1 - y_k) log(1 - prediction_k)``.
    Targets are class labels ``0 .. k-1`` of shape ``(n,)``, or values in [0, 1] of shape
    ``(n, k)`` (also ``(n,)`` where there is one output).

    Parameters
    ----------
    label_smoothing : float, default 0.0
        In [0, 1). Targets become ``(1 - s) y + s / c`` with c classes (2 if not multiclass).
    multiclass : bool, optional
        Default: whether the output activation is softmax.
    """

    label_smoothing: float = 0.0
    multiclass: bool | None = None
    name = "log_loss"
    target_range = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_number(
            "label_smoothing", self.label_smoothing, minimum=0, maximum=1, open_maximum=True
        )
        if not (self.multiclass is None or isinstance(self.multiclass, bool)):
            raise TypeError(f"multiclass must be True, False or None, got {self.multiclass!r}")

    def is_multiclass(self, activation: str) -> bool:
        """Whether a row has one true class, given the output activation's name."""
        return activation == "softmax" if self.multiclass is None else self.multiclass

    def takes_logits(self, activation: str) -> bool:
        return activation == "sigmoid" or (
            activation == "softmax" and self.is_multiclass(activation)
        )

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
        multiclass = self.is_multiclass(activation)
        if multiclass and activation == "softmax":
            backend.softmax_log_loss(prediction, y, elements, d, columns)
            return
        if activation == "sigmoid":
            from_logits = (
                rules.categorical_log_loss_from_sigmoid
                if multiclass
                else rules.binary_log_loss_from_logits
            )
            backend.elementwise(from_logits)((elements, d), prediction, y)
            return
        on_probability = rules.categorical_log_loss if multiclass else rules.binary_log_loss
        eps = float(backend.xp.finfo(d.dtype).eps)
        backend.elementwise(on_probability)((elements, d), prediction, y, eps)

    def labels_allowed(self, n_outputs: int) -> bool:
        return n_outputs > 1

    def encode(
        self, backend: Backend, activation: str, labels: Array, classes: Array, y: Array
    ) -> None:
        off, gain = self._smoothing(activation, y.shape[-1])
        backend.elementwise(rules.one_hot)((y,), labels, classes, off, off + gain)

    def smooth(self, backend: Backend, activation: str, y: Array) -> None:
        if self.label_smoothing:
            off, gain = self._smoothing(activation, y.shape[-1])
            backend.elementwise(rules.affine)((y,), y, gain, off)

    def _smoothing(self, activation: str, n_outputs: int) -> tuple[float, float]:
        n_classes = n_outputs if self.is_multiclass(activation) else 2
        return float(self.label_smoothing) / n_classes, 1.0 - float(self.label_smoothing)


@dataclass(frozen=True)
class Focal(LogLoss):
    """Cross-entropy that rows already right count less in (Lin et al. 2017, equation 4).

    ``-(1 - p)**gamma log(p)`` of the probability p of what is true, in place of the ``-log(p)``
    of :class:`LogLoss`, whose parameters and targets it shares.

    Parameters
    ----------
    gamma : float, default 2.0
        At least 0, which makes it the log loss.
    """

    gamma: float = 2.0
    name = "focal"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("gamma", self.gamma, minimum=0)

    def takes_logits(self, activation: str) -> bool:
        return activation == ("softmax" if self.is_multiclass(activation) else "sigmoid")

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
        outs, gamma = (elements, d), float(self.gamma)
        multiclass = self.is_multiclass(activation)
        if not self.takes_logits(activation):
            rule = rules.categorical_focal if multiclass else rules.binary_focal
            eps = float(backend.xp.finfo(d.dtype).eps)
            backend.elementwise(rule)(outs, prediction, y, gamma, eps)
        elif multiclass:
            maximum, total, h_total = columns
            exp_of_rows(backend, prediction, d, maximum, total)
            backend.elementwise(rules.categorical_focal_from_softmax)(
                outs, prediction, y, maximum, total, gamma
            )
            backend.sum_rows(d, h_total)
            backend.elementwise(rules.softmax_backward_from_logits)(
                (d,), d, prediction, maximum, total, h_total
            )
        else:
            backend.elementwise(rules.binary_focal_from_logits)(outs, prediction, y, gamma)


LOSSES: dict[str, type[Loss]] = {
    cls.name: cls for cls in (SquaredError, AbsoluteError, Huber, Quantile, Poisson, LogLoss, Focal)
}
