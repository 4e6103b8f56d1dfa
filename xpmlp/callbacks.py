"""Callbacks: what can watch and end a run of training."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from xpmlp.errors import check_flag, check_number, unknown_name

if TYPE_CHECKING:
    from xpmlp.training import Run


class Callback:
    """Hooks that do nothing; derive from it and override some.

    Every hook is given the :class:`~xpmlp.training.Run`. ``run.stop(reason)`` ends training
    after the current step.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        hooks = [name for name in dir(Callback) if name.startswith("on_")]
        for name in vars(cls):
            if name.startswith("on_") and name not in hooks:
                raise unknown_name(f"{cls.__name__}: hook", name, hooks)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def on_start(self, run: Run) -> None:
        """Before the first step, when every argument has been checked."""

    def on_batch(self, run: Run) -> None:
        """After each step. Reading ``run.batch_loss`` here waits for the device.

        A callback that overrides this one keeps an adapter from doing many steps at once.
        """

    def on_progress(self, run: Run, n_rows: int) -> None:
        """After one or more steps on `n_rows` rows in all; ``run.batch`` is the first of them.

        `n_rows` is 0 where a signal ends training between two epochs.
        """

    def on_epoch(self, run: Run) -> None:
        """After each epoch, when its values are in ``run.history``."""

    def on_end(self, run: Run) -> None:
        """After the last step, also when it was the last because of a stop or an interrupt."""

    def state(self) -> dict[str, Any]:
        """What a :class:`xpmlp.Checkpoint` keeps of this callback, by name.

        Arrays of the network's device, finite ones, numbers, text, None, and lists of such. Where
        a run goes on, they must have the names and kinds, and arrays the shapes and dtypes, that
        they have right after `on_start`; what is None there may be anything. A callback that
        remembers nothing, or may begin anew where a run goes on, has none.
        """
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` returned, after `on_start` and before the next step.

        Arrays are NumPy's then.
        """


class EarlyStopping(Callback):
    """End training when a value has stopped improving, with the best parameters restored.

    Parameters
    ----------
    monitor : str, default "val_loss"
        A key of the history.
    patience : int, default 10
        Epochs without improvement before training ends.
    min_delta : float, default 0.0
        A change must be larger than this to count.
    mode : {"auto", "min", "max"}, default "auto"
        Whether smaller or larger is better. "auto" knows the losses and the named metrics.
    restore_best : bool, default True
        Whether the network ends with the parameters of its best epoch.

    Attributes
    ----------
    best : float
        The best value.
    best_epoch : int
        Its epoch, counted from 1.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        check_number("patience", patience, minimum=1, integer=True)
        check_number("min_delta", min_delta, minimum=0)
        check_flag("restore_best", restore_best)
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.restore_best = restore_best
        self.best = math.inf
        self.best_epoch = 0
        self._sign = 1.0

    def on_start(self, run: Run) -> None:
        if self.monitor.startswith("val_") and "val_loss" not in run.better:
            raise ValueError(
                f"monitor={self.monitor!r} needs validation data: validation=(X, y) in fit; of an "
                "estimator early_stopping=True, or X_val and y_val in its fit"
            )
        if self.monitor not in run.better:
            raise unknown_name("monitor", self.monitor, run.better)
        mode = self.mode if self.mode != "auto" else run.better[self.monitor]
        if mode is None:
            raise ValueError(f"mode must be 'min' or 'max' for the metric {self.monitor!r}")
        self._sign = 1.0 if mode == "min" else -1.0
        self.best = self._sign * math.inf
        self.best_epoch = 0
        self._backend = run.network.backend
        self._parameters = self._backend.zeros(run.network.parameters.shape, run.network.dtype)

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "parameters": self._parameters}

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self._backend.copy(self._backend.from_host(state["parameters"]), self._parameters)

    def on_epoch(self, run: Run) -> None:
        value = run.history[self.monitor][-1]
        if self._sign * (self.best - value) > self.min_delta:
            self.best, self.best_epoch = value, run.epoch + 1
            run.network.backend.copy(run.network.parameters, self._parameters)
        elif run.epoch + 1 - self.best_epoch >= self.patience:
            run.stop(f"{self.monitor} has not improved for {self.patience} epochs")

    def on_end(self, run: Run) -> None:
        if self.restore_best and self.best_epoch:
            run.network.backend.copy(self._parameters, run.network.parameters)


class GradientNorms(Callback):
    """Record how large the gradient of each layer's weights is: whether it vanishes or explodes.

    The gradient is that of the epoch's last batch, of the whole objective, and after clipping.
    Draw the norms with :class:`xpmlp.GradientFlowDisplay`.

    :func:`xpmlp.fit` and an estimator's ``fit`` start anew; its ``partial_fit``, and ``fit`` with
    ``warm_start=True``, go on with the epochs before them. Every network needs an instance of its
    own.

    Attributes
    ----------
    norms : list of list of float
        ``norms[i][l]`` is the Euclidean norm of dJ/dW of layer l after epoch ``epochs[i]``.
    epochs : list of int
        The recorded epochs, counted from 1.
    """

    def __init__(self) -> None:
        self.norms: list[list[float]] = []
        self.epochs: list[int] = []

    def on_start(self, run: Run) -> None:
        kept = sum(epoch <= run.first_epoch for epoch in self.epochs)
        del self.norms[kept:], self.epochs[kept:]

    def state(self) -> dict[str, Any]:
        return {"norms": self.norms, "epochs": self.epochs}

    def restore(self, state: dict[str, Any]) -> None:
        norms = [[float(norm) for norm in norms] for norms in state["norms"]]
        self.norms[:], self.epochs[:] = norms, [int(epoch) for epoch in state["epochs"]]

    def on_epoch(self, run: Run) -> None:
        backend, dtype = run.network.backend, run.network.policy.accumulate
        squares = [backend.empty((), dtype) for _ in run.gradient.weights]
        for weight, square in zip(run.gradient.weights, squares, strict=True):
            backend.total_squares(weight, square)
        self.norms.append([math.sqrt(backend.read(square)) for square in squares])
        self.epochs.append(run.first_epoch + run.epoch + 1)


class ProgressBar(Callback):
    """A bar with the device, samples per second and the newest values; only on a terminal.

    A terminal that goes away does not end training.
    """

    def on_start(self, run: Run) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(
            total=run.epochs * run.n_samples,
            initial=run.samples_done,
            desc=f"training on {run.network.device}",
            unit=" samples",
            unit_scale=True,
            bar_format="{desc} {percentage:3.0f}% |{bar:12}| {rate_fmt}{postfix}",
            disable=None,  # where standard error is not a terminal
            leave=True,
        )

    def on_progress(self, run: Run, n_rows: int) -> None:
        with suppress(OSError, ValueError):
            self._bar.update(n_rows)

    def on_epoch(self, run: Run) -> None:
        if not self._bar.disable:
            values = {key: f"{values[-1]:.4g}" for key, values in run.history.to_dict().items()}
            self._bar.set_postfix(epoch=f"{run.epoch + 1}/{run.epochs}", **values, refresh=False)

    def on_end(self, run: Run) -> None:
        with suppress(OSError, ValueError):
            self._bar.close()
