"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017), breast cancer and synthetic data as matrices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

ENVIRONMENT_VARIABLE = "XPMLP_FASHION_MNIST"
N_TRAIN = 60_000
MIN_ROWS = 100  # the first so many hold every class
_BESIDE_CHECKOUT = Path(__file__).parents[2] / "shared" / "data" / "fashion_mnist.npz"

data_option = click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"An .npz of Fashion-MNIST. Default: ${ENVIRONMENT_VARIABLE}, else a download.",
)


def rounds_option(
    default: int = 9, what: str = "Timed calls of each contender."
) -> Callable[[Any], Any]:
    """The option ``--rounds``."""
    return click.option(
        "--rounds", default=default, show_default=True, type=click.IntRange(1), help=what
    )


out_option = click.option(
    "--out",
    default="bench/results",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of what is written.",
)


def find(path: Path | None) -> Path | None:
    """The file to read: `path`, else what the environment names, else None for a download."""
    if path is not None:
        return path
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise click.ClickException(f"{ENVIRONMENT_VARIABLE}={named!r} is not a file")
        return Path(named)
    return _BESIDE_CHECKOUT if _BESIDE_CHECKOUT.is_file() else None


def fashion_mnist(
    part: str, path: Path | None, dtype: str, rows: int | None = None
) -> tuple[Any, Any]:
    """Images scaled to [0, 1], and their labels.

    Parameters
    ----------
    part : {"train", "test"}
    path : Path, optional
        From :func:`find`. Holds ``X_train`` and ``X_test``, uint8 of shape ``(n, 28, 28)``, and
        ``y_train`` and ``y_test``. None downloads through scikit-learn, which keeps a copy.
    dtype : str
    rows : int, optional
        Only the first so many.

    Returns
    -------
    X : array of shape (n_samples, 784)
    y : array of shape (n_samples,)
    """
    if path is None:
        images, labels = _openml(part)
    else:
        with np.load(path) as file:
            if f"X_{part}" not in file or f"y_{part}" not in file:
                raise click.ClickException(
                    f"{path} must hold X_{part} and y_{part}, got {', '.join(file.files)}"
                )
            images, labels = file[f"X_{part}"], file[f"y_{part}"]
    images, labels = images[:rows], labels[:rows]
    X = images.reshape(len(images), -1).astype(dtype)
    X /= 255
    return X, labels.astype("int64")


def breast_cancer(dtype: str, rows: int) -> tuple[Any, Any]:
    """Standardised features of shape ``(rows, 30)`` and two classes; its 569 samples repeated.

    A tenth of the rows has the other class. Who is sure of every answer computes with denormal
    numbers, which takes most contenders several times as long.
    """
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import scale

    X, y = load_breast_cancer(return_X_y=True)
    again = np.arange(rows) % len(X)
    wrong = np.random.default_rng(0).random(rows) < 0.1
    return scale(X)[again].astype(dtype), (y[again] ^ wrong).astype("int64")


def synthetic(rows: int, widths: tuple[int, int], dtype: str, seed: int) -> tuple[Any, Any]:
    """Normal features, and classes that a linear map of them decides, so that they can be learnt.

    Parameters
    ----------
    rows : int
    widths : (n_features, n_classes)
    dtype : str
    seed : int
    """
    rng = np.random.default_rng(seed)
    kind: Any = dtype
    X = rng.standard_normal((rows, widths[0]), kind)
    y = (X @ rng.standard_normal(widths, kind)).argmax(axis=1)
    return X, y


def _openml(part: str) -> tuple[Any, Any]:
    from sklearn.datasets import fetch_openml

    click.echo("Fashion-MNIST: from OpenML, downloaded once and kept by scikit-learn", err=True)
    images, labels = fetch_openml("Fashion-MNIST", version=1, as_frame=False, return_X_y=True)
    chosen = slice(N_TRAIN) if part == "train" else slice(N_TRAIN, None)
    return images[chosen], labels[chosen].astype("int64")
