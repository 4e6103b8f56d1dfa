"""The networks that :mod:`xpmlp.verify` trains: together they cover every part of the library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from xpmlp.activations import ACTIVATIONS
from xpmlp.backends import host
from xpmlp.layers import Dense, Dropout
from xpmlp.losses import LOSSES, Focal, LogLoss, Loss, Poisson
from xpmlp.network import Network
from xpmlp.optimizers import OPTIMIZERS, SGD, Optimizer, RMSprop
from xpmlp.rng import stream
from xpmlp.typing import Backend


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, and on what.

    Attributes
    ----------
    options : mapping
        Penalties and clipping; see :func:`xpmlp.fit`.
    weighted : bool
        Whether samples have weights.
    labels : bool
        Whether targets are class labels.
    deferred : bool
        Train as on a device whose results are not there when a call returns.
    n_samples, n_features, batch_size : int
        The last batch of an epoch is smaller.
    most_steps : int
    """

    name: str
    layers: tuple[Any, ...]
    loss: Loss
    optimizer: Optimizer
    options: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = False
    labels: bool = False
    deferred: bool = False
    n_samples: int = 60
    n_features: int = 5
    batch_size: int = 16
    most_steps: int = 1_000_000

    @property
    def n_outputs(self) -> int:
        units: int = self.layers[-1].units
        return units

    @property
    def wide(self) -> bool:
        """Whether there are too many parameters for a finite difference by each."""
        units: int = self.layers[0].units
        return self.n_features * units > 1000


@cache
def cases() -> tuple[Case, ...]:
    """One case for each activation; losses, optimizers and options take turns. And some more."""
    optimizers = [
        *(optimizer() for optimizer in OPTIMIZERS.values()),
        SGD(0.01, momentum=0.9),
        SGD(0.01, momentum=0.9, nesterov=True, rate_in_velocity=True),
        RMSprop(momentum=0.5, centered=True),
        OPTIMIZERS["adam"](amsgrad=True),
        OPTIMIZERS["adam"](epsilon_hat=True, weight_decay=0.01),
    ]
    losses = [loss() for loss in LOSSES.values()]
    options: list[dict[str, Any]] = [{}, {"alpha": 0.01}, {"clip_norm": 1.0}, {"l1": 1e-4}]
    names = [cls.name for cls in dict.fromkeys(ACTIVATIONS.values())]
    made = []
    for index, name in enumerate(names):
        loss, optimizer = losses[index % len(losses)], optimizers[index % len(optimizers)]
        output, units = "identity", 2
        if isinstance(loss, LogLoss):
            output, units = ("softmax", 3) if index % 2 else ("sigmoid", 2)
        elif isinstance(loss, Poisson):
            # A rate of softplus behind a layer of exp: of exp it would explode.
            output = "softplus" if names[(index + 1) % len(names)] == "exp" else "exp"
        layers = (
            Dense(9, name),
            Dropout(0.2),
            Dense(7, names[(index + 1) % len(names)], bias=bool(index % 3)),
            Dense(units, output),
        )
        option = options[index % len(options)]
        label = f"{index + 1}: {name}, {loss.name}, {optimizer.name}"
        made.append(Case(label, layers, loss, optimizer, option, weighted=index % 2 == 1))
    return *made, *_further(len(made))


def _further(n: int) -> tuple[Case, ...]:
    """Class labels, clipping, losses of probabilities, a large network."""
    hidden = Dense(9, "tanh"), Dropout(0.2)
    classes = *hidden, Dense(3, "softmax")
    adam = OPTIMIZERS["adam"]
    smooth = LogLoss(label_smoothing=0.1)
    return (
        Case(f"{n + 1}: labels, smoothed log_loss, deferred", classes,
             smooth, adam(), {"alpha": 0.01}, labels=True, deferred=True),
        Case(f"{n + 2}: smoothed log_loss of probabilities, clip_value", classes,
             LogLoss(0.1, multiclass=False), adam(), {"clip_value": 0.01}),
        Case(f"{n + 3}: log_loss of rates, sgd, deferred", (*hidden, Dense(3, "softplus")),
             LogLoss(multiclass=True), SGD(0.01), weighted=True, deferred=True),
        Case(f"{n + 4}: focal of probabilities, clip_value", classes,
             Focal(multiclass=False), adam(), {"clip_value": 0.01, "clip_norm": 0.01}),
        Case(f"{n + 5}: focal of sigmoids, sgd", (*hidden, Dense(3, "sigmoid")),
             Focal(multiclass=True), SGD(0.01)),
        Case(f"{n + 6}: 100-300-20", (Dense(300, "relu"), Dropout(0.1), Dense(20, "softmax")),
             LogLoss(), adam(), labels=True, n_samples=300, n_features=100, batch_size=128,
             most_steps=8),
    )  # fmt: skip


def sample(case: Case, n: int | None = None) -> tuple[Any, Any, Any]:
    """X, y and sample weights of a case, float64 on the host; labels are whole numbers."""
    rng = host().generator(stream(7, "verify"))
    n = n or case.n_samples
    X = rng.standard_normal((n, case.n_features))
    y = rng.random((n, case.n_outputs))
    if case.layers[-1].activation.name == "softmax":
        y = (y == y.max(axis=1, keepdims=True)).astype("float64")
    if case.labels:
        y = y.argmax(axis=1)
    return X, y, rng.random(n) + 0.5 if case.weighted else None


def build(case: Case, backend: Backend, dtype: str) -> Network:
    """The network of a case."""
    return Network(case.n_features, case.layers, backend=backend, dtype=dtype, seed=11)
