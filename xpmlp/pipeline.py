"""What the command line trains and saves: scaling, a network and the meaning of its outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from xpmlp.backends import host
from xpmlp.metrics import decide
from xpmlp.network import Network


@dataclass(frozen=True)
class Pipeline:
    """A network between scaled features and a named target.

    Attributes
    ----------
    network : Network
    features : list of str
        Names of the feature columns, in order.
    target : str
    classes : list or None
        What each class is called, in the order of the outputs; None for a regression.
    shift, factor : NumPy array of shape (n_features,)
        Features enter the network as ``(x - shift) * factor``.
    target_shift, target_scale : float
        A regression's prediction is ``output * target_scale + target_shift``.
    """

    network: Network
    features: list[str]
    target: str
    classes: list[Any] | None
    shift: Any
    factor: Any
    target_shift: float = 0.0
    target_scale: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError if a column cannot be scaled."""
        columns = [*zip(self.features, self.shift.tolist(), self.factor.tolist(), strict=True)]
        for name, shift, factor in [*columns, (self.target, self.target_shift, self.target_scale)]:
            if not (math.isfinite(shift) and math.isfinite(factor) and factor):
                raise ValueError(
                    f"column {name!r} cannot be scaled: its numbers are too large or too small"
                )

    def scale(self, X: Any) -> Any:
        """Features as the network takes them."""
        return (X - self.shift) * self.factor

    def output(self, X: Any) -> Any:
        """The network's output for unscaled features, NumPy array of shape (n, n_outputs)."""
        return self.network.predict(self.scale(X))

    def predict(self, X: Any) -> Any:
        """:meth:`decode` of the :meth:`output` for unscaled features."""
        return self.decode(self.output(X))

    def decode(self, output: Any) -> Any:
        """The class number of each row of an output, or the predicted value; shape ``(n,)``."""
        if self.classes is None:
            return output[:, 0] * self.target_scale + self.target_shift
        return decide(output, self.network.output_activation.name, n_targets=1)


def affine_scaling(kind: str, X: Any) -> tuple[Any, Any]:
    """Shift and factor that scale the columns of X.

    Parameters
    ----------
    kind : {"minmax", "standard", "none"}
        To [0, 1], to mean 0 and standard deviation 1, or not at all. Constant columns become 0.
        Numbers that overflow here give what is not finite, or 0.
    X : NumPy array of shape (n, n_features)
    """
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    with host().context():
        if kind == "minmax":
            scaler = MinMaxScaler().fit(X)
            return scaler.data_min_, scaler.scale_
        if kind == "standard":
            scaler = StandardScaler().fit(X)
            return scaler.mean_, 1.0 / scaler.scale_
    zeros = host().xp.zeros(X.shape[1])
    return zeros, zeros + 1.0
