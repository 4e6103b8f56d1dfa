"""Test accuracy on small classics and on Fashion-MNIST. Deterministic, up to BLAS's rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import click
import numpy as np

from bench.data import data_option, fashion_mnist, find, out_option
from bench.environment import environment, headline, write
from bench.problem import Problem
from xpmlp import Dense, Dropout, Network, fit
from xpmlp.metrics import decide
from xpmlp.optimizers import Adam

SEEDS = range(10)
XOR_EPOCHS = 500
FASHION_EPOCHS = 20
FAST_ADAM = Adam(learning_rate=0.05, beta_1=0.9, beta_2=0.99)

# Below these something is broken; what is reached is printed.
FLOORS = {
    "breast_cancer": 0.94,
    "breast_cancer_no_bias": 0.93,
    "iris": 0.93,
    "xor": 1.0,
    "fashion_mnist": 0.87,
}


@click.command()
@data_option
@out_option
def accuracy(data: Path | None, out: Path) -> None:
    """Test accuracy on breast cancer, iris, XOR and Fashion-MNIST."""
    path = find(data)
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "breast_cancer": lambda: breast_cancer(bias=True),
        "breast_cancer_no_bias": lambda: breast_cancer(bias=False),
        "iris": iris,
        "xor": xor,
        "fashion_mnist": lambda: fashion(path),
    }
    results: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        click.echo(f"{name} ...", err=True)
        start = perf_counter()
        results[name] = run()
        results[name]["seconds"] = perf_counter() - start
    # One comparison each, so that a NaN fails too.
    low = [name for name, floor in FLOORS.items() if not results[name]["accuracy"] >= floor]
    if low:
        reached = ", ".join(f"{n} {results[n]['accuracy']:.4f} < {FLOORS[n]}" for n in low)
        raise click.ClickException(f"unacceptable accuracy: {reached}; no times")
    record = {"environment": environment(), "floors": FLOORS, "results": results}
    write(out / "accuracy.json", record)
    click.echo(report(record))


def breast_cancer(bias: bool) -> dict[str, Any]:
    """30-64-32-1 (sigmoid, ReLU, dropout 0.2, sigmoid) with squared error."""
    from sklearn.datasets import load_breast_cancer

    layers = [
        Dense(64, "sigmoid", bias=bias),
        Dense(32, "relu", bias=bias),
        Dropout(0.2),
        Dense(1, "sigmoid", bias=bias),
    ]
    return over_seeds(load_breast_cancer, layers, "squared_error", batch_size=64)


def iris() -> dict[str, Any]:
    """4-16-16-3 (sigmoid, sigmoid, softmax) with log loss."""
    from sklearn.datasets import load_iris

    layers = [Dense(16, "sigmoid"), Dense(16, "sigmoid"), Dense(3, "softmax")]
    return over_seeds(load_iris, layers, "log_loss", batch_size=32)


def over_seeds(load: Any, layers: list[Any], loss: str, batch_size: int) -> dict[str, Any]:
    """100 epochs from each seed on 70 % of the data; the mean test accuracy on the others."""
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import MinMaxScaler

    X_train, X_test, y_train, y_test = train_test_split(
        *load(return_X_y=True), test_size=0.3, random_state=101
    )
    scaler = MinMaxScaler().fit(X_train)
    X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
    reached = []
    for seed in SEEDS:
        network = Network(X_train.shape[1], layers, device="cpu", seed=seed)
        fit(
            network,
            X_train,
            y_train,
            loss=loss,
            optimizer=FAST_ADAM,
            epochs=100,
            batch_size=batch_size,
            verbose=0,
        )
        reached.append(share_right(network, X_test, y_test))
    return {
        "accuracy": fmean(reached),
        "of_seeds": reached,
        "says": f"mean of seeds 0 to {SEEDS[-1]}, {min(reached):.4f} to {max(reached):.4f}, "
        f"{len(y_test)} test samples",
    }


def xor() -> dict[str, Any]:
    """2-4-1 (tanh, sigmoid) with log loss, full batch: the share of seeds that learn XOR."""
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype="float64")
    y = np.array([0, 1, 1, 0])
    reached = []
    for seed in SEEDS:
        network = Network(2, [Dense(4, "tanh"), Dense(1, "sigmoid")], device="cpu", seed=seed)
        fit(
            network,
            X,
            y,
            loss="log_loss",
            optimizer=FAST_ADAM,
            epochs=XOR_EPOCHS,
            batch_size=None,
            verbose=0,
        )
        reached.append(share_right(network, X, y))
    learnt = reached.count(1.0)
    return {
        "accuracy": learnt / len(SEEDS),
        "of_seeds": reached,
        "says": f"{learnt} of seeds 0 to {SEEDS[-1]} without an error after {XOR_EPOCHS} epochs",
    }


def fashion(path: Path | None) -> dict[str, Any]:
    """784-256-128-10 (ReLU, softmax) with log loss, by Adam, batch 128, float32."""
    X_train, y_train = fashion_mnist("train", path, "float32")
    X_test, y_test = fashion_mnist("test", path, "float32")
    network = Problem((784, 256, 128, 10), batch=128, rows=len(X_train)).network()
    start = perf_counter()
    history = fit(
        network,
        X_train,
        y_train,
        loss="log_loss",
        optimizer=Adam(learning_rate=1e-3),
        epochs=FASHION_EPOCHS,
        batch_size=128,
        validation=(X_test, y_test),
        metrics=["accuracy"],
        verbose=0,
    )
    seconds = perf_counter() - start
    curve = history["val_accuracy"]
    best = max(curve)
    return {
        "accuracy": curve[-1],
        "best": best,
        "best_epoch": curve.index(best) + 1,
        "seconds_of_fit": seconds,
        "says": f"after epoch {len(curve)}; best {best:.4f} after epoch {curve.index(best) + 1}; "
        f"fit took {seconds:.1f} s with {len(curve)} evaluations of the test set",
        "history": history.to_dict(),
    }


def share_right(network: Network, X: Any, y: Any) -> float:
    """The accuracy of a network on class labels `y`, of shape ``(n_samples,)``."""
    predicted = decide(network.predict(X), network.output_activation.name, n_targets=1)
    return float(np.mean(predicted == y))


def report(record: dict[str, Any]) -> str:
    """A Markdown table of the accuracies, and the accuracy on Fashion-MNIST epoch by epoch."""
    results = record["results"]
    curve = results["fashion_mnist"]["history"]["val_accuracy"]
    lines = [
        headline(record["environment"]),
        "",
        "| data | accuracy | | seconds |",
        "| --- | ---: | --- | ---: |",
        *(
            f"| {name} | {result['accuracy']:.4f} | {result['says']} | {result['seconds']:.1f} |"
            for name, result in results.items()
        ),
        "",
        "| Fashion-MNIST, epoch | test accuracy |",
        "| ---: | ---: |",
        *(f"| {epoch} | {value:.4f} |" for epoch, value in enumerate(curve, start=1)),
    ]
    return "\n".join(lines)
