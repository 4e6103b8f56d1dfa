"""The training loop: epochs of shuffled batches, validation, early ends."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from xpmlp.callbacks import Callback, ProgressBar
from xpmlp.checkpoint import Saved, check_same_run, read_checkpoint
from xpmlp.data import Batches, HostRows, batch_rows, shuffled
from xpmlp.errors import (
    ModelFileError,
    NonFiniteLossError,
    TrainingInterruptedWarning,
    check_flag,
    check_number,
    printable,
    warn_user,
)
from xpmlp.files import check_alike, decode, encode, is_finite
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
    resume: str | os.PathLike[str] | None = None,
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
    resume : path-like, optional
        Go on from this checkpoint, or from the newest of this folder, with the same data and
        arguments; see :class:`xpmlp.Checkpoint`. The device may be another one, and `epochs` more,
        where no schedule spans them.

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
    ModelFileError
        If `resume` names no checkpoint, or a damaged one.
    OSError
        If `resume` cannot be read.

    Warns
    -----
    TrainingInterruptedWarning
        If Ctrl-C or SIGTERM ended training, after the current step.
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
    settings = {
        "batch_size": n_rows, "loss": chosen_loss,
        "optimizer": chosen_optimizer, "alpha": float(alpha), "l1": float(l1),
        "clip_norm": clip_norm, "clip_value": clip_value, "shuffle": bool(shuffle),
    }  # fmt: skip

    with network.backend.context():
        step = TrainingStep(
            network, chosen_optimizer, n_rows, data, alpha, l1, clip_norm, clip_value,
            n_steps=n_steps,
        )  # fmt: skip
        n = data.n_samples
        # The order within a batch does not matter, so a single one is not shuffled.
        order = shuffled(network.seed, n) if shuffle and n_rows < n else None
        batches = Batches(network.backend, n, n_rows, order, pure=True)
        run = Run(network, step, data, held_out, scores, int(epochs), batches, settings)
        saved = None if resume is None else read_checkpoint(resume)
        run.train([*callbacks, *([ProgressBar()] if verbose else [])], saved)
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
    done, samples_done : int
        Batches of the current epoch, and samples of all epochs, that are finished.
    interrupted : bool
        Whether a signal ends training after the current step.
    resumed_from : Path or None
        The checkpoint that this run goes on from.
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
        settings: Mapping[str, Any],
        first_epoch: int = 0,
        finite_validation: bool = True,
    ) -> None:
        self.network = network
        self.history = History()
        self.epochs, self.n_samples = epochs, batches.n_samples
        self.epoch = self.batch = self.batch_rows = self.done = 0
        self.interrupted = self._begun = False
        self.resumed_from: Path | None = None
        self._signal = ""
        self._settings = settings
        self._callbacks: list[Callback] = []
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
    def _watched(self) -> bool:
        """Whether a callback looks at each batch, so that steps are done one by one."""
        return any(type(one).on_batch is not Callback.on_batch for one in self._callbacks)

    @property
    def _address(self) -> int:
        """The epoch that addresses dropout masks, which goes on where an earlier run ended."""
        return self.first_epoch + self.epoch

    @property
    def samples_done(self) -> int:
        in_epoch = min(self.done * self._batches.n_rows, self.n_samples)
        return self.epoch * self.n_samples + in_epoch

    def stop(self, reason: str) -> None:
        """Ask for the end of training after the current step; the first reason is kept."""
        self.history.stopped = self.history.stopped or reason

    def train(self, callbacks: list[Callback], saved: Saved | None = None) -> None:
        """Run all epochs, or until a stop, a signal or a non-finite loss.

        Parameters
        ----------
        callbacks : list of Callback
        saved : Saved, optional
            The checkpoint to go on from.

        Raises
        ------
        ModelFileError, ValueError
            If the checkpoint is none of this run. Nothing has been changed then.
        NonFiniteLossError
        """
        self._callbacks = callbacks
        started: list[Callback] = []
        with ExitStack() as last:
            if saved is not None:
                last.push(self._undo_unless_begun())
            last.callback(self._end, started)
            remembered = {} if saved is None else self._go_to(saved)
            for callback in callbacks:
                callback.on_start(self)
                started.append(callback)
            if saved is not None:
                self._restore(saved, remembered)
            with _interruptible(self):
                self._begun = True
                for epoch in range(self.epoch, self.epochs):
                    self.epoch = epoch
                    self._train_epoch(callbacks)
                    for callback in callbacks:
                        callback.on_epoch(self)
                    if self.history.stopped or epoch + 1 == self.epochs:
                        break
                    if self._signal:
                        self.epoch, self.done = epoch + 1, 0
                        self._report_progress(callbacks, 0)
                        break
                    self.done = 0

    def _end(self, started: list[Callback]) -> None:
        with ExitStack() as ends:  # in their order, all of them, also after one has failed
            for callback in reversed(started):
                ends.callback(callback.on_end, self)

    def _undo_unless_begun(self) -> Callable[..., None]:
        """Gives the network its parameters back where a checkpoint turns out to be unsuitable."""
        backend, parameters = self.network.backend, self.network.parameters
        before = backend.empty(parameters.shape, self.network.dtype)
        backend.copy(parameters, before)

        def undo(*_: Any) -> None:
            if not self._begun:
                backend.copy(before, parameters)

        return undo

    def _train_epoch(self, callbacks: list[Callback]) -> None:
        step, most = self._step, self._batches.n_rows
        order = self._batches.order(self.epoch)
        if isinstance(self._data.x, HostRows):
            step.order_on_host = self._batches.on_host(self.epoch)
        singly = self._watched
        while self.done < self.n_batches and not self.history.stopped:
            self.batch = self.done
            indices = order[self.batch * most :]
            self.batch_rows = n_rows = min(most, indices.shape[0])
            address = self._address, self.batch
            done = 0 if singly else step.replay(indices, n_rows, *address, self._losses)
            if not done:
                self._losses[self.batch] = step.forward(indices[:n_rows], *address)
                if self.network.backend.immediate and not math.isfinite(self.batch_loss):
                    self._fail(self.batch, self.batch_loss)
                step.backward()
            self.done += done or 1
            if not done:
                for callback in callbacks:
                    callback.on_batch(self)
            self._report_progress(callbacks, n_rows * (done or 1))
        more = self.epoch + 1 < self.epochs and not self.history.stopped
        if more and not self.network.backend.immediate:
            self._batches.draw_ahead(self.epoch + 1)
        losses = self._losses_of_epoch()
        if not math.isfinite(sum(losses)):  # on a device whose results come later
            for batch, value in enumerate(losses):
                if not math.isfinite(value):
                    again = list(self._batches.epoch(self.epoch))[batch]
                    self._step.forward(again, self._address, batch)
                    self._fail(batch, value)
        broken = self._step.overflowed()
        if broken:
            where = (
                self._step.first_non_finite() if broken == "parameters" else "it is the optimizer's"
            )
            raise NonFiniteLossError(
                f"an update in epoch {self.epoch + 1} made {broken} non-finite: {where}. {_ADVICE}"
            )
        rows = [most] * self.done
        if self.done == self.n_batches:
            rows[-1] = self.n_samples - (self.done - 1) * most
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

    def _report_progress(self, callbacks: list[Callback], n_rows: int) -> None:
        if self._signal:  # heeded here only, where a checkpoint can be taken
            self.interrupted = True
            self.stop(self._signal)
        for callback in callbacks:
            callback.on_progress(self, n_rows)

    def _losses_of_epoch(self) -> list[float]:
        losses: list[float] = self.network.backend.to_host(self._losses).tolist()
        return losses[: self.done]

    # --- What a checkpoint keeps ---------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """All that it takes to go on from here: NumPy arrays and plain data.

        None where a loss, the parameters or the optimizer's state are not finite.

        Raises
        ------
        TypeError, ValueError
            If a callback remembers what no checkpoint can hold.
        """
        backend, state = self.network.backend, self._step.state
        losses = self._losses_of_epoch()
        if not all(math.isfinite(value) for value in losses) or self._step.overflowed():
            return None
        arrays = {"parameters": self.network.parameters}
        arrays |= {f"optimizer.{name}": slot for name, slot in state.slots.items()}
        if self.done == self.n_batches:  # callbacks may look at it at the end of the epoch
            arrays["gradient"] = self._step.grad
        remembered = []
        for index, callback in enumerate(self._remembering):
            plain = {}
            for name, value in callback.state().items():
                if backend.owns(value):
                    arrays[f"callback{index}.{name}"] = value
                else:
                    plain[name] = encode(value)
            remembered.append([type(callback).__name__, plain])
        description = {
            "settings": self._all_settings,
            "epoch": self.epoch,
            "done": self.done,
            "step": state.step,
            "mu_product": state.mu_product,
            "losses": losses,
            "history": encode(self.history.to_dict()),
            "callbacks": remembered,
        }
        tensors = {name: backend.to_host(array) for name, array in arrays.items()}
        for name, array in tensors.items():
            if name.startswith("callback") and not is_finite(array):
                raise ValueError(f"{name} of a checkpoint must be finite: see Callback.state")
        return tensors, description

    @cached_property
    def _all_settings(self) -> dict[str, Any]:
        """What must be the same where a run goes on, as text or numbers."""
        network = self.network
        settings = {
            **self._settings,
            "layers": network.layers,
            "dtype": network.dtype,
            "precision": network.precision,
            "seed": network.seed,
            "first_epoch": self.first_epoch,
            "metrics": [*self.better],
            "callbacks that watch each batch": self._watched,
            "data": self._data.fingerprint(),
            "validation data": self._held_out and self._held_out.fingerprint(),
        }
        return {name: _in_words(value) for name, value in settings.items()}

    def _go_to(self, saved: Saved) -> dict[int, dict[str, Any]]:
        """Take up a checkpoint; returns what the callbacks remember, by their number."""
        check_same_run(saved, self._all_settings)
        backend, state, found = self.network.backend, self._step.state, saved.description
        with _readable(saved):
            position = [found[name] for name in ("epoch", "done", "step")]
            (epoch, done, step), losses = position, found["losses"]
            possible = epoch >= 0 and 0 <= done <= self.n_batches
            possible = possible and step == state.step + epoch * self.n_batches + done
            if not possible or len(losses) != done or any(type(n) is not int for n in position):
                raise ValueError("its position is not in this run")
            mu_product = found["mu_product"]
            if any(type(value) is not float for value in (*losses, mu_product)):
                raise ValueError("its losses are no numbers")
            if not 0.0 <= mu_product <= 1.0:
                raise ValueError("its product of momenta is not between 0 and 1")
            history = History.of(decode(found["history"]))
            if history.n_epochs != epoch or (epoch and not history.keys() >= self.better.keys()):
                raise ValueError("its history is not that of its epochs")
            remembered: dict[int, dict[str, Any]] = {
                index: {name: decode(value) for name, value in plain.items()}
                for index, (_, plain) in enumerate(found["callbacks"])
            }
            names = [str(name) for name, _ in found["callbacks"]]
            tensors = dict(saved.tensors)
            targets = [(tensors.pop("parameters"), self.network.parameters)]
            targets += [(tensors.pop(f"optimizer.{n}"), slot) for n, slot in state.slots.items()]
            if done == self.n_batches:
                targets.append((tensors.pop("gradient"), self._step.grad))
            for name, array in tensors.items():
                index, _, key = name.removeprefix("callback").partition(".")
                if remembered[int(index)].setdefault(key, array) is not array:
                    raise ValueError(f"{name} is there twice")
            for array, target in targets:
                if array.shape != tuple(target.shape) or array.dtype != self.network.dtype:
                    raise ValueError("its arrays are not of this network")
            if not is_finite(saved.tensors["parameters"]):
                raise ValueError("its parameters are not finite")
        if epoch >= self.epochs:
            raise ValueError(
                f"epochs must be at least {epoch + 1}, where resume={str(saved.path)!r} stands, "
                f"got {self.epochs}"
            )
        ours = [type(callback).__name__ for callback in self._remembering]
        if names != ours:
            before, now = (", ".join(some) or "(none)" for some in (names, ours))
            raise ValueError(
                f"resume={str(saved.path)!r} is of a run with callbacks {before} that remember "
                f"something, now they are {now}"
            )
        self.epoch, self.done, self.history = epoch, done, history
        self.resumed_from = saved.path
        state.step, state.mu_product = step, mu_product
        for array, target in targets:
            backend.copy(backend.from_host(array), target)
        here = backend.from_host(losses)
        backend.copy(here, self._losses[: self.done])
        return remembered

    @property
    def _remembering(self) -> list[Callback]:
        """Callbacks that have a state."""
        return [one for one in self._callbacks if type(one).state is not Callback.state]

    def _restore(self, saved: Saved, remembered: dict[int, dict[str, Any]]) -> None:
        """Give the callbacks what they remember, if all of it is of the kind it has now."""
        callbacks = self._remembering
        started = {index: callbacks[index].state() for index in remembered}
        owns, to_host = self.network.backend.owns, self.network.backend.to_host
        with _readable(saved):
            for index, state in remembered.items():
                name, now = type(callbacks[index]).__name__, started[index]
                if state.keys() != now.keys():
                    raise ValueError(f"{name} remembers {', '.join(now)}, not {', '.join(state)}")
                for key, value in now.items():
                    start = to_host(value) if owns(value) else decode(encode(value))
                    check_alike(f"{key} of {name}", state[key], start)
            for index, state in remembered.items():
                callbacks[index].restore(state)

    def _fail(self, batch: int, value: float) -> None:
        raise NonFiniteLossError(
            f"the loss became {value} in epoch {self.epoch + 1}, batch {batch + 1} of "
            f"{self.n_batches}: {self._step.first_non_finite()}. {_ADVICE}"
        )


@contextmanager
def _readable(saved: Saved) -> Iterator[None]:
    """Say of what a checkpoint cannot be understood as that it is so."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"{saved.path} is not a checkpoint of this run, or is damaged ({printable(str(error))})"
        ) from error


def _in_words(value: Any) -> Any:
    """A setting as it can be compared with one of another process."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a stop after the current step; the second is as usual.

    A handler of the application's for SIGTERM is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in [*previous.items()]:
        own = handler is not signal.SIG_DFL if number == signal.SIGTERM else handler is None
        if own or handler is signal.SIG_IGN:
            del previous[number]

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number: int, frame: Any) -> None:
        run._signal = _SIGNALS[signal.Signals(number)]
        restore()

    for number in previous:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()
        if run._signal:
            run.stop(run._signal)
            warn_user(
                f"training was {run._signal} in epoch {run.epoch + 1} of {run.epochs}; "
                "the network holds the last finished step",
                TrainingInterruptedWarning,
            )
