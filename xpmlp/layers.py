"""Layers: what a user writes down, and what each becomes when it is bound to buffers.

The four equations of backpropagation, BP1 to BP4, are numbered in ``docs/design.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from xpmlp import rules
from xpmlp.activations import ACTIVATIONS, Activation, Identity, Softmax
from xpmlp.errors import check_flag, check_number
from xpmlp.initializers import INITIALIZERS, Initializer
from xpmlp.names import resolve
from xpmlp.rng import stream
from xpmlp.typing import Array, Backend


@dataclass(frozen=True)
class Dense:
    """A fully connected layer: ``a = g(x W + b)``.

    Parameters
    ----------
    units : int
        Outputs of the layer.
    activation : str or Activation, default "identity"
        Also as an object with arguments, such as ``ELU(alpha=0.5)``.
    bias : bool, default True
    init : str or Initializer, optional
        Distribution of the initial weights; biases start at zero. Default: what suits the
        activation, "he_uniform" for ReLU and its kin, "lecun_normal" for SELU, otherwise
        "glorot_uniform".

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong type, out of range, or an unknown name.
    """

    units: int
    activation: Any = "identity"
    bias: bool = True
    init: Any = None

    def __post_init__(self) -> None:
        check_number("units", self.units, minimum=1, integer=True)
        check_flag("bias", self.bias)
        object.__setattr__(self, "units", int(self.units))
        object.__setattr__(self, "bias", bool(self.bias))
        activation = resolve("activation", self.activation, ACTIVATIONS, Activation)
        chosen = activation.default_init if self.init is None else self.init
        init: Any = resolve("init", chosen, INITIALIZERS, Initializer)
        if isinstance(activation, Softmax) and self.units == 1:
            raise ValueError(
                "softmax needs at least 2 units, got units=1: its output would always be 1. "
                "For two classes use one sigmoid unit or two softmax units"
            )
        object.__setattr__(self, "activation", activation)
        object.__setattr__(self, "init", init)

    def n_parameters(self, n_in: int) -> int:
        """Weights and biases of the layer behind `n_in` inputs."""
        return (n_in + self.bias) * self.units

    def __str__(self) -> str:
        return f"Dense({self.units}, {self.activation.name})" + ("" if self.bias else " no bias")


@dataclass(frozen=True)
class Dropout:
    """Inverted dropout (Srivastava et al. 2014).

    In training each value is kept with probability ``1 - rate`` and then divided by it, in the
    forward and with the same mask in the backward pass; in prediction nothing happens.

    Parameters
    ----------
    rate : float
        The probability to *drop* a value, in [0, 1).
    """

    rate: float

    def __post_init__(self) -> None:
        check_number("rate", self.rate, minimum=0, maximum=1, open_maximum=True)
        object.__setattr__(self, "rate", float(self.rate))

    def __str__(self) -> str:
        return f"Dropout({self.rate:g})"


Layer: TypeAlias = Dense | Dropout
Allocate: TypeAlias = Callable[..., Array]
"""``allocate(width, dtype=...)``: a buffer of shape ``(n, width)``."""


class DenseStage:
    """A dense layer bound to its parameters and to buffers of n rows.

    Attributes
    ----------
    x : array of shape (n, n_in)
        The input.
    z, a : array of shape (n, n_out)
        Pre-activation and activation; one buffer where both are not needed.
    d : array of shape (n, n_out)
        Receives dJ/dA from the stage behind; after :meth:`backward` it holds dJ/dZ.
    """

    def __init__(
        self,
        backend: Backend,
        activation: Activation,
        x: Array,
        parameters: tuple[Array, Array | None],
        gradients: tuple[Array, Array | None] | None,
        allocate: Allocate,
        keep_z: bool,
    ) -> None:
        self.backend = backend
        self.activation = activation
        self.x = x
        self.w, self.b = parameters
        n_out = self.w.shape[-1]
        self.z = allocate(n_out)
        self.a = allocate(n_out) if keep_z and not isinstance(activation, Identity) else self.z
        self.column = allocate(1)
        if gradients is not None:
            self.grad_w, self.grad_b = gradients
            self.d = allocate(n_out)
            self.x_t, self.w_t = x.mT, self.w.mT

    def forward(self, epoch: int, batch: int) -> None:
        backend = self.backend
        backend.matmul(self.x, self.w, self.z)
        if self.b is not None:
            backend.elementwise(rules.add)((self.z,), self.z, self.b)
        self.activation.forward(backend, self.z, self.a, self.column)

    def backward(self, dx: Array | None) -> None:
        backend = self.backend
        self.activation.backward(backend, self.z, self.a, self.d, self.column)  # BP2, its g'(Z)
        backend.matmul(self.x_t, self.d, self.grad_w)  # BP4
        if self.grad_b is not None:
            backend.sum_columns(self.d, self.grad_b)  # BP3
        if dx is not None:
            backend.matmul(self.d, self.w_t, dx)  # BP2, its D W^T


class DropoutStage:
    """Dropout bound to buffers of n rows; attributes as in :class:`DenseStage`."""

    def __init__(
        self,
        backend: Backend,
        rate: float,
        seed: int,
        index: int,
        x: Array,
        allocate: Allocate,
    ) -> None:
        self.backend = backend
        self.seed, self.index = seed, index
        self.x = x
        # A multiple of 2**-24 no less than the keep probability: comparing a float32 uniform
        # with it is exact, in any dtype.
        self.keep = -(-(1.0 - rate) * 2**24 // 1) / 2**24
        self.scale = 1.0 / (1.0 - rate)
        self.a = allocate(x.shape[-1])
        self.d = allocate(x.shape[-1])
        self.u = allocate(x.shape[-1], dtype="float32")

    def forward(self, epoch: int, batch: int) -> None:
        address = stream(self.seed, "dropout", epoch=epoch, batch=batch, layer=self.index)
        self.backend.fill_uniform(self.u, address)
        self._apply(self.x, self.a)

    def backward(self, dx: Array | None) -> None:
        if dx is not None:
            self._apply(self.d, dx)

    def _apply(self, x: Array, out: Array) -> None:
        self.backend.elementwise(rules.dropout)((out,), x, self.u, self.keep, self.scale)


Stage: TypeAlias = DenseStage | DropoutStage
