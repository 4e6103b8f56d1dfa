"""The training loop: epochs of shuffled batches, validation, early ends."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from warnings import warn

from xpmlp import rules
from xpmlp.callbacks import Callback, ProgressBar
from xpmlp.data import Batches, as_matrix, as_target, as_weight, batch_rows
from xpmlp.errors import NonFiniteLossError, TrainingInterruptedWarning, check_number
from xpmlp.history import History
from xpmlp.layers import DenseStage
from xpmlp.losses import LOSSES, Loss
from xpmlp.metrics import Metric, get_metric
from xpmlp.names import resolve
from xpmlp.network import Network
from xpmlp.optimizers import OPTIMIZERS, Optimizer
from xpmlp.program import Objective, Objectives
from xpmlp.typing import Array

# Rows evaluated at a time on validation data.
_EVALUATE_ROWS = 1024


def fit(
    network: Network,
    X: Any,
    y: Any,
    *,
    loss: str | Loss,
    optimizer: str | Optimizer = "adam",
    epochs: int = 10,
    batch_size: int | None = 32,
    validation: tuple[Any, ...] | None = None,
    sample_weight: Any = None,
    alpha: float = 0.0,
    l1: float = 0.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    metrics: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    shuffle: bool = True,
    verbose: int = 1,
) -> History:
    """Train a network in place.

    Parameters
    ----------
    network : Network
        Its seed also orders the batches and draws the dropout masks.
    X : array-like of shape (n_samples, n_features)
    y : array-like of shape (n_samples, n_outputs), or (n_samples,)
        See the loss.
    loss : str or Loss
    optimizer : str or Optimizer, default "adam"
        Its state lives for this call. Its weight decay leaves biases alone.
    epochs : int, default 10
    batch_size : int or None, default 32
        Rows of a batch; None takes all. The last batch may be smaller.
    validation : (X, y) or (X, y, sample_weight), optional
        Data for ``val_loss``, without penalties and dropout, and for the metrics.
    sample_weight : array-like of shape (n_samples,), optional
    alpha, l1 : float, default 0.0
        Penalties ``alpha/2 sum W**2`` and ``l1 sum |W|`` in the objective; biases are free.
    clip_norm : float, optional
        Scale the gradient down to this Euclidean norm.
    clip_value : float, optional
        Limit each element of the gradient to this magnitude, before `clip_norm`.
    metrics : sequence of str or callable, default ()
        Names, see :mod:`xpmlp.metrics`, or ``(y_true, y_pred) -> float`` on NumPy arrays.
        Computed after each epoch on the validation data, with ``val_`` before their name, or
        without validation on the training data.
    callbacks : sequence of Callback, default ()
    shuffle : bool, default True
        A new permutation every epoch.
    verbose : int, default 1
        0 shows nothing, 1 a progress bar where standard error is a terminal.

    Returns
    -------
    History
        ``loss`` is the mean of the batches' objectives during the epoch.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; nothing has been changed then.
    NonFiniteLossError
        As soon as the loss is NaN or infinite.

    Warns
    -----
    TrainingInterruptedWarning
        If Ctrl-C ended training, after the current step.
    """
    if not isinstance(network, Network):
        raise TypeError(f"network must be a Network, got {network!r}")
    chosen_loss = resolve("loss", loss, LOSSES, Loss)
    chosen_optimizer = resolve("optimizer", optimizer, OPTIMIZERS, Optimizer)
    check_number("epochs", epochs, minimum=1, integer=True)
    check_number("alpha", alpha, minimum=0)
    check_number("l1", l1, minimum=0)
    for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if limit is not None:
            check_number(name, limit, minimum=0, open_minimum=True)
    check_number("verbose", verbose, minimum=0, integer=True)
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must hold instances of Callback, got {callback!r}")
    scores = [get_metric(metric) for metric in metrics]
    data = Dataset(network, X, y, sample_weight, chosen_loss)
    held_out = None
    if validation is not None:
        if not isinstance(validation, tuple) or len(validation) not in (2, 3):
            raise TypeError("validation must be a tuple (X, y) or (X, y, sample_weight)")
        weight = validation[2] if len(validation) == 3 else None
        held_out = Dataset(
            network, validation[0], validation[1], weight, chosen_loss, "validation "
        )
    n_rows = batch_rows(batch_size, data.n_samples)

    with network.backend.context():
        step = _Step(network, chosen_optimizer, n_rows, data, alpha, l1, clip_norm, clip_value)
        run = Run(network, step, data, held_out, scores, int(epochs), n_rows, bool(shuffle))
        run.train([*callbacks, *([ProgressBar()] if verbose else [])])
    return run.history


class Run:
    """One run of training, as callbacks see it.

    Attributes
    ----------
    network : Network
    history : History
    epochs, n_samples, n_batches : int
        Epochs asked for, samples, batches in an epoch.
    epoch, batch, batch_rows : int
        The current epoch and batch, from 0, and the rows of the batch.
    better : dict of str to str or None
        Keys of the history, each with ``"min"``, ``"max"`` or, where unknown, None.
    """

    def __init__(
        self,
        network: Network,
        step: _Step,
        data: Dataset,
        held_out: Dataset | None,
        scores: list[Metric],
        epochs: int,
        n_rows: int,
        shuffle: bool,
    ) -> None:
        self.network = network
        self.history = History()
        self.epochs, self.n_samples = epochs, data.n_samples
        self.epoch = self.batch = self.batch_rows = 0
        self._step, self._data, self._held_out, self._scores = step, data, held_out, scores
        self._batches = Batches(network.backend, data.n_samples, n_rows, network.seed, shuffle)
        self.n_batches = len(self._batches)
        self._losses = network.backend.zeros((self.n_batches,), network.policy.accumulate)
        self._prefix = "val_" if held_out else ""
        self.better: dict[str, str | None] = {"loss": "min"}
        if held_out:
            self.better["val_loss"] = "min"
        for score in scores:
            better = {True: "max", False: "min", None: None}[score.higher_is_better]
            self.better[self._prefix + score.name] = better

    @property
    def batch_loss(self) -> float:
        """The objective of the current batch; waits for the device."""
        return self.network.backend.read(self._losses[self.batch])

    def stop(self, reason: str) -> None:
        """Ask for the end of training after the current step; the first reason is kept."""
        self.history.stopped = self.history.stopped or reason

    def train(self, callbacks: list[Callback]) -> None:
        """Run all epochs, or until a stop, an interrupt or a non-finite loss."""
        for callback in callbacks:
            callback.on_start(self)
        try:
            with _interruptible(self):
                for epoch in range(self.epochs):
                    self.epoch = epoch
                    self._train_epoch(callbacks)
                    for callback in callbacks:
                        callback.on_epoch(self)
                    if self.history.stopped:
                        break
        finally:
            for callback in callbacks:
                callback.on_end(self)

    def _train_epoch(self, callbacks: list[Callback]) -> None:
        rows = []
        for batch, indices in enumerate(self._batches.epoch(self.epoch)):
            self.batch, self.batch_rows = batch, indices.shape[0]
            rows.append(self.batch_rows)
            self._losses[batch] = self._step.forward(indices, self.epoch, batch)
            if self.network.backend.immediate and not math.isfinite(self.batch_loss):
                self._fail(batch, self.batch_loss)
            self._step.backward()
            for callback in callbacks:
                callback.on_batch(self)
            if self.history.stopped:
                break
        losses = self.network.backend.to_host(self._losses)[: len(rows)]
        for batch, value in enumerate(losses.tolist()):
            if not math.isfinite(value):
                self._fail(batch, value)
        mean = sum(map(float.__mul__, losses.tolist(), map(float, rows))) / sum(rows)
        values = {"loss": mean}
        if self._held_out:
            values["val_loss"] = self._held_out.loss()
        if self._scores:
            scored = self._held_out or self._data
            y_pred = self.network.backend.to_host(self.network.predict(scored.x))
            activation = self.network.output_activation.name
            for score in self._scores:
                value = score(scored.y_host, y_pred, activation)
                values[self._prefix + score.name] = value
        self.history.append(values)

    def _fail(self, batch: int, value: float) -> None:
        raise NonFiniteLossError(
            f"the loss became {value} in epoch {self.epoch + 1}, batch {batch + 1} of "
            f"{self.n_batches}; {self._step.first_non_finite()}. Lower the learning rate, clip "
            "the gradient (clip_norm) or scale the inputs"
        )


class Dataset:
    """Checked samples, targets and weights on the network's device."""

    def __init__(
        self, network: Network, X: Any, y: Any, weight: Any, loss: Loss, prefix: str = ""
    ) -> None:
        backend, dtype = network.backend, network.dtype
        self.chosen_loss = loss
        self.x = as_matrix(backend, X, f"{prefix}X", dtype, network.n_features)
        self.n_samples = n = self.x.shape[0]
        self.y, self.labels = as_target(backend, y, f"{prefix}y", dtype, loss, n, network.n_outputs)
        self.weight: Array | None = None
        if weight is not None:
            self.weight = as_weight(backend, weight, f"{prefix}sample_weight", dtype, n)
        self.y_host = backend.to_host(self.y)
        self._network = network
        self._blocks = Batches(backend, n, min(n, _EVALUATE_ROWS), 0, shuffle=False)
        self._objectives = Objectives(
            network,
            self._blocks.n_rows,
            loss,
            mean=False,
            labels=self.labels,
            weighted=weight is not None,
        )

    def stage(self, indices: Array, objective: Objective) -> None:
        """Gather a batch into the buffers of `objective`."""
        take_rows = objective.backend.take_rows
        take_rows(self.x, indices, objective.x)
        take_rows(self.y, indices, objective.y)
        if self.weight is not None and objective.weight is not None:
            take_rows(self.weight, indices, objective.weight)

    def loss(self) -> float:
        """The mean loss over all samples, without penalties and dropout."""
        backend, accumulate = self._network.backend, self._network.policy.accumulate
        total = backend.zeros((), accumulate)
        for indices in self._blocks.epoch(0):
            objective = self._objectives[indices.shape[0]]
            self.stage(indices, objective)
            total = total + objective.forward()
        if self.weight is None:
            return backend.read(total) / self.n_samples
        return backend.read(total) / backend.read(backend.total(self.weight, accumulate))


