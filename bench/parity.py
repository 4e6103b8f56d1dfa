"""How far the estimators' runs are from scikit-learn's: the worst relative difference of each kind.

Every case trains both with the same ``random_state`` for 10 epochs, or 10 iterations of L-BFGS,
and compares weights, biases, losses, validation scores, epochs and predictions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from sklearn import neural_network
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.preprocessing import scale

import xpmlp
from bench.data import out_option
from bench.environment import environment, headline, write
from xpmlp import available_backends, get_backend

SOLVERS = ("sgd", "adam", "lbfgs")
ACTIVATIONS = ("identity", "logistic", "tanh", "relu")
STEPS = 10
# Relative differences allowed on the CPU; L-BFGS's line search magnifies rounding.
LIMITS = {"sgd": 1e-8, "adam": 1e-8, "lbfgs": 1e-6}
ELSEWHERE = 1e-6


@dataclass(frozen=True)
class Task:
    """A data set and the estimator for it, by name in both libraries."""

    estimator: str
    X: Any
    y: Any
    options: dict[str, Any]


@cache
def tasks() -> dict[str, Task]:
    """Every kind of target that scikit-learn's estimators know."""
    iris, iris_labels = load_iris(return_X_y=True)
    cancer, malignant = load_breast_cancer(return_X_y=True)
    diabetes, progress = load_diabetes(return_X_y=True)
    iris, cancer, diabetes = scale(iris), scale(cancer[:300]), scale(diabetes[:300])
    progress = scale(progress[:300])
    pair = np.stack([progress, diabetes @ np.linspace(-1, 1, 10)], axis=1)
    # Labels that no line separates, so that the line search does not run off and amplify rounding.
    noise = np.sin(np.arange(len(iris)) ** 2)
    several = (np.stack([iris_labels == 1, iris[:, 0] > noise, iris[:, 1] > noise], 1)).astype(int)
    counts = np.floor(np.exp(progress))
    return {
        # So large that probabilities round to 0 and 1.
        "saturated": Task("MLPClassifier", 20.0 * cancer, malignant[:300], {}),
        "2 classes": Task("MLPClassifier", cancer, malignant[:300], {}),
        "3 classes": Task("MLPClassifier", iris, iris_labels, {}),
        "3 labels": Task("MLPClassifier", iris, several, {}),
        "1 target": Task("MLPRegressor", diabetes, progress, {}),
        "2 targets": Task("MLPRegressor", diabetes, pair, {}),
        "counts": Task("MLPRegressor", diabetes, counts, {"loss": "poisson"}),
    }


@dataclass(frozen=True)
class Case:
    """One pair of runs."""

    task: str
    solver: str
    activation: str
    early_stopping: bool
    weighted: bool


def cases() -> Iterator[Case]:
    """Every solver, activation, kind of target, with and without early stopping and weights."""
    flags = (False, True)
    for values in product(tasks(), SOLVERS, ACTIVATIONS, flags, flags):
        yield Case(*values)


def difference(case: Case, backend: Any = None) -> float:
    """The worst relative difference of a case; infinite if the runs differ in kind.

    The difference of two arrays is the largest one of an element, relative to the largest
    element.
    """
    task = tasks()[case.task]
    options = {
        "hidden_layer_sizes": (12, 8),
        "solver": case.solver,
        "activation": case.activation,
        "early_stopping": case.early_stopping,
        "learning_rate": "invscaling" if case.weighted else "adaptive",
        "learning_rate_init": 0.01,
        "max_iter": STEPS,
        "n_iter_no_change": 2,
        "batch_size": 64,
        "random_state": 3,
        **task.options,
    }
    weight = np.linspace(0.1, 2.0, len(task.X)) if case.weighted else None
    theirs = getattr(neural_network, task.estimator)(**options)
    ours = getattr(xpmlp, task.estimator)(**options, backend=backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(task.X, task.y, weight)
        ours.fit(task.X, task.y, weight)
    if ours.n_iter_ != theirs.n_iter_:
        return float("inf")
    pairs = [*zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True)]
    pairs.append((ours.loss_, theirs.loss_))
    for name in ("loss_curve_", "validation_scores_"):
        if getattr(theirs, name, None) is not None:
            pairs.append((getattr(ours, name), getattr(theirs, name)))
    method = "predict_proba" if hasattr(theirs, "predict_proba") else "predict"
    pairs.append((getattr(ours, method)(task.X), getattr(theirs, method)(task.X)))
    return max(relative(a, b) for a, b in pairs)


def relative(a: Any, b: Any) -> float:
    """The largest difference of two arrays, relative to the largest element of the second."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300))


def worst(backend: Any = None) -> dict[str, dict[str, float]]:
    """The worst difference for each kind of target and solver, over all that is left."""
    rows: dict[str, dict[str, float]] = {}
    for case in cases():
        row = rows.setdefault(case.task, dict.fromkeys(SOLVERS, 0.0))
        row[case.solver] = max(row[case.solver], difference(case, backend))
    return rows


@click.command()
@out_option
def parity(out: Path) -> None:
    """Runs of the estimators beside scikit-learn's: worst relative differences, in float64."""
    record: dict[str, Any] = {"environment": environment(), "limits": LIMITS, "results": {}}
    usable = [name for name, state in available_backends().items() if state == "usable"]
    for name in sorted(usable, key=lambda name: name != "numpy"):
        backend = get_backend("auto", name)
        limits = LIMITS if name == "numpy" else dict.fromkeys(SOLVERS, ELSEWHERE)
        rows = record["results"][name] = worst(backend)
        for kind, row in rows.items():
            for solver, value in row.items():
                if not value <= limits[solver]:
                    raise click.ClickException(
                        f"{name}, {kind}, {solver}: {value:.1e} > {limits[solver]:.0e}"
                    )
    write(out / "parity.json", record)
    click.echo(report(record))


def report(record: dict[str, Any]) -> str:
    """The table."""
    lines = [headline(record["environment"]), ""]
    n = len(ACTIVATIONS) * 4
    lines.append(f"Worst relative difference to scikit-learn of {n} runs each, {STEPS} epochs:")
    for name, rows in record["results"].items():
        lines += ["", f"| {name} | {' | '.join(SOLVERS)} |", "|---|" + "---|" * len(SOLVERS)]
        for kind, row in rows.items():
            lines.append(f"| {kind} | " + " | ".join(f"{row[s]:.1e}" for s in SOLVERS) + " |")
    return "\n".join(lines)
