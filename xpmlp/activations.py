"""Activation functions. Their formulas, forward and backward, are in :mod:`xpmlp.rules`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xpmlp import rules
from xpmlp.backends import exp_of_rows
from xpmlp.errors import check_number
from xpmlp.typing import Array, Backend, Rule


@dataclass(frozen=True)
class Activation:
    """An element-wise activation ``a = g(z)``.

    Derive from this class, as a frozen dataclass, to add one: give it a `name`, the two rules and,
    if the backward rule reads the pre-activation instead of the activation, ``reads = "z"``.
    """

    name: ClassVar[str]
    forward_rule: ClassVar[Rule]
    """``forward_rule(xp, z, *params) -> a``."""
    backward_rule: ClassVar[Rule]
    """``backward_rule(xp, a or z, d, *params) -> d g'(z)``."""
    reads: ClassVar[str] = "a"
    """Which of ``"a"`` and ``"z"`` the backward rule is given."""
    default_init: ClassVar[str] = "glorot_uniform"
    """The initializer of a layer that names none."""

    @property
    def params(self) -> tuple[float, ...]:
        """Numbers passed to both rules."""
        return ()

    def forward(self, backend: Backend, z: Array, a: Array, column: Array) -> None:
        """Write ``g(z)`` into `a`, which may be `z` if the backward pass reads `a`.

        Parameters
        ----------
        z, a : array of shape (n, d)
        column : array of shape (n, 1)
            Scratch for row-wise reductions.
        """
        backend.elementwise(type(self).forward_rule)((a,), z, *self.params)

    def backward(self, backend: Backend, z: Array, a: Array, d: Array, column: Array) -> None:
        """Turn dJ/dA, shape ``(n, d)``, into dJ/dZ in place (the factor ``g'(Z)`` of BP2)."""
        source = z if self.reads == "z" else a
        backend.elementwise(type(self).backward_rule)((d,), source, d, *self.params)


@dataclass(frozen=True)
class Identity(Activation):
    """``g(z) = z``."""

    name = "identity"

    def forward(self, backend: Backend, z: Array, a: Array, column: Array) -> None:
        if a is not z:
            backend.copy(z, a)

    def backward(self, backend: Backend, z: Array, a: Array, d: Array, column: Array) -> None:
        pass


@dataclass(frozen=True)
class Sigmoid(Activation):
    """``g(z) = 1 / (1 + exp(-z))``."""

    name = "sigmoid"
    forward_rule = rules.sigmoid
    backward_rule = rules.sigmoid_backward


@dataclass(frozen=True)
class Tanh(Activation):
    """``g(z) = tanh(z)``."""

    name = "tanh"
    forward_rule = rules.tanh
    backward_rule = rules.tanh_backward


@dataclass(frozen=True)
class ReLU(Activation):
    """``g(z) = max(0, z)``, with derivative 0 at 0."""

    name = "relu"
    default_init = "he_uniform"
    forward_rule = rules.relu
    backward_rule = rules.relu_backward


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """``g(z) = z`` for positive z, ``slope * z`` otherwise (Maas et al. 2013).

    Parameters
    ----------
    slope : float, default 0.01
    """

    slope: float = 0.01
    name = "leaky_relu"
    default_init = "he_uniform"
    forward_rule = rules.leaky_relu
    backward_rule = rules.leaky_relu_backward
    reads = "z"

    def __post_init__(self) -> None:
        check_number("slope", self.slope)

    @property
    def params(self) -> tuple[float, ...]:
        return (float(self.slope),)


@dataclass(frozen=True)
class ELU(Activation):
    """``g(z) = z`` for positive z, ``alpha * (exp(z) - 1)`` otherwise (Clevert et al. 2016).

    Parameters
    ----------
    alpha : float, default 1.0
    """

    alpha: float = 1.0
    name = "elu"
    default_init = "he_uniform"
    forward_rule = rules.elu
    backward_rule = rules.elu_backward
    reads = "z"

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, minimum=0)

    @property
    def params(self) -> tuple[float, ...]:
        return 1.0, float(self.alpha)


@dataclass(frozen=True)
class SELU(Activation):
    """The scaled ELU that keeps mean 0 and variance 1 (Klambauer et al. 2017)."""

    name = "selu"
    default_init = "lecun_normal"
    forward_rule = rules.elu
    backward_rule = rules.elu_backward
    reads = "z"

    @property
    def params(self) -> tuple[float, ...]:
        return 1.0507009873554805, 1.6732632423543772


@dataclass(frozen=True)
class GELU(Activation):
    """``g(z) = z Phi(z)`` with the normal distribution function (Hendrycks & Gimpel 2016)."""

    name = "gelu"
    default_init = "he_uniform"
    forward_rule = rules.gelu
    backward_rule = rules.gelu_backward
    reads = "z"


@dataclass(frozen=True)
class GELUTanh(Activation):
    """The approximation of GELU by tanh, from the same paper."""

    name = "gelu_tanh"
    default_init = "he_uniform"
    forward_rule = rules.gelu_tanh
    backward_rule = rules.gelu_tanh_backward
    reads = "z"


@dataclass(frozen=True)
class SiLU(Activation):
    """``g(z) = z sigmoid(z)``, also called swish (Ramachandran et al. 2017)."""

    name = "silu"
    default_init = "he_uniform"
    forward_rule = rules.silu
    backward_rule = rules.silu_backward
    reads = "z"


@dataclass(frozen=True)
class Softplus(Activation):
    """``g(z) = log(1 + exp(z))``."""

    name = "softplus"
    forward_rule = rules.softplus
    backward_rule = rules.softplus_backward


@dataclass(frozen=True)
class Mish(Activation):
    """``g(z) = z tanh(log(1 + exp(z)))`` (Misra 2019)."""

    name = "mish"
    default_init = "he_uniform"
    forward_rule = rules.mish
    backward_rule = rules.mish_backward
    reads = "z"


@dataclass(frozen=True)
class Exp(Activation):
    """``g(z) = exp(z)``: a positive rate, for the Poisson loss."""

    name = "exp"
    forward_rule = rules.exp
    backward_rule = rules.exp_backward


@dataclass(frozen=True)
class Softmax(Activation):
    """``g(z)_k = exp(z_k) / sum_j exp(z_j)`` over each row."""

    name = "softmax"

    def forward(self, backend: Backend, z: Array, a: Array, column: Array) -> None:
        exp_of_rows(backend, z, a, column, column)
        backend.elementwise(rules.divide)((a,), a, column)

    def backward(self, backend: Backend, z: Array, a: Array, d: Array, column: Array) -> None:
        # dz = a (d - sum_j a_j d_j) = a d - a sum_j a_j d_j
        backend.elementwise(rules.multiply)((d,), d, a)
        backend.sum_rows(d, column)
        backend.elementwise(rules.softmax_backward)((d,), a, d, column)


ACTIVATIONS: dict[str, type[Activation]] = {
    cls.name: cls
    for cls in (
        Identity, Sigmoid, Tanh, ReLU, LeakyReLU, ELU, SELU, GELU, GELUTanh, SiLU, Softplus, Mish,
        Exp, Softmax,
    )
}  # fmt: skip
ACTIVATIONS |= {"logistic": Sigmoid, "swish": SiLU, "linear": Identity}
