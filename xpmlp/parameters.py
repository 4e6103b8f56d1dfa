"""The constructor's parameters of the estimators, and the objects they stand for."""

from __future__ import annotations

from collections.abc import Callable as Function
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
)

from xpmlp.activations import ACTIVATIONS, Activation
from xpmlp.callbacks import Callback
from xpmlp.errors import check_number, nearest
from xpmlp.layers import Dense, Dropout, Layer
from xpmlp.names import resolve
from xpmlp.optimizers import OPTIMIZERS, Optimizer
from xpmlp.parity import ACTIVATION_NAMES, Rate
from xpmlp.schedules import SCHEDULES

_RATES = ("constant", "invscaling", "adaptive")
# scikit-learn ignores these where they do not apply, so that a grid over solvers works.
_OF_SCIKIT_LEARN = ("sgd", "adam", "lbfgs")
_WITH_MOMENTS = ("adam", "adamw", "nadam", "adamax")
_SGD = ("momentum", "nesterovs_momentum")
_ADAM = ("beta_1", "beta_2", "epsilon")
_POSITIVE = Interval(Real, 0, None, closed="neither")
_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
BELOW_ONE = Interval(Real, 0, 1, closed="left")
_COUNT = Interval(Integral, 1, None, closed="left")


@dataclass(eq=False, repr=False)
class Parameters(BaseEstimator):
    """What both estimators share: each field is a parameter of the constructor."""

    _: KW_ONLY
    solver: str | Optimizer = "adam"
    alpha: float = 0.0001
    batch_size: int | str = "auto"
    learning_rate: str | Function[[int], float] = "constant"
    learning_rate_init: float = 0.001
    power_t: float = 0.5
    max_iter: int = 200
    shuffle: bool = True
    random_state: Any = None
    tol: float = 1e-4
    verbose: bool | int = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    n_iter_no_change: float = 10
    max_fun: int = 15000
    dropout: float | Sequence[float] = 0.0
    bias: bool = True
    layers: Sequence[Layer] | None = None
    l1: float = 0.0
    weight_decay: float | None = None
    clip_norm: float | None = None
    monitor: str | Function[..., float] | None = None
    callbacks: Sequence[Callback] | None = None
    device: str = "auto"
    backend: Any = None
    dtype: Any = None
    precision: str | None = None
    fallback: bool = True

    # Those that the score measures too, so that early stopping can watch it, as scikit-learn does.
    _scored_losses: ClassVar[tuple[str, ...]] = ()
    _parameter_constraints = {
        "hidden_layer_sizes": ["array-like", _COUNT],
        "activation": [
            StrOptions({*ACTIVATION_NAMES, *ACTIVATIONS}),
            Activation,
            list,
            tuple,
            np.ndarray,
        ],
        "solver": [StrOptions({"lbfgs", *OPTIMIZERS}), Optimizer],
        "alpha": [_NOT_NEGATIVE],
        "batch_size": [StrOptions({"auto"}), _COUNT],
        "learning_rate": [StrOptions({*_RATES, *SCHEDULES}), callable],
        "learning_rate_init": [_POSITIVE],
        "power_t": [_NOT_NEGATIVE],
        "max_iter": [_COUNT],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [_NOT_NEGATIVE],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [BELOW_ONE],
        "beta_1": [BELOW_ONE],
        "beta_2": [BELOW_ONE],
        "epsilon": [_POSITIVE],
        "n_iter_no_change": [_COUNT, Options(Real, {np.inf})],
        "max_fun": [_COUNT],
        "dropout": [BELOW_ONE, list, tuple, np.ndarray],
        "bias": ["boolean"],
        "layers": [list, tuple, None],
        "l1": [_NOT_NEGATIVE],
        "weight_decay": [_NOT_NEGATIVE, None],
        "clip_norm": [_POSITIVE, None],
        "monitor": [str, callable, None],
        "callbacks": [list, tuple, None],
        "device": [str],
        "precision": [str, None],
        "fallback": ["boolean"],
    }

    def _check_options(self, incremental: bool, X_val: Any, y_val: Any) -> None:
        """Refuse options that cannot apply; scikit-learn's own are ignored where it does so."""
        solver, rate = self.solver, self.learning_rate
        given = {
            "dropout": bool(np.any(np.asarray(self.dropout, dtype=object) != 0)),
            "l1": self.l1 != 0,
            "clip_norm": self.clip_norm is not None,
            "weight_decay": self.weight_decay is not None,
            "monitor": self.monitor is not None,
            "callbacks": bool(self.callbacks),
            "X_val": X_val is not None,
            "learning_rate": callable(rate) or rate not in _RATES,
        }
        if solver == "lbfgs":
            given["dropout"] |= any(isinstance(layer, Dropout) for layer in self.layers or ())
            for name in [name for name in given if given[name]]:
                raise ValueError(f"{name} cannot be used with solver='lbfgs'")
        if isinstance(solver, Optimizer):
            for name in (*_SGD, *_ADAM, "max_fun", "power_t", "learning_rate",
                         "learning_rate_init", "weight_decay"):  # fmt: skip
                if self._is_set(name):
                    raise ValueError(f"{name} belongs into the solver, where that is {solver!r}")
        elif solver not in _OF_SCIKIT_LEARN:
            others = ("max_fun", *_SGD) if solver in _WITH_MOMENTS else ("max_fun", *_SGD, *_ADAM)
            for name in others if rate == "invscaling" else ("power_t", *others):
                if self._is_set(name):
                    raise ValueError(
                        f"{name} cannot be used with solver={solver!r}; give an object of "
                        "xpmlp.optimizers, which takes more options"
                    )
        if given["learning_rate"] and self._is_set("power_t"):
            raise ValueError(f"power_t cannot be used with learning_rate={rate!r}")
        if X_val is not None and self._is_set("validation_fraction"):
            raise ValueError("validation_fraction cannot be used with X_val")
        if callable(rate) and self._is_set("learning_rate_init"):
            raise ValueError(
                f"learning_rate_init belongs into learning_rate, where that is {rate!r}"
            )
        if incremental and self.early_stopping and solver != "lbfgs":
            raise ValueError("partial_fit does not support early_stopping=True")
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val must be given together")
        validated = X_val is not None or self.early_stopping
        if not validated and self._monitored() != "loss":
            raise ValueError(
                f"monitor={self.monitor!r} needs validation data: early_stopping=True, or "
                "X_val and y_val"
            )
        for callback in self.callbacks or ():
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must hold instances of Callback, got {callback!r}")

    def _validate_params(self) -> None:
        """As scikit-learn's, but an unknown name is answered with the nearest known one."""
        constraints = self._parameter_constraints
        for name in ("solver", "activation", "learning_rate", "loss"):
            value = getattr(self, name)
            known = next(c.options for c in constraints[name] if isinstance(c, StrOptions))
            if isinstance(value, str) and value not in known:
                near, hint = nearest(value, known)
                raise InvalidParameterError(
                    f"The {name!r} parameter of {type(self).__name__} must be an object, or one of "
                    f"{', '.join(near)}. Got {value!r} instead.{hint}"
                )
        if isinstance(self.learning_rate, Real):
            raise InvalidParameterError(
                f"The 'learning_rate' parameter of {type(self).__name__} must be a schedule. Got "
                f"{self.learning_rate!r} instead; the rate itself is learning_rate_init."
            )
        super()._validate_params()

    def _is_set(self, name: str) -> bool:
        """Whether a parameter is not its default."""
        value, default = getattr(self, name), getattr(type(self), name)
        return value is not default and not (type(value) is type(default) and value == default)

    def _hidden_layers(self) -> list[Layer]:
        if self.layers is not None:
            for name in ("hidden_layer_sizes", "activation", "dropout", "bias"):
                if self._is_set(name):
                    raise ValueError(f"{name} cannot be used with layers, which takes its place")
            for index, layer in enumerate(self.layers):
                if not isinstance(layer, Dense | Dropout):
                    raise TypeError(f"layers[{index}] must be Dense or Dropout, got {layer!r}")
            return list(self.layers)
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if np.iterable(sizes) else [sizes]
        if not all(isinstance(size, Integral) for size in sizes):
            raise InvalidParameterError(f"hidden_layer_sizes must be whole numbers, got {sizes}")
        if any(size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        activations = self._activations(len(sizes))
        rates = self.dropout
        if not np.iterable(rates):
            if rates and not sizes:
                raise ValueError(f"dropout={rates!r} needs a hidden layer, or a list for the input")
            rates = [0.0, *[rates] * len(sizes)]
        if len(rates) != len(sizes) + 1:
            raise ValueError(
                f"dropout must be one rate, or {len(sizes) + 1}: of the input first, then of each "
                f"hidden layer; got {list(rates)}"
            )
        for index, rate in enumerate(rates):
            check_number(f"dropout[{index}]", rate, minimum=0, maximum=1, open_maximum=True)
        stack: list[Layer] = [Dropout(rates[0])] if rates[0] else []
        for size, activation, rate in zip(sizes, activations, rates[1:], strict=True):
            stack.append(Dense(size, activation, bool(self.bias)))
            stack += [Dropout(rate)] if rate else []
        return stack

    def _activations(self, n: int) -> list[Activation]:
        """That of each of n hidden layers."""
        values = self.activation
        if isinstance(values, str | Activation):
            values = [values] * n
        if len(values) != n:
            raise ValueError(f"activation must be one, or one for each of {n} hidden layers")
        names = [ACTIVATION_NAMES.get(v, v) if isinstance(v, str) else v for v in values]
        return [resolve("activation", name, ACTIVATIONS, Activation) for name in names]

    def _new_optimizer(self) -> Optimizer:
        if isinstance(self.solver, Optimizer):
            return self.solver
        rate, initial = self.learning_rate, self.learning_rate_init
        if not callable(rate) and rate not in _RATES:
            rate = SCHEDULES[rate](initial)
        elif not callable(rate):
            # scikit-learn's Adam keeps its rate, whatever `learning_rate` is.
            kind = "constant" if self.solver == "adam" else rate
            rate = Rate(kind, initial, self.power_t)
        options: dict[str, Any] = {}
        if self.weight_decay is not None:
            options["weight_decay"] = self.weight_decay
        if self.solver == "sgd" and self.momentum:
            options |= {"momentum": self.momentum, "rate_in_velocity": True}
            options["nesterov"] = bool(self.nesterovs_momentum)
        if self.solver in _WITH_MOMENTS:
            options |= {"beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}
        if self.solver == "adam":
            options["epsilon_hat"] = True
        optimizer: Optimizer = OPTIMIZERS[self.solver](rate, **options)
        return optimizer

    def _monitored(self) -> str:
        """The key of the history whose improvement keeps training going."""
        monitor = self.monitor
        if monitor is None:
            own = getattr(self, "loss", None) in self._scored_losses
            return ("val_score" if own else "val_loss") if self.early_stopping else "loss"
        if isinstance(monitor, str) and monitor in ("loss", "val_loss", "val_score"):
            return str(monitor)
        if isinstance(monitor, str):
            return f"val_{monitor}"
        name = getattr(monitor, "__name__", "")
        return f"val_{name if name.isidentifier() and name not in ('loss', 'score') else 'monitor'}"
