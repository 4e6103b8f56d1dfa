"""The record of a run of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class History(Mapping[str, list[float]]):
    """The values of each epoch: ``history["loss"]`` is a list with one number an epoch.

    Attributes
    ----------
    n_epochs : int
        Epochs recorded.
    stopped : str or None
        Why training ended before its last epoch.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self.stopped: str | None = None

    def __getitem__(self, key: str) -> list[float]:
        if key not in self._values:
            raise KeyError(f"{key!r}, known are {', '.join(self._values)}")
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def n_epochs(self) -> int:
        return max((len(values) for values in self._values.values()), default=0)

    def __repr__(self) -> str:
        newest = ", ".join(f"{key}={value:.4g}" for key, value in self.newest().items())
        return f"<History of {self.n_epochs} epochs: {newest}>"

    def append(self, values: dict[str, float]) -> None:
        """Add one epoch."""
        for key, value in values.items():
            self._values.setdefault(key, []).append(value)

    def newest(self) -> dict[str, float]:
        """The values of the newest epoch."""
        return {key: values[-1] for key, values in self._values.items()}

    def copy(self) -> History:
        """A history of its own with the same values."""
        copied = History()
        copied._values, copied.stopped = self.to_dict(), self.stopped
        return copied

    def to_dict(self) -> dict[str, list[float]]:
        """A dict of lists, one entry an epoch."""
        return {key: list(values) for key, values in self._values.items()}

    def plot(self, ax: Any = None) -> Any:
        """Draw the losses over the epochs, and everything else on an axis of its own.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. Default: a new pyplot figure.

        Returns
        -------
        matplotlib Axes
            Of the losses.

        Raises
        ------
        ImportError
            If `ax` is not given and matplotlib is not installed.
        """
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise ImportError(
                    "History.plot needs matplotlib: pip install 'xpmlp[plot]'"
                ) from error
            ax = pyplot.subplots(layout="constrained")[1]
        epochs = range(1, self.n_epochs + 1)
        losses = [key for key in self._values if key.endswith("loss")]
        others = [key for key in self._values if key not in losses]
        lines = []
        for key in losses:
            lines += ax.plot(epochs, self[key], label=key)
        values = [value for key in losses for value in self[key]]
        if values and min(values) > 0 and max(values) > 10 * min(values):
            ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        ax.grid(alpha=0.3)
        if others:
            right = ax.twinx()
            right.set_ylabel(", ".join(others))
            for key in others:
                lines += right.plot(epochs, self[key], "--", color=f"C{len(lines)}", label=key)
        ax.legend(
            lines,
            [line.get_label() for line in lines],
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=min(3, len(lines)),
            frameon=False,
        )
        return ax
