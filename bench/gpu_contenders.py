"""What is timed on a GPU: xpmlp, and the floors that nothing can pass.

All contenders take the same steps of Adam on the log loss, from the same parameters on the same
rows, which are on the device beforehand. None needs more than its own library, so that a machine
with CuPy alone can run those of this module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from xpmlp import Dense, Network, get_backend
from xpmlp.losses import LogLoss
from xpmlp.optimizers import Adam
from xpmlp.step import Dataset, TrainingStep

LEARNING_RATE = 1e-4
EPSILON = 1e-8
SEED = 0


@dataclass(frozen=True)
class Task:
    """Steps of a network of ReLU and softmax on batches of one size.

    Parameters
    ----------
    widths : tuple of int
    batch : int
    steps : int
        Of one timed call; they go round and round the rows.
    precision : {"ieee", "tf32", "bfloat16"}
    device : str, default "cuda"
    batches : int
        That there are rows for. Default: up to 256, as far as 256 MB of float32 go, and at least 4.
    """

    widths: tuple[int, ...]
    batch: int
    steps: int
    precision: str = "ieee"
    device: str = "cuda"
    batches: int = 0

    def __post_init__(self) -> None:
        fit = (256 << 20) // (4 * self.batch * self.widths[0])
        object.__setattr__(self, "batches", self.batches or max(4, min(256, fit)))

    @property
    def name(self) -> str:
        """The task in a line."""
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch}, {self.precision}"

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return sum(n_in * n_out + n_out for n_in, n_out in pairwise(self.widths))

    def data(self) -> tuple[Any, Any]:
        """Rows, and classes that can be learnt from them."""
        rng = np.random.default_rng(SEED)
        X = rng.random((self.batch * self.batches, self.widths[0]), dtype=np.float32)
        directions = rng.standard_normal((self.widths[0], self.widths[-1]), dtype=np.float32)
        return X, ((X - 0.5) @ directions).argmax(axis=1)

    def parameters(self) -> list[tuple[Any, Any]]:
        """Weights and biases to start from, layer by layer."""
        rng = np.random.default_rng(SEED + 1)
        made = []
        for n_in, n_out in pairwise(self.widths):
            drawn = rng.standard_normal((n_in, n_out), dtype=np.float32)
            made.append((drawn * np.float32((2 / n_in) ** 0.5), np.zeros(n_out, np.float32)))
        return made


@dataclass
class Contender(ABC):
    """What the benchmark times.

    Parameters
    ----------
    task : Task
    """

    name: ClassVar[str]
    library: ClassVar[str]
    trains: ClassVar[bool] = True  # and so has a loss

    task: Task

    def __post_init__(self) -> None:
        self.prepare()

    @classmethod
    def missing(cls, task: Task) -> str | None:
        """Why it cannot run here, or None."""
        return None if find_spec(cls.library) else f"{cls.library} is not installed"

    @abstractmethod
    def prepare(self) -> None:
        """Make the model, and put the data on the device."""

    @abstractmethod
    def run(self) -> float:
        """Take the steps and wait for the device; the loss of the last one before its update."""


class Xpmlp(Contender):
    """This library, with captured steps."""

    name = "xpmlp"
    library = "xpmlp"
    n_steps = 10**9  # to come, so that it pays to capture them

    def prepare(self) -> None:
        task = self.task
        self.backend = get_backend(task.device, fallback=False)
        hidden = [Dense(units, "relu") for units in task.widths[1:-1]]
        network = Network(
            task.widths[0], [*hidden, Dense(task.widths[-1], "softmax")], backend=self.backend,
            dtype="float32", precision=task.precision,
        )  # fmt: skip
        self.backend = backend = network.backend
        with backend.context():
            own: Any = [*network.weights, *network.biases]
            weights, biases = zip(*task.parameters(), strict=True)
            for array, value in zip(own, [*weights, *biases], strict=True):
                backend.copy(backend.from_host(value), array)
            data = Dataset(network, *task.data(), None, LogLoss())
            self.step = TrainingStep(
                network, Adam(LEARNING_RATE, epsilon=EPSILON), task.batch, data, 0.0,
                n_steps=self.n_steps,
            )  # fmt: skip
            self.order = backend.from_host(np.arange(task.batch * task.batches))
            self.losses = backend.zeros((task.batches,), "float64")

    def run(self) -> float:
        task, step, backend = self.task, self.step, self.backend
        with backend.context():
            done = 0
            while done < task.steps:
                batch = done % task.batches
                last = min(task.batches, batch + task.steps - done)
                rows = self.order[batch * task.batch : last * task.batch]
                taken = step.replay(rows, task.batch, done // task.batches, batch, self.losses)
                if not taken:
                    value = step.forward(rows[: task.batch], done // task.batches, batch)
                    backend.copy(value, self.losses[batch, ...])
                    step.backward()
                done += taken or 1
            return backend.read(self.losses[(task.steps - 1) % task.batches])


class XpmlpEager(Xpmlp):
    """This library, one primitive at a time."""

    name = "xpmlp, eager"
    n_steps = 0


class Products(Contender):
    """The matrix products of the steps alone, captured as xpmlp's are."""

    name = "products alone"
    library = "xpmlp"
    trains = False

    def prepare(self) -> None:
        task = self.task
        found: Any = get_backend(task.device, fallback=False)
        self.backend: Any = found.with_precision(task.precision)
        backend = self.backend.recordable()
        rng = np.random.default_rng(SEED)

        def drawn(width: int) -> Any:
            # Of zeros a GPU, which takes less power for them, computes products faster.
            values = rng.standard_normal((task.batch, width), dtype=np.float32)
            return self.backend.from_host(values)

        with self.backend.context():
            weights = [self.backend.from_host(w) for w, _ in task.parameters()]
            values, errors = ([drawn(width) for width in task.widths] for _ in range(2))
            gradients = [backend.zeros(w.shape, "float32") for w in weights]

        def step(i: int) -> None:
            for layer, w in enumerate(weights):
                backend.matmul(values[layer], w, values[layer + 1])
            for layer in reversed(range(len(weights))):
                backend.matmul(values[layer].mT, errors[layer + 1], gradients[layer])
                if layer > 0:
                    backend.matmul(errors[layer + 1], weights[layer].mT, errors[layer])

        self.step, self.replay = step, None
        self.at_once = min(64, task.steps)
        with self.backend.context():
            self.replay = backend.capture(step, self.at_once, 10**9, 1e12)

    def run(self) -> float:
        with self.backend.context():
            done = 0
            while done < self.task.steps:
                n = min(self.at_once, self.task.steps - done)
                if self.replay is None:
                    n = 1
                    self.step(0)
                else:
                    self.replay(n, 0, 0)
                done += n
            self.backend.synchronize()
        return 0.0


class Memory(Contender):
    """What a step moves in memory at least, as one copy.

    Adam reads four vectors and writes three, and the gradient is written; a batch is gathered, and
    each activation and error term written once and read once.
    """

    name = "memory alone"
    library = "xpmlp"
    trains = False

    def prepare(self) -> None:
        task = self.task
        self.backend: Any = get_backend(task.device, fallback=False)
        n_words = 8 * task.n_parameters + task.batch * (
            2 * task.widths[0] + 4 * sum(task.widths[1:])
        )
        with self.backend.context():
            self.source = self.backend.zeros((n_words // 2,), "float32")
            self.target = self.backend.zeros((n_words // 2,), "float32")

    def run(self) -> float:
        with self.backend.context():
            for _ in range(self.task.steps):
                self.backend.copy(self.source, self.target)
            self.backend.synchronize()
        return 0.0
