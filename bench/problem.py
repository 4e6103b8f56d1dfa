"""What is trained: a network of dense layers, data that fits it, and how an epoch is cut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.data import breast_cancer, fashion_mnist, synthetic
from xpmlp import Dense, Network

SEED = 0
_ORIGINS = {
    (784, 10): "Fashion-MNIST, training images, pixels / 255",
    (30, 2): "breast cancer, standardised, repeated, a tenth of the labels wrong",
}


@dataclass(frozen=True)
class Problem:
    """A network with ReLU and softmax, its data and its batches.

    Parameters
    ----------
    widths : tuple of int
        Features, hidden units, classes.
    batch : int
        Rows of a batch; the last of an epoch may be smaller.
    rows : int
        Samples in an epoch.
    epochs : int, default 1
        Of one timed call.
    dtype : {"float32", "float64"}
    path : Path, optional
        Of Fashion-MNIST, from :func:`bench.data.find`.
    """

    widths: tuple[int, ...]
    batch: int
    rows: int
    epochs: int = 1
    dtype: str = "float32"
    path: Path | None = None

    @property
    def shape(self) -> str:
        """The widths as one word, such as ``784-256-128-10``."""
        return "-".join(map(str, self.widths))

    @property
    def steps(self) -> int:
        """Training steps of one timed call."""
        return self.epochs * math.ceil(self.rows / self.batch)

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return sum(n_in * n_out + n_out for n_in, n_out in pairwise(self.widths))

    @property
    def origin(self) -> str:
        """Where the data come from."""
        return _ORIGINS.get(self._ends, "synthetic")

    @property
    def _ends(self) -> tuple[int, int]:
        return self.widths[0], self.widths[-1]

    def data(self) -> tuple[Any, Any]:
        """Samples of shape ``(rows, widths[0])``, and their classes of shape ``(rows,)``."""
        if self._ends == (784, 10):
            return fashion_mnist("train", self.path, self.dtype, self.rows)
        if self._ends == (30, 2):
            return breast_cancer(self.dtype, self.rows)
        return synthetic(self.rows, self._ends, self.dtype, SEED)

    def network(self) -> Network:
        """The network, with its initial weights."""
        *hidden, n_classes = self.widths[1:]
        layers = [*(Dense(units, "relu") for units in hidden), Dense(n_classes, "softmax")]
        return Network(self.widths[0], layers, device="cpu", dtype=self.dtype, seed=SEED)

    def parameters(self) -> tuple[list[Any], list[Any]]:
        """Copies of its initial weights and biases, for every contender to start from."""
        network = self.network()
        return [np.array(w) for w in network.weights], [np.array(b) for b in network.biases]


# Of each shape: the rows of an epoch, and the batches with the epochs of a call. A call takes a
# second or so: in a shorter one its start would count too much, and xpmlp compiles whole steps only
# where a run is long enough to gain by it.
MATRIX: dict[str, tuple[int, dict[int, int]]] = {
    "784-256-128-10": (20_000, {32: 4, 200: 5, 1024: 5}),
    "784-2048-2048-10": (8192, {512: 1}),
    "30-64-32-2": (4096, {1: 2, 32: 50}),
}
ANY_SHAPE = (20_000, {32: 4, 200: 5, 1024: 5})


def problems(
    shape: str,
    batches: list[int] | None = None,
    rows: int | None = None,
    epochs: int | None = None,
    dtype: str = "float32",
    path: Path | None = None,
) -> list[Problem]:
    """A problem for each batch size; what is None is taken from :data:`MATRIX`."""
    widths = parse_shape(shape)
    default_rows, default_epochs = MATRIX.get(shape, ANY_SHAPE)
    return [
        Problem(
            widths,
            batch,
            rows or default_rows,
            epochs or default_epochs.get(batch, 1),
            dtype,
            path,
        )
        for batch in batches or default_epochs
    ]


def parse_shape(text: str) -> tuple[int, ...]:
    """The widths in ``784-256-128-10``; an error of the command line if there are none."""
    try:
        widths = tuple(int(part) for part in text.split("-"))
    except ValueError:
        widths = ()
    if len(widths) < 3 or min(widths) < 1 or widths[-1] < 2:
        raise click.BadParameter(
            "expected features, hidden units and at least 2 classes, such as 784-256-128-10, "
            f"got {text!r}"
        )
    return widths


def whole_numbers(context: Any, parameter: Any, value: str | None) -> list[int] | None:
    """Numbers separated by commas, of the command line."""
    if value is None:
        return None
    try:
        numbers = [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"expected whole numbers such as 32,200, got {value!r}") from None
    if min(numbers) < 1:
        raise click.BadParameter(f"expected numbers from 1 on, got {value!r}")
    return numbers
