"""The training loop: epochs of shuffled batches, validation, early ends."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from xpmlp.callbacks import Callback, ProgressBar
from xpmlp.data import Batches, batch_rows, shuffled
from xpmlp.errors import (
    NonFiniteLossError,
    TrainingInterruptedWarning,
    check_flag,
    check_number,
    warn_user,
)
from xpmlp.history import History
from xpmlp.losses import LOSSES, LogLoss, Loss
from xpmlp.metrics import Metric, get_metric
from xpmlp.names import resolve
from xpmlp.network import Gradient, Network
from xpmlp.optimizers import OPTIMIZERS, Optimizer
from xpmlp.step import Dataset, TrainingStep

_ADVICE = "Lower the learning rate, clip the gradient (clip_norm) or scale the inputs"


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

    Every call starts anew: with the shuffles and dropout masks of its first epoch, and with fresh
    optimizer state.

    Parameters
    ----------
    network : Network
        Its seed also orders the batches and draws the dropout masks.
    X : array-like of shape (n_samples, n_features)
    y : array-like of shape (n_samples, n_outputs), or (n_samples,)
        See the loss.
    loss : str or Loss
        "squared_error", "absolute_error", "huber", "quantile", "poisson", "log_loss", "focal", or
        one with arguments from :mod:`xpmlp.losses`.
    optimizer : str or Optimizer, default "adam"
        "sgd", "adagrad", "adadelta", "rmsprop", "adam", "adamw", "nadam", "adamax", or one with
        arguments from :mod:`xpmlp.optimizers`. Its weight decay leaves biases alone. A schedule
        without ``n_steps`` spans this call.
    epochs : int, default 10
    batch_size : int or None, default 32
        Rows of a batch; None takes all. The last batch may be smaller.
    validation : (X, y) or (X, y, sample_weight), optional
        Data for ``val_loss``, without penalties and dropout, and for the metrics.
    sample_weight : array-like of shape (n_samples,), optional
        The mean over a batch becomes ``sum w loss / sum w``: what counts are the weights within a
        batch, and none in batches of one row.
    alpha, l1 : float, default 0.0
        Penalties ``alpha/2 sum W**2`` and ``l1 sum |W|`` in the objective; biases are free.
    clip_norm : float, optional
        Scale the gradient down to this Euclidean norm.
    clip_value : float, optional
        Limit each element of the gradient to this magnitude, before `clip_norm`.
    metrics : list of str or callable, default ()
        "accuracy" (of whole rows where a row has several labels), "balanced_accuracy",
        "f1_macro", "r2", "mean_absolute_error", "mean_squared_error", "root_mean_squared_error",
        or functions ``(y_true, y_pred) -> float`` of NumPy arrays, see
        :class:`xpmlp.metrics.Metric`. Computed after each epoch on the validation data, with
        ``val_`` before their name, or without validation on the training data.
    callbacks : list of Callback, default ()
    shuffle : bool, default True
        A new permutation every epoch.
    verbose : int, default 1
        0 shows nothing, 1 a progress bar where standard error is a terminal.

    Returns
    -------
    History
        ``loss`` is the mean of the batches' objectives during the epoch, by their rows.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong; nothing has been changed then.
    NonFiniteLossError
        As soon as the loss is NaN or infinite, or at the end of an epoch whose last update made
        parameters so. On a device whose results come later it is raised at the end of the epoch,
        and from the first such loss on nothing is learnt from gradients.

    Warns
    -----
    TrainingInterruptedWarning
        If Ctrl-C ended training, after the current step.
    """
    if not isinstance(network, Network):
        raise TypeError(f"network must be a Network, got {network!r}")
    chosen_loss = resolve("loss", loss, LOSSES, Loss)
    chosen_optimizer = resolve("optimizer", optimizer, OPTIMIZERS, Optimizer)
    output = network.output_activation.name
    if isinstance(chosen_loss, LogLoss) and output not in ("sigmoid", "softmax"):
        warn_user(
            f"{chosen_loss.name} takes the outputs as probabilities, clipped to [0, 1], but "
            f"{network.dense[-1]} gives others too; end with 'sigmoid' or 'softmax'"
        )
    check_number("epochs", epochs, minimum=1, integer=True)
    check_number("alpha", alpha, minimum=0)
    check_number("l1", l1, minimum=0)
    for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if limit is not None:
            check_number(name, limit, minimum=0, open_minimum=True)
    check_flag("shuffle", shuffle)
    if not isinstance(verbose, bool):
        check_number("verbose", verbose, minimum=0, maximum=1, integer=True)
    for name, value in (("callbacks", callbacks), ("metrics", metrics)):
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a list or tuple, got {value!r}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must hold instances of Callback, got {callback!r}")
    scores = [get_metric(metric) for metric in metrics]
    for score in scores:
        if ["loss", *(other.name for other in scores)].count(score.name) > 1:
            raise ValueError(f"metrics must have names of their own, got {score.name!r} twice")
    data = Dataset(network, X, y, sample_weight, chosen_loss)
    held_out = None
    if validation is not None:
        if not isinstance(validation, tuple) or len(validation) not in (2, 3):
            raise TypeError(
                "validation must be a tuple (X, y) or (X, y, sample_weight), "
                f"got {type(validation).__name__}"
            )
        weight = validation[2] if len(validation) == 3 else None
        names = ("validation X", "validation y", "validation sample_weight")
        held_out = Dataset(network, validation[0], validation[1], weight, chosen_loss, names)
    scored = held_out or data
    for score in scores:
        score.check(scored.y_host, scored.labels, network.n_outputs)
    n_rows = batch_rows(batch_size, data.n_samples)
    n_steps = int(epochs) * math.ceil(data.n_samples / n_rows)
    chosen_optimizer = chosen_optimizer.over(n_steps)

    with network.backend.context():
        step = TrainingStep(
            network, chosen_optimizer, n_rows, data, alpha, l1, clip_norm, clip_value,
            n_steps=n_steps,
        )  # fmt: skip
        n = data.n_samples
        # The order within a batch does not matter, so a single one is not shuffled.
        order = shuffled(network.seed, n) if shuffle and n_rows < n else None
        batches = Batches(network.backend, n, n_rows, order)
        run = Run(network, step, data, held_out, scores, int(epochs), batches)
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
    first_epoch : int
        Epochs that an estimator has trained before this run.
    better : dict of str to str or None
        Keys of the history, each with ``"min"``, ``"max"`` or, where unknown, None.
    """

    def __init__(
        self,
        network: Network,
        step: TrainingStep,
        data: Dataset,
        held_out: Dataset | None,
        scores: list[Metric],
        epochs: int,
        batches: Batches,
        first_epoch: int = 0,
        finite_validation: bool = True,
    ) -> None:
        self.network = network
        self.history = History()
        self.epochs, self.n_samples = epochs, batches.n_samples
        self.epoch = self.batch = self.batch_rows = 0
        self._step, self._data, self._held_out, self._scores = step, data, held_out, scores
        self._batches, self.first_epoch = batches, first_epoch
        self._finite_validation = finite_validation
        self.n_batches = len(batches)
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

    @property
    def gradient(self) -> Gradient:
        """Of the newest step, for which it is valid: live views on the device."""
        grad = self._step.grad
        return Gradient(grad, *self.network.views(grad), None)

    @property
    def _address(self) -> int:
        """The epoch that addresses dropout masks, which goes on where an earlier run ended."""
        return self.first_epoch + self.epoch

    def stop(self, reason: str) -> None:
        """Ask for the end of training after the current step; the first reason is kept."""
        self.history.stopped = self.history.stopped or reason

    def train(self, callbacks: list[Callback]) -> None:
        """Run all epochs, or until a stop, an interrupt or a non-finite loss."""
        started: list[Callback] = []
        try:
            for callback in callbacks:
                callback.on_start(self)
                started.append(callback)
            with _interruptible(self):
                for epoch in range(self.epochs):
                    self.epoch = epoch
                    self._train_epoch(callbacks)
                    for callback in callbacks:
                        callback.on_epoch(self)
                    if self.history.stopped:
                        break
        finally:
            with ExitStack() as ends:  # all are called, also after one has failed
                for callback in reversed(started):
                    ends.callback(callback.on_end, self)

    def _train_epoch(self, callbacks: list[Callback]) -> None:
        step, most = self._step, self._batches.n_rows
        order = self._batches.order(self.epoch)
        singly = any(type(callback).on_batch is not Callback.on_batch for callback in callbacks)
        rows: list[int] = []
        while len(rows) < self.n_batches and not self.history.stopped:
            self.batch = len(rows)
            indices = order[self.batch * most :]
            self.batch_rows = n_rows = min(most, indices.shape[0])
            address = self._address, self.batch
            done = 0 if singly else step.replay(indices, n_rows, *address, self._losses)
            if not done:
                self._losses[self.batch] = step.forward(indices[:n_rows], *address)
                if self.network.backend.immediate and not math.isfinite(self.batch_loss):
                    self._fail(self.batch, self.batch_loss)
                step.backward()
                done = 1
                for callback in callbacks:
                    callback.on_batch(self)
            rows += [n_rows] * done
            for callback in callbacks:
                callback.on_progress(self, n_rows * done)
        losses = self.network.backend.to_host(self._losses).tolist()[: len(rows)]
        for batch, value in enumerate(losses):
            if not math.isfinite(value):  # on a device whose results come later
                again = list(self._batches.epoch(self.epoch))[batch]
                self._step.forward(again, self._address, batch)
                self._fail(batch, value)
        if not math.isfinite(self._step.total_of_parameters()):
            raise NonFiniteLossError(
                f"an update in epoch {self.epoch + 1} made parameters non-finite: "
                f"{self._step.first_non_finite()}. {_ADVICE}"
            )
        weighted = (value * n for value, n in zip(losses, rows, strict=True))
        values = {"loss": sum(weighted) / sum(rows)}
        if self._held_out:
            values["val_loss"] = self._held_out.loss()
            if self._finite_validation and not math.isfinite(values["val_loss"]):
                raise NonFiniteLossError(
                    f"val_loss became {values['val_loss']} in epoch {self.epoch + 1}"
                )
        if self._scores:
            scored = self._held_out or self._data
            y_pred = self.network.backend.to_host(self.network.output(scored.x))
            activation = self.network.output_activation.name
            for score in self._scores:
                value = score(scored.y_host, y_pred, activation)
                values[self._prefix + score.name] = value
        self.history.append(values)

    def _fail(self, batch: int, value: float) -> None:
        raise NonFiniteLossError(
            f"the loss became {value} in epoch {self.epoch + 1}, batch {batch + 1} of "
            f"{self.n_batches}: {self._step.first_non_finite()}. {_ADVICE}"
        )


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Turn the first Ctrl-C into a stop after the current step; the second is as usual."""
    previous = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or previous in (None, signal.SIG_IGN):  # not ours to change
        yield
        return
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
            warn_user(
                f"training was interrupted in epoch {run.epoch + 1} of {run.epochs}; "
                "the network holds the last finished step",
                TrainingInterruptedWarning,
            )