class _Step:
    """One training step: gather, forward, backward, clip, update."""

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        n_rows: int,
        data: Dataset,
        alpha: float,
        l1: float,
        clip_norm: float | None,
        clip_value: float | None,
    ) -> None:
        self.network, self.optimizer, self.data = network, optimizer, data
        self.clip_norm, self.clip_value = clip_norm, clip_value
        backend, policy = network.backend, network.policy
        self.grad = backend.zeros((network.n_parameters,), policy.parameter)
        self.factor = backend.empty((), policy.parameter)
        self.state = optimizer.init(network.parameters, network.n_weights, backend)
        self.objectives = Objectives(
            network,
            n_rows,
            data.chosen_loss,
            self.grad,
            alpha=alpha,
            l1=l1,
            labels=data.labels,
            weighted=data.weight is not None,
        )

    def forward(self, indices: Array, epoch: int, batch: int) -> Any:
        """The objective of a batch, a 0-d array on the device."""
        self.objective = self.objectives[indices.shape[0]]
        self.data.stage(indices, self.objective)
        return self.objective.forward(epoch, batch)

    def backward(self) -> None:
        """The gradient of that objective, and the update of the parameters."""
        backend, grad = self.network.backend, self.grad
        self.objective.backward()
        if self.clip_value is not None:
            backend.elementwise(rules.clip)((grad,), grad, float(self.clip_value))
        if self.clip_norm is not None:
            squares = backend.total_squares(grad, self.network.policy.accumulate)
            factor = rules.clip_norm_factor(backend.functions, squares, float(self.clip_norm))
            backend.copy(factor, self.factor)
            backend.elementwise(rules.multiply)((grad,), grad, self.factor)
        self.optimizer.update(self.network.parameters, grad, self.state)

    def first_non_finite(self) -> str:
        """Where NaN or infinity first appears in the newest forward pass, in words."""
        xp = self.network.backend.xp

        def broken(*arrays: Array | None) -> bool:
            return any(x is not None and not bool(xp.all(xp.isfinite(x))) for x in arrays)

        place = ""
        stages = self.objective.program.stages
        for index, (layer, stage) in enumerate(zip(self.network.layers, stages, strict=True)):
            place = f"layers[{index}], {layer}"
            if isinstance(stage, DenseStage) and broken(stage.w, stage.b):
                return f"the first non-finite values are in the parameters of {place}"
            if broken(stage.a):
                return f"the first non-finite values are in the output of {place}"
        return f"all layers are finite, but the loss of the output of {place} is not"


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Turn the first Ctrl-C into a stop after the current step; the second is as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    interrupted = False

    def note(signum: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True
        run.stop("interrupted")
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if interrupted:
            warn(
                f"training was interrupted in epoch {run.epoch + 1} of {run.epochs}; "
                "the network holds the last finished step",
                TrainingInterruptedWarning,
                stacklevel=4,
            )
