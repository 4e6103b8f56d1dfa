"""Pictures of a fitted estimator, in the manner of scikit-learn's displays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sklearn.utils.validation import check_is_fitted

from xpmlp.callbacks import GradientNorms
from xpmlp.history import History, new_axes


class LossCurveDisplay:
    """Losses over the epochs, and on a right axis the scores.

    Parameters
    ----------
    history : History
        What :func:`xpmlp.fit` returns, or an estimator's ``history_``.
    name : str, optional
        Stands before each label, to tell several histories in the same axes apart.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Of the losses.
    score_ax_ : matplotlib Axes or None
        Of the scores, where there are any.
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        One for each key of the history.

    See Also
    --------
    xpmlp.History.plot : The same picture, without an estimator.
    """

    def __init__(self, history: History, *, name: str | None = None) -> None:
        self.history = history
        self.name = name

    def plot(
        self,
        ax: Any = None,
        *,
        name: str | None = None,
        line_kw: dict[str, Any] | None = None,
    ) -> LossCurveDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw, perhaps the ``ax_`` of another display. Default: a new pyplot figure.
        name : str, optional
            In place of the constructor's.
        line_kw : dict, optional
            Passed to matplotlib's ``plot``.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If `ax` is not given and matplotlib is not installed.
        """
        name = self.name if name is None else name
        self.ax_ = new_axes("LossCurveDisplay.plot") if ax is None else ax
        self.figure_ = self.ax_.figure
        prefix = f"{name}: " if name else ""
        self.score_ax_, self.lines_ = self.history._draw(self.ax_, prefix, **(line_kw or {}))
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        ax: Any = None,
        name: str | None = None,
        line_kw: dict[str, Any] | None = None,
    ) -> LossCurveDisplay:
        """Draw the history of a fitted estimator.

        Parameters
        ----------
        estimator : MLPClassifier or MLPRegressor
            Or a pipeline that ends in one, or a search or a regressor of transformed targets
            around one.
        ax, name, line_kw
            See :meth:`plot`.

        Returns
        -------
        LossCurveDisplay

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If `estimator` is not fitted.
        TypeError
            If `estimator` is none of these.
        """
        return cls(_fitted(estimator).history_, name=name).plot(ax, line_kw=line_kw)


