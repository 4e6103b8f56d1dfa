"""The record of a run of training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
        """Add one epoch, or to the newest one what it has no value of yet.

        A key that was missing for some epochs has NaN there.
        """
        n = self.n_epochs
        if not any(len(self._values.get(key, ())) == n for key in values):
            n -= 1  # all are missing in the newest epoch
        for key, value in values.items():
            column = self._values.setdefault(key, [])
            column += [math.nan] * (n - len(column)) + [value]

    def newest(self) -> dict[str, float]:
        """The values of the newest epoch."""
        n = self.n_epochs
        return {key: values[-1] for key, values in self._values.items() if len(values) == n}

    def copy(self) -> History:
        """A history of its own with the same values."""
        return History.of(self.to_dict(), self.stopped)

    @classmethod
    def of(cls, values: Mapping[str, Sequence[float]], stopped: str | None = None) -> History:
        """A history that goes on from the given values, as of :meth:`to_dict`."""
        history = cls()
        history._values = {str(key): [float(x) for x in column] for key, column in values.items()}
        history.stopped = stopped
        return history

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
        ax = new_axes("History.plot") if ax is None else ax
        self._draw(ax)
        return ax

    def _draw(self, ax: Any, prefix: str = "", **line_kw: Any) -> tuple[Any, list[Any]]:
        """Draw into `ax`; the axes of the scores, None where there are none, and the lines."""
        keys = sorted(self, key=lambda key: key.startswith("val_"))
        losses = [key for key in keys if key.endswith("loss")]
        scores = [key for key in keys if key not in losses]
        right = _twin(ax) if scores else None
        # Colours go on where an earlier history in the same axes ended.
        drawn = len(_labelled(ax, right))
        lines: list[Any] = []
        for key in losses + scores:
            style = {
                "color": f"C{drawn + len(lines)}",
                **({"linestyle": "--", "linewidth": 1.2} if key in scores else {}),
                "marker": "o" if len(self[key]) == 1 else None,  # a line of one point is invisible
                "label": prefix + key,
                **line_kw,
            }
            axes: Any = right if key in scores else ax
            lines += axes.plot(range(1, len(self[key]) + 1), self[key], **style)
        values = [y for line in ax.lines for y in line.get_ydata() if math.isfinite(y)]
        if values and min(values) > 0 and max(values) > 10 * min(values):
            ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        ax.grid(alpha=0.3)
        if right:
            right.set_ylabel(", ".join(scores))
        shown = sorted(_labelled(ax, right), key=_name)
        labels = [line.get_label() for line in shown]
        ax.legend(
            shown,
            labels,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=len(shown) if sum(map(len, labels)) < 40 else 2,
            columnspacing=1.2,
            frameon=False,
        )
        return right, lines


def new_axes(caller: str) -> Any:
    """The axes of a new pyplot figure."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"{caller} needs matplotlib: pip install 'xpmlp[plot]'") from error
    return pyplot.subplots(layout="constrained")[1]


def _twin(ax: Any) -> Any:
    """The axes of the scores at the right of `ax`: those of an earlier history, or new ones."""
    for other in ax.figure.axes:
        same_place = other.get_subplotspec() == ax.get_subplotspec()
        joined = ax.get_shared_x_axes().joined(ax, other)
        if other.get_gid() == "scores" and same_place and joined:
            return other
    right = ax.twinx()
    right.set_gid("scores")
    return right


def _name(line: Any) -> str:
    return str(line.get_label().rpartition(": ")[0])


def _labelled(*axes: Any) -> list[Any]:
    """The lines that a legend lists."""
    lines = [line for one in axes if one for line in one.lines]
    return [line for line in lines if not line.get_label().startswith("_")]
