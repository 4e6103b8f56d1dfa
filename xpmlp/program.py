"""Straight-line work over preallocated buffers: the passes of a network, and one training step.

A program is made once for a number of rows and run many times. It makes no arrays itself; what an
adapter's primitives do without allocation, it does without allocation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpmlp import rules
from xpmlp.activations import Identity
from xpmlp.backends import host
from xpmlp.layers import Dense, DenseStage, DropoutStage, Stage
from xpmlp.losses import Loss
from xpmlp.typing import Array, Backend

if TYPE_CHECKING:
    from xpmlp.network import Network


class Arena:
    """Hands out buffers of a fixed number of rows.

    A second program for fewer rows, such as an epoch's last batch, asks for the same widths in
    the same order; :meth:`narrowed` gives it the leading rows of the same buffers.
    """

    def __init__(self, backend: Backend, n_rows: int, dtype: str) -> None:
        self.backend = backend
        self.n_rows = n_rows
        self.dtype = dtype
        self._buffers: list[Array] = []
        self._lender: Arena | None = None

    def narrowed(self, n_rows: int) -> Arena:
        """An arena of fewer rows in the same memory."""
        arena = Arena(self.backend, n_rows, self.dtype)
        arena._lender = self
        return arena

    def allocate(self, width: int, dtype: str | None = None) -> Array:
        """A buffer of shape ``(n_rows, width)``."""
        if self._lender is None:
            buffer = self.backend.empty((self.n_rows, width), dtype or self.dtype)
        else:
            buffer = self._lender._buffers[len(self._buffers)][: self.n_rows, :]
        self._buffers.append(buffer)
        return buffer


class Program:
    """The forward and backward pass of a network for n rows.

    Parameters
    ----------
    network : Network
    arena : Arena
    grad : array of shape (n_parameters,), optional
        Receives the gradient. Without it there is no backward pass, and no dropout.
    fuse : bool, default False
        Leave out the output activation: the loss takes logits.
    input_gradient : bool, default False
        Compute dJ/dX too, in ``dx``.
    keep_z : bool, default False
        Keep every pre-activation, not only those that a backward pass reads.

    Attributes
    ----------
    x : array of shape (n, n_features)
        The batch, to be filled by the caller.
    output : array of shape (n, n_outputs)
    d_output : array of shape (n, n_outputs)
        dJ/d output, to be filled by the caller before :meth:`backward`.
    """

    def __init__(
        self,
        network: Network,
        arena: Arena,
        grad: Array | None = None,
        *,
        fuse: bool = False,
        input_gradient: bool = False,
        keep_z: bool = False,
    ) -> None:
        training = grad is not None
        self.x = x = arena.allocate(network.n_features)
        self.dx = arena.allocate(network.n_features) if input_gradient else None
        self.stages: list[Stage] = []
        weights, biases = network.views(network.parameters)
        grad_weights, grad_biases = network.views(grad) if grad is not None else ((), ())
        last = len(network.layers) - 1
        dense = 0
        for index, layer in enumerate(network.layers):
            stage: Stage
            if isinstance(layer, Dense):
                activation = Identity() if fuse and index == last else layer.activation
                stage = DenseStage(
                    arena.backend,
                    activation,
                    x,
                    (weights[dense], biases[dense]),
                    (grad_weights[dense], grad_biases[dense]) if training else None,
                    arena.allocate,
                    keep_z or (training and activation.reads == "z"),
                )
                dense += 1
            elif training:
                stage = DropoutStage(
                    arena.backend, layer.rate, network.seed, index, x, arena.allocate
                )
            else:
                continue
            self.stages.append(stage)
            x = stage.a
        self.output = x
        if training:
            self.d_output = self.stages[-1].d

    def read(self, x: Array) -> None:
        """Take `x`, of the shape and dtype of ``x``, in its place: nothing is copied."""
        self.x = self.stages[0].x = x

    def forward(self, epoch: int = 0, batch: int = 0) -> None:
        """Compute ``output`` from ``x``; the arguments address the dropout masks."""
        for stage in self.stages:
            stage.forward(epoch, batch)

    def backward(self) -> None:
        """Compute the gradient from ``d_output``, last stage first."""
        for index in reversed(range(len(self.stages))):
            dx = self.stages[index - 1].d if index > 0 else self.dx
            self.stages[index].backward(dx)


class Objective:
    """Objective and gradient of one batch of n rows: data loss plus penalties.

    ``J = loss + alpha/2 sum W**2 + l1 sum |W|`` over the weights; biases are not penalised.

    Parameters
    ----------
    network : Network
    arena : Arena
    loss : Loss
    grad : array of shape (n_parameters,), optional
        Receives the gradient. Without it there is no backward pass, and no dropout.
    alpha, l1 : float
    alpha_over_n : bool
        Divide alpha by the samples of the batch or, if weighted, by their total weight.
    mean : bool
        Average over samples; otherwise sum.
    labels : bool
        Whether targets are class labels.
    weighted : bool
        Whether there are sample weights. A mean is then weighted: ``sum w loss / sum w``.
    input_gradient : bool

    Attributes
    ----------
    x, y, weight : arrays of shape (n, n_features), (n, n_outputs) or (n, 1), (n, 1)
        The batch, to be filled by the caller.
    """

    def __init__(
        self,
        network: Network,
        arena: Arena,
        loss: Loss,
        grad: Array | None = None,
        *,
        alpha: float = 0.0,
        alpha_over_n: bool = False,
        l1: float = 0.0,
        mean: bool = True,
        labels: bool = False,
        weighted: bool = False,
        input_gradient: bool = False,
    ) -> None:
        self.backend = backend = arena.backend
        self.loss = loss
        self.alpha, self.l1, self.mean = float(alpha), float(l1), mean
        self.policy = network.policy
        self.activation = network.output_activation.name
        self.program = Program(
            network,
            arena,
            grad,
            fuse=loss.takes_logits(self.activation),
            input_gradient=input_gradient,
        )
        k = network.n_outputs
        self.n_rows = arena.n_rows
        self.x = self.program.x
        self.d = self.program.d_output if grad is not None else arena.allocate(k)
        self.target = arena.allocate(k)
        self.y = arena.allocate(1) if labels else self.target
        self.elements = arena.allocate(k)
        self.columns = (arena.allocate(1), arena.allocate(1), arena.allocate(1))
        self.weight: Array | None = None
        if weighted:
            self.weight = arena.allocate(1)
            self.total_weight = backend.empty((), self.policy.compute)
            self.wide_weight = backend.empty((), self.policy.accumulate)
        self.alpha_over_weight = alpha_over_n and weighted and self.alpha != 0
        # The factor of the L2 penalty: a number, or one for each batch, on the device.
        self.l2: Any = self.alpha / arena.n_rows if alpha_over_n else self.alpha
        self.wide_l2: Any = self.l2
        if self.alpha_over_weight:
            self.l2 = backend.empty((), self.policy.parameter)
            self.wide_l2 = backend.empty((), self.policy.accumulate)
        self.classes: Array | None = None
        if labels:
            self.classes = backend.empty((k,), self.policy.compute)
            backend.copy(backend.from_host(host().xp.arange(k)), self.classes)
        self.weights = network.parameters[: network.n_weights]
        if grad is not None:
            self.grad_weights = grad[: network.n_weights]
        if self.l1:
            self.magnitudes = backend.empty(self.weights.shape, self.policy.parameter)
        self.value = backend.empty((), self.policy.accumulate)
        self.penalty = backend.empty((), self.policy.accumulate)

    def forward(self, epoch: int = 0, batch: int = 0) -> Array:
        """The objective of the batch: ``value``, a 0-d array on the device."""
        backend, program, loss = self.backend, self.program, self.loss
        program.forward(epoch, batch)
        if self.classes is not None:
            loss.encode(backend, self.activation, self.y, self.classes, self.target)
        else:
            loss.smooth(backend, self.activation, self.target)
        loss.evaluate(
            backend, self.activation, program.output, self.target, self.elements, self.d,
            self.columns,
        )  # fmt: skip
        self._average()
        value, penalty = self.value, self.penalty
        if self.alpha:
            backend.total_squares(self.weights, penalty)
            backend.elementwise(rules.add_l2)((value,), value, penalty, self.wide_l2)
        if self.l1:
            backend.elementwise(rules.magnitude)((self.magnitudes,), self.weights)
            backend.total(self.magnitudes, penalty)
            backend.elementwise(rules.add_l1)((value,), value, penalty, self.l1)
        return value

    def backward(self) -> None:
        """The gradient of the objective that :meth:`forward` computed."""
        self.program.backward()
        elementwise, grad, weights = self.backend.elementwise, self.grad_weights, self.weights
        if self.alpha:
            elementwise(rules.add_l2_gradient)((grad,), grad, weights, self.l2)
        if self.l1:
            elementwise(rules.add_l1_gradient)((grad,), grad, weights, self.l1)

    def _average(self) -> None:
        """Weight the loss of each element and its derivative, and add up the loss."""
        backend, d, elements, value = self.backend, self.d, self.elements, self.value
        multiply = backend.elementwise(rules.multiply)
        if self.weight is None:
            backend.total(elements, value)
            if self.mean:
                multiply((d,), d, 1.0 / self.n_rows)
                multiply((value,), value, 1.0 / self.n_rows)
            return
        if self.mean:
            backend.total(self.weight, self.wide_weight)
            backend.copy(self.wide_weight, self.total_weight)
            shares = backend.elementwise(rules.weight_share)
            shares((self.weight,), self.weight, self.total_weight)
            if self.alpha_over_weight:
                shares((self.wide_l2,), self.alpha, self.wide_weight)
                backend.copy(self.wide_l2, self.l2)
        multiply((elements,), elements, self.weight)
        multiply((d,), d, self.weight)
        backend.total(elements, value)


class Objectives:
    """Objectives for batches of at most n rows, in one set of buffers made at first use.

    The arguments are those of :class:`Objective`; `backend` stands in for the network's.
    """

    def __init__(
        self,
        network: Network,
        n_rows: int,
        loss: Loss,
        grad: Array | None = None,
        *,
        backend: Backend | None = None,
        **options: Any,
    ) -> None:
        self._n_rows = n_rows
        self._arguments = (network, loss, grad, options)
        self._arena = Arena(backend or network.backend, n_rows, network.policy.compute)
        self._made: dict[int, Objective] = {}

    def __getitem__(self, n_rows: int) -> Objective:
        """The objective for `n_rows` rows."""
        if self._n_rows not in self._made:
            self._made[self._n_rows] = self._make(self._arena)
        if n_rows not in self._made:
            self._made[n_rows] = self._make(self._arena.narrowed(n_rows))
        return self._made[n_rows]

    def _make(self, arena: Arena) -> Objective:
        network, loss, grad, options = self._arguments
        return Objective(network, arena, loss, grad, **options)