class GradientFlowDisplay:
    """The norm of the gradient of each layer's weights over the epochs.

    Lines of like height are what makes all layers learn. A first layer orders of magnitude below
    the last one: the gradient vanishes on its way back. Lines that climb: it explodes.

    Parameters
    ----------
    norms : sequence of shape (n_epochs, n_layers)
        The attribute of :class:`xpmlp.GradientNorms`.
    epochs : sequence of int of shape (n_epochs,), optional
        Default: counted from 1.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        One for each layer, the first layer first.
    colorbar_ : matplotlib Colorbar or None

    Raises
    ------
    ValueError
        If `norms` is empty or its rows, or `epochs`, differ in length.
    """

    def __init__(
        self, norms: Sequence[Sequence[float]], *, epochs: Sequence[int] | None = None
    ) -> None:
        if not len(norms) or {len(row) for row in norms} != {len(norms[0])}:
            raise ValueError(
                "norms must have a row for each epoch and in each a number for each layer, got "
                f"rows of {[len(row) for row in norms]}"
            )
        if epochs is not None and len(epochs) != len(norms):
            raise ValueError(f"epochs must have {len(norms)} elements, got {len(epochs)}")
        self.norms = norms
        self.epochs = epochs

    def plot(
        self,
        ax: Any = None,
        *,
        cmap: Any = "viridis",
        colorbar: bool = True,
        line_kw: dict[str, Any] | None = None,
    ) -> GradientFlowDisplay:
        """Draw. A norm of exactly 0 is a triangle on the lower edge, off the logarithmic axis.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw. Default: a new pyplot figure.
        cmap : str or matplotlib Colormap, default "viridis"
            From the first layer to the last.
        colorbar : bool, default True
            Whether a colour bar tells the layers apart.
        line_kw : dict, optional
            Passed to matplotlib's ``plot``.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If `ax` is not given and matplotlib is not installed.
        """
        self.ax_ = ax = new_axes("GradientFlowDisplay.plot") if ax is None else ax
        self.figure_ = ax.figure
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize

        epochs = range(1, len(self.norms) + 1) if self.epochs is None else self.epochs
        layers = list(zip(*self.norms, strict=True))
        n = len(layers)
        whole = colormaps.get_cmap(cmap)
        # The light end of a colour map is hard to see on white.
        colors = [whole(0.9 * index / max(n - 1, 1)) for index in range(n)]
        self.lines_ = []
        for index, (norms, color) in enumerate(zip(layers, colors, strict=True)):
            unbroken = len(norms) > 1 and all(value > 0 for value in norms)
            style = {
                "color": color,
                "marker": None if unbroken else ".",  # a point between gaps has no line
                "label": f"layer {index + 1}",
                **(line_kw or {}),
            }
            positive = [value if value > 0 else math.nan for value in norms]
            self.lines_ += ax.plot(epochs, positive, **style)
            zeros = [epoch for epoch, value in zip(epochs, norms, strict=True) if value == 0]
            if zeros:
                ax.plot(
                    zeros,
                    [0.0] * len(zeros),
                    "v",
                    color=self.lines_[-1].get_color(),
                    transform=ax.get_xaxis_transform(),  # y in parts of the height
                    clip_on=False,
                )
        ax.set_yscale("log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_xlabel("epoch")
        ax.set_ylabel("norm of the weights' gradient")
        ax.grid(alpha=0.3)
        self.colorbar_ = None
        if colorbar:
            shades = ScalarMappable(Normalize(0.5, n + 0.5), ListedColormap(colors))
            self.colorbar_ = self.figure_.colorbar(
                shades,
                ax=ax,
                label="layer, from input to output",
                ticks=range(1, n + 1, math.ceil(n / 12)),
            )
            self.colorbar_.minorticks_off()
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        ax: Any = None,
        cmap: Any = "viridis",
        colorbar: bool = True,
        line_kw: dict[str, Any] | None = None,
    ) -> GradientFlowDisplay:
        """Draw what a :class:`xpmlp.GradientNorms` among the estimator's callbacks has recorded.

        Parameters
        ----------
        estimator : MLPClassifier or MLPRegressor
            See :meth:`LossCurveDisplay.from_estimator`.
        ax, cmap, colorbar, line_kw
            See :meth:`plot`.

        Returns
        -------
        GradientFlowDisplay

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If `estimator` is not fitted.
        TypeError
            If `estimator` is of another kind.
        ValueError
            If no norms have been recorded.
        """
        model = _fitted(estimator)
        for callback in model.callbacks or ():
            if isinstance(callback, GradientNorms) and callback.norms:
                shown = cls(callback.norms, epochs=callback.epochs)
                return shown.plot(ax, cmap=cmap, colorbar=colorbar, line_kw=line_kw)
        raise ValueError(
            f"this {type(model).__name__} has recorded no gradient norms: construct it with "
            "callbacks=[xpmlp.GradientNorms()] and fit it"
        )


def _fitted(estimator: Any) -> Any:
    """The fitted estimator of this library in `estimator`, which may be one around it."""
    check_is_fitted(estimator)
    if hasattr(estimator, "history_"):
        return estimator
    for attribute in ("best_estimator_", "regressor_"):
        if hasattr(estimator, attribute):
            return _fitted(getattr(estimator, attribute))
    if hasattr(estimator, "steps"):
        return _fitted(estimator.steps[-1][1])
    raise TypeError(
        "estimator must be an xpmlp.MLPClassifier or MLPRegressor, or contain one, got "
        f"{estimator!r}"
    )
