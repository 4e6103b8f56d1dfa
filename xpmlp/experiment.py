"""The parts of an experiment at the command line: from a table and options to scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from xpmlp.activations import ACTIVATIONS
from xpmlp.datasets import Table, is_class_target
from xpmlp.errors import check_number
from xpmlp.initializers import INITIALIZERS
from xpmlp.layers import Dense, Dropout, Layer
from xpmlp.losses import Loss
from xpmlp.names import parse
from xpmlp.optimizers import OPTIMIZERS, Optimizer
from xpmlp.pipeline import Pipeline
from xpmlp.schedules import SCHEDULES


def encode_target(table: Table, target: str, task: str) -> tuple[list[Any] | None, Any]:
    """The names of the classes, and the number of each row's; or None and the values.

    `task` is ``"classification"``, ``"regression"`` or ``"auto"``.
    """
    labels = table.column(target)
    if task == "regression" or (task == "auto" and not is_class_target(labels)):
        return None, table.features([target])[:, 0].astype(float)
    missing = labels == "" if labels.dtype.kind in "UO" else ~np.isfinite(labels)
    if missing.any():
        row = int(np.flatnonzero(missing)[0]) + 1
        raise ValueError(f"target column {target!r} of {table.name} has no value in data row {row}")
    names, numbers = np.unique(labels, return_inverse=True)
    if names.dtype.kind == "f" and (names == np.floor(names)).all() and abs(names).max() < 2**53:
        names = names.astype(int)
    if len(names) < 2:
        raise ValueError(
            f"target column {target!r} of {table.name} has only one class, {str(names[0])!r}"
        )
    if target == table.target and table.classes:
        order = np.array([table.classes.index(name) for name in names])
        return table.classes, order[numbers]
    return names.tolist(), numbers.reshape(-1)


def split_rows(n: int, test_size: float, validation: float, seed: int) -> dict[str, Any]:
    """Row numbers for ``"train"``, ``"validation"`` and ``"test"``; the last two may be empty."""
    from sklearn.model_selection import train_test_split

    check_number("seed of the split", seed, minimum=0, integer=True)
    rows = {"train": np.arange(n), "validation": np.arange(0), "test": np.arange(0)}
    for part, option, size in (
        ("test", "--test-size", test_size),
        ("validation", "--validation", validation),
    ):
        check_number(option, size, minimum=0, maximum=1, open_maximum=True)
        if size:
            n_left = len(rows["train"])
            if not 0 < math.ceil(size * n_left) < n_left:
                raise ValueError(f"{option}={size:g} of {n_left} rows leaves none to train on")
            rows["train"], rows[part] = train_test_split(
                rows["train"], test_size=size, random_state=seed % 2**32
            )
    return rows


def make_layers(
    hidden: str,
    activation: str,
    dropout: str,
    bias: bool,
    init: str | None,
    classes: list[Any] | None,
    loss: Loss,
) -> list[Layer]:
    """Hidden layers as the options say, and the output layer that suits the target."""
    units = [_number("--hidden", text, int) for text in hidden.split(",") if text.strip()]
    if min(units, default=1) < 1:
        raise ValueError(f"--hidden must be whole numbers from 1 on, got {hidden!r}")
    activations = _one_each(
        "--activation", activation, len(units), lambda text: parse("activation", text, ACTIVATIONS)
    )
    dropouts = _one_each(
        "--dropout", dropout, len(units), lambda text: Dropout(_number("--dropout", text, float))
    )
    common: dict[str, Any] = {"bias": bias}
    if init:
        common["init"] = parse("init", init, INITIALIZERS)
    layers: list[Layer] = []
    for n_units, chosen, after in zip(units, activations, dropouts, strict=True):
        layers.append(Dense(n_units, chosen, **common))
        layers += [after] if after.rate else []
    if classes is None:
        return [*layers, Dense(1, "exp" if loss.name == "poisson" else "identity", **common)]
    if len(classes) == 2:
        return [*layers, Dense(1, "sigmoid", **common)]
    return [*layers, Dense(len(classes), "softmax", **common)]


def make_optimizer(text: str, rate: float | None, schedule: str | None) -> Optimizer:
    """The optimizer, with a learning rate or a schedule of it."""
    given = {} if rate is None else {"learning_rate": rate}
    optimizer: Optimizer = parse("optimizer", text, OPTIMIZERS, **given)
    if not schedule:
        return optimizer
    settings = {"learning_rate": optimizer.learning_rate}
    return replace(optimizer, learning_rate=parse("schedule", schedule, SCHEDULES, **settings))


def target_scaling(classes: list[Any] | None, loss: Loss, y: Any) -> tuple[float, float]:
    """Shift and scale of a regression's target, for losses that suit one of any unit."""
    if classes is None and loss.name in ("squared_error", "absolute_error", "huber", "quantile"):
        with np.errstate(all="ignore"):  # what overflows, the pipeline refuses
            return float(y.mean()), float(y.std()) or 1.0
    return 0.0, 1.0


def network_targets(pipeline: Pipeline, loss: Loss, y: Any) -> Any:
    """Targets as the network and the loss take them."""
    if pipeline.classes is None:
        return (y - pipeline.target_shift) / pipeline.target_scale
    n_classes = len(pipeline.classes)
    one_hot = n_classes > 2 and not loss.labels_allowed(n_classes)
    return np.eye(n_classes)[y] if one_hot else y


def scores_of(pipeline: Pipeline, X: Any, y: Any) -> dict[str, float]:
    """Scores of the predictions for unscaled features, by name."""
    from sklearn import metrics

    predicted = pipeline.predict(X)
    if pipeline.classes is not None:
        return {
            "accuracy": metrics.accuracy_score(y, predicted),
            "F1 macro": metrics.f1_score(y, predicted, average="macro", zero_division=0.0),
        }
    return {
        "RMSE": metrics.root_mean_squared_error(y, predicted),
        "MAE": metrics.mean_absolute_error(y, predicted),
        "R2": metrics.r2_score(y, predicted) if len(y) > 1 else float("nan"),
    }


def _number(option: str, text: str, kind: type[Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{option} must be {what} separated by commas, got {text!r}") from None


def _one_each(option: str, text: str, n: int, read: Callable[[str], Any]) -> list[Any]:
    """What the option says of each of n hidden layers; it is read also where there is none."""
    values = text.split(",")
    if len(values) not in (1, n):
        raise ValueError(f"{option} must be one value or {n}, one a hidden layer, got {text!r}")
    made = [read(value.strip()) for value in values]
    return made * n if len(made) == 1 else made
